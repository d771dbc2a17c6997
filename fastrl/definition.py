"""The definition of log-probs, entropies and policy losses in plain torch, as autograd functions.

For a row of logits x with target y at temperature T:
z = softcap(logit_scale x) / T, m = max z, l = sum e^(z-m), w = sum e^(z-m) (z-m),
logprob = z_y - m - log l, entropy H = log l - w / l, and with a = dL/dlogprob, g = dL/dH
dz_j = a (1[j=y] - p_j) - g p_j (log p_j + H). No softmax of all rows is ever held: rows are taken
in chunks, and a loss writes its gradient while a chunk is at hand.

Legend: N: rows (tokens), M: those computed, C: those of a chunk, D: hidden width, V: vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastrl.errors import UsageError
from fastrl.losses import LossFn, Rows

CHUNK_BYTES = 1 << 25  # of logits in fp32: 32 MiB stay near the last-level cache


@dataclass(frozen=True)
class Transform:
    """From a linear output to z: what turns raw logits into those of the softmax."""

    temperature: Tensor | float  # a number, or one per row
    softcap: float | None
    logit_scale: float = 1.0

    def select(self, index: Tensor) -> Transform:
        if isinstance(self.temperature, float):
            return self
        return replace(self, temperature=self.temperature[index])

    def apply(self, x_CV: Tensor) -> tuple[Tensor, Tensor | None]:
        """z, and tanh of the capped logits where there is a cap (the gradient needs it)."""
        tanh = None
        z_CV = x_CV * self.logit_scale if self.logit_scale != 1.0 else x_CV
        if self.softcap is not None:
            tanh = torch.tanh(z_CV / self.softcap)
            z_CV = self.softcap * tanh
        scale = self._inverse_temperature(z_CV)
        if not isinstance(scale, float) or scale != 1.0:
            z_CV = z_CV * scale
        return z_CV, tanh

    def chain(self, dz_CV: Tensor, tanh: Tensor | None) -> Tensor:
        """The gradient by the raw logits from that by z, in place."""
        scale = self._inverse_temperature(dz_CV)
        factor = self.logit_scale * scale
        if not isinstance(factor, float) or factor != 1.0:
            dz_CV.mul_(factor)
        return dz_CV if tanh is None else dz_CV.mul_(1 - tanh.square())

    def _inverse_temperature(self, like: Tensor) -> Tensor | float:
        if isinstance(self.temperature, float):
            return 1.0 / self.temperature
        return (1.0 / self.temperature.to(like.dtype))[:, None]


class _Softmax:
    """The statistics of a chunk of rows, and the gradient from them."""

    def __init__(self, x_CV: Tensor, targets_C: Tensor, transform: Transform) -> None:
        z_CV, self.tanh = transform.apply(x_CV)
        self.transform, self.targets_C1 = transform, targets_C[:, None]
        peak_C1 = z_CV.amax(1, keepdim=True)
        peak_C1 = torch.where(peak_C1.isneginf(), 0.0, peak_C1)
        shifted_CV = z_CV - peak_C1
        target_C1 = shifted_CV.gather(1, self.targets_C1)
        self.e_CV = shifted_CV.exp()
        # e is 0 below -746 even in fp64: such a column adds 0 to the entropy, and not 0 * -inf
        self.shifted_CV = shifted_CV.clamp_(min=-1000.0)
        self.sum_C1 = self.e_CV.sum(1, keepdim=True)
        self.log_sum_C1 = self.sum_C1.log()
        self.logprobs_C1 = target_C1 - self.log_sum_C1
        weighted_C1 = torch.linalg.vecdot(self.e_CV, self.shifted_CV)[:, None]
        self.entropy_C1 = self.log_sum_C1 - weighted_C1 / self.sum_C1

    def gradient(self, a_C: Tensor, g_C: Tensor) -> Tensor:
        """dL/dx of the chunk, [C, V]; overwrites the statistics."""
        a_C1, g_C1 = a_C[:, None], g_C[:, None]
        factor_C1 = -a_C1 / self.sum_C1
        # at the target 1 - p is taken without cancellation
        at_target_C1 = -a_C1 * torch.expm1(self.logprobs_C1)
        if bool((g_C != 0).any()):
            # a row with g = 0 gets the bits of the other branch: they must not depend on the chunk
            factor_CV = self.shifted_CV.add_(self.entropy_C1 - self.log_sum_C1)
            dz_CV = self.e_CV.mul_(factor_CV.mul_(-g_C1 / self.sum_C1).add_(factor_C1))
            p_C1 = self.logprobs_C1.exp()
            surprise_C1 = torch.where(p_C1 > 0, p_C1 * (self.logprobs_C1 + self.entropy_C1), 0.0)
            at_target_C1 = at_target_C1 - g_C1 * surprise_C1
        else:
            dz_CV = self.e_CV.mul_(factor_C1)
        dz_CV.scatter_(1, self.targets_C1, at_target_C1)
        return self.transform.chain(dz_CV, self.tanh)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What inputs of `dtype` are computed in: fp64 for fp64, fp32 for the rest."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class FromLogits:
    """Rows of logits that exist: chunks are views, gradients a tensor of the same shape."""

    def __init__(self, logits_NV: Tensor, valid_vocab: int) -> None:
        self.logits_NV, self.valid = logits_NV, valid_vocab
        self.dtype, self.device = wide_dtype(logits_NV.dtype), logits_NV.device

    def chunk(self, index_C: Tensor) -> Tensor:
        return self.logits_NV[index_C, : self.valid].to(self.dtype)

    def gradients(self) -> tuple[Tensor, ...]:
        return (torch.zeros_like(self.logits_NV),)

    def add(self, gradients: tuple[Tensor, ...], index_C: Tensor, dx_CV: Tensor) -> None:
        gradients[0][index_C, : self.valid] = dx_CV.to(self.logits_NV.dtype)


class FromHidden:
    """Rows of logits made chunk by chunk from hidden states and the head's weight, in fp32."""

    def __init__(
        self, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, valid_vocab: int
    ) -> None:
        self.valid = valid_vocab
        self.dtype, self.device = wide_dtype(hidden_ND.dtype), hidden_ND.device
        self.hidden_ND, self.weight_VD, self.bias_V = hidden_ND, weight_VD, bias_V
        self.wide_VD = weight_VD[:valid_vocab].to(self.dtype)
        self.wide_bias_V = None if bias_V is None else bias_V[:valid_vocab].to(self.dtype)

    def chunk(self, index_C: Tensor) -> Tensor:
        hidden_CD = self.hidden_ND[index_C].to(self.dtype)
        return torch.nn.functional.linear(hidden_CD, self.wide_VD, self.wide_bias_V)

    def gradients(self) -> tuple[Tensor, ...]:
        shapes = [self.hidden_ND, self.weight_VD] + ([] if self.bias_V is None else [self.bias_V])
        return tuple(torch.zeros_like(x, dtype=self.dtype) for x in shapes)

    def add(self, gradients: tuple[Tensor, ...], index_C: Tensor, dx_CV: Tensor) -> None:
        gradients[0][index_C] = dx_CV @ self.wide_VD
        gradients[1][: self.valid].addmm_(dx_CV.T, self.hidden_ND[index_C].to(self.dtype))
        if self.bias_V is not None:
            gradients[2][: self.valid] += dx_CV.sum(0)


