"""Sampling a token from each row of logits: the public operation, and its operator.

`fastrl.ops.choice` says what is computed. Legend: N: rows, V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastrl.errors import UsageError
from fastrl.ops import library
from fastrl.ops.checks import check_logits, flatten, vector
from fastrl.ops.rows import Filters, LogitRows, Noise, wide_dtype


@dataclass(frozen=True)
class Sample:
    """A token of each row; -1 with NaN where a row holds a NaN, +inf or nothing finite."""

    tokens: Tensor  # int64
    logprobs: Tensor  # nats, under the full distribution at the row's temperature (greedy: 1)
    log_kept_mass: Tensor  # log of the mass that the filters kept; 0 without a filter, and greedy


def sample(
    logits: Tensor,
    counters: Tensor,
    key: tuple[int, int],
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    valid_vocab: int | None = None,
    softcap: float | None = None,
    backend: str = "auto",
) -> Sample:
    """A token from each row of logits [..., V], with its log-prob, by the Gumbel maximum.

    `counters` int64 [..., 4] and `key` are all the randomness, 32 bits each (c1: 14): the same
    numbers give the same token. Column v draws from Philox4x32-10 at {c0, v >> 2 << 14 | c1, c2,
    c3}, for V up to 2^20. A uniform has 23 bits: a token less likely than about 1e-7 is drawn too
    seldom. `temperature` 0 is greedy, others lie in 1e-30..1e30. Filters act in the order
    temperature, top-k (0: no limit), top-p (1), min-p (0); each is a number or one per row. A
    sampler's log-prob of the token is logprobs - log_kept_mass.
    Raises UsageError for shapes, dtypes, devices and values that do not fit; values in tensors are
    looked at on the CPU only. No gradient.
    """
    check_logits(logits)
    rows_shape, vocab, device = logits.shape[:-1], logits.shape[-1], logits.device
    nowhere = torch.zeros(rows_shape, dtype=torch.int64, device=device)
    if counters.shape != (*rows_shape, 4) or counters.dtype != torch.int64:
        raise UsageError(
            f"counters are {counters.dtype} of shape {tuple(counters.shape)}; they must be int64 of"
            f" shape {(*rows_shape, 4)}"
        )
    if counters.device != device:
        raise UsageError(f"counters are on {counters.device}, logits on {device}; move one")
    if len(key) != 2 or not all(0 <= word < 1 << 32 for word in key):
        raise UsageError(f"key is {tuple(key)}; it must be two numbers of 32 bits")
    flat = flatten(logits, vocab, nowhere, None, 1.0, valid_vocab, softcap, backend)
    if flat.valid > MAX_VOCAB:
        raise UsageError(f"the vocabulary has {flat.valid} ids; the counters allow {MAX_VOCAB}")
    limits = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    unlimited = not isinstance(temperature, Tensor) and temperature != 0 and all(
        not isinstance(value, Tensor) and value == nothing
        for value, nothing in zip(limits.values(), (0, 1, 0), strict=True)
    )  # fmt: skip
    found = _sample(
        logits.detach().reshape(-1, vocab), counters.reshape(-1, 4).contiguous(), *key,
        _per_row("temperature", temperature, nowhere),
        *(None if unlimited else _per_row(name, value, nowhere) for name, value in limits.items()),
        flat.valid, flat.softcap, flat.backend,
    )  # fmt: skip
    return Sample(*(x.view(rows_shape) for x in found))


MAX_VOCAB = 1 << 20  # of a counter's 18 bits, four columns each
WORDS = (1 << 32, 1 << 14, 1 << 32, 1 << 32)  # of a counter: below these
ALLOWED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "temperature": (
        "0 (greedy) or from 1e-30 to 1e30",
        lambda x: (x == 0) | ((x >= 1e-30) & (x <= 1e30)),
    ),
    "top_k": ("0 (no limit) or positive", lambda x: x >= 0),
    "top_p": ("above 0 and at most 1", lambda x: (x > 0) & (x <= 1)),
    "min_p": ("from 0 to 1", lambda x: (x >= 0) & (x <= 1)),
}


def _per_row(name: str, value: float | Tensor, rows: Tensor) -> Tensor:
    """`value` as a flat vector, one entry a row; raises UsageError for a number out of range."""
    if isinstance(value, Tensor):
        if name == "top_k" and value.is_floating_point():
            raise UsageError(f"top_k is {value.dtype}; it must be of an integer dtype")
        if value.dim() == 0:
            return value.detach().to(rows.device).expand(rows.numel())
        given = vector(name, value, rows)
        assert given is not None
        return given
    words, fits = ALLOWED[name]
    if not fits(value) or (name == "top_k" and value != int(value)):
        raise UsageError(f"{name} is {value}; it must be {words}")
    if name == "top_k":
        return torch.full((rows.numel(),), min(int(value), MAX_VOCAB), device=rows.device)
    return torch.full((rows.numel(),), value, dtype=torch.float64, device=rows.device)


def _check_counters(counters: Tensor) -> None:
    """Raises UsageError for words that do not fit; looks on the CPU only."""
    if counters.device.type != "cpu" or not len(counters):
        return
    least, most = (x.tolist() for x in counters.aminmax(dim=0))
    if min(least) >= 0 and all(x < limit for x, limit in zip(most, WORDS, strict=True)):
        return
    outside = (counters < 0) | (counters >= torch.tensor(WORDS))
    row, word = (int(i) for i in outside.nonzero()[0])
    raise UsageError(
        f"c{word} of the counter of row {row} is {int(counters[row, word])}; it must lie in"
        f" 0..{WORDS[word] - 1}"
    )


def _check_settings(settings: dict[str, Tensor]) -> None:
    """Raises UsageError for values that do not fit; looks on the CPU only."""
    for name, value in settings.items():
        words, fits = ALLOWED[name]
        if value.device.type == "cpu" and not bool(fits(value).all()):
            row = int((~fits(value)).nonzero()[0])
            raise UsageError(f"{name} is {value[row].item()} in row {row}; it must be {words}")


@torch.library.custom_op("fastrl::sample", mutates_args=())
@library.in_full_precision
def _sample(
    logits: Tensor,
    counters: Tensor,
    key0: int,
    key1: int,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    valid: int,
    softcap: float | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """What Sample holds, [N] each. Without limits (None) no row is greedy: the sampler's usual."""
    _check_counters(counters)
    wide = wide_dtype(logits.dtype)
    nowhere, noise = torch.zeros_like(counters[:, 0]), Noise(counters, (key0, key1))
    kernels = library.kernels_of(backend)
    if top_k is None or top_p is None or min_p is None:
        x = LogitRows(logits, nowhere, None, temperature.to(wide), valid, softcap)
        return kernels.sample(x, Filters.nothing(len(logits), logits.device, wide), noise)
    _check_settings({"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p})
    # greedy is the likeliest alone at temperature 1, with nothing said of what it left out
    greedy = temperature == 0
    filters = Filters(
        torch.where(greedy, 1, top_k.clamp(max=valid)).to(torch.int32),
        # as small as that leaves the likeliest alone, and is a number in fp32
        top_p.clamp(min=1e-30).to(wide).contiguous(),
        min_p.to(wide).contiguous(),
        False,
    )
    x = LogitRows(
        logits, nowhere, None, torch.where(greedy, 1.0, temperature).to(wide), valid, softcap
    )
    tokens, logprobs, log_kept_mass = kernels.sample(x, filters, noise)
    return tokens, logprobs, torch.where(greedy & (tokens >= 0), 0.0, log_kept_mass)


@_sample.register_fake
def _(logits: Tensor, counters: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return (counters.new_empty(counters.shape[0]), *library.vectors(logits, 2))
