"""Random numbers that are a function of what they are for: Philox4x32-10 (Salmon et al. 2011).

Nothing has to be saved to resume a run, and a token does not depend on its neighbours in the batch.
The layout, here and nowhere else:

    key0 = seed & 0xffffffff
    key1 = seed >> 32 | stream << 24    seed < 2^56; train 0, eval 1, baseline 2, 3 + attempt
    c0   = position << 12 | response    20 + 12 bits; position: a token's index in its response
    c1   = (v >> 2) << 14 | draw        18 + 14 bits; v: index in the vocabulary
    c2   = prompt id                    32 bits
    c3   = step                         32 bits

The part of c1 that counts the vocabulary, the generator and what a word is turned into are
`ops.sample`'s (`fastrl.ops.choice`): entry v takes output word v & 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastrl.errors import UsageError

STREAMS = {"train": 0, "eval": 1, "baseline": 2}
MAX_ATTEMPTS = 253  # streams from 3 on
LIMITS = {
    "position": 1 << 20,
    "response": 1 << 12,
    "token": 1 << 20,
    "draw": 1 << 14,
    "id": 1 << 32,
    "step": 1 << 32,
}


@dataclass(frozen=True)
class PromptKey:
    """A prompt to the random numbers: its stable id, and how often it was drawn before."""

    id: int
    draw: int = 0


def make_key(seed: int, stream: str) -> tuple[int, int]:
    """(key0, key1); raises UsageError for a seed or a stream that the layout cannot hold.

    `stream` is "train", "eval", "baseline" or "attempt-K" with K from 0.
    """
    if not 0 <= seed < 1 << 56:
        raise UsageError(f"the seed is {seed}; it must lie in 0..2^56 - 1")
    number = STREAMS.get(stream)
    attempt = stream.removeprefix("attempt-")
    if number is None and attempt != stream and attempt.isdecimal():
        number = 3 + int(attempt)
    if number is None or number > 255:
        raise UsageError(
            f"there is no random stream {stream!r}; allowed: {', '.join(STREAMS)}, attempt-K"
        )
    return seed & 0xFFFFFFFF, seed >> 32 | number << 24


def check_range(name: str, value: int) -> None:
    """Raise UsageError for a counter field that the layout cannot hold."""
    if not 0 <= value < LIMITS[name]:
        raise UsageError(f"{name} {value} does not fit the random counter's 0..{LIMITS[name] - 1}")


def counters(
    positions: np.ndarray, responses: np.ndarray, draws: np.ndarray, ids: np.ndarray, step: int
) -> np.ndarray:
    """The counters of rows as `ops.sample` takes them, int64 [rows, 4], from one number a row."""
    found = np.empty((len(positions), 4), np.int64)
    found[:, 0] = positions.astype(np.int64) << 12 | responses
    found[:, 1], found[:, 2], found[:, 3] = draws, ids, step
    return found
