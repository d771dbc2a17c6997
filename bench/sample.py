"""Cases of sampling: a token, its log-prob and the kept mass from each row of logits.

The rival is what `transformers.generate` does with the same settings: filter, softmax, multinomial,
and the log-prob that reinforcement learning needs beside the token. The logits are as flat as those
of the other cases (6.3 nats at a vocabulary of 49,152), which is hard on top-p.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastrl import ops
from fastrl.bench.rows import CHECKED, GPU_SHAPES, SHAPES, random_logits
from fastrl.bench.timing import Case

__all__ = ["GPU_SHAPES", "SHAPES", "cases"]
SETTINGS: dict[str, dict[str, Any]] = {
    "sample": {},
    "sample, top-k 50": {"top_k": 50},
    "sample, top-p 0.95": {"top_p": 0.95},
}
KEY = (1, 2)


def transformers_sampling(settings: dict[str, Any]) -> Callable[[Tensor], Any]:
    """Filter, softmax and multinomial as `transformers.generate` has them, and the log-prob."""
    from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

    filters: list[Any] = []
    if "top_k" in settings:
        filters.append(TopKLogitsWarper(settings["top_k"]))
    if "top_p" in settings:
        filters.append(TopPLogitsWarper(settings["top_p"]))

    def run(logits: Tensor) -> tuple[Tensor, Tensor]:
        scores = logits.float()
        for one in filters:
            scores = one(None, scores)
        tokens = scores.softmax(-1).multinomial(1)
        return tokens, logits.log_softmax(-1).gather(1, tokens)

    return run


def cases(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[Case, Tensor]]:
    """The cases at one shape, each with the logits that it reads."""
    logits, _ = random_logits(shape, dtype, device)
    counters = torch.zeros(len(logits), 4, dtype=torch.int64, device=device)
    counters[:, 0] = torch.arange(len(logits), device=device)
    for name, settings in SETTINGS.items():
        rival = transformers_sampling(settings)

        def ours(settings: dict[str, Any] = settings) -> Any:
            return ops.sample(logits, counters, KEY, **settings)

        def theirs(rival: Callable[[Tensor], Any] = rival) -> Any:
            return rival(logits)

        def check(settings: dict[str, Any] = settings) -> float:
            few = slice(0, CHECKED)
            found = ops.sample(logits[few], counters[few], KEY, **settings)
            truth = ops.sample(logits[few].double(), counters[few], KEY, **settings)
            if not torch.equal(found.tokens, truth.tokens):
                raise AssertionError("a token differs from that of the definition in fp64")
            return max(
                float((getattr(found, n).double() - getattr(truth, n)).abs().max())
                for n in ("logprobs", "log_kept_mass")
            )

        case = Case(
            name, shape, str(dtype).removeprefix("torch."), ours, {"transformers": theirs}, check,
            read_bytes=logits.numel() * logits.element_size(),
        )  # fmt: skip
        yield case, logits
