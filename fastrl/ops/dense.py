"""A layer's matrix products with what stands around them: norm, bias, SwiGLU, residual.

In torch, with gradients; or in C++ on a CPU (`csrc/dense.h`), without, for the few rows of a
sampler's step: the weight is read where it lies, and a row's result does not depend on the others.

Legend: N: rows, D: width in, O: width out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from fastrl import _C
    from fastrl.ops.native import DTYPES, address
except ImportError:  # torch computes everything; `fastrl doctor` says so
    _C = None  # type: ignore[assignment]


MULTIPLY_BF16 = ("amx", "avx512_bf16")  # instruction sets with products in bf16


def fits_cpu(weight_OD: Tensor, gated: bool = False) -> bool:
    """Whether `dense` takes this weight with backend "cpu": fp32 or bf16 (D even), O from 12 on
    (24 where gated), contiguous, on a CPU, with the extension built.
    """
    if _C is None or weight_OD.device.type != "cpu" or weight_OD.dtype not in DTYPES:
        return False
    out, width = weight_OD.shape
    return weight_OD.is_contiguous() and _C.dense_fits(DTYPES[weight_OD.dtype], width, out, gated)


def multiplies_bf16(weight_OD: Tensor) -> bool:
    """Whether backend "cpu" takes this weight in bf16 and multiplies it as it is."""
    return weight_OD.dtype == torch.bfloat16 and fits_cpu(weight_OD) and cpu_multiplies_bf16()


def cpu_multiplies_bf16() -> bool:
    """Whether this processor and this build have products in bf16."""
    return _C is not None and _C.instruction_set() in MULTIPLY_BF16


def dense(
    x_ND: Tensor,
    weight_OD: Tensor,
    bias_O: Tensor | None = None,
    *,
    norm_D: Tensor | None = None,
    eps: float = 1e-6,
    residual_NO: Tensor | None = None,
    gated: bool = False,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    backend: str = "torch",
) -> Tensor:
    """residual + norm(x) weight^T + bias: [N, O], of `dtype` (x's where None).

    `norm_D`: the weight of an RMSNorm of x (Zhang and Sennrich 2019), which rounds once, after it.
    `gated`: the weight holds O / 2 gates, then as many others: silu(gate) * other, [N, O / 2]
    (Shazeer 2020). `backend`: "torch", with gradients; "cpu", without, where `fits_cpu`. Both round
    to x's dtype after the norm, the product, silu, and at the end. With another `dtype` the product
    is not rounded, and has neither gates nor a residual. `out` is what "cpu" writes, rows anywhere.
    The sampler and the loss call it for the head; the layers' products are the same kernel within
    `csrc/layer.h`.
    """
    assert out is None or (backend == "cpu" and dtype is None and out.stride(1) == 1)
    assert dtype in (None, x_ND.dtype) or not (gated or residual_NO is not None)
    if backend == "cpu":
        return _native(x_ND, weight_OD, bias_O, norm_D, eps, residual_NO, gated, dtype, out)
    if norm_D is not None:
        x_ND = F.rms_norm(x_ND, norm_D.shape, norm_D, eps)
    if dtype in (None, x_ND.dtype):
        out_NO = F.linear(x_ND, weight_OD, bias_O)
    elif x_ND.device.type == "cuda":  # halves are multiplied as they are
        out_NO = torch.mm(x_ND, weight_OD.T, out_dtype=dtype)
        out_NO = out_NO if bias_O is None else out_NO + bias_O
    else:
        out_NO = F.linear(
            x_ND.to(dtype), weight_OD.to(dtype), None if bias_O is None else bias_O.to(dtype)
        )
    if gated:
        gate, other = out_NO.chunk(2, dim=-1)
        out_NO = F.silu(gate) * other
    return out_NO if residual_NO is None else residual_NO + out_NO


def _native(
    x_ND: Tensor,
    weight_OD: Tensor,
    bias_O: Tensor | None,
    norm_D: Tensor | None,
    eps: float,
    residual_NO: Tensor | None,
    gated: bool,
    dtype: torch.dtype | None,
    out_NO: Tensor | None,
) -> Tensor:
    assert _C is not None and fits_cpu(weight_OD, gated)
    assert x_ND.stride(1) == 1 and x_ND.shape[1] == weight_OD.shape[1]
    for other in (bias_O, norm_D, residual_NO):
        assert other is None or (other.dtype == x_ND.dtype and other.stride(-1) == 1)
    assert weight_OD.dtype == x_ND.dtype
    rows, out = len(x_ND), len(weight_OD)
    if out_NO is None:
        out_NO = torch.empty(rows, out // 2 if gated else out, dtype=dtype or x_ND.dtype)
    _C.dense(
        DTYPES[x_ND.dtype], DTYPES[out_NO.dtype], x_ND.data_ptr(), x_ND.stride(0),
        address(norm_D), eps, weight_OD.data_ptr(), address(bias_O), address(residual_NO),
        0 if residual_NO is None else residual_NO.stride(0), out_NO.data_ptr(), out_NO.stride(0),
        rows, x_ND.shape[1], out, gated, torch.get_num_threads(),
    )  # fmt: skip
    return out_NO
