"""Token log-probs, entropies and policy losses straight from logits or hidden states.

The public operations: their contracts, and the checks that need no look at a value.
`fastrl.ops.definition` says what is computed. Any leading shape is flattened to rows, and targets
are already shifted.

Legend: N: rows (tokens), S: sequences, D: hidden width, V: vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

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
from fastrl.ops import library
from fastrl.ops.rows import wide_dtype


@dataclass(frozen=True)
class PolicyLossOutput:
    """The loss (the only differentiable part), and what was computed on the way, detached."""

    loss_sum: Tensor  # 0-d: the sum over rows, times grad_scale
    num_tokens: Tensor  # 0-d int64: unmasked rows
    logprobs: Tensor  # the shape of targets; 0 where masked
    entropy: Tensor
    stats: dict[str, Tensor]  # 0-d sums over rows (maxima where the name says so)


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


@dataclass(frozen=True)
class _Flat:
    """What the operators take beside logits or a head, checked and flattened."""

    targets_N: Tensor
    mask_N: Tensor | None
    temperature: float
    temperature_N: Tensor | None
    valid: int
    softcap: float | None
    backend: str  # the one that runs

    @property
    def arguments(self) -> tuple[Any, ...]:
        return (
            self.targets_N, self.mask_N, self.temperature, self.temperature_N, self.valid,
            self.softcap,
        )  # fmt: skip

    @property
    def everything(self) -> Tensor:
        """The mask, True everywhere where none was given."""
        if self.mask_N is not None:
            return self.mask_N
        return torch.ones_like(self.targets_N, dtype=torch.bool)


def _flatten(
    source: Tensor,
    vocab: int,
    targets: Tensor,
    mask: Tensor | None,
    temperature: float | Tensor,
    valid_vocab: int | None,
    softcap: float | None,
    backend: str,
) -> _Flat:
    """`source` are logits or hidden states, [..., V or D]."""
    rows_shape, device, dtype = source.shape[:-1], source.device, source.dtype
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
    if mask is not None and mask.dtype != torch.bool:
        raise UsageError(f"mask is {mask.dtype}; it must be bool, True where a row counts")
    one, each = 1.0, None
    if isinstance(temperature, Tensor):
        if temperature.dim() > 0:
            each = _vector("temperature", temperature, targets)
        else:
            # one number on the device, read there: no synchronisation
            each = temperature.detach().to(device).expand(targets.numel())
    else:
        one = float(temperature)
        if not one > 0:
            raise UsageError(f"temperature is {temperature}; it must be positive")
    if each is not None:
        each = each.to(wide_dtype(dtype)).contiguous()
    return _Flat(
        targets.reshape(-1).long(), _vector("mask", mask, targets), one, each, valid,
        None if softcap is None else float(softcap), library.resolve(backend, device, dtype),
    )  # fmt: skip


def _check_logits(logits: Tensor) -> None:
    if logits.dim() < 1 or logits.shape[-1] < 1:
        raise UsageError(
            f"logits have shape {tuple(logits.shape)}; allowed: [..., V], V at least 1"
        )
    if logits.shape[-1] > 1 and logits.numel() and logits.stride(-1) != 1:
        raise UsageError(
            f"the last axis of the logits has stride {logits.stride(-1)}; allowed: 1 (call"
            " .contiguous() on them)"
        )


def _check_offsets(cu_seqlens: Tensor, targets: Tensor) -> None:
    if cu_seqlens.dtype not in (torch.int32, torch.int64) or cu_seqlens.device != targets.device:
        raise UsageError(
            f"cu_seqlens is {cu_seqlens.dtype} on {cu_seqlens.device}; allowed: int32, int64 on"
            f" {targets.device}"
        )
    if targets.device.type != "cpu" or torch.compiler.is_compiling():
        return  # a look would be a synchronisation, or a break in the graph
    offsets, rows = cu_seqlens.detach().reshape(-1), targets.numel()
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
    _check_logits(logits)
    vocab = logits.shape[-1]
    flat = _flatten(logits, vocab, targets, mask, temperature, valid_vocab, softcap, backend)
    logprobs, entropy = library.row_statistics(
        logits.reshape(-1, vocab), *flat.arguments, flat.backend
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
    _check_head(hidden, weight, bias)
    flat = _flatten(
        hidden, weight.shape[0], targets, mask, temperature, valid_vocab, softcap, backend
    )
    logprobs, entropy = library.linear_row_statistics(
        hidden.reshape(-1, hidden.shape[-1]), weight, bias, *flat.arguments, float(logit_scale),
        flat.backend,
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
    _check_logits(logits)
    vocab = logits.shape[-1]
    flat = _flatten(logits, vocab, targets, mask, temperature, valid_vocab, softcap, backend)
    rows = _rows(
        targets, flat.everything, advantages, old_logprobs, ref_logprobs, sampler_logprobs,
        row_weights, cu_seqlens, spec, loss_fn,
    )  # fmt: skip
    source = (logits.reshape(-1, vocab), *flat.arguments, flat.backend)
    return _loss(
        library.policy_loss, library.row_statistics, source, targets, flat, rows, grad_scale, spec,
        loss_fn, torch.is_grad_enabled() and logits.requires_grad,
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
    _check_head(hidden, weight, bias)
    flat = _flatten(
        hidden, weight.shape[0], targets, mask, temperature, valid_vocab, softcap, backend
    )
    rows = _rows(
        targets, flat.everything, advantages, old_logprobs, ref_logprobs, sampler_logprobs,
        row_weights, cu_seqlens, spec, loss_fn,
    )  # fmt: skip
    hidden_ND = hidden.reshape(-1, hidden.shape[-1])
    source = (hidden_ND, weight, bias, *flat.arguments, float(logit_scale), flat.backend)
    trainable = any(x is not None and x.requires_grad for x in (hidden, weight, bias))
    return _loss(
        library.linear_policy_loss, library.linear_row_statistics, source, targets, flat, rows,
        grad_scale, spec, loss_fn, torch.is_grad_enabled() and trainable,
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
    in_kernel: Any,
    statistics: Any,
    source: tuple[Any, ...],
    targets: Tensor,
    flat: _Flat,
    rows: Rows,
    grad_scale: float | Tensor | None,
    spec: LossSpec,
    loss_fn: LossFn | None,
    wanted: bool,
) -> PolicyLossOutput:
    """A loss that the kernels know, or one of log-probs and entropies by autograd on vectors."""
    dtype = wide_dtype(source[0].dtype)
    if isinstance(grad_scale, Tensor):
        if grad_scale.dim() > 0:
            raise UsageError(
                f"grad_scale has shape {tuple(grad_scale.shape)}; allowed: a number or a 0-d tensor"
            )
        scale = grad_scale.detach().to(targets.device, dtype)
    else:
        number = 1.0 if grad_scale is None else float(grad_scale)
        scale = torch.full((), number, dtype=dtype, device=targets.device)
    if loss_fn is None:
        weights_N = aggregation_weights(spec, rows.mask, rows.cu_seqlens, dtype)
        if weights_N is not None:
            given = rows.row_weights
            rows = replace(rows, row_weights=weights_N if given is None else given * weights_N)
    if loss_fn is None and spec.in_kernel:
        loss, logprobs, entropy, *_ = in_kernel(
            *source, rows.advantages, rows.old_logprobs,
            rows.sampler_logprobs if spec.sampler_correction else None, rows.row_weights, scale,
            *library.pack(spec), wanted,
        )  # fmt: skip
    else:
        logprobs, entropy = statistics(*source)
        loss = (loss_fn or _unmasked(make_loss_fn(spec)))(logprobs, entropy, rows)
        if loss.dim() != 0 or (wanted and not loss.requires_grad):
            lacking = " without a gradient" if wanted and not loss.requires_grad else ""
            raise UsageError(
                f"loss_fn returned a tensor of shape {tuple(loss.shape)}{lacking}; return a scalar"
                " computed from its logprobs or entropy"
            )
        loss = (loss * scale).to(dtype)
    logprobs, entropy = logprobs.detach(), entropy.detach()
    return PolicyLossOutput(
        loss_sum=loss,
        num_tokens=rows.mask.sum(),
        logprobs=logprobs.view(targets.shape),
        entropy=entropy.view(targets.shape),
        stats=_stats(logprobs, entropy, rows, spec if loss_fn is None else None),
    )


def _unmasked(loss_fn: LossFn) -> LossFn:
    """`loss_fn` of rows whose masked entries may hold anything: left out, not multiplied by 0."""

    def selected(logprobs: Tensor, entropy: Tensor, rows: Rows) -> Tensor:
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

    def kept(values: Tensor) -> Tensor:
        return torch.where(rows.mask, values, 0.0)

    stats = {"logprobs": logprobs.sum(), "entropy": entropy.sum()}
    if built_in is not None and rows.old_logprobs is not None:
        stats["clipped"] = clipped_rows(built_in, logprobs, rows).sum()
    if rows.ref_logprobs is not None:
        for name in ("k1", "k3"):
            stats[f"kl_{name}"] = kept(kl_rows(name, logprobs, logprobs, rows.ref_logprobs)).sum()
    if rows.sampler_logprobs is not None:
        gap = kept(rows.sampler_logprobs - logprobs)
        stats["mismatch"] = gap.sum()
        # 0 where there is no row
        ratios = kept((-gap).exp())
        stats["mismatch_ratio_max"] = ratios.max() if len(ratios) else gap.sum()
    return stats
