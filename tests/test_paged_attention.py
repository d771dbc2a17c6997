"""Attention over the paged cache: the extension against the definition, both against a loop."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from attention_truth import one_by_one, packed_by_definition
from instruction_sets import INSTRUCTION_SETS, instruction_set

from fastrl import varlen
from fastrl.attention import Rotary
from fastrl.sampler.attention import Backends, PagedAttention
from fastrl.sampler.cache import PagedCache

DEFINITION = Backends("torch", "torch")
CONTEXTS = (1, 2, 3, 4, 5, 16, 17, 33, 64)


def attention_of(cache, tables, row_table, positions, **settings):
    """The context of rows, from arrays or tensors."""
    tables, row_table, positions = (torch.as_tensor(x) for x in (tables, row_table, positions))
    return PagedAttention(cache, tables.int(), row_table.int(), positions.long(), **settings)


def case(heads, kv_heads, dim, block_size, contexts=CONTEXTS, seed=0, dtype=torch.float32):
    """A poisoned cache of one layer that holds every sequence but its last token, and that row."""
    generator = torch.Generator().manual_seed(seed)
    shape = SimpleNamespace(num_kv_heads=kv_heads, head_dim=dim, num_layers=1)
    model = SimpleNamespace(config=shape, head_weight=torch.zeros(1, dtype=dtype))
    needed = [-(-context // block_size) for context in contexts]
    cache = PagedCache(model, sum(needed) + 3, block_size, True)
    cache.forget(list(range(1, cache.num_blocks + 1)))
    order = torch.Generator().manual_seed(seed + 1)  # apart: the values do not depend on it
    blocks = (torch.randperm(cache.num_blocks, generator=order) + 1).tolist()
    tables = np.zeros((len(contexts), max(needed)), np.int32)
    whole = []
    for index, (context, count) in enumerate(zip(contexts, needed, strict=True)):
        own = [blocks.pop() for _ in range(count)]
        tables[index, :count] = own
        pair = [
            torch.randn(context, kv_heads, dim, generator=generator).to(dtype) for _ in range(2)
        ]
        whole.append(pair)
        for tensor, stored in zip(pair, (cache.k[0], cache.v[0]), strict=True):
            for position in range(context - 1):
                stored[own[position // block_size], position % block_size] = tensor[position]
    q = torch.randn(len(contexts), heads, dim, generator=generator).to(dtype)
    k, v = (torch.stack([pair[side][-1] for pair in whole]) for side in range(2))
    rows, positions = np.arange(len(contexts)), np.array(contexts) - 1
    return attention_of(cache, tables, rows, positions), (q, k, v), whole


def defined(attention, q):
    """The definition on what the cache holds now."""
    other = again(attention, backends=DEFINITION)
    return other._definition(
        q, other.row_table, other.context, attention.cache.k[0], attention.cache.v[0]
    )


def again(attention, **settings):
    """The same rows in another context."""
    return attention_of(
        attention.cache, attention.tables, attention.row_table, attention.positions, **settings
    )


@pytest.mark.parametrize("block_size", [1, 3, 16])
@pytest.mark.parametrize("dim", [4, 8, 12, 20, 33, 64])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (4, 2), (6, 2), (8, 1)])
def test_extension_definition_and_truth_agree(heads, kv_heads, dim, block_size):
    attention, (q, k, v), whole = case(heads, kv_heads, dim, block_size)
    assert attention.backends.decode == "cpu", "the extension is what runs here"
    native = attention.attend(0, q, k, v)
    torch.testing.assert_close(native, defined(attention, q), rtol=0, atol=2e-6)
    torch.testing.assert_close(native.double(), one_by_one(q, whole), rtol=0, atol=2e-6)


def test_large_scores_do_not_overflow():
    attention, (q, k, v), _ = case(2, 1, 8, 4)
    native = attention.attend(0, q * 1e4, k, v)
    assert native.isfinite().all()
    torch.testing.assert_close(native, defined(attention, q * 1e4), rtol=0, atol=1e-5)


def test_rows_of_one_sequence_see_each_other_causally():
    attention, _, whole = case(4, 2, 12, 4, contexts=(11, 6))
    rows = np.array([0] * 11 + [1] * 6)
    positions = np.concatenate([np.arange(11), np.arange(6)])
    attention = attention_of(attention.cache, attention.tables, rows, positions)
    k, v = (torch.cat([pair[side] for pair in whole]) for side in range(2))
    q = torch.randn(17, 4, 12, generator=torch.Generator().manual_seed(1))
    out = attention.attend(0, q, k, v)
    seen = [
        tuple(x[: position + 1] for x in whole[row])
        for row, position in zip(rows, positions, strict=True)
    ]
    torch.testing.assert_close(out.double(), one_by_one(q, seen), rtol=0, atol=2e-6)


def test_threads_change_no_bit():
    attention, (q, k, v), _ = case(6, 2, 20, 3, contexts=tuple(range(1, 90)))
    assert q.numel() * 89 > 1 << 17, "smaller calls run on one thread"
    attention.threads = 1
    alone = attention.attend(0, q, k, v)
    for threads in (2, 3, 7):
        attention.threads = threads
        assert torch.equal(attention.attend(0, q, k, v), alone)


def test_a_row_does_not_depend_on_its_neighbours():
    attention, (q, k, v), _ = case(4, 2, 20, 4)
    together = attention.attend(0, q, k, v)
    for row in range(len(CONTEXTS)):
        pick = slice(row, row + 1)
        alone = attention_of(
            attention.cache, attention.tables, np.array([row]), np.array([CONTEXTS[row] - 1])
        )
        assert torch.equal(alone.attend(0, q[pick], k[pick], v[pick]), together[pick])


def rows_of_one_sequence(dtype, dim=12):
    shape = SimpleNamespace(num_kv_heads=2, head_dim=dim, num_layers=1)
    model = SimpleNamespace(config=shape, head_weight=torch.zeros(1, dtype=dtype))
    cache = PagedCache(model, 3, 4, True)
    attention = attention_of(cache, np.array([[2, 3]]), np.zeros(6, int), np.arange(6))
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(6, h, dim, generator=generator).to(dtype) for h in (4, 2, 2))
    return attention, (q, k, v)


def test_float32_and_bfloat16_on_the_cpu_take_the_extension():
    for dtype, backend in (
        (torch.float32, "cpu"),
        (torch.bfloat16, "cpu"),
        (torch.float64, "torch"),
    ):
        attention, (q, k, v) = rows_of_one_sequence(dtype)
        assert attention.backends == Backends(backend, backend)
        out = attention.attend(0, q, k, v)
        assert out.dtype == dtype
        seen = [(k[: i + 1], v[: i + 1]) for i in range(6)]
        atol = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float64: 1e-12}[dtype]
        torch.testing.assert_close(out.double(), one_by_one(q, seen), rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [12, 64, 66])
def test_the_rotary_embedding_is_that_of_the_packed_forward(dtype, dim):
    positions = torch.tensor([0, 1, 2, 3, 4, 5])
    rotary = Rotary.at(positions, 10_000.0 ** -(torch.arange(dim // 2) / (dim // 2)))
    attention, (q, k, v) = rows_of_one_sequence(dtype, dim)
    native = attention.attend(0, q, k, v, rotary)
    slots = attention.slots(torch.zeros_like(positions), positions)
    written = attention.cache.k[0].flatten(0, 1)[slots]
    wide = Rotary(rotary.cos_Na.double(), rotary.sin_Na.double())
    truth = one_by_one(
        wide(q.double()), [(wide(k.double())[: i + 1], v[: i + 1]) for i in range(6)]
    )
    other, _ = rows_of_one_sequence(dtype, dim)
    plain = again(other, backends=DEFINITION).attend(0, q, k, v, rotary)
    limit = 2 * (plain.double() - truth).abs().max() + torch.finfo(dtype).eps
    assert (native.double() - truth).abs().max() <= limit
    ulp = torch.finfo(dtype).eps * 4
    torch.testing.assert_close(written, rotary(k), rtol=0, atol=ulp)


def check_against_the_truth(attention, q, k, v, whole):
    """Errors are at most twice those of the definition."""
    native = attention.attend(0, q, k, v).double()
    truth = one_by_one(q, whole)
    plain = defined(attention, q).double()
    limit = 2 * (plain - truth).abs().max() + torch.finfo(q.dtype).eps
    assert (native - truth).abs().max() <= limit


@pytest.mark.parametrize("which", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 3), (12, 4)])
def test_heads_side_by_side_agree_with_the_truth(heads, kv_heads, dtype, which):
    """With rows enough for every thread a call computes all heads of its rows, two at a time."""
    contexts = [1 + 7 * i % 45 for i in range(40)]
    with instruction_set(which):
        for dim in (16, 20, 48):
            attention, (q, k, v), whole = case(heads, kv_heads, dim, 16, contexts, dtype=dtype)
            attention.threads = 1
            check_against_the_truth(attention, q, k, v, whole)


@pytest.mark.parametrize("which", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_instruction_set_agrees_with_the_truth(which, dtype):
    with instruction_set(which):
        for heads, kv_heads, dim, block_size in ((6, 2, 20, 3), (9, 3, 64, 16), (7, 1, 33, 5)):
            attention, (q, k, v), whole = case(heads, kv_heads, dim, block_size, dtype=dtype)
            check_against_the_truth(attention, q, k, v, whole)


def test_the_block_size_changes_no_bit():
    outputs = []
    for block_size in (1, 3, 16, 64):
        attention, (q, k, v), _ = case(6, 2, 20, block_size)
        outputs.append(attention.attend(0, q, k, v))
    for other in outputs[1:]:
        assert torch.equal(other, outputs[0])


def test_rows_that_share_blocks_get_the_bits_of_rows_that_do_not():
    """A forked prompt is read once for all its rows; a row alone reads it for itself."""
    attention, (q, k, v), _ = case(6, 2, 20, 4, contexts=(37,) * 9)
    tables = attention.tables.clone()
    tables[1:, :8] = tables[0, :8]  # 32 positions of one prompt
    shared = attention_of(attention.cache, tables, attention.row_table, attention.positions)
    together = shared.attend(0, q, k, v)
    for row in range(9):
        pick = slice(row, row + 1)
        alone = attention_of(attention.cache, tables, np.array([row]), np.array([36]))
        assert torch.equal(alone.attend(0, q[pick], k[pick], v[pick]), together[pick])


def test_what_a_later_row_sees_does_not_reach_an_earlier_one():
    """Not even a NaN that the earlier row would weigh with 0."""
    attention, (q, k, v) = rows_of_one_sequence(torch.float32)
    clean = attention.attend(0, q, k, v)
    for broken in (torch.nan, torch.inf):
        again, _ = rows_of_one_sequence(torch.float32)
        bad_k, bad_v = k.clone(), v.clone()
        bad_k[4], bad_v[4] = broken, broken
        out = again.attend(0, q, bad_k, bad_v)
        assert torch.equal(out[:4], clean[:4])
        assert out[4].isnan().all()


def test_copied_blocks_are_whole_and_others_stay():
    attention, _, _ = case(4, 2, 12, 4)
    cache = attention.cache
    before = [tensor.clone() for tensor in (*cache.k, *cache.v)]
    cache.copy([(2, 9), (2, 11), (5, 12)])
    for tensor, old in zip((*cache.k, *cache.v), before, strict=True):
        expected = old.clone()
        expected[9], expected[11], expected[12] = old[2], old[2], old[5]
        assert torch.equal(tensor.nan_to_num(-7), expected.nan_to_num(-7))


def mixed_rows():
    """Chunks of 1, 3, 1, 5 and 4 rows of five sequences, of which the cache has the rest."""
    contexts = (9, 16, 1, 5, 21)
    attention, _, whole = case(4, 2, 12, 4, contexts=contexts)
    counts = np.array([1, 3, 1, 5, 4])
    rows = np.repeat(np.arange(5), counts)
    positions = np.concatenate([np.arange(c - n, c) for c, n in zip(contexts, counts, strict=True)])
    k, v = (
        torch.cat([pair[side][-n:] for pair, n in zip(whole, counts, strict=True)])
        for side in range(2)
    )
    q = torch.randn(14, 4, 12, generator=torch.Generator().manual_seed(1))
    seen = [tuple(x[: p + 1] for x in whole[row]) for row, p in zip(rows, positions, strict=True)]
    return attention, counts, (rows, positions), (q, k, v), one_by_one(q, seen)


@pytest.mark.parametrize("counts_given", [True, False])
def test_chunks_of_several_rows_take_the_function_for_variable_lengths(monkeypatch, counts_given):
    monkeypatch.setitem(varlen.FUNCTIONS, "spy", lambda: called)
    calls = []

    def called(*arguments):
        calls.append(arguments)
        return packed_by_definition(*arguments)

    attention, counts, rows, qkv, truth = mixed_rows()
    context = attention_of(
        attention.cache, attention.tables, *rows, backends=Backends("torch", "spy"),
        chunk_rows=counts if counts_given else None,
    )  # fmt: skip
    out = context.attend(0, *qkv)
    torch.testing.assert_close(out.double(), truth, rtol=0, atol=2e-6)
    assert len(calls) == counts_given
    if counts_given:
        assert [len(x) for x in calls[0][:3]] == [12, 42, 42]


@pytest.mark.parametrize("name", list(varlen.FUNCTIONS))
def test_functions_for_variable_lengths_agree_with_the_definition(name):
    function = varlen.FUNCTIONS[name]()
    if function is None:
        pytest.skip(f"{name} is not installed")
    if not torch.cuda.is_available():
        pytest.skip(f"{name} runs on a GPU")
    generator = torch.Generator().manual_seed(0)
    rows, seen = (torch.tensor(x, dtype=torch.int32) for x in ((0, 3, 8, 12), (0, 16, 21, 42)))
    q, k, v = (torch.randn(n, h, 64, generator=generator) for n, h in ((12, 4), (42, 2), (42, 2)))
    q, k, v = (x.bfloat16() for x in (q, k, v))
    truth = packed_by_definition(q.double(), k.double(), v.double(), rows, seen, 5, 21)
    out = function(*(x.cuda() for x in (q, k, v, rows, seen)), 5, 21).cpu()
    assert (out.double() - truth).abs().max() <= 4 * torch.finfo(torch.bfloat16).eps


def test_rows_that_pad_a_batch_change_nothing():
    """Position -1: their keys go to a block that nobody reads, and their output is 0."""
    attention, (q, k, v), _ = case(6, 2, 20, 4)
    cache = attention.cache
    alone = again(attention, backends=DEFINITION).attend(0, q, k, v)
    before = [x.clone() for x in (*cache.k, *cache.v)]
    padding = torch.full((3, attention.tables.shape[1]), cache.unread_block)
    tables = torch.cat([attention.tables, padding.int()])
    positions = torch.cat([attention.positions, torch.full((3,), -1)])
    context = attention_of(cache, tables, torch.arange(len(tables)), positions, backends=DEFINITION)
    longer = [torch.cat([x, torch.randn(3, *x.shape[1:])]) for x in (q, k, v)]
    out = context.attend(0, *longer)
    assert torch.equal(out[: len(q)], alone) and not out[len(q) :].any()
    for stored, old in zip((*cache.k, *cache.v), before, strict=True):
        keep = torch.arange(len(stored)) != cache.unread_block
        assert torch.equal(stored[keep].nan_to_num(-7), old[keep].nan_to_num(-7))
