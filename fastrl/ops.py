"""Token log-probs, entropies and policy losses straight from logits or hidden states.

The definition, in plain torch. For a row of logits x with target y at temperature T:
z = softcap(logit_scale x) / T, m = max z, l = sum e^(z-m), w = sum e^(z-m) (z-m),
logprob = z_y - m - log l, entropy H = log l - w / l, and with a = dL/dlogprob, g = dL/dH
dz_j = a (1[j=y] - p_j) - g p_j (log p_j + H). No softmax of all rows is ever held: rows are taken in
chunks, and a loss writes its gradient while a chunk is at hand.

Legend: N: rows (tokens), D: hidden width, V: vocabulary, C: rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastrl.errors import UsageError
from fastrl.losses import LossFn, LossSpec, Rows, aggregation_weights, kl_rows, make_loss_fn

__all__ = [
    "LossSpec",
    "PolicyLossOutput",
    "Rows",
    "linear_logprobs_and_entropy",
    "linear_policy_loss",
    "logprobs_and_entropy",
    "policy_loss",
]

CHUNK_BYTES = 1 << 25  # of logits in fp32: 32 MiB stay near the last-level cache
BACKENDS = ("auto", "triton", "cpu", "torch")


@dataclass(frozen=True)
class PolicyLossOutput:
    """The loss (the only differentiable part), and what was computed on the way, detached."""

    loss_sum: Tensor  # 0-d: the sum over rows, times grad_scale
    num_tokens: Tensor  # 0-d int64: unmasked rows
    logprobs: Tensor  # the shape of targets; 0 where masked
    entropy: Tensor
    stats: dict[str, Tensor]  # 0-d sums over rows (maxima where the name says so)


@dataclass(frozen=True)
class _Transform:
    """From a linear output to z: what turns raw logits into those of the softmax."""

    temperature: Tensor | float  # a number, or one per row
    softcap: float | None
    logit_scale: float = 1.0

    def select(self, index: Tensor) -> _Transform:
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

    def __init__(self, x_CV: Tensor, targets_C: Tensor, transform: _Transform) -> None:
        z_CV, self.tanh = transform.apply(x_CV)
        self.transform, self.targets_C1 = transform, targets_C[:, None]
        peak_C1 = z_CV.amax(1, keepdim=True)
        peak_C1 = torch.where(peak_C1.isneginf(), 0.0, peak_C1)
        shifted_CV = z_CV - peak_C1
        target_C1 = shifted_CV.gather(1, self.targets_C1)
        self.e_CV = shifted_CV.exp()
        # a probability of 0 adds nothing to the entropy: 0 * -inf must not be formed
        self.shifted_CV = shifted_CV.clamp_(min=torch.finfo(z_CV.dtype).min / 4)
        self.sum_C1 = self.e_CV.sum(1, keepdim=True)
        log_sum_C1 = self.sum_C1.log()
        self.logprobs_C1 = target_C1 - log_sum_C1
        weighted_C1 = torch.linalg.vecdot(self.e_CV, self.shifted_CV)[:, None]
        self.entropy_C1 = log_sum_C1 - weighted_C1 / self.sum_C1

    def gradient(self, a_C: Tensor, g_C: Tensor) -> Tensor:
        """dL/dx of the chunk, [C, V]; overwrites the statistics."""
        a_C1, g_C1 = a_C[:, None], g_C[:, None]
        p_C1 = self.logprobs_C1.exp()
        # at the target 1 - p is taken without cancellation
        at_target_C1 = -a_C1 * torch.expm1(self.logprobs_C1)
        if bool((g_C != 0).any()):
            log_sum_C1 = self.sum_C1.log()
            factor_CV = self.shifted_CV.add_(self.entropy_C1 - log_sum_C1).mul_(-g_C1).sub_(a_C1)
            dz_CV = self.e_CV.mul_(factor_CV).div_(self.sum_C1)
            surprise_C1 = torch.where(p_C1 > 0, p_C1 * (self.logprobs_C1 + self.entropy_C1), 0.0)
            at_target_C1 = at_target_C1 - g_C1 * surprise_C1
        else:
            dz_CV = self.e_CV.mul_(-a_C1 / self.sum_C1)
        dz_CV.scatter_(1, self.targets_C1, at_target_C1)
        return self.transform.chain(dz_CV, self.tanh)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class _FromLogits:
    """Rows of logits that exist: chunks are views, gradients a tensor of the same shape."""

    def __init__(self, logits_NV: Tensor, valid_vocab: int) -> None:
        self.logits_NV, self.valid = logits_NV, valid_vocab
        self.dtype, self.device = _wide(logits_NV.dtype), logits_NV.device

    def chunk(self, index_C: Tensor) -> Tensor:
        return self.logits_NV[index_C, : self.valid].to(self.dtype)

    def gradients(self) -> tuple[Tensor, ...]:
        return (torch.zeros_like(self.logits_NV),)

    def add(self, gradients: tuple[Tensor, ...], index_C: Tensor, dx_CV: Tensor) -> None:
        gradients[0][index_C, : self.valid] = dx_CV.to(self.logits_NV.dtype)


class _FromHidden:
    """Rows of logits made chunk by chunk from hidden states and the head's weight, in fp32."""

    def __init__(
        self, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, valid_vocab: int
    ) -> None:
        self.valid = valid_vocab
        self.dtype, self.device = _wide(hidden_ND.dtype), hidden_ND.device
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


