"""Token log-probs, entropies and policy losses straight from logits or hidden states.

The operations, their contracts and checks; `fastrl.definition` says what is computed. Any leading
shape is flattened to rows, and targets are already shifted.

Legend: N: rows (tokens), S: sequences, D: hidden width, V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastrl.definition import (
    FromHidden,
    FromLogits,
    LogprobsAndEntropy,
    PolicyLoss,
    Transform,
    wide_dtype,
)
from fastrl.errors import UsageError
from fastrl.losses import (
    LossFn,
    LossSpec,
    Rows,
    aggregation_weights,
    clipped_rows,
    kl_rows,
    make_loss_fn,
)

__all__ = [
    "LossSpec",
    "PolicyLossOutput",
    "Rows",
    "linear_logprobs_and_entropy",
    "linear_policy_loss",
    "logprobs_and_entropy",
    "policy_loss",
]

BACKENDS = ("auto", "triton", "cpu", "torch")


@dataclass(frozen=True)
class PolicyLossOutput:
    """The loss (the only differentiable part), and what was computed on the way, detached."""

    loss_sum: Tensor  # 0-d: the sum over rows, times grad_scale
    num_tokens: Tensor  # 0-d int64: unmasked rows
    logprobs: Tensor  # the shape of targets; 0 where masked
    entropy: Tensor
    stats: dict[str, Tensor]  # 0-d sums over rows (maxima where the name says so)


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
) -> tuple[Tensor, Tensor, Transform, int]:
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
            f"the target of row {row} is {int(targets_N[row])}, outside the vocabulary"
            f" 0..{valid - 1}; mask that row or mend it"
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
    return targets_N, mask_N, Transform(kind, softcap, float(logit_scale)), valid


def _check_logits(logits: Tensor) -> None:
    if logits.dim() < 1 or logits.shape[-1] < 1:
        raise UsageError(
            f"logits have shape {tuple(logits.shape)}; allowed: [..., V], V at least 1"
        )


def _check_offsets(cu_seqlens: Tensor, targets: Tensor) -> None:
    if cu_seqlens.dtype not in (torch.int32, torch.int64) or cu_seqlens.device != targets.device:
        raise UsageError(
            f"cu_seqlens is {cu_seqlens.dtype} on {cu_seqlens.device}; allowed: int32, int64 on"
            f" {targets.device}"
        )
    offsets, rows = cu_seqlens.detach().cpu().reshape(-1), targets.numel()
    rises = cu_seqlens.dim() == 1 and len(offsets) > 0 and bool((offsets.diff() >= 0).all())
    if not rises or int(offsets[0]) != 0 or int(offsets[-1]) != rows:
        raise UsageError(
            f"cu_seqlens must rise from 0 to the {rows} rows in one dimension; it is"
            f" {offsets[:8].tolist()}"
        )


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
    if bias is not None and (bias.shape != weight.shape[:1] or bias.device != weight.device):
        raise UsageError(
            f"bias has shape {tuple(bias.shape)} on {bias.device}; allowed: ({weight.shape[0]},) on"
            f" {weight.device}"
        )


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
    _check_logits(logits)
    vocab = logits.shape[-1]
    targets_N, mask_N, transform, valid = _prepare(
        logits.shape[:-1], logits.device, logits.dtype, vocab, targets, mask, temperature,
        valid_vocab, softcap,
    )  # fmt: skip
    logprobs, entropy = LogprobsAndEntropy.apply(
        lambda x: FromLogits(x, valid), targets_N, mask_N, transform, logits.reshape(-1, vocab)
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
    logprobs, entropy = LogprobsAndEntropy.apply(
        lambda h, w, b: FromHidden(h, w, b, valid),
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

    `advantages`, `old_logprobs`, `ref_logprobs`, `sampler_logprobs`, `row_weights`, `mask`: the
    shape of `targets`. `cu_seqlens`: int32 [S + 1] offsets over the flattened rows, for losses of
    whole sequences. `grad_scale`: a number or 0-d tensor that scales the loss and its gradient, as
    1 / the step's `loss_denominator`. `loss_fn(logprobs, entropy, rows) -> scalar` replaces `spec`.
    Raises UsageError for input that does not fit, and for a loss that lacks what it needs.
    """
    _check_backend(backend)
    _check_logits(logits)
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
        lambda x: FromLogits(x, valid), (logits.reshape(-1, vocab),),
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
        lambda h, w, b: FromHidden(h, w, b, valid),
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
        _check_offsets(cu_seqlens, targets)
    if loss_fn is not None:
        return rows
    if spec.needs_old_logprobs and old_logprobs is None and not spec.on_policy:
        name = "KL estimator 'k3-corrected'" if spec.loss == "reinforce" else f"loss {spec.loss!r}"
        raise UsageError(
            f"the {name} needs old_logprobs, the log-probs of the policy that sampled; give them,"
            " or LossSpec(on_policy=True) for one step a batch"
        )
    if spec.kl_estimator is not None and spec.kl_coef and ref_logprobs is None:
        raise UsageError(f"the KL estimator {spec.kl_estimator!r} needs ref_logprobs; give them")
    if spec.sampler_correction is not None and sampler_logprobs is None:
        raise UsageError(
            f"the correction {spec.sampler_correction!r} needs sampler_logprobs; give them, or"
            " sampler_correction=None"
        )
    needs_sequences = spec.needs_sequences or spec.loss_agg_mode == "seq-mean-token-mean"
    if needs_sequences and cu_seqlens is None:
        raise UsageError(
            f"the loss {spec.loss!r} with loss_agg_mode {spec.loss_agg_mode!r} and"
            f" sampler_correction {spec.sampler_correction!r} is one of whole sequences; give"
            " cu_seqlens, their offsets over the rows"
        )
    return rows


