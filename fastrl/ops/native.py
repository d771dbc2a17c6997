"""The kernels in C++ (`csrc/loss.h`): fp32, bf16 and fp16 on the CPU, threads over rows."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrl import _C
from fastrl.losses import KERNEL_CORRECTIONS, KERNEL_LOSSES, LossSpec, Rows, log_bounds
from fastrl.ops.rows import Filters, LogitRows, Noise

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
LARGE_BYTES = 1 << 23
WRITES_HALVES = False  # the gradient has the dtype of the logits


def address(tensor: Tensor | None) -> int:
    """Where a tensor's numbers begin; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def _floats(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.to(torch.float32).contiguous()


class _Rows:
    """The C++ view of rows; it keeps alive what it points to."""

    def __init__(self, x: LogitRows) -> None:
        logits = x.logits_NV
        assert logits.dtype in DTYPES and (logits.stride(1) == 1 or logits.shape[1] == 1)
        self.targets, self.mask = x.targets_N.contiguous(), x.mask_N
        if self.mask is not None:
            self.mask = self.mask.contiguous()
        t = x.temperature
        one, each = (t, None) if isinstance(t, float) else (1.0, t)
        self.temperatures = _floats(each)
        self.logits = _C.Logits(
            address(logits), DTYPES[logits.dtype], logits.stride(0), len(logits), x.valid,
            logits.shape[1], address(self.targets), address(self.mask),
            address(self.temperatures), one, x.softcap or 0.0,
            x.logit_scale,
        )  # fmt: skip


def _empty(x: LogitRows) -> Tensor:
    return torch.empty(len(x.logits_NV), dtype=torch.float32)


def on_large_pages(memory: Tensor) -> Tensor:
    """`memory`, fresh and contiguous, with the request for large pages where it is large."""
    if memory.nbytes >= LARGE_BYTES:
        _C.advise_large_pages(memory.data_ptr(), memory.nbytes)
    return memory


def statistics(x: LogitRows) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies, [N] each."""
    rows, logprobs_N, entropy_N = _Rows(x), _empty(x), _empty(x)
    _C.row_statistics(
        rows.logits, address(logprobs_N), address(entropy_N), 0, 0, 0, 0, 0,
        torch.get_num_threads(),
    )  # fmt: skip
    return logprobs_N, entropy_N


def extras(x: LogitRows, thresholds_N: Tensor | None) -> tuple[Tensor, ...]:
    """Log-probs, entropies, sum p^2, largest p, argmax and log of the kept mass, [N] each."""
    rows, thresholds = _Rows(x), _floats(thresholds_N)
    logprobs_N, entropy_N, squares_N, max_N, kept_N = (_empty(x) for _ in range(5))
    argmax_N = torch.empty_like(x.targets_N)
    if thresholds is None:
        kept_N.zero_()
    _C.row_statistics(
        rows.logits, address(logprobs_N), address(entropy_N), address(squares_N),
        address(max_N), address(argmax_N), address(thresholds),
        0 if thresholds is None else address(kept_N), torch.get_num_threads(),
    )  # fmt: skip
    return logprobs_N, entropy_N, squares_N, max_N, argmax_N, kept_N


def gradient(x: LogitRows, a_N: Tensor, g_N: Tensor, out_NV: Tensor) -> None:
    """The gradient of the logits from those of log-prob and entropy."""
    assert out_NV.stride(1) == 1 or out_NV.shape[1] == 1
    assert out_NV.dtype == x.logits_NV.dtype
    rows, a, g = _Rows(x), _floats(a_N), _floats(g_N)
    _C.row_gradient(
        rows.logits, address(a), address(g), address(out_NV), out_NV.stride(0),
        torch.get_num_threads(),
    )  # fmt: skip


def policy_loss(
    x: LogitRows, rows: Rows, spec: LossSpec, scale: Tensor, out_NV: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """A loss of rows and its gradient, in one read and one write of the logits."""
    assert out_NV is None or out_NV.dtype == x.logits_NV.dtype
    view, losses_N, logprobs_N, entropy_N = _Rows(x), _empty(x), _empty(x), _empty(x)
    advantages, old = _floats(rows.advantages), _floats(rows.old_logprobs)
    sampler, weights = _floats(rows.sampler_logprobs), _floats(rows.row_weights)
    low, high, dual = log_bounds(spec)
    _C.policy_loss(
        view.logits, address(advantages), address(old), address(sampler), address(weights),
        KERNEL_LOSSES[spec.loss], KERNEL_CORRECTIONS[spec.sampler_correction], low, high, dual,
        spec.sampler_correction_cap, spec.entropy_coef, float(scale), address(losses_N),
        address(logprobs_N), address(entropy_N), address(out_NV),
        0 if out_NV is None else out_NV.stride(0), torch.get_num_threads(),
    )  # fmt: skip
    return losses_N, logprobs_N, entropy_N


def sample(x: LogitRows, filters: Filters, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, their log-probs under the full distribution, the log of the kept mass; [N] each."""
    rows, tokens_N = _Rows(x), torch.empty_like(x.targets_N)
    logprobs_N, kept_N = _empty(x), _empty(x)
    top_k, top_p, min_p = filters.top_k_N, filters.top_p_N, filters.min_p_N
    assert top_k.dtype == torch.int32 and top_p.dtype == min_p.dtype == torch.float32
    assert noise.counters_N4.dtype == torch.int64 and noise.counters_N4.is_contiguous()
    _C.sample(
        rows.logits, address(top_k), address(top_p), address(min_p),
        address(noise.counters_N4), *noise.key, address(tokens_N), address(logprobs_N),
        address(kept_N), torch.get_num_threads(),
    )  # fmt: skip
    return tokens_N, logprobs_N, kept_N
