"""The operations as torch.library operators: opaque to the compiler, the device picks the kernel.

One operator for each value and one for its gradient. Everything that a kernel takes is an argument
here: numbers that change from call to call are tensors or are never baked into a kernel.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastrl.errors import UsageError
from fastrl.losses import LossSpec, Rows
from fastrl.ops import definition
from fastrl.ops.rows import Kernels, LogitRows, wide_dtype

BACKENDS = ("auto", "triton", "cpu", "torch")
launches: Counter[str] = Counter()  # calls of each backend, by name

HAS_EXTENSION = importlib.util.find_spec("fastrl._C") is not None
# Triton's interpreter runs kernels on CPU tensors; as in Triton, decided once, before their import
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")
HAS_TRITON = importlib.util.find_spec("triton") is not None


def _obstacle(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend cannot run on such tensors, and the way out."""
    if backend == "torch":
        return None
    if dtype == torch.float64:
        return "it computes in fp32; use backend='torch' for fp64"
    if backend == "cpu":
        if not HAS_EXTENSION:
            return "the extension fastrl._C is not built; reinstall fastrl"
        if device.type != "cpu":
            return f"the input is on {device}; move it to the CPU, or use backend='auto'"
        return None
    if not HAS_TRITON:
        return "triton is not installed; pip install triton, or use backend='auto'"
    if device.type != "cuda" and not (device.type == "cpu" and INTERPRETED):
        return f"the input is on {device}; move it to a GPU, or use backend='auto'"
    return None


