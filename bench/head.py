"""Cases from hidden states: the head's products are the floor, and a contender of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrl import ops
from fastrl.bench.rows import plain
from fastrl.bench.timing import Case, worst_error

SHAPES = ((1024, 49152, 576), (1024, 151936, 576))  # tokens, vocabulary, width
GPU_SHAPES = ((8192, 151936, 4096),)


def _trl() -> Any:
    try:
        from trl.kernels import ChunkedLogProbFunction
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as columns
    except ImportError:
        return None

    def run(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        found = ChunkedLogProbFunction.apply(
            hidden, weight, None, targets, 1.0, columns, None, 1.0, ("entropy",)
        )
        return found[0], found[1]

    return run


def _liger() -> Any:
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
    except ImportError:
        return None
    return liger_fused_linear_cross_entropy


def cases(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[Case, Tensor]]:
    """The operations forward and backward at one shape."""
    tokens, vocab, width = shape
    generator = torch.Generator(device=device).manual_seed(0)
    hidden = torch.randn(tokens, width, device=device, generator=generator).to(dtype)
    weight = torch.randn(vocab, width, device=device, generator=generator)
    weight = weight.mul_(3 / width**0.5).to(dtype)
    targets = torch.randint(vocab, (tokens,), device=device, generator=generator)
    advantages = torch.randn(tokens, device=device, generator=generator)
    name = str(dtype).removeprefix("torch.")
    theirs = _trl()

    def gradients(loss: Any) -> Any:
        def run() -> tuple[Tensor, Tensor]:
            h, w = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
            loss(h, w).backward()
            assert h.grad is not None and w.grad is not None
            return h.grad, w.grad

        return run

    def pair_loss(operation: Any, entropy_coef: float = 0.01) -> Any:
        def loss(h: Tensor, w: Tensor) -> Tensor:
            logprobs, entropy = operation(h, w, targets)
            return -(advantages * logprobs).sum() - entropy_coef * entropy.sum()

        return loss

    def unfused(h: Tensor, w: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return plain(h @ w.T, y)

    def bare(products: int) -> Any:
        dlogits = torch.empty(tokens, vocab, device=device, dtype=dtype)
        by_hidden, by_weight = torch.empty_like(hidden), torch.empty_like(weight)

        def run() -> None:
            for _ in range(products - 2):
                torch.mm(hidden, weight.T, out=dlogits)
            torch.mm(dlogits, weight, out=by_hidden)
            torch.mm(dlogits.T, hidden, out=by_weight)

        return run

    def check(loss: Any, reference: Any) -> float:
        few = slice(0, 32)
        found = []
        for of, kind in ((loss, dtype), (reference, dtype), (reference, torch.float64)):
            h = hidden[few].to(kind).detach().requires_grad_()
            w = weight.to(kind).detach().requires_grad_()
            of(h, w, targets[few], advantages[few].to(kind) if of is reference else advantages[few])
            assert h.grad is not None and w.grad is not None
            found.append((h.grad, w.grad))
            del h, w
        return worst_error(found[0], found[1], found[2])

    def reference(h: Tensor, w: Tensor, y: Tensor, a: Tensor) -> None:
        logits = h @ w.T
        logprobs = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
        (-(a.to(logprobs.dtype) * logprobs.gather(1, y[:, None])[:, 0]).sum()).backward()

    def policy(h: Tensor, w: Tensor, y: Tensor, a: Tensor) -> None:
        ops.linear_policy_loss(h, w, y, a).loss_sum.backward()

    def separate(h: Tensor, w: Tensor, y: Tensor, a: Tensor) -> None:
        logprobs, _ = ops.linear_logprobs_and_entropy(h, w, y)
        (-(a * logprobs).sum()).backward()

    old = torch.randn(tokens, device=device, generator=generator) - 5.0

    def clipped(logprobs: Tensor, entropy: Tensor, rows: Any) -> Tensor:
        """A loss as another trainer would pass it."""
        ratio = (logprobs - rows.old_logprobs).exp()
        surrogates = ratio * rows.advantages, ratio.clamp(0.8, 1.2) * rows.advantages
        return -torch.min(*surrogates).sum() - 0.01 * entropy.sum()

    def rowwise(h: Tensor, w: Tensor) -> Tensor:
        return ops.linear_policy_loss(
            h, w, targets, advantages, old_logprobs=old, loss_fn=clipped, rowwise=True
        ).loss_sum

    def rowwise_few(h: Tensor, w: Tensor, y: Tensor, a: Tensor) -> None:
        ops.linear_policy_loss(
            h, w, y, a, loss_fn=lambda lp, _, rows: -(rows.advantages * lp).sum(), rowwise=True
        ).loss_sum.backward()

    baselines = {
        "three bare matmuls": bare(3),
        "unfused": gradients(pair_loss(unfused, 0.0)),
        "F.linear_cross_entropy": gradients(
            lambda h, w: F.linear_cross_entropy(h, w, targets, reduction="sum")
        ),
    }
    if not hasattr(F, "linear_cross_entropy"):
        del baselines["F.linear_cross_entropy"]
    liger = _liger() if device.type == "cuda" else None
    if liger is not None:
        baselines["liger"] = gradients(lambda h, w: liger(h, w, targets, reduction="sum"))
    yield (
        Case(
            "linear_policy_loss", shape, name,
            gradients(lambda h, w: ops.linear_policy_loss(h, w, targets, advantages).loss_sum),
            baselines, lambda: check(policy, reference), flops=6 * tokens * vocab * width,
        ),
        weight,
    )  # fmt: skip
    others = {} if theirs is None else {"trl": gradients(pair_loss(theirs))}
    yield (
        Case(
            "linear_policy_loss, any loss of rows", shape, name, gradients(rowwise),
            {"three bare matmuls": bare(3), **others}, lambda: check(rowwise_few, reference),
            flops=6 * tokens * vocab * width,
        ),
        weight,
    )  # fmt: skip
    yield (
        Case(
            "linear_logprobs_and_entropy", shape, name,
            gradients(pair_loss(ops.linear_logprobs_and_entropy)),
            {"four bare matmuls": bare(4), **others, "unfused": gradients(pair_loss(unfused))},
            lambda: check(separate, reference), flops=8 * tokens * vocab * width,
        ),
        weight,
    )  # fmt: skip
