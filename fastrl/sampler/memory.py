"""How many blocks of cache a GPU has room for, beside what a forward needs at its peak."""

from __future__ import annotations

import numpy as np
import torch

from fastrl.errors import UsageError
from fastrl.model import Decoder
from fastrl.sampler.attention import PagedAttention
from fastrl.sampler.cache import PagedCache
from fastrl.sampler.decode import head_logits

SHARE = 0.92  # of the free memory: the allocator's rounding, graphs, what others take meanwhile


def block_bytes(model: Decoder, block_size: int) -> int:
    """Bytes of a block of keys and values over all layers."""
    config = model.config
    numbers = 2 * config.num_layers * block_size * config.num_kv_heads * config.head_dim
    return numbers * model.head_weight.dtype.itemsize


def blocks_that_fit(free_bytes: int, peak_bytes: int, bytes_a_block: int) -> int:
    """Blocks in `free_bytes` beside a forward whose peak is `peak_bytes`; the cache has 2 more."""
    return max(0, int((free_bytes * SHARE - peak_bytes) // bytes_a_block) - 2)


class Room:
    """The blocks of cache of one sampler: what a call needs, or on a GPU what there is room for."""

    def __init__(
        self, model: Decoder, block_size: int, max_batch_tokens: int, reserved_bytes: int = 0
    ) -> None:
        """`reserved_bytes`: what others take while it samples."""
        self.model, self.block_size = model, block_size
        self.max_batch_tokens, self.reserved_bytes = max_batch_tokens, reserved_bytes
        self._peaks: dict[tuple[int, int], int] = {}  # bytes, by what was measured
        self._granted: int | None = None  # the last time, fewer than needed

    def limit(self, needed: int, least: int) -> int:
        """Blocks that a cache must have to be good enough still: `least` where room was short."""
        return needed if self._granted is None else max(least, min(needed, self._granted))

    def num_blocks(self, needed: int, least: int, max_rows: int) -> int:
        """`needed` blocks, or those that a measured forward leaves room for; without a cache.

        `least`: of the longest sequence alone; `max_rows`: logits at once.
        Raises UsageError where fewer than `least` fit.
        """
        device = self.model.head_weight.device
        if device.type != "cuda":
            return needed
        torch.cuda.empty_cache()  # what the backward pass left in pieces
        if (least, max_rows) not in self._peaks:
            with torch.cuda.device(device):
                self._peaks[least, max_rows] = self._measure(least, max_rows)
            torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        size = self.block_size
        taken = self._peaks[least, max_rows] + self.reserved_bytes
        fit = blocks_that_fit(free, taken, block_bytes(self.model, size))
        if fit < least:
            raise UsageError(
                f"the GPU has room for {fit * size} tokens of cache beside the model, and the"
                f" longest sequence may have {least * size}; lower max_tokens or max_batch_tokens"
            )
        self._granted = fit if fit < needed else None
        return min(needed, fit)

    @torch.no_grad()
    def _measure(self, least: int, max_rows: int) -> int:
        """The peak of a forward of the most rows and of the logits of the most sequences."""
        model, rows = self.model, self.max_batch_tokens
        device = model.head_weight.device
        blocks = -(-rows // self.block_size)
        cache = PagedCache(model, blocks, self.block_size, False)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        positions = torch.arange(rows, device=device)
        # as wide as the longest sequence's: what splits of a row leave depends on it
        table = torch.zeros(1, max(blocks, least), dtype=torch.int32, device=device)
        table[0, :blocks] = torch.arange(1, blocks + 1)
        context = PagedAttention(
            cache, table, torch.zeros_like(positions).int(), positions, chunk_rows=np.array([rows])
        )
        hidden_ND = model(torch.zeros_like(positions), positions, context)
        logits = head_logits(model, hidden_ND[:1].repeat(max_rows, 1))
        logits.softmax(-1)  # as large as what sampling makes of them
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
