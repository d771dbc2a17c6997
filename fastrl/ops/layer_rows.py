"""What a layer does to each row between its products, with gradients: RMSNorm, rotation, SwiGLU.

One read of the inputs and one write of the results, where torch's parts take five to ten: in C++ on
a CPU (`csrc/layer_rows.h`, fp32 and bf16), in Triton on a GPU (`kernels/`, halves too); elsewhere,
and in fp64, in torch.

Legend: N: rows, D: width, H: heads, h: head dimension, F: width of the feed-forward layer.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class LayerKernels:
    """Functions that write their results into the memory they are given."""

    norm: Any  # x, weight, scales, eps, y
    norm_gradient: Any  # x, weight, scales, dy, dx, dweight
    rotate: Any  # x, cos, sin, back, out
    swiglu: Any  # gate_up, out
    swiglu_gradient: Any  # gate_up, dout, dgate_up
    takes_heads: bool  # the norm of heads [N, H, h] whose rows lie apart


@functools.cache
def native_kernels() -> LayerKernels | None:
    """Those in C++, where they are built; `fastrl doctor` says so."""
    try:
        from fastrl.ops import native_layer as n
    except ImportError:
        return None
    return LayerKernels(n.norm, n.norm_gradient, n.rotate, n.swiglu, n.swiglu_gradient, False)


@functools.cache
def triton_kernels() -> LayerKernels | None:
    """Those in Triton, where it is installed."""
    try:
        from fastrl.kernels import rms_norm as n
        from fastrl.kernels import rotary as r
        from fastrl.kernels import swiglu as s
    except ImportError:
        return None
    return LayerKernels(n.norm, n.norm_gradient, r.rotate, s.swiglu, s.swiglu_gradient, True)


def kernels_for(x: Tensor, *others: Tensor) -> LayerKernels | None:
    """Who computes this; None: torch does."""
    plain = all(type(t) in (Tensor, torch.nn.Parameter) for t in (x, *others))
    if not plain or torch.compiler.is_compiling():
        return None
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16):
        return native_kernels()
    if x.device.type == "cuda" and x.dtype in (torch.float32, torch.bfloat16, torch.float16):
        return triton_kernels()
    return None


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, rounded once (Zhang and Sennrich 2019)."""
    kernels = kernels_for(x, weight_D)
    if kernels is not None and weight_D.dtype == x.dtype:
        result = _Norm.apply(x, weight_D, eps, kernels)
        assert isinstance(result, Tensor)
        return result
    return F.rms_norm(x, weight_D.shape, weight_D, eps)


def rotate(x_NHh: Tensor, cos_Na: Tensor, sin_Na: Tensor) -> Tensor:
    """Every head turned by its row's angles [N, h / 2], halves as in GPT-NeoX (Su et al. 2021).

    Computed in the dtype of the angles, fp32 at least, and rounded once.
    """
    wide, kernels = cos_Na.dtype, kernels_for(x_NHh, cos_Na, sin_Na)
    dense_heads = x_NHh.stride()[1:] == (x_NHh.shape[2], 1)
    if kernels is not None and wide == torch.float32 and dense_heads:
        result = _Rotation.apply(x_NHh, cos_Na, sin_Na, kernels)
        assert isinstance(result, Tensor)
        return result
    first, second = x_NHh.to(wide).chunk(2, dim=-1)
    cos, sin = cos_Na[:, None], sin_Na[:, None]
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.to(x_NHh.dtype)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [..., 2 F], gates first: [..., F] (Shazeer 2020)."""
    kernels = kernels_for(gate_up)
    if kernels is not None:
        result = _Swiglu.apply(gate_up, kernels)
        assert isinstance(result, Tensor)
        return result
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float, kernels: LayerKernels) -> Tensor:
        weight_D = weight_D.contiguous()
        heads = kernels.takes_heads and x.dim() == 3 and x.stride()[1:] == (x.shape[2], 1)
        x = x if heads else x.contiguous()
        scales = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        rows = x if heads else x.view(-1, x.shape[-1])
        ctx.save_for_backward(rows, weight_D, scales)
        ctx.kernels = kernels
        kernels.norm(rows, weight_D, scales, eps, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_D, scales = ctx.saved_tensors
        by_x = torch.empty(upstream.shape, dtype=x.dtype, device=x.device)
        by_weight = torch.empty_like(weight_D)
        ctx.kernels.norm_gradient(x, weight_D, scales, upstream.contiguous(), by_x, by_weight)
        return by_x, by_weight, None, None


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_NHh: Tensor, cos_Na: Tensor, sin_Na: Tensor, kernels: LayerKernels
    ) -> Tensor:
        angles = cos_Na.contiguous(), sin_Na.contiguous()
        ctx.save_for_backward(*angles)
        ctx.kernels = kernels
        out_NHh = torch.empty(x_NHh.shape, dtype=x_NHh.dtype, device=x_NHh.device)
        kernels.rotate(x_NHh, *angles, False, out_NHh)
        return out_NHh

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        by_x_NHh = torch.empty(upstream.shape, dtype=upstream.dtype, device=upstream.device)
        ctx.kernels.rotate(upstream.contiguous(), *ctx.saved_tensors, True, by_x_NHh)
        return by_x_NHh, None, None, None


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, kernels: LayerKernels) -> Tensor:
        gate_up = gate_up.contiguous()
        ctx.save_for_backward(gate_up)
        ctx.kernels = kernels
        width = gate_up.shape[-1] // 2
        out = torch.empty(*gate_up.shape[:-1], width, dtype=gate_up.dtype, device=gate_up.device)
        kernels.swiglu(gate_up, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gate_up,) = ctx.saved_tensors
        by_gate_up = torch.empty_like(gate_up)
        ctx.kernels.swiglu_gradient(gate_up, upstream.contiguous(), by_gate_up)
        return by_gate_up, None
