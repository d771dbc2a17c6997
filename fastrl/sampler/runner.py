"""Forwards of the model over rows of many sequences, against the paged cache.

Legend: N: rows of the forward, R: rows whose logits are asked for, V: valid vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrl.model import Decoder
from fastrl.sampler import native
from fastrl.sampler.attention import PagedAttention, choose
from fastrl.sampler.cache import PagedCache
from fastrl.sampler.decode import DecodeSteps, head_logits
from fastrl.sampler.scheduler import Chunk
from fastrl.sampler.sequence import Sequence


class Runner:
    """Turns chunks of sequences into logits; keeps the block tables."""

    def __init__(self, model: Decoder, steps: DecodeSteps, max_running: int, longest: int) -> None:
        self.model, self.steps, self.cache = model, steps, steps.cache
        # the parameters' addresses, anew for every call
        steps.layers = native.layers_of(model) if steps.backends.decode == "cpu" else None
        self.tables = np.zeros((max_running, -(-longest // self.cache.block_size)), np.int32)
        self.owners: dict[int, tuple[Sequence, int]] = {}  # whose table a slot holds, how far
        self.rows = 0
        self.recomputed = 0

    def forward(self, chunks: Seq[Chunk]) -> Tensor:
        """Logits [R, V] of the last row of each chunk that reaches its sequence's end, in order."""
        tokens: list[int] = []
        for chunk in chunks:
            self._advance(chunk.sequence, chunk.start, chunk.end)
            tokens += [chunk.sequence.token(p) for p in range(chunk.start, chunk.end)]
        starts = np.array([c.start for c in chunks])
        counts = np.array([c.end - c.start for c in chunks])
        lasts = counts.cumsum() - 1
        positions = np.arange(len(tokens)) - np.repeat(lasts + 1 - counts - starts, counts)
        slots = np.repeat([c.sequence.slot for c in chunks], counts).astype(np.int32)
        asked = [n for n, c in zip(lasts, chunks, strict=True) if c.end == c.sequence.total]
        self.rows += len(tokens)

        device = self.model.head_weight.device
        tables_SB, slots_N, positions_N = (
            torch.from_numpy(x).to(device) for x in (self.tables, slots, positions)
        )
        with self.cache.on_device():
            context = PagedAttention(
                self.cache, tables_SB, slots_N, positions_N,
                backends=self.steps.backends, layers=self.steps.layers, chunk_rows=counts,
            )  # fmt: skip
            hidden_ND = self.model(torch.tensor(tokens, device=device), positions_N, context)
            hidden_RD = hidden_ND[torch.tensor(asked, dtype=torch.int64, device=device)]
            return head_logits(self.model, hidden_RD)

    def begin_steps(
        self,
        sequences: Seq[Sequence],
        counters: np.ndarray,
        key: tuple[int, int],
        settings: Mapping[str, Any],
        longest: int,
    ) -> None:
        """Hand sequences with one row to compute to `steps`; their tables do not change meanwhile.

        `counters` of the tokens to be sampled; `longest`: blocks of a table.
        """
        for sequence in sequences:
            self._set_table(sequence)
            del self.owners[sequence.slot]  # what the steps leave unused may come back as others
        slots = [s.slot for s in sequences]
        self.steps.begin(
            np.array([s.token(s.cached) for s in sequences]),
            np.array([s.cached for s in sequences]),
            self.tables[slots, :longest], counters, key, settings,
        )  # fmt: skip

    def count_step(self, sequences: Seq[Sequence]) -> None:
        """What a step of `steps` did to its sequences."""
        self.rows += len(sequences)
        for sequence in sequences:  # as `_count`, of one row
            sequence.cached += 1
            if sequence.computed < sequence.cached:
                sequence.computed = sequence.cached
            else:
                self.recomputed += 1

    def _advance(self, sequence: Sequence, start: int, end: int) -> None:
        known = self.owners.get(sequence.slot) == (sequence, len(sequence.blocks))
        if start == 0 or not known:  # from 0: the blocks may be others than before
            self._set_table(sequence)
        self._count(sequence, start, end)

    def _set_table(self, sequence: Sequence) -> None:
        self.tables[sequence.slot, : len(sequence.blocks)] = sequence.blocks
        self.owners[sequence.slot] = (sequence, len(sequence.blocks))

    def _count(self, sequence: Sequence, start: int, end: int) -> None:
        self.recomputed += max(0, min(end, sequence.computed) - start)
        sequence.cached = end
        sequence.computed = max(sequence.computed, end)


def make_steps(model: Decoder, cache: PagedCache, max_rows: int, longest: int) -> DecodeSteps:
    """The steps over a cache, of sequences up to `longest` tokens, on what runs here."""
    backends = choose(cache.device, cache.k[0].dtype, model.config.head_dim)
    width = -(-longest // cache.block_size)
    return DecodeSteps(model, cache, backends, max_rows=max_rows, width=width)
