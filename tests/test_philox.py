"""Philox4x32-10 against published vectors, and the layout of its counters."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sampling_cases import KEY, ONES, counters_of

from fastrl.errors import UsageError
from fastrl.ops.choice import philox, uniforms
from fastrl.ops.rows import Noise
from fastrl.sampler.philox import check_range, counters, make_key

# Random123, examples/kat_vectors: counter, key, words
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers_of_the_generator(counter, key, expected):
    assert tuple(philox(torch.tensor(counter), key).tolist()) == expected


def test_uniforms_are_words_in_their_place():
    where = counters_of(5)
    found = uniforms(Noise(where, KEY), 11)
    for row, column in itertools.product(range(5), range(11)):
        c0, c1, c2, c3 = where[row].tolist()
        words = philox(torch.tensor([c0, column // 4 << 14 | c1, c2, c3]), KEY).tolist()
        assert float(found[row, column]) == (words[column % 4] // 2**9 + 0.5) / 2**23


def row(position=0, response=0, draw=0, id=0, step=0, key=(0, 0), vocab=1):
    columns = [np.array([value]) for value in (position, response, draw, id)]
    return uniforms(Noise(torch.from_numpy(counters(*columns, step)), key), vocab)[0].numpy()


def by_hand(v, position, response, draw, id, step, seed, stream):
    """One uniform, from a counter and a key that are put together here."""
    key = seed & 0xFFFFFFFF, (seed >> 32) + stream * 2**24
    counter = position * 2**12 + response, (v // 4) * 2**14 + draw, id, step
    word = int(philox(torch.tensor(counter), key)[v % 4])
    return (word // 2**9 + 0.5) / 2**23


GREATEST = {"position": 2**20, "response": 2**12, "draw": 2**14, "id": 2**32, "step": 2**32}
FIELDS = [
    {},
    *({name: limit - 1} for name, limit in GREATEST.items()),
    {name: limit - 1 for name, limit in GREATEST.items()},
    {"position": 3, "response": 5, "draw": 2, "id": 77, "step": 1000},
]


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: "-".join(fields) or "zero")
def test_each_field_stands_where_the_layout_says(fields):
    all_fields = dict.fromkeys(GREATEST, 0) | fields
    seed = 0xAB_CDEF_0123_4567
    for number, stream in ((0, "train"), (1, "eval"), (2, "baseline"), (10, "attempt-7")):
        actual = row(**fields, key=make_key(seed, stream), vocab=11)
        expected = [by_hand(v, **all_fields, seed=seed, stream=number) for v in range(11)]
        assert actual.dtype == np.float32
        assert actual.tolist() == expected


def test_the_last_entries_of_the_largest_vocabulary():
    vocab = 2**20
    actual = row(7, 1, 16383, 3, 4, make_key(5, "eval"), vocab)
    for v in (0, 4, 2**16, vocab - 2, vocab - 1):
        assert actual[v] == by_hand(v, 7, 1, 16383, 3, 4, 5, 1)


def test_uniforms_are_inside_zero_and_one_and_uniform():
    where = torch.from_numpy(counters(*(np.arange(64),) * 4, 0))
    drawn = uniforms(Noise(where, make_key(1, "train")), 4096).double().numpy().ravel()
    assert 0 < drawn.min() < 1e-4 and 1 - 1e-4 < drawn.max() < 1
    counts = np.histogram(drawn, bins=64, range=(0, 1))[0]
    expected = len(drawn) / 64
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 4 * (2 * 63) ** 0.5


def test_different_names_give_different_numbers():
    seeds = (0, 1, 2**24, 2**32, 2**32 + 1, 2**55, 2**56 - 1)
    streams = ("train", "eval", "baseline", "attempt-0", "attempt-1", "attempt-252")
    keys = [make_key(seed, stream) for seed, stream in itertools.product(seeds, streams)]
    assert len(set(keys)) == len(keys)
    seen = {row(key=key, vocab=16).tobytes() for key in keys}
    base = {"position": 1, "response": 1, "draw": 1, "id": 1, "step": 1}
    for name in base:
        seen |= {row(**base | {name: value}, key=(9, 9), vocab=16).tobytes() for value in (0, 2)}
    assert len(seen) == len(keys) + 2 * len(base)


@pytest.mark.parametrize("name", GREATEST)
@pytest.mark.parametrize("beyond", ["below", "above"])
def test_a_field_out_of_range_is_refused_in_one_sentence(name, beyond):
    greatest = GREATEST[name] - 1
    check_range(name, 0)
    check_range(name, greatest)
    value = -1 if beyond == "below" else greatest + 1
    with pytest.raises(UsageError, match=rf"^{name} {value} [^\n.]*0\.\.{greatest}$"):
        check_range(name, value)


@pytest.mark.parametrize("seed", [-1, 2**56])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(UsageError, match=rf"^the seed is {seed}; [^\n]*2\^56 - 1$"):
        make_key(seed, "train")


@pytest.mark.parametrize(
    "stream", ["", "test", "Train", "attempt", "attempt-", "attempt--1", "attempt-253", "attempt-²"]
)
def test_an_unknown_stream_is_refused(stream):
    with pytest.raises(UsageError, match=rf"^there is no random stream {stream!r}; [^\n]*attempt-"):
        make_key(0, stream)
