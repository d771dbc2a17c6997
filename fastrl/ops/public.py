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
from fastrl.ops import library, linear_library
from fastrl.ops.checks import (
    Flat,
    check_head,
    check_in_place,
    check_logits,
    flatten,
    rows_of,
    vector,
)
from fastrl.ops.rows import wide_dtype


@dataclass(frozen=True)
class PolicyLossOutput:
    """The loss (the only differentiable part), and what was computed on the way, detached."""

    loss_sum: Tensor  # 0-d: the sum over rows, times grad_scale
    num_tokens: Tensor  # 0-d int64: unmasked rows
    logprobs: Tensor  # the shape of targets; 0 where masked
    entropy: Tensor
    stats: dict[str, Tensor]  # 0-d sums over rows (maxima where the name says so)


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
    check_logits(logits)
    vocab = logits.shape[-1]
    flat = flatten(logits, vocab, targets, mask, temperature, valid_vocab, softcap, backend)
    logprobs, entropy = library.row_statistics(
        logits.reshape(-1, vocab), *flat.arguments, flat.backend
    )
    return logprobs.view(targets.shape), entropy.view(targets.shape)


@dataclass(frozen=True)
class RowStatistics:
    """What one read of the logits tells of each row; 0 in masked rows."""

    logprobs: Tensor
    entropy: Tensor
    sum_squares: Tensor  # sum p^2, the probability that two samples agree
    max_prob: Tensor
    argmax: Tensor  # int64; -1 in masked rows and in rows that hold a NaN
    log_kept_mass: Tensor  # of {softcap(logit) >= threshold}; 0 without thresholds


