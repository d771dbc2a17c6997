"""Our side of `fastrl bench step`: steps of the loop, and their gradient against fp64."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastrl import ops
from fastrl.batch import pack
from fastrl.bench.kernels import DTYPES
from fastrl.bench.timing import percentile
from fastrl.config import Config, parse_overrides
from fastrl.display import Display
from fastrl.losses import LossSpec
from fastrl.model import Decoder, DecoderConfig, load_model
from fastrl.run import start
from fastrl.scoring import response_rows
from fastrl.train import take_step
from fastrl.types import Batch

Shape = tuple[int, ...]  # prompts, responses a prompt, new tokens
PHASES = ("sample", "grade", "reference", "train", "optimizer")
ROWS = 2048  # of a micro-batch


class Ours:
    """Steps of a run whose records go to a directory that is thrown away."""

    def __init__(
        self, source: str, size: Shape, kind: str, directory: Path, *, random_init: bool = False
    ) -> None:
        prompts, group, new = size
        self.prompts = directory / "prompts.jsonl"
        write_prompts(self.prompts, 8 * prompts)
        reward = "step_ours:share_of_even_ids" if random_init else "step_rivals:share_of_letter_e"
        words = {
            "model": source, "data": self.prompts, "objective": "task", "model.dtype": kind,
            "output-dir": directory / "run", "sampling.prompts_per_step": prompts,
            "sampling.responses_per_prompt": group, "sampling.max_tokens": new,
            "sampling.ignore_eos": "true", "eval.prompts": 0, "eval.test_prompts": 0,
            "train.max_tokens_per_batch": ROWS, "optim.lr": 1e-6,
            "reward": f"fastrl.bench.{reward}", "model.random_init": str(random_init).lower(),
        }  # fmt: skip
        flags = [f"--{key}={value}" for key, value in words.items()]
        self.run = start(parse_overrides(Config(), flags))
        self.display = Display(0, 1, Console(quiet=True))
        self.steps: list[dict[str, Any]] = []

    def __call__(self) -> None:
        metrics = take_step(self.run, self.display)
        phases = ("sample", "grade", "reference", "train")
        self.steps.append(metrics | {"seconds": sum(metrics[f"seconds_{p}"] for p in phases)})

    def figures(self) -> dict[str, Any]:
        """Medians over the steps: of the whole in milliseconds, of its phases, of its rows."""
        times = [step["seconds"] * 1e3 for step in self.steps]
        return {
            "ms": statistics.median(times),
            "ms_p20": percentile(times, 20),
            "ms_p80": percentile(times, 80),
            **{
                f"{phase}_ms": 1e3 * statistics.median(s[f"seconds_{phase}"] for s in self.steps)
                for phase in PHASES
            },
            "rows": int(statistics.median(step["rows_trained"] for step in self.steps)),
            "tokens_sampled": int(statistics.median(s["tokens_sampled"] for s in self.steps)),
        }


def share_of_even_ids(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    """A reward that differs between responses of random weights, most of whose ids have no text:
    a response without an advantage is not differentiated.
    """
    return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]


def write_prompts(path: Path, count: int) -> None:
    """Sums as user turns, with their answers: what TRL reads too."""
    lines = (
        json.dumps({"prompt": f"What is {a} + {a * 7 % 90} * {a % 9}?", "answer": str(a)})
        for a in range(11, 11 + count)
    )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


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


def gradient_error(source: str | DecoderConfig, kind: str) -> float:
    """The relative error of the gradient of a few packed sequences, against fp64 and autograd.

    Of a model by its name, or of random weights at some shapes. Raises AssertionError where the
    error is more than the dtype accounts for.
    """
    generator = torch.Generator().manual_seed(0)
    gradients = []
    for dtype in (torch.float64, DTYPES[kind]):
        device = "cpu" if dtype == torch.float64 or not torch.cuda.is_available() else "cuda"
        if isinstance(source, DecoderConfig):
            model = Decoder(source, dtype=dtype, device=device).init_weights(0)
        else:
            model = load_model(source, dtype=dtype, device=device)
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
