"""What the operations refuse without a look at a value, and their arguments made flat.

Legend: N: rows (tokens), S: sequences, D: hidden width, V: vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastrl.errors import UsageError
from fastrl.losses import LossFn, LossSpec, Rows
from fastrl.ops import library
from fastrl.ops.rows import wide_dtype


def vector(name: str, value: Tensor | None, targets: Tensor) -> Tensor | None:
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
class Flat:
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


def flatten(
    source: Tensor,
    vocab: int,
    targets: Tensor,
    mask: Tensor | None,
    temperature: float | Tensor,
    valid_vocab: int | None,
    softcap: float | None,
    backend: str,
) -> Flat:
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
            each = vector("temperature", temperature, targets)
        else:
            # one number on the device, read there: no synchronisation
            each = temperature.detach().to(device).expand(targets.numel())
    else:
        one = float(temperature)
        if not one > 0:
            raise UsageError(f"temperature is {temperature}; it must be positive")
    if each is not None:
        each = each.to(wide_dtype(dtype)).contiguous()
    return Flat(
        targets.reshape(-1).long(), vector("mask", mask, targets), one, each, valid,
        None if softcap is None else float(softcap), library.resolve(backend, device, dtype),
    )  # fmt: skip


def check_logits(logits: Tensor) -> None:
    if getattr(logits, "_fastrl_overwritten", False):
        raise UsageError(
            "these logits hold a gradient since a policy_loss with inplace=True; compute them"
            " again, or use inplace=False there"
        )
    if logits.dim() < 1 or logits.shape[-1] < 1:
        raise UsageError(
            f"logits have shape {tuple(logits.shape)}; allowed: [..., V], V at least 1"
        )
    if logits.shape[-1] > 1 and logits.numel() and logits.stride(-1) != 1:
        raise UsageError(
            f"the last axis of the logits has stride {logits.stride(-1)}; allowed: 1 (call"
            " .contiguous() on them)"
        )


def check_in_place(logits: Tensor, spec: LossSpec, loss_fn: LossFn | None) -> None:
    """Raises UsageError where writing over the logits would spoil something, or be of no use."""
    reason = None
    if logits.is_leaf:
        reason = "the logits are a leaf whose values are kept; compute them from something"
    elif loss_fn is not None or not spec.in_kernel:
        reason = "this loss needs the logits a second time; use inplace=False for it"
    elif not logits.is_contiguous():
        reason = "the logits are not contiguous; call .contiguous() on them"
    elif torch.compiler.is_compiling():
        reason = "the compiler decides for itself what memory to use again; leave it out"
    if reason:
        raise UsageError(f"inplace=True cannot be had: {reason}")


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


def check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
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


def rows_of(
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
    advantages_N = vector("advantages", advantages, targets)
    assert advantages_N is not None
    rows = Rows(
        advantages=advantages_N,
        mask=mask_N,
        old_logprobs=vector("old_logprobs", old_logprobs, targets),
        ref_logprobs=vector("ref_logprobs", ref_logprobs, targets),
        sampler_logprobs=vector("sampler_logprobs", sampler_logprobs, targets),
        row_weights=vector("row_weights", row_weights, targets),
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
