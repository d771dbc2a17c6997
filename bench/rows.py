"""Cases from logits: log-probs with entropy, their gradient, the policy loss with its gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrl import ops
from fastrl.bench.timing import Case, worst_error

SHAPES = ((512, 49152),)  # tokens, vocabulary
GPU_SHAPES = ((8192, 32000), (8192, 128256), (8192, 151936), (4096, 256000))
CHECKED = 16  # rows compared with fp64


def trl() -> Any:
    """TRL's function of the same, or None where TRL is not installed."""
    try:
        from trl.trainer.utils import selective_log_softmax_and_entropy
    except ImportError:
        return None
    return selective_log_softmax_and_entropy


def plain(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log_softmax, gather and the entropy's sum, in the logits' precision or fp32."""
    log_p = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
    return log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def with_gradient(operation: Any, logits: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Both outputs and the gradient of a weighted sum of them."""
    leaf = logits.detach().requires_grad_()
    logprobs, entropy = operation(leaf, *rest)
    weights = torch.linspace(-1, 1, len(logprobs), device=logprobs.device, dtype=logprobs.dtype)
    ((weights * logprobs).sum() - 0.01 * entropy.sum()).backward()
    assert leaf.grad is not None
    return logprobs.detach(), entropy.detach(), leaf.grad


def cases(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[Case, Tensor]]:
    """The cases at one shape, each with the logits that it reads."""
    tokens, vocab = shape
    generator = torch.Generator(device=device).manual_seed(0)
    logits = torch.randn(tokens, vocab, device=device, generator=generator).mul_(3).to(dtype)
    targets = torch.randint(vocab, (tokens,), device=device, generator=generator)
    advantages = torch.randn(tokens, device=device, generator=generator)
    few = slice(0, CHECKED)
    truth = with_gradient(plain, logits[few].double(), targets[few])
    eager = with_gradient(plain, logits[few], targets[few])
    theirs = trl()
    name = str(dtype).removeprefix("torch.")
    size = logits.numel() * logits.element_size()

    def forward(operation: Any) -> Any:
        def run() -> Any:
            with torch.no_grad():
                return operation(logits, targets)

        return run

    def both(operation: Any) -> Any:
        return lambda: with_gradient(operation, logits, targets)

    def loss_of(logprobs: Tensor) -> Tensor:
        return -(advantages * logprobs).sum()

    def loss(operation: Any) -> Any:
        def run() -> Tensor:
            leaf = logits.detach().requires_grad_()
            loss_of(operation(leaf)).backward()
            assert leaf.grad is not None
            return leaf.grad

        return run

    def ours() -> Tensor:
        leaf = logits.detach().requires_grad_()
        ops.policy_loss(leaf, targets, advantages).loss_sum.backward()
        assert leaf.grad is not None
        return leaf.grad

    def log_softmax(x: Tensor, y: Tensor) -> Tensor:
        return x.log_softmax(-1).gather(1, y[:, None])[:, 0]

    trl_forward = {} if theirs is None else {"trl": forward(theirs)}
    yield (
        Case(
            "logprobs_and_entropy", shape, name, forward(ops.logprobs_and_entropy),
            {**trl_forward, "log_softmax + gather": forward(log_softmax), "eager": forward(plain)},
            lambda: worst_error(
                ops.logprobs_and_entropy(logits[few], targets[few]), eager[:2], truth[:2]
            ),
            read_bytes=size,
        ),
        logits,
    )  # fmt: skip
    yield (
        Case(
            "logprobs_and_entropy, backward", shape, name, both(ops.logprobs_and_entropy),
            {**({} if theirs is None else {"trl": both(theirs)}), "eager": both(plain)},
            lambda: worst_error(
                with_gradient(ops.logprobs_and_entropy, logits[few], targets[few]), eager, truth
            ),
            read_bytes=2 * size,
            write_bytes=size,
        ),
        logits,
    )  # fmt: skip

    def check_loss() -> float:
        leaf = logits[few].detach().requires_grad_()
        ops.policy_loss(leaf, targets[few], advantages[few]).loss_sum.backward()
        gradients = []
        for x in (logits[few].double(), logits[few]):
            other = x.detach().requires_grad_()
            logprobs, _ = plain(other, targets[few])
            (-(advantages[few].to(logprobs.dtype) * logprobs).sum()).backward()
            gradients.append(other.grad)
        assert leaf.grad is not None and gradients[0] is not None and gradients[1] is not None
        return worst_error([leaf.grad], [gradients[1]], [gradients[0]])

    baselines = {
        "F.cross_entropy": loss(
            lambda x: -F.cross_entropy(x, targets, reduction="none").to(advantages.dtype)
        ),
        "eager": loss(lambda x: plain(x, targets)[0]),
    }
    if theirs is not None:
        baselines = {"trl": loss(lambda x: theirs(x, targets)[0]), **baselines}
    yield (
        Case(
            "policy_loss", shape, name, ours, baselines, check_loss, read_bytes=size,
            write_bytes=size,
        ),
        logits,
    )  # fmt: skip
