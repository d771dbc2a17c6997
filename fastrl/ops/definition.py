"""The definition of log-probs, entropies, policy losses and their gradients in plain torch.

For a row of logits x with target y at temperature T:
z = softcap(logit_scale x) / T, m = max z, l = sum e^(z-m), w = sum e^(z-m) (z-m),
logprob = z_y - m - log l, entropy H = log l - w / l, and with a = dL/dlogprob, g = dL/dH
dz_j = a (1[j=y] - p_j) - g p_j (log p_j + H). No softmax of all rows is ever held: rows are taken
in chunks.

Legend: N: rows (tokens), C: those of a chunk, V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastrl.losses import LossSpec, Rows, coefficients
from fastrl.ops import choice
from fastrl.ops.rows import Filters, LogitRows, Noise, by_row, wide_dtype

CHUNK_BYTES = 1 << 25  # of logits in fp32: 32 MiB stay near the last-level cache

WRITES_HALVES = True


def capped(x: LogitRows) -> tuple[Tensor, Tensor | None]:
    """softcap(logit_scale x) in fresh memory, [N, V]; and the cap's hyperbolic tangent."""
    x_NV = x.logits_NV[:, : x.valid]
    z_NV = x_NV.to(wide_dtype(x_NV.dtype), copy=True)
    if x.logit_scale != 1.0:
        z_NV *= x.logit_scale
    if x.softcap is None:
        return z_NV, None
    tanh_NV = torch.tanh(z_NV / x.softcap)
    return x.softcap * tanh_NV, tanh_NV


class _Softmax:
    """The statistics of a chunk of rows, and the gradient from them."""

    def __init__(self, x: LogitRows) -> None:
        self.x, self.targets_C1 = x, x.targets_N[:, None]
        z_CV, self.tanh = capped(x)
        self.inverse_temperature = self._inverse_temperature(z_CV.dtype)
        z_CV *= self.inverse_temperature
        peak_C1 = z_CV.amax(1, keepdim=True)
        peak_C1 = torch.where(peak_C1.isneginf(), 0.0, peak_C1)
        shifted_CV = z_CV.sub_(peak_C1)
        target_C1 = shifted_CV.gather(1, self.targets_C1)
        self.e_CV = shifted_CV.exp()
        # e is 0 below -746 even in fp64: such a column adds 0 to the entropy, and not 0 * -inf
        self.shifted_CV = shifted_CV.clamp_(min=-1000.0)
        self.sum_C1 = by_row(lambda e: e.sum(1, keepdim=True), self.e_CV)
        self.log_sum_C1 = self.sum_C1.log()
        self.logprobs_C1 = target_C1 - self.log_sum_C1
        weighted_C1 = by_row(torch.linalg.vecdot, self.e_CV, self.shifted_CV)[:, None]
        self.entropy_C1 = self.log_sum_C1 - weighted_C1 / self.sum_C1

    def _inverse_temperature(self, dtype: torch.dtype) -> Tensor | float:
        t = self.x.temperature
        return 1.0 / t if isinstance(t, float) else (1.0 / t.to(dtype))[:, None]

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
        dz_CV *= self.x.logit_scale * self.inverse_temperature
        return dz_CV if self.tanh is None else dz_CV.mul_(1 - self.tanh.square())


