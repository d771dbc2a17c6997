"""Sequences packed end to end into batches of whole sequences under a token budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fastrl.types import Batch

LEAST_SAVED = 0.1  # of the rows, for shared prompts to pay

Sequences = Mapping[int, tuple[Sequence[int], Sequence[int]]]  # prompt and response token ids


def saved_rows(sequences: Sequences, groups: Mapping[int, int]) -> tuple[int, int]:
    """Rows that shared prompts save where a group is one batch, and the rows without sharing."""
    prompts = {groups[i]: len(prompt) - 1 for i, (prompt, _) in sequences.items()}
    rows = sum(len(prompt) + len(response) - 1 for prompt, response in sequences.values())
    shared = sum(prompts.values()) + sum(len(response) for _, response in sequences.values())
    return rows - shared, rows


def pays(sequences: Sequences, groups: Mapping[int, int]) -> bool:
    """Whether sharing prompts saves more time than its attention costs."""
    saved, rows = saved_rows(sequences, groups)
    return saved > LEAST_SAVED * rows


def packed_rows(sequences: Sequences, groups: Mapping[int, int], share_prompts: bool) -> int:
    """Rows of sequences as one batch."""
    saved, rows = saved_rows(sequences, groups)
    return rows - saved if share_prompts else rows


def split_by_tokens(
    sequences: Sequences, groups: Mapping[int, int], max_tokens: int, share_prompts: bool
) -> list[list[int]]:
    """The keys of sequences in micro-batches of at most `max_tokens` rows.

    A sequence is never split: one longer than the budget gets a micro-batch of its own. Longest
    first, so that neighbours are of similar length, which keeps the attention's padding small;
    with shared prompts group by group, by the longest of each. The order depends on the keys,
    groups and lengths alone.
    """
    lengths = {i: len(prompt) + len(response) - 1 for i, (prompt, response) in sequences.items()}
    longest: dict[int, int] = {}
    for i, length in lengths.items():
        longest[groups[i]] = max(length, longest.get(groups[i], 0))

    def place(i: int) -> tuple[int, ...]:
        of_group = (-longest[groups[i]], groups[i]) if share_prompts else ()
        return (*of_group, -lengths[i], i)

    batches: list[list[int]] = []
    prompts: set[int] = set()  # groups in the last batch
    filled = 0
    for i in sorted(lengths, key=place):
        known = share_prompts and groups[i] in prompts
        rows = len(sequences[i][1]) if known else lengths[i]
        if not batches or filled + rows > max_tokens:
            batches.append([])
            prompts, filled, rows = set(), 0, lengths[i]
        batches[-1].append(i)
        prompts.add(groups[i])
        filled += rows
    return batches


def pack(
    sequences: Sequences,
    groups: Mapping[int, int],
    *,
    max_tokens: int,
    share_prompts: bool = False,
    device: torch.device | str = "cpu",
) -> list[Batch]:
    """Pairs of prompt and response token ids, under the same keys as their `groups`, packed.

    Rows run over all tokens of a sequence but the last, which predicts nothing; `mask_N` is True
    where the row's target is a response token. Prompts and responses must not be empty. With
    `share_prompts` the prompt of a group, which has to be one, comes once a micro-batch.
    """
    split = split_by_tokens(sequences, groups, max_tokens, share_prompts)
    return [_batch(sequences, groups, indices, share_prompts, device) for indices in split]


def _batch(
    sequences: Sequences,
    groups: Mapping[int, int],
    indices: Sequence[int],
    share_prompts: bool,
    device: torch.device | str,
) -> Batch:
    rows: list[tuple[np.ndarray, ...]] = []  # tokens, positions, targets, mask of each segment
    prefixes: list[tuple[int, int]] = []
    prompts: dict[int, tuple[int, int]] = {}  # first row and rows of a group's prompt
    members = [groups[i] for i in indices]
    sizes = Counter(members)
    filled = 0

    def add(ids: np.ndarray, first: int, prompt: int, prefix: tuple[int, int]) -> None:
        """The tokens `first` to the last but one of a sequence with a prompt of some tokens."""
        nonlocal filled
        positions = np.arange(first, len(ids) - 1)
        mask = positions >= prompt - 1
        rows.append((ids[first:-1], positions, np.where(mask, ids[first + 1 :], 0), mask))
        prefixes.append(prefix)
        filled += len(positions)

    for i in indices:
        prompt, response = sequences[i]
        assert len(prompt) and len(response)
        ids, group = np.asarray([*prompt, *response], np.int64), groups[i]
        if not share_prompts or len(prompt) == 1 or sizes[group] == 1:
            add(ids, 0, len(prompt), (0, 0))
            continue
        if group not in prompts:
            prompts[group] = (filled, len(prompt) - 1)
            add(ids[: len(prompt)], 0, len(prompt) + 1, (0, 0))
        add(ids, len(prompt) - 1, len(prompt), prompts[group])
    lengths = [len(segment[0]) for segment in rows]
    tokens, positions, targets, mask, offsets = (
        torch.from_numpy(part).to(device)
        for part in (
            *map(np.concatenate, zip(*rows, strict=True)),
            np.cumsum([0, *lengths], dtype=np.int32),
        )
    )
    return Batch(
        token_ids_N=tokens,
        positions_N=positions,
        targets_N=targets,
        mask_N=mask,
        cu_seqlens=offsets,
        max_seqlen=max(lengths),
        prefixes=np.array(prefixes, np.int64) if prompts else None,
        sequences=tuple(indices),
        prefix_lengths=tuple(len(sequences[i][0]) for i in indices),
        groups=tuple(members),
    )