def _loss(
    make_source: Callable,
    inputs: tuple[Any, ...],
    targets: Tensor,
    targets_N: Tensor,
    transform: Transform,
    rows: Rows,
    grad_scale: float | Tensor | None,
    spec: LossSpec,
    loss_fn: LossFn | None,
) -> PolicyLossOutput:
    if isinstance(grad_scale, Tensor) and grad_scale.dim() > 0:
        raise UsageError(
            f"grad_scale has shape {tuple(grad_scale.shape)}; allowed: a number or a 0-d tensor"
        )
    scale = 1.0 if grad_scale is None else grad_scale
    row_wise = loss_fn is None and not spec.needs_sequences
    built_in = spec if loss_fn is None else None
    if loss_fn is None:
        loss_fn = _unmasked(make_loss_fn(spec))
        weights_N = aggregation_weights(
            spec, rows.mask, rows.cu_seqlens, wide_dtype(inputs[0].dtype)
        )
        if weights_N is not None:
            given = rows.row_weights
            rows = replace(rows, row_weights=weights_N if given is None else given * weights_N)
    loss, logprobs, entropy = PolicyLoss.apply(
        make_source, targets_N, transform, rows, loss_fn, row_wise, scale, *inputs
    )
    return PolicyLossOutput(
        loss_sum=loss,
        num_tokens=rows.mask.sum(),
        logprobs=logprobs.view(targets.shape),
        entropy=entropy.view(targets.shape),
        stats=_stats(logprobs, entropy, rows, built_in),
    )


def _unmasked(loss_fn: LossFn) -> LossFn:
    """`loss_fn` of rows whose masked entries may hold anything: left out, not multiplied by 0."""

    def selected(logprobs: Tensor, entropy: Tensor, rows: Rows) -> Tensor:
        if bool(rows.mask.all()):
            return loss_fn(logprobs, entropy, rows)
        names = ("advantages", "old_logprobs", "ref_logprobs", "sampler_logprobs", "row_weights")
        clean: dict[str, Any] = {
            name: torch.where(rows.mask, value, 0.0)
            for name in names
            if (value := getattr(rows, name)) is not None
        }
        return loss_fn(logprobs, entropy, replace(rows, **clean))

    return selected


def _stats(
    logprobs: Tensor, entropy: Tensor, rows: Rows, built_in: LossSpec | None
) -> dict[str, Tensor]:
    """Sums over the unmasked rows; the caller divides, once, by the step's count."""
    stats = {"logprobs": logprobs.sum(), "entropy": entropy.sum()}
    if built_in is not None and rows.old_logprobs is not None:
        stats["clipped"] = clipped_rows(built_in, logprobs, rows).sum()
    logprobs = logprobs[rows.mask]
    if rows.ref_logprobs is not None:
        ref = rows.ref_logprobs[rows.mask]
        for name in ("k1", "k3"):
            stats[f"kl_{name}"] = kl_rows(name, logprobs, logprobs, ref).sum()
    if rows.sampler_logprobs is not None:
        gap = rows.sampler_logprobs[rows.mask] - logprobs
        stats["mismatch"] = gap.sum()
        stats["mismatch_ratio_max"] = (-gap).exp().max() if len(gap) else gap.sum()
    return stats
