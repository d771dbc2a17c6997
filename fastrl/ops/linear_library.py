"""The operators from hidden states and a head's weight, as `fastrl.ops.library` from logits."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrl.ops import head
from fastrl.ops.library import (
    check_values,
    checked_loss,
    extras_like,
    in_full_precision,
    kernels_of,
    nothing,
    policy_rows,
    refuse_second_derivative,
    row_coefficients,
    save_gradients,
    scaled,
    unpack,
    vectors,
)
from fastrl.ops.rows import wide_dtype


def _head_rows(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    mask: Tensor | None,
    temperature: float,
    temperatures: Tensor | None,
    valid: int,
    softcap: float | None,
    logit_scale: float,
    compact: bool,
) -> head.HeadRows:
    either = temperature if temperatures is None else temperatures
    check_values(targets, mask, valid, either)
    return head.HeadRows(
        hidden, weight, bias, targets, mask, either, valid, softcap, logit_scale, compact
    )


@torch.library.custom_op("fastrl::linear_row_statistics", mutates_args=())
@in_full_precision
def linear_row_statistics(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    mask: Tensor | None,
    temperature: float,
    temperatures: Tensor | None,
    valid: int,
    softcap: float | None,
    logit_scale: float,
    compact: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies from hidden states, [N] each."""
    x = _head_rows(
        hidden, weight, bias, targets, mask, temperature, temperatures, valid, softcap,
        logit_scale, compact,
    )  # fmt: skip
    return head.statistics(kernels_of(backend), x)


@linear_row_statistics.register_fake
def _(hidden: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return vectors(hidden, 2)


@torch.library.custom_op("fastrl::linear_row_gradient", mutates_args=())
@in_full_precision
def linear_row_gradient(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    mask: Tensor | None,
    temperature: float,
    temperatures: Tensor | None,
    valid: int,
    softcap: float | None,
    logit_scale: float,
    compact: bool,
    backend: str,
    a: Tensor,
    g: Tensor,
    of_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden states, weight (empty without `of_weight`) and bias (without one)."""
    x = _head_rows(
        hidden, weight, bias, targets, mask, temperature, temperatures, valid, softcap,
        logit_scale, compact,
    )  # fmt: skip
    return head.gradient(kernels_of(backend), x, a, g, of_weight)


def _like_head(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, of_weight: bool
) -> tuple[Tensor, ...]:
    like = torch.empty_like if of_weight else nothing
    return (
        torch.empty_like(hidden, memory_format=torch.contiguous_format),
        like(weight, memory_format=torch.contiguous_format),
        hidden.new_empty(0) if bias is None else torch.empty_like(bias),
    )


@linear_row_gradient.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    return _like_head(hidden, weight, bias, rest[-1])


def _save_head(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    hidden, weight, bias, targets, mask, temperature, temperatures, *rest = inputs
    ctx.save_for_backward(hidden, weight, bias, targets, mask, temperatures)
    ctx.temperature, ctx.rest = temperature, rest
    ctx.set_materialize_grads(False)


def _linear_row_statistics_backward(
    ctx: Any, a: Tensor | None, g: Tensor | None, *_: Any
) -> tuple[Any, ...]:
    refuse_second_derivative()
    if a is None and g is None:
        return (None,) * 12
    hidden, weight, bias, targets, mask, temperatures = ctx.saved_tensors
    of_weight = ctx.needs_input_grad[1]
    by_hidden, by_weight, by_bias = linear_row_gradient(
        hidden, weight, bias, targets, mask, ctx.temperature, temperatures, *ctx.rest,
        *row_coefficients(a, g), of_weight,
    )  # fmt: skip
    return (
        by_hidden, by_weight if of_weight else None, None if bias is None else by_bias,
        *[None] * 9,
    )  # fmt: skip


linear_row_statistics.register_autograd(_linear_row_statistics_backward, setup_context=_save_head)


@torch.library.custom_op("fastrl::linear_row_extras", mutates_args=())
@in_full_precision
def linear_row_extras(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    mask: Tensor | None,
    temperature: float,
    temperatures: Tensor | None,
    valid: int,
    softcap: float | None,
    logit_scale: float,
    compact: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What Kernels.extras gives, [N] each; the first two have gradients."""
    x = _head_rows(
        hidden, weight, bias, targets, mask, temperature, temperatures, valid, softcap,
        logit_scale, compact,
    )  # fmt: skip
    one, two, three, four, five, six = head.extras(kernels_of(backend), x)
    return one, two, three, four, five, six


@linear_row_extras.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Any, targets: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return extras_like(hidden, targets)


linear_row_extras.register_autograd(_linear_row_statistics_backward, setup_context=_save_head)


@torch.library.custom_op("fastrl::linear_policy_loss", mutates_args=())
@in_full_precision
def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    mask: Tensor | None,
    temperature: float,
    temperatures: Tensor | None,
    valid: int,
    softcap: float | None,
    logit_scale: float,
    compact: bool,
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
    of_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss times `scale`, log-probs, entropies, and the gradients of the three inputs."""
    x = _head_rows(
        hidden, weight, bias, targets, mask, temperature, temperatures, valid, softcap,
        logit_scale, compact,
    )  # fmt: skip
    rows = policy_rows(targets, mask, advantages, old_logprobs, sampler_logprobs, row_weights)
    spec = unpack(loss, correction, numbers)
    losses, logprobs, entropy, gradients = head.policy_loss(
        kernels_of(backend), x, rows, spec, scale, wanted, of_weight
    )
    return losses.sum() * scale, logprobs, entropy, *gradients


@linear_policy_loss.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    wanted, of_weight = rest[-2:]
    gradients = _like_head(hidden, weight, bias, of_weight)
    if not wanted:
        gradients = tuple(nothing(x) for x in gradients)
    return (
        hidden.new_empty((), dtype=wide_dtype(hidden.dtype)), *vectors(hidden, 2), *gradients,
    )  # fmt: skip


def _linear_policy_loss_backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if upstream is None:
        return (None,) * ctx.count
    by_hidden, by_weight, by_bias = scaled(ctx, upstream)
    return (
        by_hidden, by_weight if ctx.needs_input_grad[1] else None,
        by_bias if ctx.has_bias else None, *[None] * (ctx.count - 3),
    )  # fmt: skip


linear_policy_loss.register_autograd(_linear_policy_loss_backward, setup_context=save_gradients)


class RowwiseLoss(torch.autograd.Function):
    """The loss times `scale`, log-probs and entropies of a `loss_fn` by rows; eager only."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        *source, backend, loss_fn, rows, scale = inputs

        def loss_of(logprobs: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            given = [x.detach().clone().requires_grad_() for x in (logprobs, entropy)]
            with torch.enable_grad():
                loss = checked_loss(loss_fn(*given, rows), True) * scale
            a, g = torch.autograd.grad(loss, given, allow_unused=True)
            return loss.detach(), *row_coefficients(a, g)

        run = in_full_precision(lambda _: head.rowwise_loss(
            kernels_of(backend), _head_rows(*source), loss_of, ctx.needs_input_grad[1]
        ))  # fmt: skip
        loss, logprobs, entropy, gradients, by_rows = run(source[0])
        if not by_rows:
            warnings.warn(
                "the gradients of this loss_fn by a row depend on other rows, so they were computed"
                " a second time; leave rowwise out",
                stacklevel=2,
            )
        save_gradients(ctx, inputs, (loss, logprobs, entropy, *gradients))
        ctx.mark_non_differentiable(logprobs, entropy)
        return loss.to(logprobs.dtype), logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
        return _linear_policy_loss_backward(ctx, *upstream)
