"""Which rows of a forward over the paged cache are chunks of several, and their attention.

Kernels for variable lengths (`fastrl.varlen`) take keys and values end to end: those that a chunk
sees are gathered from the cache first, once for all its rows (flash-attn 2 reads a paged cache in
pages of 256 tokens only, too large to share a prompt of fewer).

Legend: M: rows of such chunks, L: positions that they see, chunk after chunk, H: query heads, K:
key/value heads, h: head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fastrl import varlen

if TYPE_CHECKING:
    from fastrl.sampler.attention import PagedAttention


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
        function = varlen.FUNCTIONS[name]()
        assert function is not None, f"{name} is not installed"
        k_LKh, v_LKh = (cache.flatten(0, 1)[self.read_slots] for cache in (k_cache, v_cache))
        offsets = self.row_offsets, self.seen_offsets
        return function(q_MHh, k_LKh, v_LKh, *offsets, self.longest, self.most)
