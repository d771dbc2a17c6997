"""`fastrl bench step`: a whole training step phase by phase, beside TRL's, and what it costs.

"step": groups of responses of one length, a verifier's reward, the loop's own code; TRL's
GRPOTrainer takes its steps in between, in one process, on the same model directory and prompts.
"training": forward and backward of packed rows, as a share of the measured matmul rate.
"costs": a step over response length, group size, model size and vocabulary.

Nothing is timed before the gradient of the same code has been compared with autograd in fp64.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastrl import ops
from fastrl.batch import pack
from fastrl.bench import step_rivals as rivals
from fastrl.bench.kernels import DTYPES, check_asked, where
from fastrl.bench.sampler_limits import products
from fastrl.bench.sampler_rivals import SMOLLM2
from fastrl.bench.timing import measure, percentile, process_peak_bytes, say
from fastrl.config import Config, parse_overrides
from fastrl.display import Display
from fastrl.errors import UsageError
from fastrl.losses import LossSpec
from fastrl.model import Decoder, DecoderConfig, load_model
from fastrl.run import start
from fastrl.scoring import response_rows
from fastrl.train import take_step
from fastrl.types import Batch

Shape = tuple[int, ...]  # prompts, responses a prompt, new tokens
NAMES = ("step", "embedded", "training")
PHASES = ("sample", "grade", "reference", "train", "optimizer")
SHAPES = {"step": (4, 8, 48), "embedded": (32, 8, 64), "training": (32, 58, 48)}
ROWS = 2048  # of a micro-batch


def run(
    only: str | None = None,
    shape: Shape | None = None,
    dtype: str | None = None,
    repeats: int = 3,
    once: bool = False,
    model: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of results, one at a time. `once` takes one step of ours, for a profiler."""
    check_asked("step", NAMES, only, dtype)
    if shape is not None and (len(shape) != 3 or min(shape) < 1 or shape[1] < 2):
        raise UsageError(
            f"shape is {','.join(map(str, shape))}; it is prompts, responses a prompt (2 at least),"
            " new tokens, as 4,8,48; of training: sequences, tokens of a prompt, new tokens"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kinds = (dtype,) if dtype else ("bfloat16",) if device.type == "cuda" else tuple(DTYPES)[:2]
    large = model or str(SMOLLM2.expanduser())
    for name in (only,) if only else NAMES:
        size = shape or SHAPES[name]
        source = "embedded" if name == "embedded" else large
        for kind in kinds:
            head = {"name": name, "shape": list(size), "dtype": kind, "device": device.type}
            head |= {"model": Path(source).name} | where(device)
            if name == "training":
                error = None if once else gradient_error(source, kind)
                row = training(load_model(source, dtype=kind), size, 1 if once else repeats)
                yield head | row | {"max_error": error}
            else:
                yield from whole(source, size, kind, repeats, once, head)


def whole(
    source: str, size: Shape, kind: str, repeats: int, once: bool, head: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Steps of ours and of TRL in turns."""
    with tempfile.TemporaryDirectory() as directory:
        ours = Ours(source, size, kind, Path(directory))
        if once:
            ours()
            return
        error = gradient_error(source, kind)
        say(f"{head['name']}, {head['dtype']}: first step of fastrl")
        peak = process_peak_bytes(ours, torch.device(head["device"]))
        ours.steps.clear()
        theirs: list[float] = []
        failed = None
        try:
            theirs = rivals.trl_steps(ours.prompts, source, size, kind, repeats, between=ours)
        except ImportError as problem:
            failed = f"{type(problem).__name__}: {problem}"
            for _ in range(repeats):
                ours()
        times = [step["seconds"] * 1e3 for step in ours.steps]
        ms = statistics.median(times)
        row = head | {
            "ms": ms,
            "ms_p20": percentile(times, 20),
            "ms_p80": percentile(times, 80),
            "peak_bytes": peak,
            "max_error": error,
            **{
                f"{phase}_ms": 1e3 * statistics.median(s[f"seconds_{phase}"] for s in ours.steps)
                for phase in PHASES
            },
            "rows": int(statistics.median(step["rows_trained"] for step in ours.steps)),
            "tokens_sampled": int(statistics.median(s["tokens_sampled"] for s in ours.steps)),
            "baseline": "TRL",
        }
        if failed:
            yield row | {"baseline_ms": None, "speedup": None, "baseline_failed": failed}
            return
        baseline = 1e3 * statistics.median(theirs)
        yield row | {"baseline_ms": baseline, "speedup": baseline / ms}


class Ours:
    """Steps of a run whose records go to a directory that is thrown away."""

    def __init__(self, source: str, size: Shape, kind: str, directory: Path) -> None:
        prompts, group, new = size
        self.prompts = directory / "prompts.jsonl"
        write_prompts(self.prompts, 8 * prompts)
        words = {
            "model": source, "data": self.prompts, "objective": "task", "model.dtype": kind,
            "output-dir": directory / "run", "sampling.prompts_per_step": prompts,
            "sampling.responses_per_prompt": group, "sampling.max_tokens": new,
            "sampling.ignore_eos": "true", "eval.prompts": 0, "eval.test_prompts": 0,
            "train.max_tokens_per_batch": ROWS, "optim.lr": 1e-6,
            "reward": "fastrl.bench.step_rivals:share_of_letter_e",
        }  # fmt: skip
        flags = [f"--{key}={value}" for key, value in words.items()]
        self.run = start(parse_overrides(Config(), flags))
        self.display = Display(0, 1, Console(quiet=True))
        self.steps: list[dict[str, Any]] = []

    def __call__(self) -> None:
        metrics = take_step(self.run, self.display)
        phases = ("sample", "grade", "reference", "train")
        self.steps.append(metrics | {"seconds": sum(metrics[f"seconds_{p}"] for p in phases)})


def write_prompts(path: Path, count: int) -> None:
    """Sums as user turns, with their answers: what TRL reads too."""
    lines = (
        json.dumps({"prompt": f"What is {a} + {a * 7 % 90} * {a % 9}?", "answer": str(a)})
        for a in range(11, 11 + count)
    )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def training(model: Decoder, size: Shape, repeats: int) -> dict[str, Any]:
    """Forward, loss and backward of packed sequences, none of them sharing a prompt."""
    sequences, prompt, new = size
    device = model.head_weight.device
    ids = torch.randint(model.valid_vocab, (sequences, prompt + new)).tolist()
    pairs = {i: (row[:prompt], row[prompt:]) for i, row in enumerate(ids)}
    batches = pack(pairs, {i: i for i in pairs}, max_tokens=1 << 30, device=device)

    def go() -> None:
        model.zero_grad()
        for batch in batches:
            policy_loss(model, batch).backward()

    peak = process_peak_bytes(go, device)
    width = 4096
    square = torch.randn(width, width, device=device).to(model.head_weight.dtype)
    runs: dict[str, Callable[[], Any]] = {"": go, "matmul": lambda: square @ square}
    times = measure(runs, device, repeats)
    ms = statistics.median(times[""])
    rate = 2e3 * width**3 / statistics.median(times["matmul"])
    rows = sum(len(batch.token_ids_N) for batch in batches)
    flops = training_flops(model.config, model.valid_vocab, rows, sequences * new, prompt + new - 1)
    return {
        "ms": ms,
        "ms_p20": percentile(times[""], 20),
        "ms_p80": percentile(times[""], 80),
        "peak_bytes": peak,
        "rows": rows,
        "tflops": flops / ms / 1e9,
        "matmul_tflops": rate / 1e12,
        "share_of_matmul_rate": 1e3 * flops / ms / rate,
        "baseline": None,
        "baseline_ms": None,
        "speedup": None,
    }


def training_flops(
    config: DecoderConfig, vocab: int, rows: int, response_rows: int, length: int
) -> float:
    """Operations of forward and backward of sequences of `length` rows: 6 a weight and row, and
    those of causal attention, half of a square (Narayanan et al. 2021)."""
    weights = sum(a * b for a, b in products(config)) * config.num_layers
    head = config.hidden_size * vocab
    attention = 12 * config.num_layers * config.num_heads * config.head_dim * length / 2
    return 6.0 * (weights * rows + head * response_rows) + attention * rows


def policy_loss(model: Decoder, batch: Batch) -> torch.Tensor:
    """The loss of a batch with advantages of 1 and -1 in turns."""
    hidden_MD, targets_M = response_rows(model, batch)
    advantages_M = torch.ones(len(targets_M), device=targets_M.device)
    advantages_M[1::2] = -1
    return ops.linear_policy_loss(
        hidden_MD, model.head_weight, targets_M, advantages_M,
        valid_vocab=model.valid_vocab, grad_scale=1 / len(targets_M),
        spec=LossSpec(on_policy=True),
    ).loss_sum  # fmt: skip


def gradient_error(source: str, kind: str) -> float:
    """The relative error of the gradient of a few packed sequences, against fp64 and autograd.

    Raises AssertionError where it is more than the dtype accounts for.
    """
    generator = torch.Generator().manual_seed(0)
    gradients = []
    for dtype in (torch.float64, DTYPES[kind]):
        model = load_model(source, dtype=dtype, device="cpu" if dtype == torch.float64 else None)
        prompt = torch.randint(model.valid_vocab, (9,), generator=generator.manual_seed(0))
        rest = torch.randint(model.valid_vocab, (4, 7), generator=generator)
        pairs = {i: (prompt.tolist(), row) for i, row in enumerate(rest.tolist())}
        (batch,) = pack(
            pairs, {i: i // 2 for i in pairs}, max_tokens=1 << 20,
            share_prompts=dtype != torch.float64, device=model.head_weight.device,
        )  # fmt: skip
        policy_loss(model, batch).backward()
        gradients.append(torch.cat([p.grad.double().flatten().cpu() for p in model.parameters()]))
        del model
    truth, ours = gradients
    error = float((ours - truth).norm() / truth.norm())
    assert error < {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}[kind], error
    return error
