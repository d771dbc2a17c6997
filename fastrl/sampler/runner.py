"""One forward of the model over rows of many sequences, against the paged cache.

Legend: N: rows of the forward, R: rows whose logits are asked for, V: valid vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from fastrl.model import Decoder
from fastrl.ops.dense import dense, fits_cpu
from fastrl.sampler.attention import PagedAttention
from fastrl.sampler.cache import PagedCache
from fastrl.sampler.scheduler import Chunk
from fastrl.sampler.sequence import Sequence


class Runner:
    """Turns chunks of sequences into logits; keeps the block tables."""

    def __init__(self, model: Decoder, cache: PagedCache, max_running: int, longest: int) -> None:
        self.model, self.cache = model, cache
        self.dense = _dense_backend(model)
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
        context = PagedAttention(self.cache, self.tables, slots, positions, dense=self.dense)
        hidden_ND = self.model(
            torch.tensor(tokens, device=device), torch.from_numpy(positions).to(device), context
        )
        asked = [n for n, c in zip(lasts, chunks, strict=True) if c.end == c.sequence.total]
        hidden_RD = hidden_ND[torch.tensor(asked, dtype=torch.int64, device=device)]
        weight_VD = self.model.head_weight[: self.model.valid_vocab]
        # in fp32, as the trainer's loss takes them: a bf16 logit would be another distribution
        wide = torch.promote_types(weight_VD.dtype, torch.float32)
        return dense(hidden_RD, weight_VD, dtype=wide, backend=self.dense)


def _dense_backend(model: Decoder) -> str:
    """ "cpu" where C++ takes every matrix product of the model, else "torch"."""
    fits = fits_cpu(model.head_weight[: model.valid_vocab]) and all(
        fits_cpu(layer.qkv.weight)
        and fits_cpu(layer.o.weight)
        and fits_cpu(layer.gate_up.weight, gated=True)
        and fits_cpu(layer.down.weight)
        for layer in model.layers
    )
    return "cpu" if fits else "torch"
