"""Random numbers that are a function of what they are for: Philox4x32-10 (Salmon et al. 2011).

Nothing has to be saved to resume a run, and a token does not depend on its neighbours in the batch.
The layout, here and nowhere else:

    key0 = seed & 0xffffffff
    key1 = seed >> 32 | stream << 24    seed < 2^56; train 0, eval 1, baseline 2, 3 + attempt
    c0   = position << 12 | response    20 + 12 bits; position: a token's index in its response
    c1   = (v >> 2) << 14 | draw        18 + 14 bits; v: index in the vocabulary
    c2   = prompt id                    32 bits
    c3   = step                         32 bits

Entry v takes output word v & 3. The uniform of a word is ((word >> 9) + 0.5) / 2^23, exact in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastrl.errors import UsageError

try:
    from fastrl import _C
except ImportError:  # the definition below runs; `fastrl doctor` says so
    _C = None  # type: ignore[assignment]

STREAMS = {"train": 0, "eval": 1, "baseline": 2}
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
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


def philox(counter: np.ndarray, key0: int, key1: int) -> np.ndarray:
    """The definition: uint32 counters [..., 4] to uint32 words of the same shape."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        product0, product1 = np.uint64(MULTIPLIERS[0]) * c0, np.uint64(MULTIPLIERS[1]) * c2
        c0, c1, c2, c3 = (
            (product1 >> np.uint64(32)) ^ c1 ^ np.uint64(key0),
            product1 & low,
            (product0 >> np.uint64(32)) ^ c3 ^ np.uint64(key1),
            product0 & low,
        )
        key0, key1 = (key0 + WEYL[0]) & 0xFFFFFFFF, (key1 + WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], -1).astype(np.uint32)


def uniforms(
    positions: np.ndarray,
    responses: np.ndarray,
    draws: np.ndarray,
    ids: np.ndarray,
    step: int,
    key: tuple[int, int],
    vocab: int,
    *,
    threads: int = 1,
    native: bool = True,
) -> np.ndarray:
    """fp32 uniforms in (0, 1), [rows, vocab]; the arguments are one entry a row.

    C++ where the extension is built, else the definition: the same bits.
    """
    c0 = (positions.astype(np.uint32) << np.uint32(12)) | responses.astype(np.uint32)
    draws, ids = draws.astype(np.uint32), ids.astype(np.uint32)
    if native and _C is not None:
        return _C.uniforms(c0, draws, ids, step, *key, vocab, threads)
    blocks = np.arange((vocab + 3) // 4, dtype=np.uint32) << np.uint32(14)
    counter = np.empty((len(c0), len(blocks), 4), np.uint32)
    counter[..., 0], counter[..., 1] = c0[:, None], blocks | draws[:, None]
    counter[..., 2], counter[..., 3] = ids[:, None], step
    words = philox(counter, *key).reshape(len(c0), 4 * len(blocks))[:, :vocab]
    return ((words >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2**-23)