def resolve(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that runs; raises UsageError where a named one cannot."""
    if backend not in BACKENDS:
        raise UsageError(f"backend is {backend!r}; allowed: {', '.join(map(repr, BACKENDS))}")
    if backend == "auto":
        best = {"cpu": "cpu", "cuda": "triton"}.get(device.type, "torch")
        return "torch" if _obstacle(best, device, dtype) else best
    if reason := _obstacle(backend, device, dtype):
        raise UsageError(f"backend {backend!r} cannot run here: {reason}")
    return backend


def kernels_of(backend: str) -> Kernels:
    launches[backend] += 1
    if backend == "cpu":
        from fastrl.ops import native

        return native
    if backend == "triton":
        from fastrl.ops import fused

        return fused
    return definition


def in_full_precision(operation: Callable) -> Callable:
    """An operation with autocast off, which would round products; its first input is a tensor."""

    @functools.wraps(operation)
    def run(first: Tensor, *args: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return operation(first, *args)

    return run


def on_large_pages(fresh: Tensor) -> Tensor:
    """`fresh` memory, on large pages where the processor gains by them."""
    if fresh.device.type == "cpu" and HAS_EXTENSION:
        from fastrl.ops import native

        return native.on_large_pages(fresh)
    return fresh


def _gradient_of(logits: Tensor) -> Tensor:
    """Memory for a gradient."""
    return on_large_pages(torch.empty_like(logits, memory_format=torch.contiguous_format))


def check_values(
    targets_N: Tensor, mask_N: Tensor | None, valid: int, temperature: float | Tensor
) -> None:
    """Raises UsageError for a target or temperature out of range; looks on the CPU only.

    On a GPU a look is a synchronisation: there a target outside the vocabulary gives NaN.
    """
    if targets_N.device.type != "cpu":
        return
    outside_N = (targets_N < 0) | (targets_N >= valid)
    wrong_N = ~(temperature > 0) if isinstance(temperature, Tensor) else None
    if mask_N is not None:
        outside_N &= mask_N
        wrong_N = None if wrong_N is None else wrong_N & mask_N
    if bool(outside_N.any()):
        row = int(outside_N.nonzero()[0])
        raise UsageError(
            f"the target of row {row} is {int(targets_N[row])}, outside the vocabulary"
            f" 0..{valid - 1}; mask that row or mend it"
        )
    if wrong_N is not None and bool(wrong_N.any()):
        assert isinstance(temperature, Tensor)
        row = int(wrong_N.nonzero()[0])
        raise UsageError(
            f"temperature is {float(temperature[row])} in row {row}; it must be positive"
        )


def _logit_rows(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    temperature: float,
    temperatures: Tensor | None,
    valid: int,
    softcap: float | None,
) -> LogitRows:
    either = temperature if temperatures is None else temperatures
    check_values(targets, mask, valid, either)
    return LogitRows(logits, targets, mask, either, valid, softcap)


def vectors(x: Tensor, count: int) -> tuple[Tensor, ...]:
    """Fresh vectors of a number a row, in the dtype of results."""
    return tuple(x.new_empty(x.shape[0], dtype=wide_dtype(x.dtype)) for _ in range(count))


@torch.library.custom_op("fastrl::row_statistics", mutates_args=())
@in_full_precision
def row_statistics(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    temperature: float,
    temperatures: Tensor | None,
    valid: int,
    softcap: float | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of rows of logits, [N] each."""
    x = _logit_rows(logits, targets, mask, temperature, temperatures, valid, softcap)
    return kernels_of(backend).statistics(x)


@row_statistics.register_fake
def _(logits: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return vectors(logits, 2)


def extras_like(x: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Fresh memory for what Kernels.extras gives."""
    numbers = vectors(x, 5)
    return (*numbers[:4], torch.empty_like(targets), numbers[4])


@torch.library.custom_op("fastrl::row_extras", mutates_args=())
@in_full_precision
def row_extras(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    temperature: float,
    temperatures: Tensor | None,
    valid: int,
    softcap: float | None,
    backend: str,
    thresholds: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What Kernels.extras gives, [N] each."""
    x = _logit_rows(logits, targets, mask, temperature, temperatures, valid, softcap)
    one, two, three, four, five, six = kernels_of(backend).extras(x, thresholds)
    return one, two, three, four, five, six


@row_extras.register_fake
def _(logits: Tensor, targets: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return extras_like(logits, targets)


@torch.library.custom_op("fastrl::row_gradient", mutates_args=())
@in_full_precision
def row_gradient(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    temperature: float,
    temperatures: Tensor | None,
    valid: int,
    softcap: float | None,
    backend: str,
    a: Tensor,
    g: Tensor,
) -> Tensor:
    """The gradient of logits, [N, V], from those of log-probs and entropies."""
    x = _logit_rows(logits, targets, mask, temperature, temperatures, valid, softcap)
    out = _gradient_of(logits)
    kernels_of(backend).gradient(x, a, g, out)
    return out


@row_gradient.register_fake
def _(logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def refuse_second_derivative() -> None:
    # torch.library's own refusal comes only when the second derivative is taken
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise UsageError(
            "a backward with create_graph=True asks log-probs or a loss for a second derivative;"
            " they have only the first: leave create_graph out"
        )


def _save_rows(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    logits, targets, mask, temperature, temperatures, *rest = inputs
    ctx.save_for_backward(logits, targets, mask, temperatures)
    ctx.temperature, ctx.rest = temperature, rest
    ctx.set_materialize_grads(False)


def row_coefficients(a: Tensor | None, g: Tensor | None) -> tuple[Tensor, Tensor]:
    """The upstream gradients of log-probs and entropies, zeros for one that nobody used."""
    given = a if a is not None else g
    assert given is not None
    zeros = torch.zeros_like(given, memory_format=torch.contiguous_format)
    return (zeros if a is None else a.contiguous()), (zeros if g is None else g.contiguous())


def _row_statistics_backward(ctx: Any, a: Tensor | None, g: Tensor | None) -> tuple[Any, ...]:
    refuse_second_derivative()
    if a is None and g is None:
        return (None,) * 8
    logits, targets, mask, temperatures = ctx.saved_tensors
    found = row_gradient(
        logits, targets, mask, ctx.temperature, temperatures, *ctx.rest,
        *row_coefficients(a, g),
    )  # fmt: skip
    return (found, *[None] * 7)


row_statistics.register_autograd(_row_statistics_backward, setup_context=_save_rows)


def checked_loss(loss: Tensor, wanted: bool) -> Tensor:
    """What a `loss_fn` returned; raises UsageError where that cannot be differentiated."""
    if loss.dim() != 0 or (wanted and not loss.requires_grad):
        lacking = " without a gradient" if wanted and not loss.requires_grad else ""
        raise UsageError(
            f"loss_fn returned a tensor of shape {tuple(loss.shape)}{lacking}; return a scalar"
            " computed from its logprobs or entropy"
        )
    return loss


def pack(spec: LossSpec) -> tuple[str, str, list[float]]:
    """A loss of rows as an operator's arguments."""
    dual = 0.0 if spec.dual_clip is None else spec.dual_clip
    numbers = [spec.clip_low, spec.clip_high, dual, spec.sampler_correction_cap, spec.entropy_coef]
    return spec.loss, spec.sampler_correction or "", [float(number) for number in numbers]


def unpack(loss: str, correction: str, numbers: Sequence[float]) -> LossSpec:
    low, high, dual, cap, entropy_coef = numbers
    return LossSpec(
        loss=loss, clip_low=low, clip_high=high, dual_clip=dual or None,
        sampler_correction=correction or None, sampler_correction_cap=cap,
        entropy_coef=entropy_coef, on_policy=True,
    )  # fmt: skip


def policy_rows(
    targets: Tensor,
    mask: Tensor | None,
    advantages: Tensor,
    old_logprobs: Tensor | None,
    sampler_logprobs: Tensor | None,
    row_weights: Tensor | None,
) -> Rows:
    everything = torch.ones_like(targets, dtype=torch.bool) if mask is None else mask
    return Rows(
        advantages, everything, old_logprobs, sampler_logprobs=sampler_logprobs,
        row_weights=row_weights,
    )  # fmt: skip


def _policy_loss_into(
    out: Tensor | None,
    logits: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    temperature: float,
    temperatures: Tensor | None,
    valid: int,
    softcap: float | None,
    backend: str,
    advantages: Tensor,
    old_logprobs: Tensor | None,
    sampler_logprobs: Tensor | None,
    row_weights: Tensor | None,
    scale: Tensor,
    loss: str,
    correction: str,
    numbers: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss times `scale`, log-probs, entropies; the gradient in `out`, or over the logits."""
    x = _logit_rows(logits, targets, mask, temperature, temperatures, valid, softcap)
    rows = policy_rows(targets, mask, advantages, old_logprobs, sampler_logprobs, row_weights)
    losses, logprobs, entropy = kernels_of(backend).policy_loss(
        x, rows, unpack(loss, correction, numbers), scale, out
    )
    return losses.sum() * scale, logprobs, entropy


@torch.library.custom_op("fastrl::policy_loss", mutates_args=())
@in_full_precision
def policy_loss(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    temperature: float,
    temperatures: Tensor | None,
    valid: int,
    softcap: float | None,
    backend: str,
    advantages: Tensor,
    old_logprobs: Tensor | None,
    sampler_logprobs: Tensor | None,
    row_weights: Tensor | None,
    scale: Tensor,
    loss: str,
    correction: str,
    numbers: Sequence[float],
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss times `scale`, log-probs, entropies, and the gradient [N, V] (empty if unwanted)."""
    out = _gradient_of(logits) if wanted else None
    loss_sum, logprobs, entropy = _policy_loss_into(
        out, logits, targets, mask, temperature, temperatures, valid, softcap, backend, advantages,
        old_logprobs, sampler_logprobs, row_weights, scale, loss, correction, numbers,
    )  # fmt: skip
    return loss_sum, logprobs, entropy, nothing(logits) if out is None else out


def nothing(x: Tensor, **_: Any) -> Tensor:
    return x.new_empty(0)


@policy_loss.register_fake
def _(logits: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    like = torch.empty_like if rest[-1] else nothing
    out = like(logits, memory_format=torch.contiguous_format)
    return (logits.new_empty((), dtype=wide_dtype(logits.dtype)), *vectors(logits, 2), out)


@torch.library.custom_op("fastrl::scale_", mutates_args=("gradients",))
def scale_(gradients: Sequence[Tensor], upstream: Tensor) -> None:
    """Multiply gradients by a 0-d tensor, in place."""
    for gradient in gradients:
        if resolve("auto", gradient.device, gradient.dtype) == "triton":
            from fastrl.ops import fused

            fused.scale_(gradient, upstream)
        else:
            gradient.mul_(upstream)


@scale_.register_fake
def _(gradients: Sequence[Tensor], upstream: Tensor) -> None:
    return None


def save_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[3:])
    ctx.count, ctx.spent, ctx.has_bias = len(inputs), False, inputs[2] is not None
    # or autograd fills a [N, V] tensor of zeros for the output that is the gradient
    ctx.set_materialize_grads(False)


def scaled(ctx: Any, upstream: Tensor) -> list[Tensor]:
    """The saved gradients times the upstream one; as they are where that is 1."""
    refuse_second_derivative()
    gradients = list(ctx.saved_tensors)
    if type(upstream) is Tensor and upstream.device.type == "cpu":
        factor = float(upstream)
        return gradients if factor == 1.0 else [g * factor for g in gradients]
    # in place, and without a look at the number: so a graph that is kept cannot give them again
    if ctx.spent:
        raise UsageError(
            "a second backward through one policy loss: on this device the first one hands out its"
            " gradient; call the loss again, or add the losses before one backward"
        )
    ctx.spent = True
    scale_(gradients, upstream)
    return gradients


def _policy_loss_backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if upstream is None:
        return (None,) * ctx.count
    return (scaled(ctx, upstream)[0], *[None] * (ctx.count - 1))


policy_loss.register_autograd(_policy_loss_backward, setup_context=save_gradients)


class InPlacePolicyLoss(torch.autograd.Function):
    """`policy_loss` whose gradient takes the place of the logits; eager only.

    The logits' version counter goes up, so that whoever saved them for a backward is told.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        wanted = arguments[-1]
        assert wanted
        values = logits.detach()
        loss_sum, logprobs, entropy = _policy_loss_into(values, values, *arguments[:-1])
        torch.autograd.graph.increment_version(logits)
        ctx.gradient, ctx.spent = values, False
        ctx.mark_non_differentiable(logprobs, entropy)
        return loss_sum, logprobs, entropy

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
        refuse_second_derivative()
        if ctx.spent:
            raise UsageError(
                "a second backward through a policy loss with inplace=True: its one gradient was"
                " handed out; use inplace=False"
            )
        ctx.spent = True
        scale_([ctx.gradient], upstream)
        return (ctx.gradient, *[None] * (len(ctx.needs_input_grad) - 1))
