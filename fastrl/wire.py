"""Responses as bytes and back, for the other processes: arrays for tokens, JSON for the rest."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from fastrl.distributed import World, merge
from fastrl.grading import Grade
from fastrl.types import Completion

# a completion, its text, its verdict, its task reward
Response = tuple[Completion, str, Grade | None, float | None]


def exchange(world: World, groups: Sequence[Sequence[Response]]) -> list[list[Response]]:
    """The groups of all prompts, in order, from those of `world.share(prompts)`. Every process."""
    if world.size == 1:
        return [list(group) for group in groups]
    return merge([from_bytes(data) for data in world.gather_bytes(to_bytes(groups))])


def to_bytes(groups: Sequence[Sequence[Response]]) -> bytes:
    """The length of the JSON, the JSON, then every token, log-prob and log of a kept mass."""
    completions = [response[0] for group in groups for response in group]
    head = [
        [
            [len(c.token_ids), c.finish_reason, c.stop_reason, text, verdict, reward]
            for c, text, verdict, reward in group
        ]
        for group in groups
    ]
    text = json.dumps(head).encode()
    return b"".join(
        [
            np.int64(len(text)).tobytes(),
            text,
            np.array([t for c in completions for t in c.token_ids], np.int64).tobytes(),
            np.array([x for c in completions for x in c.logprobs], np.float64).tobytes(),
            np.array([x for c in completions for x in c.log_kept_mass], np.float64).tobytes(),
        ]
    )


def from_bytes(data: bytes) -> list[list[Response]]:
    """What `to_bytes` was given."""
    start = 8 + int(np.frombuffer(data, np.int64, 1)[0])
    head = json.loads(data[8:start])
    total = sum(row[0] for group in head for row in group)
    columns = [
        np.frombuffer(data, dtype, total, start + 8 * i * total).tolist()
        for i, dtype in enumerate((np.int64, np.float64, np.float64))
    ]
    groups: list[list[Response]] = []
    done = 0
    for group in head:
        groups.append([])
        for length, finish, stop, text, verdict, reward in group:
            tokens, logprobs, kept = (tuple(c[done : done + length]) for c in columns)
            done += length
            grade = None
            if verdict is not None:
                correct, answer, reason, span = verdict
                grade = Grade(correct, answer, reason, None if span is None else tuple(span))
            completion = Completion(tokens, logprobs, kept, finish, stop)
            groups[-1].append((completion, text, grade, reward))
    return groups
