"""Attention of one forward's rows over the paged cache.

Legend: N: rows of the forward, S: sequences in the pool, H: query heads, K: key/value heads, h: head
dimension, L: positions of the longest row.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastrl.attention import Rotary
from fastrl.sampler.cache import PagedCache

try:
    from fastrl import _C
    from fastrl.ops.native import DTYPES, address
except ImportError:  # the definition runs; `fastrl doctor` says so
    _C = None  # type: ignore[assignment]

CPU_DTYPES = (torch.float32, torch.bfloat16)


class PagedAttention:
    """The attention context of one forward: writes the rows' keys and values, reads the cache.

    `tables` int32 [S, blocks]; `row_table`, `positions`: each row's table and position; `dense`: the
    backend of the layers' matrix products. Slots past a row's position are never read.
    `backend`: "cpu" (C++, `csrc/paged_attention.h`) or "torch", the definition; None takes the
    first that runs.
    """

    def __init__(
        self,
        cache: PagedCache,
        tables: np.ndarray,
        row_table: np.ndarray,
        positions: np.ndarray,
        *,
        dense: str = "torch",
        backend: str | None = None,
    ) -> None:
        self.cache, self.dense = cache, dense
        self.tables = np.ascontiguousarray(tables, np.int32)
        self.row_table = row_table.astype(np.int32)
        self.context = (positions + 1).astype(np.int32)
        self.device = cache.k[0].device
        self.threads = torch.get_num_threads()
        self.backend = backend or self.first_that_runs(cache)
        if self.backend == "torch":
            self.write_slots = self._slots(positions[:, None])[:, 0]
            # slots a row does not see point to the reserved zero block
            positions_L = np.arange(int(self.context.max()))
            seen_NL = positions_L < self.context[:, None]
            self.seen_NL = torch.from_numpy(seen_NL).to(self.device)
            slots_NL = self._slots(np.where(seen_NL, positions_L, 0))
            self.read_slots = torch.where(self.seen_NL, slots_NL, 0)

    @staticmethod
    def first_that_runs(cache: PagedCache) -> str:
        """The backend for a cache, by its device and dtype."""
        native = _C is not None and cache.k[0].device.type == "cpu"
        return "cpu" if native and cache.k[0].dtype in CPU_DTYPES else "torch"

    def attend(
        self, layer: int, q_NHh: Tensor, k_NKh: Tensor, v_NKh: Tensor, rotary: Rotary | None = None
    ) -> Tensor:
        """Attention of each row over the cached tokens of its sequence up to itself: [N, H, h]."""
        cached = self.cache.k[layer], self.cache.v[layer]
        if self.backend == "cpu":
            return self._native(q_NHh, k_NKh, v_NKh, rotary, *cached)
        if rotary is not None:
            q_NHh, k_NKh = rotary(q_NHh), rotary(k_NKh)
        for stored, rows in zip(cached, (k_NKh, v_NKh), strict=True):
            stored.flatten(0, 1).index_copy_(0, self.write_slots, rows)
        return self._definition(q_NHh, *cached)

    def _slots(self, positions_NL: np.ndarray) -> Tensor:
        """Where the cache has each row's positions, int64 [N, L]."""
        size = self.cache.block_size
        blocks_NL = self.tables[self.row_table[:, None], positions_NL // size]
        slots_NL = blocks_NL.astype(np.int64) * size + positions_NL % size
        return torch.from_numpy(slots_NL).to(self.device)

    def _native(
        self,
        q_NHh: Tensor,
        k_NKh: Tensor,
        v_NKh: Tensor,
        rotary: Rotary | None,
        k_cache: Tensor,
        v_cache: Tensor,
    ) -> Tensor:
        assert _C is not None
        rows, heads, dim = q_NHh.shape
        for x in (q_NHh, k_NKh, v_NKh):
            assert x.dtype == k_cache.dtype and x.stride()[1:] == (dim, 1), "heads side by side"
        cos = sin = None
        if rotary is not None:
            cos, sin = rotary.cos_Na, rotary.sin_Na
            assert cos.dtype == torch.float32 and cos.is_contiguous() and sin.is_contiguous()
        out_NHh = torch.empty(q_NHh.shape, dtype=q_NHh.dtype)
        _C.paged_attention(
            DTYPES[q_NHh.dtype], address(q_NHh), address(k_NKh), address(v_NKh), q_NHh.stride(0),
            k_NKh.stride(0), v_NKh.stride(0), address(cos), address(sin), address(k_cache),
            address(v_cache), address(out_NHh), self.tables.ctypes.data, self.row_table.ctypes.data,
            self.context.ctypes.data, self.tables.shape[1], rows, heads, k_NKh.shape[1], dim,
            self.cache.block_size, dim**-0.5, self.threads,
        )  # fmt: skip
        return out_NHh

    def _definition(self, q_NHh: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        groups = q_NHh.shape[1] // k_cache.shape[2]
        k_NLHh, v_NLHh = (
            cache.flatten(0, 1)[self.read_slots].repeat_interleave(groups, 2)
            for cache in (k_cache, v_cache)
        )
        wide = torch.promote_types(q_NHh.dtype, torch.float32)
        scores_NHL = torch.einsum("nhd,nlhd->nhl", q_NHh.to(wide), k_NLHh.to(wide))
        scores_NHL = scores_NHL * q_NHh.shape[2] ** -0.5
        weights_NHL = scores_NHL.masked_fill(~self.seen_NL[:, None], -torch.inf).softmax(-1)
        return torch.einsum("nhl,nlhd->nhd", weights_NHL, v_NLHh.to(wide)).to(q_NHh.dtype)