class _LogprobsAndEntropy(torch.autograd.Function):
    """Both outputs for unmasked rows; the backward computes each chunk's statistics again."""

    @staticmethod
    def forward(ctx, make_source, targets_N, mask_N, transform, *inputs):
        source = make_source(*inputs)
        logprobs_N, entropy_N = _statistics(source, targets_N, mask_N, transform)
        ctx.save_for_backward(targets_N, mask_N, *(x for x in inputs if x is not None))
        ctx.make_source, ctx.transform = make_source, transform
        ctx.given = [x is not None for x in inputs]
        return logprobs_N, entropy_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, a_N, g_N):
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


class _PolicyLoss(torch.autograd.Function):
    """The loss with its gradient written in the forward."""

    @staticmethod
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
        return loss * scale, logprobs_N, entropy_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream, _logprobs, _entropy):
        gradients = (None if g is None else g * upstream.to(g.dtype) for g in ctx.saved_tensors)
        return (None, None, None, None, None, None, None, *gradients)


def _statistics(
    source: Any, targets_N: Tensor, mask_N: Tensor, transform: _Transform
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


# --- checks ---------------------------------------------------------------------------------------


def _check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise UsageError(f"backend is {backend!r}; allowed: {', '.join(map(repr, BACKENDS))}")
    if backend in ("triton", "cpu"):
        raise UsageError(
            f"backend {backend!r} is not part of this build; use backend='torch' or 'auto'"
        )


def _vector(name: str, value: Tensor | None, targets: Tensor) -> Tensor | None:
    """`value` as a flat vector, one entry a row."""
    if value is None:
        return None
    if value.shape != targets.shape:
        raise UsageError(
            f"{name} has shape {tuple(value.shape)}; it must be that of targets,"
            f" {tuple(targets.shape)}"
        )
    if value.device != targets.device:
        raise UsageError(f"{name} is on {value.device}, targets on {targets.device}; move one")
    return value.detach().reshape(-1)


def _prepare(
    rows_shape: torch.Size,
    device: torch.device,
    dtype: torch.dtype,
    vocab: int,
    targets: Tensor,
    mask: Tensor | None,
    temperature: float | Tensor,
    valid_vocab: int | None,
    softcap: float | None,
    logit_scale: float = 1.0,
) -> tuple[Tensor, Tensor, _Transform, int]:
    """Flat targets and mask, the transform and the valid vocabulary, all checked."""
    if dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise UsageError(f"the input is {dtype}; allowed: float32, bfloat16, float16, float64")
    if targets.shape != rows_shape:
        raise UsageError(
            f"targets have shape {tuple(targets.shape)}; the input has {tuple(rows_shape)} rows"
        )
    if targets.dtype not in (torch.int64, torch.int32):
        raise UsageError(f"targets are {targets.dtype}; allowed: int64, int32")
    if targets.device != device:
        raise UsageError(f"targets are on {targets.device}, the input on {device}; move one")
    valid = vocab if valid_vocab is None else int(valid_vocab)
    if not 1 <= valid <= vocab:
        raise UsageError(f"valid_vocab is {valid_vocab}; it must lie in 1..{vocab}")
    if softcap is not None and not softcap > 0:
        raise UsageError(f"softcap is {softcap}; it must be positive, or None")
    if mask is None:
        mask_N = torch.ones(targets.numel(), dtype=torch.bool, device=device)
    else:
        if mask.dtype != torch.bool:
            raise UsageError(f"mask is {mask.dtype}; it must be bool, True where a row counts")
        found = _vector("mask", mask, targets)
        assert found is not None
        mask_N = found
    targets_N = targets.reshape(-1).long()
    outside = mask_N & ((targets_N < 0) | (targets_N >= valid))
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise UsageError(
            f"the target of row {row} is {int(targets_N[row])}, outside the vocabulary 0..{valid - 1};"
            " mask that row or mend it"
        )
    if isinstance(temperature, Tensor) and temperature.dim() > 0:
        found = _vector("temperature", temperature, targets)
        assert found is not None
        kind: Tensor | float = found
        positive = bool((found[mask_N] > 0).all())
    else:
        kind = float(temperature)
        positive = kind > 0
    if not positive:
        raise UsageError(f"temperature is {temperature}; it must be positive")
    targets_N = torch.where(mask_N, targets_N, 0)
    return targets_N, mask_N, _Transform(kind, softcap, float(logit_scale)), valid


def _check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if weight.dim() != 2 or hidden.dim() < 1 or hidden.shape[-1] != weight.shape[1]:
        raise UsageError(
            f"hidden has shape {tuple(hidden.shape)} and weight {tuple(weight.shape)}; allowed:"
            " [..., D] and [V, D]"
        )
    if weight.device != hidden.device or weight.dtype != hidden.dtype:
        raise UsageError(
            f"hidden is {hidden.dtype} on {hidden.device}, weight {weight.dtype} on"
            f" {weight.device}; give both in one dtype on one device"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise UsageError(f"bias has shape {tuple(bias.shape)}; allowed: ({weight.shape[0]},)")


# --- the operations -------------------------------------------------------------------------------


def logprobs_and_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    mask: Tensor | None = None,
    valid_vocab: int | None = None,
    softcap: float | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The log-prob of each target and the entropy of each row, both differentiable.

    `logits` [..., V], `targets` and `mask` (bool, True: computed) [...]; `temperature` a number or
    one per row; ids from `valid_vocab` on take no part. Results have the shape of `targets`, in
    fp32 (fp64 for fp64 logits), nats; 0 in masked rows, whose logits are never read.
    Raises UsageError for shapes, dtypes, devices, temperatures and targets that do not fit.
    """
    _check_backend(backend)
    vocab = logits.shape[-1]
    targets_N, mask_N, transform, valid = _prepare(
        logits.shape[:-1], logits.device, logits.dtype, vocab, targets, mask, temperature,
        valid_vocab, softcap,
    )  # fmt: skip
    logprobs, entropy = _LogprobsAndEntropy.apply(
        lambda x: _FromLogits(x, valid), targets_N, mask_N, transform, logits.reshape(-1, vocab)
    )
    return logprobs.view(targets.shape), entropy.view(targets.shape)


def linear_logprobs_and_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    temperature: float | Tensor = 1.0,
    mask: Tensor | None = None,
    valid_vocab: int | None = None,
    softcap: float | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`logprobs_and_entropy` of logits = hidden @ weight.T + bias, which are never whole in memory.

    `hidden` [..., D], `weight` [V, D], `bias` [V]; differentiable by all three.
    """
    _check_backend(backend)
    _check_head(hidden, weight, bias)
    targets_N, mask_N, transform, valid = _prepare(
        hidden.shape[:-1], hidden.device, hidden.dtype, weight.shape[0], targets, mask, temperature,
        valid_vocab, softcap, logit_scale,
    )  # fmt: skip
    logprobs, entropy = _LogprobsAndEntropy.apply(
        lambda h, w, b: _FromHidden(h, w, b, valid),
        targets_N, mask_N, transform, hidden.reshape(-1, hidden.shape[-1]), weight, bias,
    )  # fmt: skip
    return logprobs.view(targets.shape), entropy.view(targets.shape)


def policy_loss(
    logits: Tensor,
    targets: Tensor,
    advantages: Tensor,
    *,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    sampler_logprobs: Tensor | None = None,
    mask: Tensor | None = None,
    row_weights: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    valid_vocab: int | None = None,
    softcap: float | None = None,
    grad_scale: float | Tensor | None = None,
    spec: LossSpec = LossSpec(),  # noqa: B008  frozen
    loss_fn: LossFn | None = None,
    backend: str = "auto",
) -> PolicyLossOutput:
    """A policy-gradient loss of logits [..., V], its gradient computed in the forward.

    `advantages`, `old_logprobs`, `ref_logprobs`, `sampler_logprobs`, `row_weights`, `mask`: the shape
    of `targets`. `cu_seqlens`: int32 [S + 1] offsets over the flattened rows, for losses of whole
    sequences. `grad_scale`: a number or 0-d tensor that scales the loss and its gradient, as 1 / the
    step's `loss_denominator`. `loss_fn(logprobs, entropy, rows) -> scalar` replaces `spec`.
    Raises UsageError for input that does not fit, and for a loss that lacks what it needs.
    """
    _check_backend(backend)
    vocab = logits.shape[-1]
    targets_N, mask_N, transform, valid = _prepare(
        logits.shape[:-1], logits.device, logits.dtype, vocab, targets, mask, temperature,
        valid_vocab, softcap,
    )  # fmt: skip
    rows = _rows(
        targets, mask_N, advantages, old_logprobs, ref_logprobs, sampler_logprobs, row_weights,
        cu_seqlens, spec, loss_fn,
    )  # fmt: skip
    return _loss(
        lambda x: _FromLogits(x, valid), (logits.reshape(-1, vocab),),
        targets, targets_N, transform, rows, grad_scale, spec, loss_fn,
    )  # fmt: skip


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    advantages: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    sampler_logprobs: Tensor | None = None,
    mask: Tensor | None = None,
    row_weights: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    valid_vocab: int | None = None,
    softcap: float | None = None,
    grad_scale: float | Tensor | None = None,
    spec: LossSpec = LossSpec(),  # noqa: B008  frozen
    loss_fn: LossFn | None = None,
    backend: str = "auto",
) -> PolicyLossOutput:
    """`policy_loss` of logits = hidden @ weight.T + bias, one chunk of them in memory at a time.

    `hidden` [..., D], `weight` [V, D], `bias` [V]. 6 N V D floating-point operations for a loss of
    rows, 8 N V D for one of sequences or a `loss_fn`, which needs every log-prob first. Both
    gradients are accumulated in fp32.
    """
    _check_backend(backend)
    _check_head(hidden, weight, bias)
    targets_N, mask_N, transform, valid = _prepare(
        hidden.shape[:-1], hidden.device, hidden.dtype, weight.shape[0], targets, mask, temperature,
        valid_vocab, softcap, logit_scale,
    )  # fmt: skip
    rows = _rows(
        targets, mask_N, advantages, old_logprobs, ref_logprobs, sampler_logprobs, row_weights,
        cu_seqlens, spec, loss_fn,
    )  # fmt: skip
    return _loss(
        lambda h, w, b: _FromHidden(h, w, b, valid),
        (hidden.reshape(-1, hidden.shape[-1]), weight, bias),
        targets, targets_N, transform, rows, grad_scale, spec, loss_fn,
    )  # fmt: skip


def _rows(
    targets: Tensor,
    mask_N: Tensor,
    advantages: Tensor,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    sampler_logprobs: Tensor | None,
    row_weights: Tensor | None,
    cu_seqlens: Tensor | None,
    spec: LossSpec,
    loss_fn: LossFn | None,
) -> Rows:
    """The loss's vectors, checked against what the loss needs."""
    advantages_N = _vector("advantages", advantages, targets)
    assert advantages_N is not None
    rows = Rows(
        advantages=advantages_N,
        mask=mask_N,
        old_logprobs=_vector("old_logprobs", old_logprobs, targets),
        ref_logprobs=_vector("ref_logprobs", ref_logprobs, targets),
        sampler_logprobs=_vector("sampler_logprobs", sampler_logprobs, targets),
        row_weights=_vector("row_weights", row_weights, targets),
        cu_seqlens=cu_seqlens,
    )
    if cu_seqlens is not None:
        offsets = cu_seqlens.detach().cpu()
        rises = offsets.dim() == 1 and len(offsets) > 0 and bool((offsets.diff() >= 0).all())
        if not rises or int(offsets[0]) != 0 or int(offsets[-1]) != len(mask_N):
            raise UsageError(
                f"cu_seqlens must rise from 0 to the {len(mask_N)} rows; it is {offsets.tolist()[:8]}"
            )
    if loss_fn is not None:
        return rows
    if spec.needs_old_logprobs and old_logprobs is None and not spec.on_policy:
        raise UsageError(
            f"the loss {spec.loss!r} needs old_logprobs, the log-probs of the policy that sampled;"
            " give them, or LossSpec(on_policy=True) for one step a batch"
        )
    if spec.kl_estimator is not None and spec.kl_coef and ref_logprobs is None:
        raise UsageError(f"the KL estimator {spec.kl_estimator!r} needs ref_logprobs; give them")
    if spec.sampler_correction is not None and sampler_logprobs is None and not spec.on_policy:
        raise UsageError(
            f"the correction {spec.sampler_correction!r} needs sampler_logprobs; give them, or"
            " sampler_correction=None"
        )
    needs_sequences = spec.needs_sequences or spec.loss_agg_mode == "seq-mean-token-mean"
    if needs_sequences and cu_seqlens is None:
        raise UsageError(
            "a loss of whole sequences needs cu_seqlens, their offsets over the rows; give them"
        )
    weights_N = aggregation_weights(spec, mask_N, cu_seqlens)
    if weights_N is not None:
        given = rows.row_weights
        rows = replace(rows, row_weights=weights_N if given is None else given * weights_N)
    return rows


def _loss(
    make_source: Callable,
    inputs: tuple[Tensor | None, ...],
    targets: Tensor,
    targets_N: Tensor,
    transform: _Transform,
    rows: Rows,
    grad_scale: float | Tensor | None,
    spec: LossSpec,
    loss_fn: LossFn | None,
) -> PolicyLossOutput:
    row_wise = loss_fn is None and not spec.needs_sequences
    scale = 1.0 if grad_scale is None else grad_scale
    if loss_fn is None:
        built_in = make_loss_fn(spec)

        def chosen(logprobs: Tensor, entropy: Tensor, rows: Rows) -> Tensor:
            # masked rows may hold anything, NaN included: they are left out, not multiplied by 0
            if bool(rows.mask.all()):
                return built_in(logprobs, entropy, rows)
            clean = {
                name: torch.where(rows.mask, value, 0.0)
                for name in ("advantages", "old_logprobs", "ref_logprobs", "sampler_logprobs",
                             "row_weights")
                if (value := getattr(rows, name)) is not None
            }  # fmt: skip
            weights = clean.pop("row_weights", None)
            weights = rows.mask.to(logprobs.dtype) if weights is None else weights
            return built_in(logprobs, entropy, replace(rows, **clean, row_weights=weights))
    else:
        chosen = loss_fn
    loss, logprobs, entropy = _PolicyLoss.apply(
        make_source, targets_N, transform, rows, chosen, row_wise, scale, *inputs
    )
    return PolicyLossOutput(
        loss_sum=loss,
        num_tokens=rows.mask.sum(),
        logprobs=logprobs.view(targets.shape),
        entropy=entropy.view(targets.shape),
        stats=_stats(spec, logprobs, entropy, rows),
    )


def _stats(spec: LossSpec, logprobs: Tensor, entropy: Tensor, rows: Rows) -> dict[str, Tensor]:
    """Sums over the unmasked rows; the caller divides, once, by the step's count."""
    kept = rows.mask
    stats = {"logprobs": logprobs.sum(), "entropy": entropy.sum()}
    logprobs = logprobs[kept]
    if rows.old_logprobs is not None:
        ratio = (logprobs - rows.old_logprobs[kept]).exp()
        outside = (ratio < 1 - spec.clip_low) | (ratio > 1 + spec.clip_high)
        stats["clipped"] = (outside & (spec.loss in ("clip", "cispo"))).sum()
    if rows.ref_logprobs is not None:
        ref = rows.ref_logprobs[kept]
        for name in ("k1", "k3"):
            stats[f"kl_{name}"] = kl_rows(name, logprobs, logprobs, ref).sum()
    if rows.sampler_logprobs is not None:
        gap = rows.sampler_logprobs[kept] - logprobs
        stats["mismatch"] = gap.sum()
        if len(gap):
            stats["mismatch_ratio_max"] = (-gap).exp().max()
    return stats
