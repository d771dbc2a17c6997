"""The operators from hidden states and a head's weight, as `fastrl.ops.library` from logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrl.ops import head
from fastrl.ops.library import (
    check_values,
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden states, weight and bias (empty without one)."""
    x = _head_rows(
        hidden, weight, bias, targets, mask, temperature, temperatures, valid, softcap,
        logit_scale, compact,
    )  # fmt: skip
    return head.gradient(kernels_of(backend), x, a, g)


def _like_head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    return (
        torch.empty_like(hidden, memory_format=torch.contiguous_format),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
        hidden.new_empty(0) if bias is None else torch.empty_like(bias),
    )


@linear_row_gradient.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, *_: Any) -> tuple[Tensor, ...]:
    return _like_head(hidden, weight, bias)


def _save_head(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    hidden, weight, bias, targets, mask, temperature, temperatures, *rest = inputs
    ctx.save_for_backward(hidden, weight, bias, targets, mask, temperatures)
    ctx.temperature, ctx.rest = temperature, rest
    ctx.set_materialize_grads(False)


def _linear_row_statistics_backward(
    ctx: Any, a: Tensor | None, g: Tensor | None
) -> tuple[Any, ...]:
    refuse_second_derivative()
    if a is None and g is None:
        return (None,) * 12
    hidden, weight, bias, targets, mask, temperatures = ctx.saved_tensors
    by_hidden, by_weight, by_bias = linear_row_gradient(
        hidden, weight, bias, targets, mask, ctx.temperature, temperatures, *ctx.rest,
        *row_coefficients(a, g),
    )  # fmt: skip
    return (by_hidden, by_weight, None if bias is None else by_bias, *[None] * 9)


linear_row_statistics.register_autograd(_linear_row_statistics_backward, setup_context=_save_head)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss times `scale`, log-probs, entropies, and the gradients of the three inputs."""
    x = _head_rows(
        hidden, weight, bias, targets, mask, temperature, temperatures, valid, softcap,
        logit_scale, compact,
    )  # fmt: skip
    rows = policy_rows(targets, mask, advantages, old_logprobs, sampler_logprobs, row_weights)
    spec = unpack(loss, correction, numbers)
    losses, logprobs, entropy, gradients = head.policy_loss(
        kernels_of(backend), x, rows, spec, scale, wanted
    )
    return losses.sum() * scale, logprobs, entropy, *gradients


@linear_policy_loss.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    gradients = _like_head(hidden, weight, bias)
    if not rest[-1]:
        gradients = tuple(nothing(x) for x in gradients)
    return (
        hidden.new_empty((), dtype=wide_dtype(hidden.dtype)), *vectors(hidden, 2), *gradients,
    )  # fmt: skip


def _linear_policy_loss_backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if upstream is None:
        return (None,) * ctx.count
    by_hidden, by_weight, by_bias = scaled(ctx, upstream)
    return (by_hidden, by_weight, by_bias if ctx.has_bias else None, *[None] * (ctx.count - 3))


linear_policy_loss.register_autograd(_linear_policy_loss_backward, setup_context=save_gradients)