def row_statistics(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    mask: Tensor | None = None,
    valid_vocab: int | None = None,
    softcap: float | None = None,
    thresholds: Tensor | None = None,
    backend: str = "auto",
) -> RowStatistics:
    """`logprobs_and_entropy`, detached, and more from the same read.

    `thresholds`, the shape of targets, are the smallest logits (before the temperature) of a
    truncated support, as top-k or min-p leave it.
    """
    check_logits(logits)
    vocab = logits.shape[-1]
    flat = flatten(logits, vocab, targets, mask, temperature, valid_vocab, softcap, backend)
    limits = vector("thresholds", thresholds, targets)
    found = library.row_extras(
        logits.detach().reshape(-1, vocab), *flat.arguments, flat.backend, limits
    )
    return RowStatistics(*(x.view(targets.shape) for x in found))


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
    compact: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`logprobs_and_entropy` of logits = hidden @ weight.T + bias, which are never whole in memory.

    `hidden` [..., D], `weight` [V, D], `bias` [V]; differentiable by all three. `compact` leaves
    masked rows out of the products, and those without a gradient out of the backward's; their
    number is then read on the host, which a CUDA graph forbids.
    """
    check_head(hidden, weight, bias)
    flat = flatten(
        hidden, weight.shape[0], targets, mask, temperature, valid_vocab, softcap, backend
    )
    logprobs, entropy = linear_library.linear_row_statistics(
        hidden.reshape(-1, hidden.shape[-1]), weight, bias, *flat.arguments, float(logit_scale),
        compact, flat.backend,
    )  # fmt: skip
    return logprobs.view(targets.shape), entropy.view(targets.shape)


def linear_row_statistics(
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
    compact: bool = True,
    backend: str = "auto",
) -> RowStatistics:
    """`linear_logprobs_and_entropy`, and more from the same products; those two are differentiable.

    Nothing is cut off: `log_kept_mass` is 0.
    """
    check_head(hidden, weight, bias)
    flat = flatten(
        hidden, weight.shape[0], targets, mask, temperature, valid_vocab, softcap, backend
    )
    found = linear_library.linear_row_extras(
        hidden.reshape(-1, hidden.shape[-1]), weight, bias, *flat.arguments, float(logit_scale),
        compact, flat.backend,
    )  # fmt: skip
    pair, more = found[:2], (x.detach() for x in found[2:])
    return RowStatistics(*(x.view(targets.shape) for x in (*pair, *more)))


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
    inplace: bool = False,
    backend: str = "auto",
) -> PolicyLossOutput:
    """A policy-gradient loss of logits [..., V], its gradient computed in the forward.

    `advantages`, `old_logprobs`, `ref_logprobs`, `sampler_logprobs`, `row_weights`, `mask`: the
    shape of `targets`. `cu_seqlens`: int32 [S + 1] offsets over the flattened rows, for losses of
    whole sequences. `grad_scale`: a number or 0-d tensor that scales the loss and its gradient, as
    1 / the step's `loss_denominator`. `loss_fn(logprobs, entropy, rows) -> scalar` replaces `spec`.
    `inplace`: the gradient takes the memory of the logits, which must be nobody's leaf and are not
    logits any more; whoever else saved them for a backward gets torch's error there.
    Raises UsageError for input that does not fit, and for a loss that lacks what it needs.
    """
    check_logits(logits)
    vocab = logits.shape[-1]
    flat = flatten(logits, vocab, targets, mask, temperature, valid_vocab, softcap, backend)
    rows = rows_of(
        targets, flat.everything, advantages, old_logprobs, ref_logprobs, sampler_logprobs,
        row_weights, cu_seqlens, spec, loss_fn,
    )  # fmt: skip
    source = (logits.reshape(-1, vocab), *flat.arguments, flat.backend)
    in_kernel: Any = library.policy_loss
    if inplace and torch.is_grad_enabled() and logits.requires_grad:
        check_in_place(logits, spec, loss_fn)
        in_kernel = library.InPlacePolicyLoss.apply
    output = _loss(
        in_kernel, library.row_statistics, source, targets, flat, rows, grad_scale, spec,
        loss_fn, torch.is_grad_enabled() and logits.requires_grad,
    )  # fmt: skip
    if in_kernel is not library.policy_loss:
        logits._fastrl_overwritten = True  # type: ignore[attr-defined]
    return output


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
    rowwise: bool = False,
    compact: bool = True,
    backend: str = "auto",
) -> PolicyLossOutput:
    """`policy_loss` of logits = hidden @ weight.T + bias, one chunk of them in memory at a time.

    `hidden` [..., D], `weight` [V, D], `bias` [V]. 6 N V D floating-point operations for a loss of
    rows, 8 N V D for one of sequences or a `loss_fn`, which needs every log-prob first; 2 N V D
    less where `weight` takes no gradient. Both gradients are accumulated in fp32.
    `rowwise` says that `loss_fn` is a sum of a term for each row, of its log-prob and entropy
    alone: then 6 N V D. It is called once for each chunk of rows, with 0 for the log-probs and
    entropies of later ones, and once with all; eager only. A loss that turns out to be none such
    is differentiated again, with a warning.
    """
    check_head(hidden, weight, bias)
    flat = flatten(
        hidden, weight.shape[0], targets, mask, temperature, valid_vocab, softcap, backend
    )
    rows = rows_of(
        targets, flat.everything, advantages, old_logprobs, ref_logprobs, sampler_logprobs,
        row_weights, cu_seqlens, spec, loss_fn,
    )  # fmt: skip
    hidden_ND = hidden.reshape(-1, hidden.shape[-1])
    source = (hidden_ND, weight, bias, *flat.arguments, float(logit_scale), compact, flat.backend)
    trainable = any(x is not None and x.requires_grad for x in (hidden, weight, bias))

    def in_kernel(*arguments: Any) -> Any:
        return linear_library.linear_policy_loss(*arguments, weight.requires_grad)

    return _loss(
        in_kernel, linear_library.linear_row_statistics, source, targets, flat, rows, grad_scale,
        spec, loss_fn, torch.is_grad_enabled() and trainable,
        linear_library.RowwiseLoss.apply if rowwise else None,
    )  # fmt: skip


def _loss(
    in_kernel: Any,
    statistics: Any,
    source: tuple[Any, ...],
    targets: Tensor,
    flat: Flat,
    rows: Rows,
    grad_scale: float | Tensor | None,
    spec: LossSpec,
    loss_fn: LossFn | None,
    wanted: bool,
    by_rows: Any = None,
) -> PolicyLossOutput:
    """A loss that the kernels know, or one of log-probs and entropies by autograd on vectors."""
    dtype = wide_dtype(source[0].dtype)
    rows = rows.to(dtype)
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
    elif loss_fn is not None and wanted and by_rows is not None:
        loss, logprobs, entropy = by_rows(*source, loss_fn, rows, scale)
    else:
        logprobs, entropy = statistics(*source)
        loss = (loss_fn or _unmasked(make_loss_fn(spec)))(logprobs, entropy, rows)
        loss = (library.checked_loss(loss, wanted) * scale).to(dtype)
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
