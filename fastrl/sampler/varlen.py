"""Attention of chunks of several rows by kernels for variable lengths: flash-attn's, or torch's.

They take keys and values end to end: those that a chunk sees are gathered from the cache first,
once for all its rows (flash-attn 2 reads a paged cache in pages of 256 tokens only, too large to
share a prompt of fewer). Rows see their own position and those before it: the last row of a chunk
sees all.

Legend: M: rows of such chunks, L: positions that they see, chunk after chunk, H: query heads, K:
key/value heads, h: head dimension.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from fastrl.sampler.attention import PagedAttention

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
        q, k, v, rows, seen, longest, most, causal=True
    )


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


@dataclass(frozen=True)
class Chunks:
    """Which rows of a forward are chunks of several, and what they see."""

    alone: Tensor  # int64, the other rows
    others: Tensor  # int64 [M]
    row_offsets: Tensor  # int32 [chunks + 1]
    seen_offsets: Tensor
    longest: int  # rows
    most: int  # positions
    read_slots: Tensor  # int64 [L]

    @classmethod
    def of(cls, chunk_rows: np.ndarray, attention: PagedAttention) -> Chunks | None:
        """From the number of rows of each chunk, in order; None without one of several."""
        several = chunk_rows > 1
        if not several.any():
            return None
        ends = chunk_rows.cumsum()
        in_several = np.repeat(several, chunk_rows)
        device = attention.positions.device
        lasts = torch.from_numpy(ends[several] - 1).to(device)
        seen = attention.positions[lasts].cpu().numpy() + 1
        tables = attention.row_table[lasts].cpu().numpy()
        starts = seen.cumsum() - seen
        positions = np.arange(seen.sum()) - np.repeat(starts, seen)
        slots = attention.slots(
            *(torch.from_numpy(x).to(device) for x in (np.repeat(tables, seen), positions))
        )

        def offsets(lengths: np.ndarray) -> Tensor:
            return torch.from_numpy(np.append(0, lengths.cumsum()).astype(np.int32)).to(device)

        rows = chunk_rows[several]
        alone, others = (
            torch.from_numpy(np.flatnonzero(x)).to(device) for x in (~in_several, in_several)
        )
        return cls(
            alone, others, offsets(rows), offsets(seen), int(rows.max()), int(seen.max()), slots
        )

    def attend(self, name: str, q_MHh: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        """Attention of the rows of the chunks: [M, H, h]."""
        function = FUNCTIONS[name]()
        assert function is not None, f"{name} is not installed"
        k_LKh, v_LKh = (cache.flatten(0, 1)[self.read_slots] for cache in (k_cache, v_cache))
        offsets = self.row_offsets, self.seen_offsets
        return function(q_MHh, k_LKh, v_LKh, *offsets, self.longest, self.most)
