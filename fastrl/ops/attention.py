"""Causal attention over segments of packed rows in C++, with gradients (`csrc/packed_attention.h`).

Legend: N: packed rows, S: segments, H: query heads, K: key/value heads, h: head dimension.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

try:
    from fastrl import _C
    from fastrl.ops.native import DTYPES, address
except ImportError:  # torch computes it; `fastrl doctor` says so
    _C = None  # type: ignore[assignment]


def runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `packed_attention` computes this: fp32 and bf16 on a CPU."""
    return _C is not None and device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)


def families(offsets_S: np.ndarray, prefixes_S2: np.ndarray) -> Any:
    """Segments of rows end to end, as `packed_attention` takes them.

    `offsets_S`: int32, S + 1 of them; `prefixes_S2`: int64, the first and the number of the rows
    that a segment continues, all of which are one other segment's.
    """
    offsets, prefixes = (np.ascontiguousarray(x) for x in (offsets_S, prefixes_S2))
    assert offsets.dtype == np.int32 and prefixes.dtype == np.int64
    first, rows = prefixes.T
    holders, lasts = (np.searchsorted(offsets, x, "right") - 1 for x in (first, first + rows - 1))
    one_other = (holders == lasts) & (holders != np.arange(len(rows))) | (rows == 0)
    assert one_other.all(), "the rows that a segment continues are not of one other"
    return _C.Families(offsets.ctypes.data, prefixes.ctypes.data, len(prefixes))


def packed_attention(
    q_NHh: Tensor,
    k_NKh: Tensor,
    v_NKh: Tensor,
    families: Any,
    angles: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attention of every row to those before it in its segment, to itself, and to all that its
    segment continues, scale h ** -0.5: [N, H, h].

    `angles`: cosines and sines [N, h / 2] in fp32, by which q and k are turned first, halves as in
    GPT-NeoX.
    """
    assert runs(q_NHh.device, q_NHh.dtype) and q_NHh.dtype == k_NKh.dtype == v_NKh.dtype
    inputs = (
        x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous() for x in (q_NHh, k_NKh, v_NKh)
    )
    cos, sin = (None, None) if angles is None else (x.contiguous() for x in angles)
    assert cos is None or cos.dtype == torch.float32
    result = _Attention.apply(*inputs, cos, sin, families)
    assert isinstance(result, Tensor)
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        q_NHh, k_NKh, v_NKh, cos, sin, ctx.families = inputs
        out_NHh = torch.empty(q_NHh.shape, dtype=q_NHh.dtype)
        log_sums_NH = torch.empty(q_NHh.shape[:2], dtype=torch.float32)
        saved = q_NHh, k_NKh, v_NKh, cos, sin, out_NHh, log_sums_NH
        _view(*saved).forward(ctx.families, torch.get_num_threads())
        ctx.save_for_backward(*saved)
        return out_NHh

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved, upstream = ctx.saved_tensors, upstream.contiguous()
        gradients = [torch.empty(x.shape, dtype=x.dtype) for x in saved[:3]]
        _view(*saved).backward(
            ctx.families, address(upstream), *map(address, gradients), torch.get_num_threads()
        )
        return *gradients, None, None, None


def _view(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, out: Tensor, log_sums: Tensor
) -> Any:
    return _C.PackedAttention(
        DTYPES[q.dtype], address(q), address(k), address(v), q.stride(0), k.stride(0), v.stride(0),
        address(cos), address(sin), address(out), address(log_sums), q.shape[1], k.shape[1],
        q.shape[2],
    )  # fmt: skip