def _split(x: LogitRows, index: Tensor) -> Sequence[Tensor]:
    return index.split(max(1, CHUNK_BYTES // (4 * x.valid))) if len(index) else ()


def _chunks(x: LogitRows, index: Tensor) -> Iterator[tuple[Tensor, _Softmax]]:
    for index_C in _split(x, index):
        yield index_C, _Softmax(x.select(index_C))


def _zeros(x: LogitRows) -> Tensor:
    dtype = wide_dtype(x.logits_NV.dtype)
    return torch.zeros(x.targets_N.shape, dtype=dtype, device=x.logits_NV.device)


def statistics(x: LogitRows) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of the unmasked rows, 0 elsewhere, [N] each."""
    logprobs_N, entropy_N = _zeros(x), _zeros(x)
    for index_C, softmax in _chunks(x, x.unmasked()):
        logprobs_N[index_C] = softmax.logprobs_C1.squeeze(1)
        entropy_N[index_C] = softmax.entropy_C1.squeeze(1)
    return logprobs_N, entropy_N


def extras(x: LogitRows, thresholds_N: Tensor | None) -> tuple[Tensor, ...]:
    """Log-probs, entropies, sum p^2, largest p, argmax and log of the kept mass, [N] each."""
    logprobs_N, entropy_N, squares_N, max_N, kept_N = (_zeros(x) for _ in range(5))
    argmax_N = torch.full_like(x.targets_N, -1)
    for index_C, softmax in _chunks(x, x.unmasked()):
        logprobs_N[index_C] = softmax.logprobs_C1.squeeze(1)
        entropy_N[index_C] = softmax.entropy_C1.squeeze(1)
        p_CV = softmax.e_CV / softmax.sum_C1
        squares_N[index_C] = p_CV.square().sum(1)
        max_N[index_C], first_C = p_CV.max(1)
        argmax_N[index_C] = torch.where(softmax.sum_C1.squeeze(1).isnan(), -1, first_C)
        if thresholds_N is not None:
            z_CV, _ = capped(x.select(index_C))
            keep_CV = z_CV >= thresholds_N[index_C].to(z_CV.dtype)[:, None]
            kept_N[index_C] = torch.where(keep_CV, p_CV, 0.0).sum(1).log()
    return logprobs_N, entropy_N, squares_N, max_N, argmax_N, kept_N


def gradient(x: LogitRows, a_N: Tensor, g_N: Tensor, out_NV: Tensor) -> None:
    """The gradient of the logits; rows that are masked or have a = g = 0 get zeros, unread."""
    needed_N = (a_N != 0) | (g_N != 0)
    if x.mask_N is not None:
        needed_N &= x.mask_N
    for index_C, softmax in _chunks(x, needed_N.nonzero().squeeze(1)):
        dx_CV = softmax.gradient(a_N[index_C], g_N[index_C])
        out_NV[index_C, : x.valid] = dx_CV.to(out_NV.dtype)
    out_NV[~needed_N] = 0
    out_NV[:, x.valid :] = 0


def policy_loss(
    x: LogitRows, rows: Rows, spec: LossSpec, scale: Tensor, out_NV: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """A loss of rows; each chunk's gradient is written while its statistics are at hand."""
    losses_N, logprobs_N, entropy_N = _zeros(x), _zeros(x), _zeros(x)
    written_N = torch.zeros_like(losses_N, dtype=torch.bool)
    for index_C, softmax in _chunks(x, x.unmasked()):
        logprobs_C = logprobs_N[index_C] = softmax.logprobs_C1.squeeze(1)
        entropy_C = entropy_N[index_C] = softmax.entropy_C1.squeeze(1)
        losses_C, a_C, g_C = coefficients(spec, logprobs_C, entropy_C, rows.select(index_C))
        losses_N[index_C] = losses_C
        needed_C = (a_C != 0) | (g_C != 0)
        if out_NV is not None and bool(needed_C.any()):
            dx_CV = softmax.gradient(a_C * scale, g_C * scale)
            out_NV[index_C, : x.valid] = dx_CV.to(out_NV.dtype)
            written_N[index_C] = needed_C
    if out_NV is not None:
        out_NV[~written_N] = 0
        out_NV[:, x.valid :] = 0
    return losses_N, logprobs_N, entropy_N


def sample(x: LogitRows, filters: Filters, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, their log-probs under the full distribution, the log of the kept mass; [N] each."""
    tokens_N, log_kept_N, t = torch.empty_like(x.targets_N), _zeros(x), x.temperature
    for index_C in _split(x, x.unmasked()):
        z_CV, _ = capped(x.select(index_C))
        # relative to the largest, so that neither a large logit nor a low temperature overflows
        peak_C1 = z_CV.amax(1, keepdim=True)
        z_CV -= torch.where(peak_C1.isneginf(), 0.0, peak_C1)
        z_CV /= t[index_C, None].to(z_CV.dtype) if isinstance(t, Tensor) else t
        tokens_N[index_C], log_kept_N[index_C] = choice.choose(
            z_CV, filters.select(index_C), noise.select(index_C)
        )
    logprobs_N, _ = statistics(replace(x, targets_N=tokens_N.clamp(min=0)))
    return tokens_N, torch.where(tokens_N < 0, torch.nan, logprobs_N), log_kept_N
