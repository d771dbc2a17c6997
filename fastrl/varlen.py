"""Causal attention over sequences of any lengths end to end: flash-attn's kernels, or torch's.

Rows see their own position and those before it; with more keys than queries in a sequence the last
query sees all (the mask is aligned at the end). Both have gradients.

Legend: M: query rows, L: rows of keys and values, H: query heads, K: key/value heads, h: head
dimension.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

HALVES = (torch.bfloat16, torch.float16)
# q [M, H, h], k [L, K, h], v, int32 offsets of rows and of positions, the longest of both
Function = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int], Tensor]


@functools.cache
def flash_attn() -> Function | None:
    """flash-attn's function, where it is installed: version 2's, else 3's."""
    try:
        from flash_attn import flash_attn_varlen_func as found  # type: ignore[import-not-found]
    except ImportError:
        try:
            from flash_attn_interface import (  # type: ignore[import-not-found]
                flash_attn_varlen_func as found,
            )
        except ImportError:
            return None
    function: Any = found
    return lambda q, k, v, rows, seen, longest, most: function(
        q, k, v, rows, seen, longest, most, causal=True,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip


@functools.cache
def torch_varlen() -> Function | None:
    """torch's function, in the arguments of the version that is installed (from 2.10 on)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = (
        {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    )
    grouped = "enable_gqa" in known

    def function(
        q: Tensor, k: Tensor, v: Tensor, rows: Tensor, seen: Tensor, longest: int, most: int
    ) -> Tensor:
        settings = causal
        if q.shape[1] != k.shape[1]:
            if grouped:
                settings = causal | {"enable_gqa": True}
            else:
                k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        out = varlen_attn(q, k, v, rows, seen, longest, most, **settings)
        assert isinstance(out, Tensor)
        return out

    return function


FUNCTIONS: dict[str, Callable[[], Function | None]] = {
    "flash-attn": flash_attn,
    "torch-varlen": torch_varlen,
}


def first(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """The first of the functions that is installed and takes this; they are FlashAttention's.

    Halves, head dimensions up to 256 in steps of 8, a GPU of compute capability 8.0 on.
    """
    fits = dtype in HALVES and head_dim % 8 == 0 and head_dim <= 256
    if not fits or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    return next((name for name, function in FUNCTIONS.items() if function() is not None), None)
