"""How many blocks of cache a GPU has room for, beside what a forward needs at its peak."""

from __future__ import annotations

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


def num_blocks(
    model: Decoder, needed: int, least: int, block_size: int, max_batch_tokens: int, max_rows: int
) -> int:
    """`needed` blocks, or as many as a GPU has room for by a measured forward.

    Raises UsageError where fewer than `least` fit: the longest sequence alone.
    """
    device = model.head_weight.device
    if device.type != "cuda":
        return needed
    torch.cuda.empty_cache()  # what the backward pass left in pieces
    peak = _peak_bytes(model, block_size, max_batch_tokens, max_rows)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    fit = blocks_that_fit(free, peak, block_bytes(model, block_size))
    if fit < least:
        raise UsageError(
            f"the GPU has room for {fit * block_size} tokens of cache beside the model, and the"
            f" longest sequence may have {least * block_size}; lower max_tokens or max_batch_tokens"
        )
    return min(needed, fit)


@torch.no_grad()
def _peak_bytes(model: Decoder, block_size: int, max_batch_tokens: int, max_rows: int) -> int:
    """What a forward of the most rows and the logits of the most sequences take at their peak."""
    device = model.head_weight.device
    blocks = -(-max_batch_tokens // block_size)
    cache = PagedCache(model, blocks, block_size, False)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    positions = torch.arange(max_batch_tokens, device=device)
    table = torch.arange(1, blocks + 1, dtype=torch.int32, device=device)[None]
    context = PagedAttention(cache, table, torch.zeros_like(positions).int(), positions)
    hidden_ND = model(torch.zeros_like(positions), positions, context)
    logits = head_logits(model, hidden_ND[:1].expand(max_rows, -1))
    logits.softmax(-1)  # as large as what sampling makes of them
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
