"""The kernels in Triton (`fastrl.kernels`): fp32, bf16 and fp16 on a GPU."""

from __future__ import annotations

from torch import Tensor

from fastrl.kernels import policy_loss as _policy_loss
from fastrl.kernels import row_extras, row_gradient, row_statistics
from fastrl.kernels import sample as _sample
from fastrl.kernels import scale as _scale
from fastrl.losses import KERNEL_CORRECTIONS, KERNEL_LOSSES, LossSpec, Rows, log_bounds
from fastrl.ops.rows import Filters, LogitRows, Noise

WRITES_HALVES = True


def _rows(x: LogitRows) -> tuple:
    mask = None if x.mask_N is None else x.mask_N.contiguous()
    t = x.temperature
    temperature = t if isinstance(t, float) else t.float().contiguous()
    return (
        x.logits_NV, x.targets_N.contiguous(), mask, temperature, x.valid, x.softcap,
        x.logit_scale,
    )  # fmt: skip


def statistics(x: LogitRows) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies, [N] each."""
    return row_statistics.row_statistics(*_rows(x))


def extras(x: LogitRows, thresholds_N: Tensor | None) -> tuple[Tensor, ...]:
    """Log-probs, entropies, sum p^2, largest p, argmax and log of the kept mass, [N] each."""
    thresholds = None if thresholds_N is None else thresholds_N.float().contiguous()
    return row_extras.row_extras(*_rows(x), thresholds)


def gradient(x: LogitRows, a_N: Tensor, g_N: Tensor, out_NV: Tensor) -> None:
    """The gradient of the logits from those of log-prob and entropy."""
    a, g = a_N.float().contiguous(), g_N.float().contiguous()
    row_gradient.row_gradient(*_rows(x), a, g, out_NV)


def policy_loss(
    x: LogitRows, rows: Rows, spec: LossSpec, scale: Tensor, out_NV: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """A loss of rows and its gradient, in one kernel."""
    vectors = (rows.advantages, rows.old_logprobs, rows.sampler_logprobs, rows.row_weights)
    return _policy_loss.policy_loss(
        *_rows(x), *(None if v is None else v.contiguous() for v in vectors), scale,
        KERNEL_LOSSES[spec.loss], KERNEL_CORRECTIONS[spec.sampler_correction], log_bounds(spec),
        spec.sampler_correction_cap, spec.entropy_coef, out_NV,
    )  # fmt: skip


def sample(x: LogitRows, filters: Filters, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, their log-probs under the full distribution, the log of the kept mass; [N] each."""
    logits, _, _, temperatures, valid, softcap, logit_scale = _rows(x)
    return _sample.sample(
        logits, temperatures, valid, softcap, logit_scale, filters.top_k_N, filters.top_p_N,
        filters.min_p_N, noise.counters_N4, noise.key, not filters.none,
    )  # fmt: skip


def scale_(x: Tensor, factor: Tensor) -> None:
    """x *= factor, in place."""
    _scale.scale_(x, factor)
