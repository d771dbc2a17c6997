"""Attention of packed segments in C++ against torch in fp64, on every instruction set."""

import numpy as np
import pytest
import torch
from instruction_sets import INSTRUCTION_SETS, instruction_set

from fastrl.attention import Rotary
from fastrl.ops.attention import families, packed_attention
from fastrl.packed_attention import PackedAttention

DTYPES = [torch.float32, torch.bfloat16]
HEADS = [(9, 3, 64), (4, 2, 16), (2, 2, 40), (6, 1, 128), (80, 1, 8)]  # of queries, of keys, wide
# lengths of segments, and for each which it continues: -1, none
ALONE = [30, 7, 1, 64, 65, 0, 130], [-1] * 7
SHARED = [57, 20, 1, 48, 33, 70, 5, 40], [-1, 0, 0, 0, -1, 4, 4, -1]


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request):
    with instruction_set(request.param):
        yield request.param


def segments(case):
    lengths, continued = case
    offsets = np.cumsum([0, *lengths]).astype(np.int32)
    prefixes = [(offsets[c], lengths[c]) if c >= 0 else (0, 0) for c in continued]
    return offsets, np.array(prefixes, np.int64)


def inputs(rows, heads, kv_heads, dim, dtype):
    """Queries, keys and values as parts of one product, and an upstream gradient."""
    generator = torch.Generator().manual_seed(rows)
    whole = torch.randn(rows, heads + 2 * kv_heads, dim, generator=generator).to(dtype)
    upstream = torch.randn(rows, heads, dim, generator=generator).to(dtype)
    angles = torch.logspace(0, -2, dim // 2)
    return whole, upstream, Rotary.at(torch.arange(rows), angles)


def by_torch(case, heads, whole, upstream, rotary, dtype):
    offsets, prefixes = segments(case)
    x = whole.to(dtype).requires_grad_()
    q, k, v = x.split((heads[0], heads[1], heads[1]), 1)
    if rotary is not None:
        rotary = Rotary(*(a.to(torch.promote_types(dtype, torch.float32)) for a in rotary))
    context = PackedAttention(torch.from_numpy(offsets), max(case[0]), prefixes, backend="sdpa")
    out = context.attend(0, q, k, v, rotary)
    out.backward(upstream.to(dtype))
    return out.detach(), x.grad


def by_us(case, heads, whole, upstream, rotary):
    x = whole.clone().requires_grad_()
    q, k, v = x.split((heads[0], heads[1], heads[1]), 1)
    out = packed_attention(q, k, v, families(*segments(case)), rotary)
    out.backward(upstream)
    return out.detach(), x.grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("case", [ALONE, SHARED], ids=["alone", "shared"])
@pytest.mark.parametrize("turned", [True, False], ids=["turned", "plain"])
def test_no_further_from_the_truth_than_torch(isa, case, heads, dtype, turned):
    whole, upstream, rotary = inputs(sum(case[0]), *heads, dtype)
    angles = (rotary.cos_Na, rotary.sin_Na) if turned else None
    found = by_us(case, heads, whole, upstream, angles)
    truth, plain = (
        by_torch(case, heads, whole, upstream, angles, kind) for kind in (torch.float64, dtype)
    )
    for ours, theirs, right in zip(found, plain, truth, strict=True):
        assert ours.dtype == dtype
        far, torchs = (x.double() - right for x in (ours, theirs))
        rounding = torch.finfo(dtype).eps * (right.abs() + right.abs().mean())
        assert (far.abs() <= 2 * torchs.abs().max() + rounding).all()
        assert far.norm() <= 1.5 * torchs.norm()


def test_the_same_bits_again_and_on_any_number_of_threads():
    whole, upstream, rotary = inputs(sum(SHARED[0]), 9, 3, 64, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(by_us(SHARED, (9, 3), whole, upstream, (rotary.cos_Na, rotary.sin_Na)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_what_a_row_does_not_see_has_no_part_in_it():
    """A segment's rows and gradients are those that it has without the segments beside it."""
    whole, upstream, rotary = inputs(sum(SHARED[0]), 4, 2, 16, torch.float32)
    angles = rotary.cos_Na, rotary.sin_Na
    out, gradient = by_us(SHARED, (4, 2), whole, upstream, angles)
    last = slice(sum(SHARED[0][:-1]), None)
    alone = [SHARED[0][-1]], [-1]
    small = by_us(
        alone, (4, 2), whole[last], upstream[last], tuple(a[last].contiguous() for a in angles)
    )
    assert torch.equal(out[last], small[0]) and torch.equal(gradient[last], small[1])


def test_a_nan_stays_where_it_is_seen():
    whole, upstream, _ = inputs(sum(ALONE[0]), 4, 2, 16, torch.float32)
    whole[33] = torch.nan  # the fourth row of the second segment
    out, gradient = by_us(ALONE, (4, 2), whole, upstream, None)
    assert out[:30].isfinite().all() and out[37:].isfinite().all() and out[33:37].isnan().all()
    assert gradient[:30].isfinite().all() and gradient[37:].isfinite().all()
    assert gradient[33].isnan().any()


def test_rows_that_a_segment_continues_are_of_one_other():
    offsets = np.array([0, 5, 9, 12], np.int32)
    with pytest.raises(AssertionError, match="one other"):
        families(offsets, np.array([(0, 0), (0, 0), (3, 4)], np.int64))
    with pytest.raises(AssertionError, match="one other"):
        families(offsets, np.array([(0, 0), (0, 0), (9, 2)], np.int64))


def test_no_rows():
    nothing = torch.zeros(0, 4, 8, requires_grad=True)
    empty = families(np.zeros(1, np.int32), np.zeros((0, 2), np.int64))
    assert packed_attention(nothing, nothing, nothing, empty).shape == (0, 4, 8)
