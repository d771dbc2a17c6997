"""What a layer does to each row between its products, with gradients: RMSNorm, rotation, SwiGLU.

In C++ on a CPU (`csrc/layer_rows.h`, fp32 and bf16): one read of the inputs and one write of the
results, where torch's parts take five to ten; elsewhere, and in fp64, in torch.

Legend: N: rows, D: width, H: heads, h: head dimension, F: width of the feed-forward layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

try:
    from fastrl import _C
    from fastrl.ops.native import DTYPES, address
except ImportError:  # torch computes everything; `fastrl doctor` says so
    _C = None  # type: ignore[assignment]


def _fits(x: Tensor, *others: Tensor) -> bool:
    known = x.dtype in (torch.float32, torch.bfloat16) and x.device.type == "cpu"
    plain = all(type(t) in (Tensor, torch.nn.Parameter) for t in (x, *others))
    return _C is not None and known and plain and not torch.compiler.is_compiling()


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, rounded once (Zhang and Sennrich 2019)."""
    if _fits(x, weight_D) and weight_D.dtype == x.dtype:
        result = _Norm.apply(x, weight_D, eps)
        assert isinstance(result, Tensor)
        return result
    return F.rms_norm(x, weight_D.shape, weight_D, eps)


def rotate(x_NHh: Tensor, cos_Na: Tensor, sin_Na: Tensor) -> Tensor:
    """Every head turned by its row's angles [N, h / 2], halves as in GPT-NeoX (Su et al. 2021).

    Computed in the dtype of the angles, fp32 at least, and rounded once.
    """
    wide = cos_Na.dtype
    if _fits(x_NHh, cos_Na, sin_Na) and wide == torch.float32 and x_NHh.stride()[1:] == (
        x_NHh.shape[2], 1,
    ):  # fmt: skip
        result = _Rotation.apply(x_NHh, cos_Na, sin_Na)
        assert isinstance(result, Tensor)
        return result
    first, second = x_NHh.to(wide).chunk(2, dim=-1)
    cos, sin = cos_Na[:, None], sin_Na[:, None]
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.to(x_NHh.dtype)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [..., 2 F], gates first: [..., F] (Shazeer 2020)."""
    if _fits(gate_up):
        result = _Swiglu.apply(gate_up)
        assert isinstance(result, Tensor)
        return result
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x, weight_D = x.contiguous(), weight_D.contiguous()
        scales, out = torch.empty(x.shape[:-1], dtype=torch.float32), torch.empty_like(x)
        ctx.save_for_backward(x, weight_D, scales)
        ctx.eps = eps
        _norm_rows(x, weight_D, scales, eps).forward(address(out), torch.get_num_threads())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight_D, scales = ctx.saved_tensors
        upstream = upstream.contiguous()
        by_x, by_weight = torch.empty_like(x), torch.empty_like(weight_D)
        _norm_rows(x, weight_D, scales, ctx.eps).backward(
            address(upstream), address(by_x), address(by_weight), torch.get_num_threads()
        )
        return by_x, by_weight, None


def _norm_rows(x: Tensor, weight_D: Tensor, scales: Tensor, eps: float) -> Any:
    width = weight_D.numel()
    return _C.NormRows(
        DTYPES[x.dtype], address(x), address(weight_D), eps, x.numel() // width, width,
        address(scales),
    )  # fmt: skip


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NHh: Tensor, cos_Na: Tensor, sin_Na: Tensor) -> Tensor:
        angles = cos_Na.contiguous(), sin_Na.contiguous()
        ctx.save_for_backward(*angles)
        return _turn(x_NHh, *angles, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        return _turn(upstream.contiguous(), *ctx.saved_tensors, back=True), None, None


def _turn(x_NHh: Tensor, cos_Na: Tensor, sin_Na: Tensor, *, back: bool) -> Tensor:
    out_NHh = torch.empty(x_NHh.shape, dtype=x_NHh.dtype)
    _C.rotate_rows(
        DTYPES[x_NHh.dtype], address(x_NHh), x_NHh.stride(0), address(cos_Na), address(sin_Na),
        *x_NHh.shape, back, address(out_NHh), torch.get_num_threads(),
    )  # fmt: skip
    return out_NHh


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        ctx.save_for_backward(gate_up)
        width = gate_up.shape[-1] // 2
        out = torch.empty(*gate_up.shape[:-1], width, dtype=gate_up.dtype)
        _swiglu_rows(gate_up).forward(address(out), torch.get_num_threads())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        upstream, by_gate_up = upstream.contiguous(), torch.empty_like(gate_up)
        _swiglu_rows(gate_up).backward(
            address(upstream), address(by_gate_up), torch.get_num_threads()
        )
        return by_gate_up


def _swiglu_rows(gate_up: Tensor) -> Any:
    width = gate_up.shape[-1] // 2
    rows = gate_up.numel() // (2 * width)
    return _C.SwigluRows(DTYPES[gate_up.dtype], address(gate_up), rows, width)
