"""Attention over the paged cache: the extension against the definition, both against a loop."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastrl.sampler.runner import PagedAttention, PagedCache

CONTEXTS = (1, 2, 3, 4, 5, 16, 17, 33, 64)


def case(heads, kv_heads, dim, block_size, contexts=CONTEXTS, seed=0):
    """A poisoned cache of one layer that holds every sequence but its last token, and that row."""
    generator = torch.Generator().manual_seed(seed)
    shape = SimpleNamespace(num_kv_heads=kv_heads, head_dim=dim, num_layers=1)
    model = SimpleNamespace(config=shape, head_weight=torch.zeros(1))
    needed = [-(-context // block_size) for context in contexts]
    cache = PagedCache(model, sum(needed) + 3, block_size, True)
    cache.forget(list(range(1, cache.num_blocks + 1)))
    blocks = (torch.randperm(cache.num_blocks, generator=generator) + 1).tolist()
    tables = np.zeros((len(contexts), max(needed)), np.int32)
    whole = []
    for index, (context, count) in enumerate(zip(contexts, needed, strict=True)):
        own = [blocks.pop() for _ in range(count)]
        tables[index, :count] = own
        pair = [torch.randn(context, kv_heads, dim, generator=generator) for _ in range(2)]
        whole.append(pair)
        for tensor, stored in zip(pair, (cache.k[0], cache.v[0]), strict=True):
            for position in range(context - 1):
                stored[own[position // block_size], position % block_size] = tensor[position]
    q = torch.randn(len(contexts), heads, dim, generator=generator)
    k, v = (torch.stack([pair[side][-1] for pair in whole]) for side in range(2))
    rows, positions = np.arange(len(contexts)), np.array(contexts) - 1
    return PagedAttention(cache, tables, rows, positions), (q, k, v), whole


def defined(attention, q):
    """The definition on what the cache holds now."""
    attention.read_slots = attention._read_slots()
    try:
        return attention._definition(q, attention.cache.k[0], attention.cache.v[0])
    finally:
        attention.read_slots = None


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
    assert attention.read_slots is None, "the extension is what runs here"
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


def test_only_float32_on_the_cpu_takes_the_extension():
    shape = SimpleNamespace(num_kv_heads=2, head_dim=12, num_layers=1)
    for dtype, native in ((torch.float32, True), (torch.bfloat16, False), (torch.float64, False)):
        model = SimpleNamespace(config=shape, head_weight=torch.zeros(1, dtype=dtype))
        cache = PagedCache(model, 3, 4, True)
        attention = PagedAttention(cache, np.array([[2, 3]]), np.zeros(6, int), np.arange(6))
        assert (attention.read_slots is None) == native
        generator = torch.Generator().manual_seed(2)
        q, k, v = (torch.randn(6, h, 12, generator=generator).to(dtype) for h in (4, 2, 2))
        out = attention.attend(0, q, k, v)
        assert out.dtype == dtype
        seen = [(k[: i + 1], v[: i + 1]) for i in range(6)]
        atol = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float64: 1e-12}[dtype]
        torch.testing.assert_close(out.double(), one_by_one(q, seen), rtol=0, atol=atol)


def test_copied_blocks_are_whole_and_others_stay():
    attention, _, _ = case(4, 2, 12, 4)
    cache = attention.cache
    before = [tensor.clone() for tensor in (*cache.k, *cache.v)]
    cache.copy([(2, 9), (2, 11), (5, 12)])
    for tensor, old in zip((*cache.k, *cache.v), before, strict=True):
        expected = old.clone()
        expected[9], expected[11], expected[12] = old[2], old[2], old[5]
        assert torch.equal(tensor.nan_to_num(-7), expected.nan_to_num(-7))
