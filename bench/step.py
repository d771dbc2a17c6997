"""`fastrl bench step`: a whole training step phase by phase, beside TRL's, and what it costs.

"step": groups of responses of one length, a verifier's reward, the loop's own code; TRL's
GRPOTrainer takes its steps in between, in one process, on the same model directory and prompts.
"training": forward and backward of packed rows, as a share of the measured matmul rate.
"costs", where it is asked for: a step over model size, response length, group size, vocabulary.
"trl", where it is asked for: TRL's own steps, with `patch_trl` and without it.

Nothing is timed before the gradient of the same code has been compared with autograd in fp64.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from fastrl.batch import pack
from fastrl.bench import step_costs as costs
from fastrl.bench import step_rivals as rivals
from fastrl.bench.kernels import DTYPES, check_asked, where
from fastrl.bench.sampler_limits import products
from fastrl.bench.sampler_rivals import SMOLLM2
from fastrl.bench.step_ours import Ours, Shape, gradient_error, policy_loss, write_prompts
from fastrl.bench.timing import measure, percentile, process_peak_bytes, say
from fastrl.errors import UsageError
from fastrl.model import Decoder, DecoderConfig, load_model

SHAPES = {"step": (4, 8, 48), "embedded": (32, 8, 64), "training": (32, 58, 48)}
ASKED = ("costs", "trl")  # by name alone


def run(
    only: str | None = None,
    shape: Shape | None = None,
    dtype: str | None = None,
    repeats: int = 3,
    once: bool = False,
    model: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of results, one at a time. `once` takes one step of ours, for a profiler."""
    check_asked("step", (*SHAPES, *ASKED), only, dtype)
    if shape is not None and (len(shape) != 3 or min(shape) < 1 or shape[1] < 2):
        raise UsageError(
            f"shape is {','.join(map(str, shape))}; it is prompts, responses a prompt (2 at least),"
            " new tokens, as 4,8,48; of training: sequences, tokens of a prompt, new tokens"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kinds = (dtype,) if dtype else ("bfloat16",) if device.type == "cuda" else tuple(DTYPES)[:2]
    if only == "costs":
        if model:
            raise UsageError(
                f"--model is {model}, but the models of `costs` have random weights at shapes of"
                " its own; leave it out"
            )
        for row in costs.rows(shape, kinds[0], repeats, once, device):
            yield row | where(device)
        return
    large = model or str(SMOLLM2.expanduser())
    for name in (only,) if only else SHAPES:
        size = shape or SHAPES.get(name, SHAPES["step"])
        source = "embedded" if name == "embedded" else large
        for kind in kinds:
            head = {"name": name, "shape": list(size), "dtype": kind, "device": device.type}
            head |= {"model": Path(source).name} | where(device)
            if name == "training":
                error = None if once else gradient_error(source, kind)
                row = training(load_model(source, dtype=kind), size, 1 if once else repeats)
                yield head | row | {"max_error": error}
            elif name == "trl":
                yield from patched(source, size, kind, repeats, once, head)
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
        theirs: list[rivals.Step] = []
        failed = None
        try:  # the first of theirs is not counted
            theirs = rivals.trl_steps(
                ours.prompts, source, size, kind, repeats + 1, after=lambda n: n and ours()
            )[1:]
        except ImportError as problem:
            failed = f"{type(problem).__name__}: {problem}"
            for _ in range(repeats):
                ours()
        row = head | ours.figures() | {"peak_bytes": peak, "max_error": error, "baseline": "TRL"}
        if failed:
            yield row | {"baseline_ms": None, "speedup": None, "baseline_failed": failed}
            return
        baseline = 1e3 * statistics.median(step.whole for step in theirs)
        yield row | {"baseline_ms": baseline, "speedup": baseline / row["ms"]}


PATCHES = {"trl": None, "trl, patched": False, "trl, loss in the forward": True}


def patched(
    source: str, size: Shape, kind: str, repeats: int, once: bool, head: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """TRL's own steps, its functions and fastrl's in turns."""
    from fastrl.integrations.trl import patch_trl, unpatch_trl

    error = None if once else rivals.head_error(kind)
    levels = list(PATCHES.values())

    def take(step: int) -> None:
        unpatch_trl()
        if (level := levels[step % len(levels)]) is not None:
            patch_trl(loss_in_forward=level)

    turns = len(levels) * (1 if once else 1 + repeats)
    with tempfile.TemporaryDirectory() as directory:
        prompts = Path(directory) / "prompts.jsonl"
        write_prompts(prompts, 8 * size[0])
        try:
            steps = rivals.trl_steps(prompts, source, size, kind, turns, before=take)
        finally:
            unpatch_trl()
    if once:
        return
    found = {name: steps[len(levels) + at :: len(levels)] for at, name in enumerate(PATCHES)}
    baseline = 1e3 * statistics.median(step.whole for step in found["trl"])
    for name, own in found.items():
        whole = [1e3 * step.whole for step in own]
        ms = statistics.median(whole)
        rival = {"baseline": "TRL", "baseline_ms": baseline, "speedup": baseline / ms}
        yield (
            head
            | {
                "name": name,
                "ms": ms,
                "ms_p20": percentile(whole, 20),
                "ms_p80": percentile(whole, 80),
                "loss_ms": 1e3 * statistics.median(step.training for step in own),
                "peak_bytes": None,
                "max_error": None if name == "trl" else error,
            }
            | (rival if name != "trl" else dict.fromkeys(rival))
        )


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
