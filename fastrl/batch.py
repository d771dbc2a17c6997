"""Sequences packed end to end into batches of whole sequences under a token budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fastrl.types import Batch


def split_by_tokens(lengths: Mapping[int, int], max_tokens: int) -> list[list[int]]:
    """Sequences, named by the keys of `lengths`, in micro-batches of at most `max_tokens` rows.

    A sequence is never split: one longer than the budget gets a micro-batch of its own. Longest
    first, so that neighbours are of similar length, which keeps the attention's padding small. The
    order depends on the keys and lengths alone.
    """
    batches: list[list[int]] = []
    filled = 0
    for i in sorted(lengths, key=lambda i: (-lengths[i], i)):
        if not batches or filled + lengths[i] > max_tokens:
            batches.append([])
            filled = 0
        batches[-1].append(i)
        filled += lengths[i]
    return batches


def pack(
    sequences: Mapping[int, tuple[Sequence[int], Sequence[int]]],
    groups: Mapping[int, int],
    *,
    max_tokens: int,
    device: torch.device | str = "cpu",
) -> list[Batch]:
    """Pairs of prompt and response token ids, under the same keys as their `groups`, packed.

    Rows run over all tokens of a sequence but the last, which predicts nothing; `mask_N` is True
    where the row's target is a response token. Prompts and responses must not be empty.
    """
    lengths = {i: len(prompt) + len(response) - 1 for i, (prompt, response) in sequences.items()}
    batches = []
    for indices in split_by_tokens(lengths, max_tokens):
        tokens, targets, positions, masks = [], [], [], []
        for i in indices:
            prompt, response = sequences[i]
            assert len(prompt) and len(response)
            ids = np.asarray([*prompt, *response], np.int64)
            mask = np.arange(lengths[i]) >= len(prompt) - 1
            tokens.append(ids[:-1])
            targets.append(np.where(mask, ids[1:], 0))
            positions.append(np.arange(lengths[i], dtype=np.int64))
            masks.append(mask)
        offsets = np.cumsum([0, *(lengths[i] for i in indices)], dtype=np.int32)
        token_ids, positions_, targets_, mask_, cu_seqlens = (
            torch.from_numpy(part).to(device)
            for part in (*map(np.concatenate, (tokens, positions, targets, masks)), offsets)
        )
        batches.append(
            Batch(
                token_ids_N=token_ids,
                positions_N=positions_,
                targets_N=targets_,
                mask_N=mask_,
                cu_seqlens=cu_seqlens,
                max_seqlen=max(lengths[i] for i in indices),
                sequences=tuple(indices),
                prefix_lengths=tuple(len(sequences[i][0]) for i in indices),
                groups=tuple(groups[i] for i in indices),
            )
        )
    return batches
