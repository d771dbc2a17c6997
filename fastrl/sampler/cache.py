"""The paged cache: keys and values of every layer in blocks."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, nullcontext

import torch

from fastrl.model import Decoder
from fastrl.ops.library import on_large_pages


class PagedCache:
    """Keys and values of every layer in blocks 1..num_blocks.

    Block 0 is reserved and stays zero. `unread_block` is another one, where rows that pad a batch
    put theirs.
    """

    def __init__(self, model: Decoder, num_blocks: int, block_size: int, poison: bool) -> None:
        config = model.config
        weight = model.head_weight
        shape = (num_blocks + 2, block_size, config.num_kv_heads, config.head_dim)
        self.num_blocks, self.block_size, self.poison = num_blocks, block_size, poison
        self.device = weight.device
        self.unread_block = num_blocks + 1
        # one memory, on large pages: in small ones a row's blocks cost as much to find as to read
        memory = torch.empty((2, config.num_layers, *shape), dtype=weight.dtype, device=self.device)
        k, v = on_large_pages(memory).zero_()
        self.k, self.v = list(k), list(v)

    def fits(self, model: Decoder, num_blocks: int, block_size: int) -> bool:
        """Whether it holds `num_blocks` blocks for this model as it is now."""
        weight, stored = model.head_weight, self.k[0]
        return (
            (stored.dtype, stored.device) == (weight.dtype, weight.device)
            and self.num_blocks >= num_blocks
            and self.block_size == block_size
        )

    def on_device(self) -> AbstractContextManager[object]:
        """Within it the cache's device is the current one, as Triton's kernels and graphs need."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def forget(self, blocks: list[int]) -> None:
        """With `poison`, fill blocks that nobody owns with NaN: reading one shows."""
        if self.poison:
            for cache in (*self.k, *self.v):
                cache[blocks] = torch.nan

    def copy(self, pairs: Seq[tuple[int, int]]) -> None:
        """Copy whole blocks, as (from, to)."""
        if pairs:
            source, target = torch.tensor(pairs).to(self.device).unbind(1)
            for cache in (*self.k, *self.v):
                cache[target] = cache[source]
