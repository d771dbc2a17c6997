"""The stream of prompts: every epoch whole, resumed by its position, long prompts listed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrl.datasources import Example
from fastrl.errors import UsageError
from fastrl.prompts import PromptStream, Tokenized


class Characters:
    """A tokenizer with one token a character."""

    def encode_chat(self, messages):
        return [ord(c) for m in messages for c in m["content"]]


def examples(lengths):
    return [
        Example(10 + i, ({"role": "user", "content": "x" * n},), str(i), {"level": i % 3})
        for i, n in enumerate(lengths)
    ]


def stream(count=7, seed=0, position=0, **limits):
    found = PromptStream(
        Tokenized(examples(range(1, count + 1)), Characters(), **limits), seed=seed
    )
    found.position = position
    return found


def test_a_prompt_is_its_example():
    for prompt in stream().next(7):
        index = prompt.id - 10
        (message,) = prompt.messages
        assert message == {"role": "user", "content": "x" * (index + 1)}
        assert prompt.token_ids == (ord("x"),) * (index + 1)
        assert (prompt.answer, prompt.columns) == (str(index), {"level": index % 3})


def test_every_epoch_has_every_prompt_once_in_an_order_of_its_own():
    prompts = stream(count=20).next(100)
    epochs = [prompts[i : i + 20] for i in range(0, 100, 20)]
    for epoch, found in enumerate(epochs):
        assert sorted(p.id for p in found) == list(range(10, 30))
        assert {p.draw for p in found} == {epoch}
    orders = {tuple(p.id for p in found) for found in epochs}
    assert len(orders) == 5 and tuple(range(10, 30)) not in orders


def test_the_order_is_the_seeds():
    seeds = [0, 1, 2, 2**31, 2**32, 2**63, 2**63 + 1, 2**64 - 1]
    orders = [tuple(p.id for p in stream(20, seed).next(40)) for seed in seeds]
    assert len(set(orders)) == len(seeds)
    assert orders == [tuple(p.id for p in stream(20, seed).next(40)) for seed in seeds]


@settings(deadline=None)
@given(
    st.integers(1, 9),
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(0, 15), max_size=6),
    st.data(),
)
def test_the_position_is_all_that_resuming_takes(count, seed, sizes, data):
    whole = stream(count, seed).next(sum(sizes))
    parts = stream(count, seed)
    assert [p for size in sizes for p in parts.next(size)] == whole
    assert parts.position == sum(sizes)
    position = data.draw(st.integers(0, sum(sizes)))
    resumed = stream(count, seed, position=position)
    assert resumed.next(sum(sizes) - position) == whole[position:]
    resumed.position = 0  # back again, whatever order is remembered
    assert resumed.next(sum(sizes)) == whole


def test_long_prompts_are_left_out_and_listed():
    found = Tokenized(examples([3, 9, 4, 5, 8, 7, 6]), Characters(), 4)
    assert found.too_long == [(11, 9), (13, 5), (14, 8), (15, 7), (16, 6)]
    assert {p.id for p in PromptStream(found, seed=0).next(20)} == {10, 12}
    assert found.report() == [
        "5 of 7 prompts are longer than 4 tokens and left out: rows 11 (9 tokens), 13 (5 tokens),"
        " 14 (8 tokens), ..."
    ]
    few = stream(count=5, max_prompt_tokens=4).source
    (line,) = few.report()
    assert line.endswith("1 of 5 prompts are longer than 4 tokens and left out: rows 14 (5 tokens)")
    assert stream(count=5, max_prompt_tokens=5).source.report() == []
    assert stream(count=5).source.report() == []


def test_no_prompt_at_all():
    with pytest.raises(UsageError, match="no prompt fits 2 tokens, the shortest has 3; raise"):
        Tokenized(examples([5, 3, 4]), Characters(), 2)
    with pytest.raises(UsageError, match="there is no prompt; give a data set with rows"):
        Tokenized([], Characters())
