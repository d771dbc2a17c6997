"""Attention over the paged cache: the extension against the definition, both against a loop."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from instruction_sets import INSTRUCTION_SETS, instruction_set

from fastrl.attention import Rotary
from fastrl.sampler.attention import PagedAttention
from fastrl.sampler.cache import PagedCache

CONTEXTS = (1, 2, 3, 4, 5, 16, 17, 33, 64)


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
    return PagedAttention(cache, tables, rows, positions), (q, k, v), whole


def defined(attention, q):
    """The definition on what the cache holds now."""
    same = attention
    other = PagedAttention(
        same.cache, same.tables, same.row_table, same.context - 1, backend="torch"
    )
    return other._definition(q, same.cache.k[0], same.cache.v[0])


def one_by_one(q, whole):
    groups = q.shape[1] // whole[0][0].shape[1]
    outputs = []
    for row, (k, v) in zip(q.double(), whole, strict=True):
        k, v = (x.double().repeat_interleave(groups, 1) for x in (k, v))
        weights = (torch.einsum("hd,lhd->hl", row, k) * row.shape[1] ** -0.5).softmax(1)
        outputs.append(torch.einsum("hl,lhd->hd", weights, v))
    return torch.stack(outputs)


@pytest.mark.parametrize("block_size", [1, 3, 16])
@pytest.mark.parametrize("dim", [4, 8, 12, 20, 33, 64])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (4, 2), (6, 2), (8, 1)])
def test_extension_definition_and_truth_agree(heads, kv_heads, dim, block_size):
    attention, (q, k, v), whole = case(heads, kv_heads, dim, block_size)
    assert attention.backend == "cpu", "the extension is what runs here"
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
    attention = PagedAttention(attention.cache, attention.tables, rows, positions)
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
        alone = PagedAttention(
            attention.cache, attention.tables, np.array([row]), np.array([CONTEXTS[row] - 1])
        )
        assert torch.equal(alone.attend(0, q[pick], k[pick], v[pick]), together[pick])


def rows_of_one_sequence(dtype, dim=12):
    shape = SimpleNamespace(num_kv_heads=2, head_dim=dim, num_layers=1)
    model = SimpleNamespace(config=shape, head_weight=torch.zeros(1, dtype=dtype))
    cache = PagedCache(model, 3, 4, True)
    attention = PagedAttention(cache, np.array([[2, 3]]), np.zeros(6, int), np.arange(6))
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
        assert attention.backend == backend
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
    written = attention.cache.k[0].flatten(0, 1)[attention._slots(positions.numpy()[:, None])[:, 0]]
    wide = Rotary(rotary.cos_Na.double(), rotary.sin_Na.double())
    truth = one_by_one(
        wide(q.double()), [(wide(k.double())[: i + 1], v[: i + 1]) for i in range(6)]
    )
    other, _ = rows_of_one_sequence(dtype, dim)
    other = PagedAttention(
        other.cache, other.tables, other.row_table, other.context - 1, backend="torch"
    )
    plain = other.attend(0, q, k, v, rotary)
    limit = 2 * (plain.double() - truth).abs().max() + torch.finfo(dtype).eps
    assert (native.double() - truth).abs().max() <= limit
    ulp = torch.finfo(dtype).eps * 4
    torch.testing.assert_close(written, rotary(k), rtol=0, atol=ulp)


@pytest.mark.parametrize("which", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_instruction_set_agrees_with_the_truth(which, dtype):
    with instruction_set(which):
        for heads, kv_heads, dim, block_size in ((6, 2, 20, 3), (9, 3, 64, 16), (7, 1, 33, 5)):
            attention, (q, k, v), whole = case(heads, kv_heads, dim, block_size, dtype=dtype)
            native = attention.attend(0, q, k, v).double()
            truth = one_by_one(q, whole)
            plain = defined(attention, q).double()
            limit = 2 * (plain - truth).abs().max() + torch.finfo(dtype).eps
            assert (native - truth).abs().max() <= limit


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
    tables = attention.tables.copy()
    tables[1:, :8] = tables[0, :8]  # 32 positions of one prompt
    shared = PagedAttention(attention.cache, tables, attention.row_table, attention.context - 1)
    together = shared.attend(0, q, k, v)
    for row in range(9):
        pick = slice(row, row + 1)
        alone = PagedAttention(attention.cache, tables, np.array([row]), np.array([36]))
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
