"""Cases from logits: log-probs with entropy, their gradient, the policy loss with its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrl import ops
from fastrl.bench.timing import Case, largest_error, worst_error

SHAPES = ((512, 49152),)  # tokens, vocabulary
GPU_SHAPES = ((8192, 32000), (8192, 128256), (8192, 151936), (4096, 256000))
CHECKED = 16  # rows compared with fp64
LIGER_LENGTH = 64  # tokens of a sequence, which has one advantage there

Operation = Callable[..., tuple[Tensor, ...]]  # (logits, targets) -> log-probs and, mostly, entropy


def plain(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log_softmax, gather and the entropy's sum, in the logits' precision or fp32."""
    log_p = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
    return log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def log_softmax(logits: Tensor, targets: Tensor) -> tuple[Tensor]:
    """log_softmax and gather in the logits' own precision."""
    return (logits.log_softmax(-1).gather(1, targets[:, None])[:, 0],)


def rivals() -> dict[str, Operation]:
    """What others compute log-probs and entropies with, by name; TRL where it is installed."""
    found: dict[str, Operation] = {}
    try:
        from trl.trainer.utils import selective_log_softmax_and_entropy

        found["trl"] = selective_log_softmax_and_entropy
    except ImportError:
        pass
    compiled = torch.compile(plain, dynamic=False)
    return found | {"log_softmax + gather": log_softmax, "eager": plain, "torch.compile": compiled}


def liger_loss(logits: Tensor, targets: Tensor, advantages: Tensor) -> Callable[[], Any] | None:
    """Liger's GRPO loss with its gradient, or None where it is not installed; it needs a GPU.

    Its sequences have one advantage each, and a row of logits more than tokens: its own copy.
    """
    tokens, vocab = logits.shape
    if logits.device.type != "cuda" or tokens % LIGER_LENGTH:
        return None
    try:
        from liger_kernel.transformers.grpo_loss import triton_grpo_loss
    except ImportError:
        return None
    own = F.pad(logits.view(-1, LIGER_LENGTH, vocab), (0, 0, 0, 1))
    ids, each = targets.view(-1, LIGER_LENGTH), advantages.view(-1, LIGER_LENGTH)[:, 0].contiguous()

    def run() -> tuple[Tensor]:
        leaf = own.detach().requires_grad_()
        losses, _, _ = triton_grpo_loss(
            leaf, None, None, ids, each, temperature=1.0, beta=0.0, inplace=False
        )
        losses.sum().backward()
        assert leaf.grad is not None
        return (leaf.grad,)

    return run


def random_logits(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, torch.Generator]:
    """The logits of every case, 6.3 nats at a vocabulary of 49,152, and what drew them."""
    generator = torch.Generator(device=device).manual_seed(0)
    return torch.randn(shape, device=device, generator=generator).mul_(3).to(dtype), generator


def cases(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[Case, Tensor]]:
    """The cases at one shape, each with the logits that it reads."""
    tokens, vocab = shape
    logits, generator = random_logits(shape, dtype, device)
    targets = torch.randint(vocab, (tokens,), device=device, generator=generator)
    advantages = torch.randn(tokens, device=device, generator=generator)
    weights = torch.linspace(-1, 1, tokens, device=device)
    few = slice(0, CHECKED)
    theirs = rivals()
    name = str(dtype).removeprefix("torch.")
    size = logits.numel() * logits.element_size()

    def forward(operation: Operation, x: Tensor, rows: slice) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(operation(x[rows], targets[rows]))

    def both(operation: Operation, x: Tensor, rows: slice) -> tuple[Tensor, ...]:
        leaf = x[rows].detach().requires_grad_()
        outputs = operation(leaf, targets[rows])
        total = (weights[rows].to(outputs[0].dtype) * outputs[0]).sum()
        if len(outputs) > 1:
            total = total - 0.01 * outputs[1].sum()
        total.backward()
        assert leaf.grad is not None
        return (*(o.detach() for o in outputs), leaf.grad)

    def loss(operation: Operation, x: Tensor, rows: slice) -> tuple[Tensor]:
        leaf = x[rows].detach().requires_grad_()
        logprobs = operation(leaf, targets[rows])[0]
        (-(advantages[rows].to(logprobs.dtype) * logprobs).sum()).backward()
        assert leaf.grad is not None
        return (leaf.grad,)

    def fused_loss() -> tuple[Tensor]:
        leaf = logits.detach().requires_grad_()
        ops.policy_loss(leaf, targets, advantages).loss_sum.backward()
        assert leaf.grad is not None
        return (leaf.grad,)

    def case(
        title: str,
        way: Callable[[Operation, Tensor, slice], tuple[Tensor, ...]],
        ours: Callable[[], tuple[Tensor, ...]],
        others: dict[str, Callable[[], Any]],
        reads: int,
        writes: int,
    ) -> tuple[Case, Tensor]:
        truth = way(plain, logits.double()[few], few)
        eager = way(plain, logits, few)

        def first_rows(run: Callable[[], Any]) -> list[Tensor]:
            return [output[few] for output in run()]

        measured = Case(
            title, shape, name, ours, others,
            lambda: worst_error(first_rows(ours), eager, truth),
            {n: lambda run=run: largest_error(first_rows(run), truth) for n, run in others.items()},
            read_bytes=reads * size, write_bytes=writes * size,
        )  # fmt: skip
        return measured, logits

    everything = slice(None)

    def runs(way: Any, names: tuple[str, ...]) -> dict[str, Callable[[], Any]]:
        return {
            n: lambda operation=theirs[n]: way(operation, logits, everything)
            for n in names
            if n in theirs
        }

    def ours(way: Any) -> Callable[[], Any]:
        return lambda: way(ops.logprobs_and_entropy, logits, everything)

    pair = ("trl", "eager", "torch.compile")
    yield case(
        "logprobs_and_entropy", forward, ours(forward),
        runs(forward, ("trl", "log_softmax + gather", "eager", "torch.compile")), 1, 0,
    )  # fmt: skip
    yield case("logprobs_and_entropy, backward", both, ours(both), runs(both, pair), 2, 1)
    others = runs(loss, pair)
    others["F.cross_entropy"] = lambda: loss(
        lambda x, y: (-F.cross_entropy(x, y, reduction="none"),), logits, everything
    )
    yield case("policy_loss", loss, fused_loss, others, 1, 1)
    liger = liger_loss(logits, targets, advantages)
    if liger is not None:
        timed = Case(
            "policy_loss, one advantage a sequence", shape, name, fused_loss, {"liger": liger},
            read_bytes=size, write_bytes=size,
        )  # fmt: skip
        yield timed, logits