def _chunks(index: Tensor, vocab: int) -> Iterator[Tensor]:
    return iter(index.split(max(1, CHUNK_BYTES // (4 * vocab)))) if len(index) else iter(())


def _in_full_precision(method: Callable) -> Callable:
    """A method of an autograd function with autocast off, which would round dot products."""

    @functools.wraps(method)
    def run(ctx: Any, *args: Any) -> Any:
        device = next(x.device.type for x in args if isinstance(x, Tensor))
        with torch.autocast(device, enabled=False):
            return method(ctx, *args)

    return run


def _refuse_second_derivative() -> None:
    # autograd's once_differentiable lets the gradient pass as a constant when upstream is one
    if torch.is_grad_enabled():
        raise UsageError(
            "a backward with create_graph=True asks log-probs or a loss for a second derivative;"
            " they have only the first: leave create_graph out"
        )


class LogprobsAndEntropy(torch.autograd.Function):
    """Both outputs for unmasked rows; the backward computes each chunk's statistics again."""

    @staticmethod
    @_in_full_precision
    def forward(ctx, make_source, targets_N, mask_N, transform, *inputs):
        source = make_source(*inputs)
        logprobs_N, entropy_N = _statistics(source, targets_N, mask_N, transform)
        ctx.save_for_backward(targets_N, mask_N, *(x for x in inputs if x is not None))
        ctx.make_source, ctx.transform = make_source, transform
        ctx.given = [x is not None for x in inputs]
        return logprobs_N, entropy_N

    @staticmethod
    @_in_full_precision
    def backward(ctx, a_N, g_N):
        _refuse_second_derivative()
        targets_N, mask_N, *saved = ctx.saved_tensors
        saved = iter(saved)
        inputs = [next(saved) if given else None for given in ctx.given]
        source = ctx.make_source(*inputs)
        gradients = source.gradients()
        for index_C in _chunks(mask_N.nonzero().squeeze(1), source.valid):
            softmax = _Softmax(
                source.chunk(index_C), targets_N[index_C], ctx.transform.select(index_C)
            )
            source.add(gradients, index_C, softmax.gradient(a_N[index_C], g_N[index_C]))
        return (None, None, None, None, *_like(gradients, inputs))


class PolicyLoss(torch.autograd.Function):
    """The loss with its gradient written in the forward."""

    @staticmethod
    @_in_full_precision
    def forward(ctx, make_source, targets_N, transform, rows, loss_fn, row_wise, scale, *inputs):
        source = make_source(*inputs)
        wanted = any(x is not None and x.requires_grad for x in inputs)
        gradients = source.gradients() if wanted else ()
        active_M = rows.mask.nonzero().squeeze(1)
        if row_wise:
            logprobs_N, entropy_N = (
                torch.zeros(len(targets_N), dtype=source.dtype, device=source.device)
                for _ in range(2)
            )
            loss = torch.zeros((), dtype=source.dtype, device=source.device)
        else:
            logprobs_N, entropy_N = _statistics(source, targets_N, rows.mask, transform)
            loss, a_N, g_N = _coefficients(loss_fn, logprobs_N, entropy_N, rows)
            needed = (a_N != 0) | (g_N != 0)
            active_M = (rows.mask & needed).nonzero().squeeze(1) if wanted else active_M[:0]
        for index_C in _chunks(active_M, source.valid):
            softmax = _Softmax(source.chunk(index_C), targets_N[index_C], transform.select(index_C))
            if row_wise:
                logprobs_C = logprobs_N[index_C] = softmax.logprobs_C1.squeeze(1)
                entropy_C = entropy_N[index_C] = softmax.entropy_C1.squeeze(1)
                part, a_C, g_C = _coefficients(loss_fn, logprobs_C, entropy_C, rows.select(index_C))
                loss += part
                if not wanted or not bool(((a_C != 0) | (g_C != 0)).any()):
                    continue
            else:
                a_C, g_C = a_N[index_C], g_N[index_C]
            source.add(gradients, index_C, softmax.gradient(a_C * scale, g_C * scale))
        ctx.save_for_backward(*(_like(gradients, inputs) if wanted else ()))
        ctx.mark_non_differentiable(logprobs_N, entropy_N)
        return (loss * scale).to(source.dtype), logprobs_N, entropy_N

    @staticmethod
    def backward(ctx, upstream, _logprobs, _entropy):
        _refuse_second_derivative()
        # upstream is a scalar: in its own dtype it does not change that of the product
        gradients = (None if g is None else g * upstream for g in ctx.saved_tensors)
        return (None, None, None, None, None, None, None, *gradients)


def _statistics(
    source: Any, targets_N: Tensor, mask_N: Tensor, transform: Transform
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of the unmasked rows, 0 elsewhere, [N] each."""
    logprobs_N, entropy_N = (
        torch.zeros(len(targets_N), dtype=source.dtype, device=source.device) for _ in range(2)
    )
    for index_C in _chunks(mask_N.nonzero().squeeze(1), source.valid):
        softmax = _Softmax(source.chunk(index_C), targets_N[index_C], transform.select(index_C))
        logprobs_N[index_C] = softmax.logprobs_C1.squeeze(1)
        entropy_N[index_C] = softmax.entropy_C1.squeeze(1)
    return logprobs_N, entropy_N


def _coefficients(
    loss_fn: LossFn, logprobs: Tensor, entropy: Tensor, rows: Rows
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and its derivatives by log-prob and entropy of each row, by autograd on vectors."""
    with torch.enable_grad():
        lp, h = logprobs.detach().requires_grad_(), entropy.detach().requires_grad_()
        loss = loss_fn(lp, h, rows)
        if loss.dim() != 0 or not loss.requires_grad:
            raise UsageError(
                f"loss_fn returned a tensor of shape {tuple(loss.shape)}"
                f"{'' if loss.requires_grad else ' without a gradient'}; return a scalar computed"
                " from its logprobs or entropy"
            )
        a, g = torch.autograd.grad(loss, (lp, h), allow_unused=True)
    zero = torch.zeros_like(logprobs)
    return loss.detach(), zero if a is None else a, zero if g is None else g


def _like(gradients: tuple[Tensor, ...], inputs: Any) -> tuple[Tensor | None, ...]:
    """Gradients in their inputs' dtypes, None for an absent input."""
    left = iter(gradients)
    return tuple(None if x is None else next(left).to(x.dtype) for x in inputs)
