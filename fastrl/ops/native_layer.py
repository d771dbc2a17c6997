"""The kernels of `layer_rows` in C++ (`csrc/layer_rows.h`): fp32 and bf16 on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrl import _C
from fastrl.ops.native import DTYPES, address


def norm(x: Tensor, weight_D: Tensor, scales: Tensor, eps: float, y: Tensor) -> None:
    """Write the norm of contiguous rows, and their 1 / rms in fp32."""
    _norm_rows(x, weight_D, scales, eps).forward(address(y), torch.get_num_threads())


def norm_gradient(
    x: Tensor, weight_D: Tensor, scales: Tensor, dy: Tensor, dx: Tensor, dweight_D: Tensor
) -> None:
    """Write the gradients of the rows and of the weight."""
    _norm_rows(x, weight_D, scales, 0.0).backward(
        address(dy), address(dx), address(dweight_D), torch.get_num_threads()
    )


def rotate(x_NHh: Tensor, cos_Na: Tensor, sin_Na: Tensor, back: bool, out_NHh: Tensor) -> None:
    """Write every head turned by its row's angles, or turned back."""
    _C.rotate_rows(
        DTYPES[x_NHh.dtype], address(x_NHh), x_NHh.stride(0), address(cos_Na), address(sin_Na),
        *x_NHh.shape, back, address(out_NHh), torch.get_num_threads(),
    )  # fmt: skip


def swiglu(gate_up: Tensor, out: Tensor) -> None:
    """Write silu(gate) * up of contiguous rows."""
    _swiglu_rows(gate_up).forward(address(out), torch.get_num_threads())


def swiglu_gradient(gate_up: Tensor, dout: Tensor, dgate_up: Tensor) -> None:
    """Write the gradient of contiguous rows."""
    _swiglu_rows(gate_up).backward(address(dout), address(dgate_up), torch.get_num_threads())


def _norm_rows(x: Tensor, weight_D: Tensor, scales: Tensor, eps: float) -> Any:
    width = weight_D.numel()
    return _C.NormRows(
        DTYPES[x.dtype], address(x), address(weight_D), eps, x.numel() // width, width,
        address(scales),
    )  # fmt: skip


def _swiglu_rows(gate_up: Tensor) -> Any:
    width = gate_up.shape[-1] // 2
    rows = gate_up.numel() // (2 * width)
    return _C.SwigluRows(DTYPES[gate_up.dtype], address(gate_up), rows, width)
