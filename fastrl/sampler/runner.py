"""One forward of the model over rows of many sequences, against the paged cache.

Legend: N: rows of the forward, R: rows whose logits are asked for, H: query heads, K: key/value
heads, h: head dimension, V: valid vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from fastrl.model import Decoder
from fastrl.sampler.scheduler import Chunk
from fastrl.sampler.sequence import Sequence

try:
    from fastrl import _C
except ImportError:  # the definition below runs; `fastrl doctor` says so
    _C = None  # type: ignore[assignment]


class PagedCache:
    """Keys and values of every layer in blocks; block 0 is reserved and stays zero."""

    def __init__(self, model: Decoder, num_blocks: int, block_size: int, poison: bool) -> None:
        config = model.config
        weight = model.head_weight
        shape = (num_blocks + 1, block_size, config.num_kv_heads, config.head_dim)
        self.num_blocks, self.block_size, self.poison = num_blocks, block_size, poison
        self.k, self.v = (
            [
                torch.zeros(shape, dtype=weight.dtype, device=weight.device)
                for _ in range(config.num_layers)
            ]
            for _ in range(2)
        )

    def forget(self, blocks: list[int]) -> None:
        """With `poison`, fill blocks that nobody owns with NaN: reading one shows."""
        if self.poison:
            for cache in (*self.k, *self.v):
                cache[blocks] = torch.nan

    def copy(self, pairs: Seq[tuple[int, int]]) -> None:
        """Copy whole blocks, as (from, to)."""
        if pairs:
            source, target = (torch.tensor(side) for side in zip(*pairs, strict=True))
            for cache in (*self.k, *self.v):
                cache[target] = cache[source]


class PagedAttention:
    """The attention context of one forward: writes the rows' keys and values, reads the cache.

    `tables` int32 [sequences, blocks]; `row_table`, `positions`: each row's table and position.
    Slots past a row's position are never read.
    """

    def __init__(
        self, cache: PagedCache, tables: np.ndarray, row_table: np.ndarray, positions: np.ndarray
    ) -> None:
        self.cache = cache
        self.tables = np.ascontiguousarray(tables, np.int32)
        self.row_table = row_table.astype(np.int32)
        self.context = (positions + 1).astype(np.int32)
        device = cache.k[0].device
        size = cache.block_size
        slots = self.tables[row_table, positions // size].astype(np.int64) * size + positions % size
        self.write_slots = torch.from_numpy(slots).to(device)
        # the definition gathers: slots a row does not see point to the reserved zero block
        native = _C is not None and device.type == "cpu" and cache.k[0].dtype == torch.float32
        self.read_slots = None if native else self._read_slots().to(device)
        self.threads = torch.get_num_threads()

    def attend(self, layer: int, q_NHh: Tensor, k_NKh: Tensor, v_NKh: Tensor) -> Tensor:
        """Attention of each row over the cached tokens of its sequence up to itself: [N, H, h]."""
        k_cache, v_cache = self.cache.k[layer], self.cache.v[layer]
        k_cache.flatten(0, 1).index_copy_(0, self.write_slots, k_NKh)
        v_cache.flatten(0, 1).index_copy_(0, self.write_slots, v_NKh)
        if self.read_slots is None:
            return self._native(q_NHh.contiguous(), k_cache, v_cache)
        return self._definition(q_NHh, k_cache, v_cache)

    def _native(self, q_NHh: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        assert _C is not None
        out_NHh = torch.empty_like(q_NHh)
        rows, heads, dim = q_NHh.shape
        _C.paged_attention(
            q_NHh.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(), out_NHh.data_ptr(),
            self.tables.ctypes.data, self.row_table.ctypes.data, self.context.ctypes.data,
            self.tables.shape[1], rows, heads, k_cache.shape[2], dim, self.cache.block_size,
            dim**-0.5, self.threads,
        )  # fmt: skip
        return out_NHh

    def _read_slots(self) -> Tensor:
        positions = np.arange(int(self.context.max()))
        size = self.cache.block_size
        slots = self.tables[self.row_table][:, positions // size].astype(np.int64) * size
        seen = positions[None] < self.context[:, None]
        return torch.from_numpy(np.where(seen, slots + positions % size, 0))

    def _definition(self, q_NHh: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        assert self.read_slots is not None
        slots_NL = self.read_slots
        context = torch.from_numpy(self.context).to(slots_NL.device)
        seen_NL = torch.arange(slots_NL.shape[1], device=slots_NL.device) < context[:, None]
        groups = q_NHh.shape[1] // k_cache.shape[2]
        k_NLHh, v_NLHh = (
            cache.flatten(0, 1)[slots_NL].repeat_interleave(groups, 2)
            for cache in (k_cache, v_cache)
        )
        wide = torch.promote_types(q_NHh.dtype, torch.float32)
        scores_NHL = torch.einsum("nhd,nlhd->nhl", q_NHh.to(wide), k_NLHh.to(wide))
        scores_NHL = scores_NHL * q_NHh.shape[2] ** -0.5
        weights_NHL = scores_NHL.masked_fill(~seen_NL[:, None], -torch.inf).softmax(-1)
        return torch.einsum("nhl,nlhd->nhd", weights_NHL, v_NLHh.to(wide)).to(q_NHh.dtype)


class Runner:
    """Turns chunks of sequences into logits; keeps the block tables."""

    def __init__(self, model: Decoder, cache: PagedCache, max_running: int, longest: int) -> None:
        self.model, self.cache = model, cache
        self.tables = np.zeros((max_running, -(-longest // cache.block_size)), np.int32)
        self.owners: dict[int, tuple[Sequence, int]] = {}  # whose table a slot holds, how far
        self.rows = 0
        self.recomputed = 0

    def forward(self, chunks: Seq[Chunk]) -> Tensor:
        """Logits [R, V] of the last row of each chunk that reaches its sequence's end, in order."""
        tokens: list[int] = []
        for chunk in chunks:
            sequence = chunk.sequence
            known = self.owners.get(sequence.slot) == (sequence, len(sequence.blocks))
            if chunk.start == 0 or not known:  # from 0: the blocks may be others than before
                self.tables[sequence.slot, : len(sequence.blocks)] = sequence.blocks
                self.owners[sequence.slot] = (sequence, len(sequence.blocks))
            tokens += [sequence.token(p) for p in range(chunk.start, chunk.end)]
            self.recomputed += max(0, min(chunk.end, sequence.computed) - chunk.start)
            sequence.cached = chunk.end
            sequence.computed = max(sequence.computed, chunk.end)
        starts = np.array([c.start for c in chunks])
        counts = np.array([c.end - c.start for c in chunks])
        lasts = counts.cumsum() - 1
        positions = np.arange(len(tokens)) - np.repeat(lasts + 1 - counts - starts, counts)
        slots = np.repeat([c.sequence.slot for c in chunks], counts)
        self.rows += len(tokens)

        device = self.model.head_weight.device
        context = PagedAttention(self.cache, self.tables, slots, positions)
        hidden_ND = self.model(
            torch.tensor(tokens, device=device), torch.from_numpy(positions).to(device), context
        )
        asked = [n for n, c in zip(lasts, chunks, strict=True) if c.end == c.sequence.total]
        hidden_RD = hidden_ND[torch.tensor(asked, dtype=torch.int64, device=device)]
        weight_VD = self.model.head_weight[: self.model.valid_vocab]
        # in fp32, as the trainer's loss takes them: a bf16 logit would be another distribution
        wide = torch.promote_types(weight_VD.dtype, torch.float32)
        return hidden_RD.to(wide) @ weight_VD.to(wide).T
