"""Attention of one forward's rows over the paged cache, by the backend that fits the device.

Legend: N: rows of the forward, S: tables, B: blocks of a table, L: positions of a table, H: query
heads, K: key/value heads, h: head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastrl import varlen
from fastrl.attention import Rotary
from fastrl.ops.library import HAS_TRITON
from fastrl.sampler import native
from fastrl.sampler.cache import PagedCache
from fastrl.sampler.chunks import Chunks

ROWS = 1024  # of one call of the Triton kernel
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Backends:
    """Who computes attention over the cache, by name.

    "cpu": C++ (`csrc/paged_attention.h`); "triton": `kernels/paged_attention.py`; "torch": the
    definition; for chunks of several rows also the names in `varlen.FUNCTIONS`.
    """

    decode: str  # of one row a sequence
    prefill: str  # of chunks of several rows

    def __str__(self) -> str:
        same = self.decode == self.prefill
        return self.decode if same else f"{self.decode} (decode), {self.prefill} (prefill)"


def choose(device: torch.device, dtype: torch.dtype, head_dim: int) -> Backends:
    """The first backends that run on a device for a cache of a dtype and a head dimension."""
    if native.runs(device, dtype):
        return Backends("cpu", "cpu")
    if device.type == "cuda" and HAS_TRITON and dtype in TRITON_DTYPES:
        return Backends("triton", varlen.first(device, dtype, head_dim) or "triton")
    return Backends("torch", "torch")


class PagedAttention:
    """The attention context of one forward: writes the rows' keys and values, reads the cache.

    `tables` int32 [S, B], block numbers; `row_table` int32 [N]: each row's table; `positions` int64
    [N]: each row's position there, -1 for a row that pads a batch (not on "cpu"): its table names a
    block that nobody reads. Slots past a row's position are never read. `backends`: None takes
    those of `choose`; `layers`: what `native` computes as a whole; `chunk_rows`: how many rows of
    one table lie side by side, chunk by chunk, where `varlen` is to compute those of several.
    """

    def __init__(
        self,
        cache: PagedCache,
        tables: Tensor,
        row_table: Tensor,
        positions: Tensor,
        *,
        backends: Backends | None = None,
        layers: native.Layers | None = None,
        chunk_rows: np.ndarray | None = None,
    ) -> None:
        self.cache, self.layers = cache, layers
        self.tables, self.row_table, self.positions = tables, row_table, positions
        self.backends = backends or choose(cache.device, cache.k[0].dtype, cache.k[0].shape[3])
        self.context = (positions + 1).to(torch.int32)
        self.threads = torch.get_num_threads()
        self.chunks: Chunks | None = None
        if self.backends.prefill in varlen.FUNCTIONS and chunk_rows is not None:
            self.chunks = Chunks.of(chunk_rows, self)
        if self.backends.decode != "cpu":
            self.write_slots = self.slots(row_table.long(), positions.clamp(min=0))

    def layer(self, layer: int, hidden_ND: Tensor, rotary: Rotary) -> Tensor | None:
        """A layer as a whole: [N, D]; None where `attend` is all that is computed here."""
        if self.layers is None:
            return None
        return native.layer(self.layers[layer], self, layer, hidden_ND, rotary)

    def attend(
        self, layer: int, q_NHh: Tensor, k_NKh: Tensor, v_NKh: Tensor, rotary: Rotary | None = None
    ) -> Tensor:
        """Attention of each row over the cached tokens of its sequence up to itself: [N, H, h]."""
        cached = self.cache.k[layer], self.cache.v[layer]
        if self.backends.decode == "cpu":
            return native.attention(self, layer, q_NHh, k_NKh, v_NKh, rotary)
        if rotary is not None:
            q_NHh, k_NKh = rotary(q_NHh), rotary(k_NKh)
        for stored, rows in zip(cached, (k_NKh, v_NKh), strict=True):
            stored.flatten(0, 1).index_copy_(0, self.write_slots, rows)
        if self.chunks is None:
            return self._rows(q_NHh, self.row_table, self.context, *cached)
        out_NHh = torch.empty_like(q_NHh)
        alone, others = self.chunks.alone, self.chunks.others
        if len(alone):
            out_NHh[alone] = self._rows(
                q_NHh[alone], self.row_table[alone], self.context[alone], *cached
            )
        out_NHh[others] = self.chunks.attend(self.backends.prefill, q_NHh[others], *cached)
        return out_NHh

    def slots(self, tables_N: Tensor, positions_N: Tensor) -> Tensor:
        """Where the cache has positions of tables, int64; the two are broadcast."""
        size = self.cache.block_size
        blocks = self.tables[tables_N, positions_N // size].long()
        return blocks * size + positions_N % size

    def _rows(
        self, q_NHh: Tensor, row_table: Tensor, context: Tensor, k_cache: Tensor, v_cache: Tensor
    ) -> Tensor:
        """Each row by itself."""
        if self.backends.decode == "triton":
            from fastrl.kernels.paged_attention import paged_attention

            # in pieces, for the splits' memory
            parts = zip(*(x.split(ROWS) for x in (q_NHh, row_table, context)), strict=True)
            out = [
                paged_attention(q, k_cache, v_cache, self.tables, table, seen)
                for q, table, seen in parts
            ]
            return out[0] if len(out) == 1 else torch.cat(out)
        return self._definition(q_NHh, row_table, context, k_cache, v_cache)

    def _definition(
        self, q_NHh: Tensor, row_table: Tensor, context: Tensor, k_cache: Tensor, v_cache: Tensor
    ) -> Tensor:
        longest = self.tables.shape[1] * self.cache.block_size
        positions_L = torch.arange(longest, device=q_NHh.device)
        seen_NL = positions_L < context[:, None]
        # a row reads nothing it does not see: block 0 is reserved, and zero
        slots_NL = torch.where(seen_NL, self.slots(row_table.long()[:, None], positions_L), 0)
        groups = q_NHh.shape[1] // k_cache.shape[2]
        k_NLHh, v_NLHh = (
            cache.flatten(0, 1)[slots_NL].repeat_interleave(groups, 2)
            for cache in (k_cache, v_cache)
        )
        wide = torch.promote_types(q_NHh.dtype, torch.float32)
        scores_NHL = torch.einsum("nhd,nlhd->nhl", q_NHh.to(wide), k_NLHh.to(wide))
        scores_NHL = scores_NHL * q_NHh.shape[2] ** -0.5
        weights_NHL = scores_NHL.masked_fill(~seen_NL[:, None], -torch.inf).softmax(-1)
        # a row that pads a batch sees nothing
        weights_NHL = torch.where(seen_NL[:, None, :1], weights_NHL, 0)
        return torch.einsum("nhl,nlhd->nhd", weights_NHL, v_NLHh.to(wide)).to(q_NHh.dtype)
