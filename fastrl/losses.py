"""The losses of policy-gradient training as functions of log-probs and entropies of N rows.

A loss is `loss_fn(logprobs, entropy, rows) -> scalar`. Everything here is such a function, made
from a LossSpec; autograd on it gives each row's coefficients dL/dlogprob and dL/dentropy, from
which `fastrl.ops` writes the gradient of the logits. Legend: N: rows (tokens), S: sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from fastrl.errors import UsageError

LOSSES = ("reinforce", "clip", "cispo", "gspo")
AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm")
KL_ESTIMATORS = ("k1", "k2", "k3", "k3-corrected", "k3-clamped")
# the losses and corrections of rows by their numbers in csrc/loss.h and kernels/policy_loss.py
KERNEL_LOSSES = {"reinforce": 0, "clip": 1, "cispo": 2}
KERNEL_CORRECTIONS = {None: 0, "token_truncate": 1, "token_mask": 2}
CORRECTIONS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


@dataclass(frozen=True)
class LossSpec:
    """A loss by name. Raises UsageError for a name or a number that is none of the allowed.

    With rho = exp(logprobs - old_logprobs), A the advantage:
    "reinforce" -A logprob; "clip" -min(rho A, clip(rho) A), with `dual_clip` c > 1 at most -c A
    where A < 0 (arXiv:1912.09729); "cispo" -clip(rho) A logprob, the ratio detached
    (arXiv:2506.13585); "gspo" the clip loss with the sequence's ratio, exp of the mean of log rho
    (arXiv:2507.18071).
    """

    loss: str = "reinforce"
    clip_low: float = 0.2  # ratios below 1 - clip_low are clipped
    clip_high: float = 0.2  # ratios above 1 + clip_high are clipped
    dual_clip: float | None = None
    loss_agg_mode: str = "seq-mean-token-sum-norm"
    kl_estimator: str | None = None  # KL to ref_logprobs as a loss
    kl_coef: float = 0.0
    entropy_coef: float = 0.0  # bonus: subtracted from the loss
    sampler_correction: str | None = None
    sampler_correction_cap: float = 20.0
    on_policy: bool = False  # one step a batch: old_logprobs may be absent, and is then logprobs

    def __post_init__(self) -> None:
        for name, allowed in (
            ("loss", LOSSES),
            ("loss_agg_mode", AGGREGATIONS),
            ("kl_estimator", (None, *KL_ESTIMATORS)),
            ("sampler_correction", (None, *CORRECTIONS)),
        ):
            value = getattr(self, name)
            if value not in allowed:
                names = ", ".join(repr(a) for a in allowed)
                raise UsageError(f"LossSpec.{name} is {value!r}; allowed: {names}")
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise UsageError(f"LossSpec.dual_clip is {self.dual_clip}; it must be above 1, or None")
        if not (0 <= self.clip_low <= 1 and self.clip_high >= 0):
            raise UsageError(
                f"LossSpec.clip_low {self.clip_low} must lie in 0..1 and clip_high"
                f" {self.clip_high} must not be negative"
            )
        for name in ("kl_coef", "entropy_coef"):
            if not math.isfinite(getattr(self, name)):
                raise UsageError(f"LossSpec.{name} is {getattr(self, name)}; it must be finite")
        if self.kl_coef and self.kl_estimator is None:
            names = ", ".join(map(repr, KL_ESTIMATORS))
            raise UsageError(
                f"LossSpec.kl_coef is {self.kl_coef} without a kl_estimator; name one of {names},"
                " or leave kl_coef at 0"
            )
        if not self.sampler_correction_cap > 0:
            raise UsageError(
                f"LossSpec.sampler_correction_cap is {self.sampler_correction_cap}; it must be"
                " positive"
            )

    @classmethod
    def preset(cls, name: str) -> LossSpec:
        """The loss that a publication or framework uses; raises UsageError for an unknown name."""
        if name not in PRESETS:
            raise UsageError(f"there is no loss preset {name!r}; allowed: {', '.join(PRESETS)}")
        return PRESETS[name]

    @property
    def needs_sequences(self) -> bool:
        """Whether a row's coefficient depends on other rows of its sequence."""
        correction = self.sampler_correction or ""
        return self.loss == "gspo" or correction.startswith("sequence")

    @property
    def in_kernel(self) -> bool:
        """Whether the kernels know the loss: one of rows, without a KL term."""
        return not self.needs_sequences and not (self.kl_estimator and self.kl_coef)

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether the loss has a ratio to the policy that sampled."""
        return self.loss != "reinforce" or self.kl_estimator == "k3-corrected"


_GSPO = LossSpec(  # the publication's bounds, arXiv:2507.18071
    loss="gspo", clip_low=3e-4, clip_high=4e-4, loss_agg_mode="seq-mean-token-mean"
)
_VERL = LossSpec(loss="clip", dual_clip=3.0, loss_agg_mode="token-mean")
PRESETS = {
    # REINFORCE, importance weights truncated at 20, one mean over a step's tokens: arXiv:2604.16259
    "paper": LossSpec(
        loss="reinforce",
        loss_agg_mode="token-mean",
        sampler_correction="token_truncate",
        sampler_correction_cap=20.0,
        on_policy=True,
    ),
    # TRL 1.16's GRPOTrainer without vLLM's correction: its default, then other loss types
    "trl-dapo": LossSpec(loss="clip", loss_agg_mode="token-mean"),
    "trl-grpo": LossSpec(loss="clip", loss_agg_mode="seq-mean-token-mean"),
    "trl-dr_grpo": LossSpec(loss="clip", loss_agg_mode="seq-mean-token-sum-norm"),
    # its epsilon_high is the bound itself, 5 as its documentation advises, and there is none below
    "trl-cispo": LossSpec(loss="cispo", clip_low=1.0, clip_high=4.0, loss_agg_mode="token-mean"),
    "trl-gspo": _GSPO,  # importance_sampling_level "sequence", loss_type "grpo", the paper's bounds
    # verl 0.9's registered losses; where it takes e^-20 for a smaller ratio, this takes the ratio
    "verl-ppo": _VERL,
    "verl-grpo": replace(_VERL, kl_estimator="k3-clamped", kl_coef=0.001),
    "verl-dapo": replace(_VERL, clip_high=0.28, dual_clip=10.0),
    "verl-dr_grpo": replace(_VERL, loss_agg_mode="seq-mean-token-sum-norm"),
    "verl-gspo": replace(_GSPO, dual_clip=math.exp(10.0)),
    "verl-cispo": LossSpec(loss="cispo", loss_agg_mode="token-mean"),
}


@dataclass(frozen=True)
class Rows:
    """What a loss may look at beside log-probs and entropies; vectors of N rows or None."""

    advantages: Tensor
    mask: Tensor  # bool, True: in the loss
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    sampler_logprobs: Tensor | None = None
    row_weights: Tensor | None = None
    cu_seqlens: Tensor | None = None  # int32, S + 1 offsets over the rows

    def select(self, index: Tensor | slice) -> Rows:
        """The same for some of the rows; sequences are lost."""
        vectors: dict[str, Any] = {
            f.name: None if (v := getattr(self, f.name)) is None else v[index]
            for f in fields(self)
            if f.name != "cu_seqlens"
        }
        return replace(self, **vectors, cu_seqlens=None)

    def to(self, dtype: torch.dtype) -> Rows:
        """The same with every vector of numbers in one dtype."""
        numbers: dict[str, Any] = {
            f.name: v.to(dtype)
            for f in fields(self)
            if (v := getattr(self, f.name)) is not None and v.is_floating_point()
        }
        return replace(self, **numbers)


LossFn = Callable[[Tensor, Tensor, Rows], Tensor]


def loss_denominator(
    spec: LossSpec, *, num_tokens: int, num_sequences: int, max_tokens: int
) -> float:
    """What a step's summed loss is divided by; every argument counts the whole step.

    "token-mean": the tokens in the loss (a ratio of two random numbers: biased);
    "seq-mean-token-mean": the sequences (each row already carries 1 / its sequence's tokens); TRL
    counts those without an unmasked token too, verl does not;
    "seq-mean-token-sum-norm": the constant sequences x max_tokens (arXiv:2503.20783).
    """
    denominators = {
        "token-mean": num_tokens,
        "seq-mean-token-mean": num_sequences,
        "seq-mean-token-sum-norm": num_sequences * max_tokens,
    }
    return float(max(1, denominators[spec.loss_agg_mode]))


def make_loss_fn(spec: LossSpec) -> LossFn:
    """The sum over rows of the loss that `spec` names."""

    def loss_fn(logprobs: Tensor, entropy: Tensor, rows: Rows) -> Tensor:
        return (row_losses(spec, logprobs, entropy, rows)).sum()

    return loss_fn


def row_losses(spec: LossSpec, logprobs: Tensor, entropy: Tensor, rows: Rows) -> Tensor:
    """The loss of each row, weighted by `row_weights`, [N]."""
    old = logprobs.detach() if rows.old_logprobs is None else rows.old_logprobs
    advantages = rows.advantages
    log_ratio = logprobs - old
    if spec.loss == "reinforce":
        loss = -advantages * logprobs
    elif spec.loss == "cispo":
        ratio = clip_log_ratio(spec, log_ratio, advantages).exp().detach()
        loss = -advantages * ratio * logprobs
    else:
        if spec.loss == "gspo":
            log_ratio = sequence_sum(log_ratio, rows, mean=True)
        loss = -advantages * clip_log_ratio(spec, log_ratio, advantages).exp()
    if spec.sampler_correction is not None:
        loss = loss * sampler_weights(spec, old.detach(), rows)
    if spec.kl_estimator is not None and spec.kl_coef:
        assert rows.ref_logprobs is not None
        loss = loss + spec.kl_coef * kl_rows(spec.kl_estimator, logprobs, old, rows.ref_logprobs)
    if spec.entropy_coef:
        loss = loss - spec.entropy_coef * entropy
    return loss if rows.row_weights is None else loss * rows.row_weights


def coefficients(
    spec: LossSpec, logprobs: Tensor, entropy: Tensor, rows: Rows
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each row, its derivative by the log-prob and that by the entropy, [N] each.

    For losses of rows (`spec.in_kernel`): the kernels' form of `row_losses`, without autograd.
    """
    losses = row_losses(spec, logprobs, entropy, rows)
    old = logprobs if rows.old_logprobs is None else rows.old_logprobs
    a = -rows.advantages
    if spec.loss != "reinforce":
        log_ratio = logprobs - old
        bounded = clip_log_ratio(spec, log_ratio, rows.advantages)
        a = a * bounded.exp()
        if spec.loss == "clip":  # where the loss is a bound it has no gradient
            a = torch.where((bounded < log_ratio) | (bounded > log_ratio), 0.0, a)
    if spec.sampler_correction is not None:
        a = a * sampler_weights(spec, old, rows)
    g = torch.full_like(entropy, -spec.entropy_coef)
    if rows.row_weights is not None:
        a, g = a * rows.row_weights, g * rows.row_weights
    return losses, a.to(logprobs.dtype), g


def log_bounds(spec: LossSpec) -> tuple[float, float, float]:
    """The logs of 1 - clip_low, 1 + clip_high and dual_clip, infinite where there is no bound."""
    low = math.log1p(-spec.clip_low) if spec.clip_low < 1 else -math.inf
    dual = math.inf if spec.dual_clip is None else math.log(spec.dual_clip)
    return low, math.log1p(spec.clip_high), dual


def clip_log_ratio(spec: LossSpec, log_ratio: Tensor, advantages: Tensor) -> Tensor:
    """log rho where the loss uses rho, the log of the bound where it uses that, [N].

    min(rho A, clip(rho) A) is A min(rho, 1 + high) for A >= 0, else A max(rho, 1 - low). Clipped
    before the exponential: a rho beyond the largest number would leave inf * 0 in its gradient.
    """
    low, high, dual = log_bounds(spec)
    if spec.loss == "cispo":
        return log_ratio.clamp(low, high)
    return torch.where(advantages < 0, log_ratio.clamp(low, dual), log_ratio.clamp(max=high))


def clipped_rows(spec: LossSpec, logprobs: Tensor, rows: Rows) -> Tensor:
    """Which rows' loss uses a bound in place of the ratio to old_logprobs, bool [N]."""
    if spec.loss == "reinforce":
        return torch.zeros_like(rows.mask)
    assert rows.old_logprobs is not None
    log_ratio = torch.where(rows.mask, logprobs - rows.old_logprobs, 0.0)
    if spec.loss == "gspo":
        log_ratio = sequence_sum(log_ratio, rows, mean=True)
    return rows.mask & (clip_log_ratio(spec, log_ratio, rows.advantages) != log_ratio)


def kl_rows(estimator: str, logprobs: Tensor, old: Tensor, ref: Tensor) -> Tensor:
    """KL(policy || reference) of each row by an estimator of Schulman's note "Approximating KL".

    "k3-corrected" multiplies k3 by the ratio to the sampling policy, as TRL's option does;
    "k3-clamped" is at most 10, without a gradient there, as verl's.
    """
    gap = ref - logprobs
    if estimator == "k3-clamped":
        gap = gap.clamp(-20.0, 20.0)
        return (gap.exp() - 1 - gap).clamp(max=10.0)
    if estimator == "k1":
        return -gap
    if estimator == "k2":
        return gap.square() / 2
    k3 = gap.exp() - 1 - gap
    return k3 * (logprobs - old).exp() if estimator == "k3-corrected" else k3


def sampler_weights(spec: LossSpec, trainer_logprobs: Tensor, rows: Rows) -> Tensor:
    """The detached importance weight of each row, the trainer's policy over the sampler's, [N]."""
    assert rows.sampler_logprobs is not None and spec.sampler_correction is not None
    level, _, action = spec.sampler_correction.partition("_")
    log_ratio = trainer_logprobs - rows.sampler_logprobs
    if level == "sequence":
        log_ratio = sequence_sum(log_ratio, rows)
    ratio = log_ratio.exp()
    cap = spec.sampler_correction_cap
    return ratio.clamp(max=cap) if action == "truncate" else torch.where(ratio > cap, 0.0, ratio)


def sequence_sum(values: Tensor, rows: Rows, *, mean: bool = False) -> Tensor:
    """The sum or mean over the unmasked rows of a sequence, repeated to its rows, [N]."""
    assert rows.cu_seqlens is not None
    sequence_N, count = sequence_index(rows.cu_seqlens, len(values))
    kept = torch.where(rows.mask, values, 0.0)
    total = values.new_zeros(count).index_add(0, sequence_N, kept)
    if mean:
        tokens = values.new_zeros(count).index_add(0, sequence_N, rows.mask.to(values.dtype))
        total = total / tokens.clamp(min=1)
    return total[sequence_N]


def sequence_index(cu_seqlens: Tensor, rows: int) -> tuple[Tensor, int]:
    """The sequence of each row, int64 [N], and the number of sequences."""
    lengths = cu_seqlens.diff().long()
    index = torch.arange(len(lengths), device=lengths.device)
    return index.repeat_interleave(lengths, output_size=rows), len(lengths)


def aggregation_weights(
    spec: LossSpec, mask: Tensor, cu_seqlens: Tensor | None, dtype: torch.dtype
) -> Tensor | None:
    """The weight of each row that `loss_agg_mode` asks for before the division; None for all 1."""
    if spec.loss_agg_mode != "seq-mean-token-mean":
        return None
    assert cu_seqlens is not None
    sequence_N, count = sequence_index(cu_seqlens, len(mask))
    tokens = torch.zeros(count, dtype=dtype, device=mask.device)
    tokens = tokens.index_add(0, sequence_N, mask.to(dtype))
    return 1 / tokens.clamp(min=1)[sequence_N]
