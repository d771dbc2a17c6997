"""The Triton kernel of attention over the paged cache, against a loop in fp64 and its own bits.

Every slot that no row sees holds NaN, and so does every block that no table names. Legend: N: rows,
H: query heads, K: key/value heads, h: head dimension, L: tokens of a sequence.
"""

import ctypes
import math
import mmap
from dataclasses import dataclass, replace

import pytest
import torch
from row_backends import INTERPRETED, NAN, assert_near, normal, same_bits
from row_backends import TRITON_DEVICE as DEVICE
from torch.nn.functional import scaled_dot_product_attention

pytest.importorskip("triton", reason="triton is not installed")

from fastrl.kernels import paged_attention as paged  # noqa: E402

NO_GPU = "TRITON_INTERPRET=1 runs it on a CPU; make test does"
pytestmark = pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason=NO_GPU)
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="graphs are captured on a GPU")

SPLIT = paged.SPLIT
FEW = (0, 1, 15, 16, 17, 33, 70)
AROUND_SPLITS = (1, SPLIT - 1, SPLIT, 0, SPLIT + 1, 2 * SPLIT, 9 * SPLIT + 5)
HALF = torch.float16
DTYPES = [
    torch.float32,
    HALF,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(INTERPRETED, reason="tl.dot takes bf16 for integers there"),
    ),
]


@dataclass(frozen=True)
class Case:
    """The arguments of a call, with what each sequence holds."""

    q_NHh: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    tables: torch.Tensor
    row_table: torch.Tensor
    context: torch.Tensor
    pairs: list[tuple[torch.Tensor, torch.Tensor]]  # keys and values [L, K, h] of each sequence

    def run(self, **settings) -> torch.Tensor:
        tensors = (self.q_NHh, self.k_cache, self.v_cache)
        indices = (self.tables, self.row_table, self.context)
        moved = [x if x.device.type == DEVICE else x.to(DEVICE) for x in (*tensors, *indices)]
        return paged.paged_attention(*moved, **settings).cpu()

    def rows(self, index) -> "Case":
        """Some of the rows, in that order."""
        picked = {name: getattr(self, name)[index] for name in ("q_NHh", "row_table", "context")}
        return replace(self, **picked)

    def seen(self, row: int) -> list[torch.Tensor]:
        """What a row sees: keys and values [K, L, h]."""
        context = int(self.context[row])
        return [x[:context].transpose(0, 1) for x in self.pairs[self.row_table[row]]]


def case(heads, kv_heads, dim, block_size=16, lengths=FEW, dtype=torch.float32, scale=1.0, width=0):
    """A row for each length, which is its sequence's; tables of at least `width` blocks."""
    needed = [-(-length // block_size) for length in lengths]
    blocks = (torch.randperm(sum(needed) + 3, generator=torch.Generator().manual_seed(1))).tolist()
    caches = [
        torch.full((len(blocks), block_size, kv_heads, dim), NAN, dtype=dtype) for _ in range(2)
    ]
    tables = torch.full((len(lengths), max(*needed, width)), blocks.pop(), dtype=torch.int32)
    pairs = []
    for i, (length, count) in enumerate(zip(lengths, needed, strict=True)):
        own = torch.tensor([blocks.pop() for _ in range(count)], dtype=torch.int64)
        tables[i, :count] = own
        pair = [normal(length, kv_heads, dim, seed=2 * i + s, scale=1.0).to(dtype) for s in (0, 1)]
        for x, cache in zip(pair, caches, strict=True):
            position = torch.arange(length)
            cache[own[position // block_size], position % block_size] = x
        pairs.append(tuple(pair))
    q = normal(len(lengths), heads, dim, seed=99, scale=scale).to(dtype)
    contexts = torch.tensor(lengths, dtype=torch.int32)
    return Case(q, *caches, tables, torch.arange(len(lengths), dtype=torch.int32), contexts, pairs)


def attended(x: Case, row: int, scale: float | None = None) -> torch.Tensor:
    """A row's attention in fp64, [H, h]."""
    q_Hh = x.q_NHh[row].double()
    k, v = (side.double() for side in x.seen(row))
    out = torch.zeros_like(q_Hh)
    for head in range(len(q_Hh)):
        kv_head = head * len(k) // len(q_Hh)
        scores = k[kv_head] @ q_Hh[head] * (scale or q_Hh.shape[1] ** -0.5)
        out[head] = scores.softmax(0) @ v[kv_head]
    return out


def by_torch(x: Case, row: int, scale: float | None = None) -> torch.Tensor:
    """A row's attention as torch computes it in its dtype, [H, h]."""
    k, v = x.seen(row)
    q = x.q_NHh[row][:, None]
    out = scaled_dot_product_attention(q[None], k[None], v[None], scale=scale, enable_gqa=True)
    return out[0, :, 0]


def check(x: Case, out: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """Each row is no further from the truth than twice torch, and a rounding; the result again."""
    # a GPU's division in fp32 may be wrong by two units
    ulps = 2 if out.dtype == torch.float32 else 1
    assert out.dtype == x.q_NHh.dtype and out.shape == x.q_NHh.shape
    for row, context in enumerate(x.context.tolist()):
        if context:
            assert_near([out[row]], [by_torch(x, row, scale)], [attended(x, row, scale)], ulps)
        else:
            assert not out[row].any()
    return out


HEADS = [(1, 1), (4, 4), (4, 2), (9, 3), (8, 1), (16, 2), (20, 1)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_groups_of_heads(heads, kv_heads, dtype):
    x = case(heads, kv_heads, 32, dtype=dtype)
    check(x, x.run())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [12, 16, 33, 64, 80, 96, 128, 256])
def test_head_dimensions(dim, dtype):
    x = case(4, 2, dim, dtype=dtype)
    check(x, x.run())


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("block_size", [1, 2, 3, 8, 16, 64, 100])
def test_block_sizes(block_size, wide):
    x = case(4, 2, 12, block_size, width=SPLIT // block_size + 2 if wide else 0)
    check(x, x.run())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 32), (3, 1, 20)])
def test_contexts_around_the_splits(heads, kv_heads, dim, dtype):
    x = case(heads, kv_heads, dim, lengths=AROUND_SPLITS, dtype=dtype)
    check(x, x.run())


@pytest.mark.parametrize("length", [SPLIT - 1, SPLIT, SPLIT + 1])
def test_a_table_as_wide_as_its_contexts(length):
    """In one kernel up to a split, in two beyond it."""
    x = case(4, 2, 12, 1, lengths=(length, 7))
    assert (paged.scratch_size(2, 4, 12, length) > 0) == (length > SPLIT)
    check(x, x.run())


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_a_scale_of_scores(scale):
    x = case(4, 2, 32, lengths=(1, 40, SPLIT + 30))
    check(x, x.run(scale=scale), scale)


def test_the_width_of_the_table_changes_no_bit():
    """With garbage beyond the contexts, in one kernel and in two, and many splits wide."""
    x = case(6, 2, 20, 4)
    alone = check(x, x.run())
    for tokens in (SPLIT, SPLIT + 4, 11 * SPLIT):
        tables = torch.full((len(FEW), tokens // 4), 2**31 - 1, dtype=torch.int32)
        for row, context in enumerate(FEW):
            count = -(-context // 4)
            tables[row, :count] = x.tables[row, :count]
        assert same_bits([replace(x, tables=tables).run()], [alone])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_neighbours_and_the_order_of_rows_change_no_bit(dtype):
    x = case(6, 2, 20, lengths=(3, SPLIT + 9, 0, 2 * SPLIT + 70, 17, SPLIT), dtype=dtype)
    together = x.run()
    order = [4, 1, 1, 0, 3, 5, 2, 3]
    assert same_bits([x.rows(order).run()], [together[order]])
    for row in range(len(together)):
        assert same_bits([x.rows([row]).run()], [together[[row]]])
        # as narrow as the row itself allows
        tables = x.tables[:, : max(1, -(-int(x.context[row]) // 16))]
        alone = replace(x, tables=tables).rows([row])
        assert same_bits([alone.run()], [together[[row]]])


@pytest.mark.parametrize("wide", [False, True])
def test_rows_of_a_prompt_see_what_comes_before_them(wide):
    x = case(4, 2, 12, 4, lengths=(21, 6), width=SPLIT // 4 + 1 if wide else 0)
    row_table = torch.tensor([1] * 6 + [0] * 21, dtype=torch.int32)
    context = torch.cat([torch.arange(1, 7), torch.arange(1, 22)]).int()
    q = normal(27, 4, 12, seed=5, scale=1.0)
    x = replace(x, q_NHh=q, row_table=row_table, context=context)
    check(x, x.run())


@pytest.mark.parametrize("wide", [False, True])
def test_rows_that_see_nothing_read_nothing_and_give_zeros(wide):
    x = case(4, 2, 12, lengths=(20, 20, 20), width=SPLIT // 16 + 1 if wide else 0)
    expected = check(x, x.run())
    q, row_table, context = x.q_NHh.clone(), x.row_table.clone(), x.context.clone()
    q[1], row_table[1], context[1] = NAN, 2**31 - 1, 0
    out = torch.full(q.shape, NAN, device=DEVICE)
    got = replace(x, q_NHh=q, row_table=row_table, context=context).run(out=out)
    expected[1] = 0
    assert same_bits([got], [expected]) and same_bits([out.cpu()], [expected])
    assert x.rows([]).run().shape == (0, 4, 12)


@pytest.mark.parametrize("wide", [False, True])
def test_large_scores_do_not_overflow(wide):
    width = SPLIT // 16 + 1 if wide else 0
    for factor in (1e4, -1e4, 1e30):
        x = case(4, 2, 32, lengths=(1, 17, 200), scale=factor, width=width)
        out = check(x, x.run())
        assert out.isfinite().all() and out[1:].any()


@pytest.mark.parametrize("tokens", [16, SPLIT, 8 * SPLIT])
def test_tokens_at_minus_infinity_before_others(tokens):
    """All scores of a tile, of a split, of the splits merged at once: they count for nothing."""
    x = case(2, 1, 16, lengths=(tokens + 20, 9 * SPLIT))
    q = torch.full_like(x.q_NHh, 1e30)
    k, v = (side.clone() for side in x.pairs[0])
    k[:tokens] = -1e30
    k[tokens:] *= 1e-29
    own = x.tables[0, : -(-len(k) // 16)].long()
    x.k_cache[own[torch.arange(len(k)) // 16], torch.arange(len(k)) % 16] = k
    x = replace(x, q_NHh=q, pairs=[(k, v), x.pairs[1]])
    check(x.rows([0]), x.run()[:1])
    # where every score is -inf there is no distribution
    x.context[0] = tokens
    out = x.run()
    assert out[0].isnan().all() and out[1].isfinite().all()


@pytest.mark.parametrize("falling", [False, True])
def test_peaks_that_rise_and_fall_from_split_to_split(falling, monkeypatch):
    """Of 21 splits, which are merged eight at a time; 32 heads, so that no few lucky roundings of
    torch on one processor or another are the measure.
    """
    monkeypatch.setattr(paged, "SPLIT", 16)
    x = case(32, 1, 16, lengths=(330,))
    slope = torch.linspace(0, 2, 330)[:, None]
    k = x.pairs[0][0][:, 0] + (slope.flip(0) if falling else slope)
    position = torch.arange(330)
    x.k_cache[x.tables[0].long()[position // 16], position % 16, 0] = k
    q_NHh = torch.linspace(0.5, 1, 32)[None, :, None].expand_as(x.q_NHh).contiguous()
    x = replace(x, q_NHh=q_NHh, pairs=[(k[:, None], x.pairs[0][1])])
    check(x, x.run())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_that_round_sum_to_one(dtype):
    """One token weighs 1, each other so little more than a half that it is rounded to a half."""
    x = case(2, 1, 16, lengths=(40,), dtype=dtype)
    x.q_NHh.zero_()[..., 0] = 1
    x.k_cache.zero_()[..., 0] = -1
    x.k_cache[x.tables[0, 0], 5] = 0
    x.v_cache.fill_(1)
    scale = -math.log(0.5 + 0.22 * torch.finfo(dtype).eps)
    assert (x.run(scale=scale) == 1).all()


@pytest.mark.parametrize("wide", [False, True])
def test_nan_reaches_the_rows_that_see_it_and_no_others(wide):
    lengths = (20, 20, SPLIT + 20) if wide else (20, 20, 90)
    clean = case(4, 2, 12, 4, lengths=lengths)
    expected = clean.run()
    for side in ("k_cache", "v_cache"):
        x = case(4, 2, 12, 4, lengths=lengths)
        getattr(x, side)[x.tables[2, -2], 1, 1, 3] = NAN
        out = x.run()
        bad = out[2, 2:] if side == "k_cache" else out[2, 2:, 3]
        assert bad.isnan().all()
        assert int(out.isnan().sum()) == bad.numel()
        assert same_bits([out[:2], out[2, :2]], [expected[:2], expected[2, :2]])


@pytest.mark.parametrize("lengths", [FEW, AROUND_SPLITS[:5]])
def test_memory_with_gaps(lengths):
    """Queries of a fused projection, heads before rows, a cache of both sides, a wider table."""
    x = case(6, 2, 20, 4, lengths=lengths)
    expected = check(x, x.run())
    rows = len(lengths)
    fused = torch.full((rows, 10, 20), NAN)
    fused[:, 2:8] = x.q_NHh
    turned = x.q_NHh.transpose(0, 1).contiguous().transpose(0, 1)
    both = torch.full((len(x.k_cache), 3, 4, 2, 20), NAN)
    both[:, 0], both[:, 1] = x.k_cache, x.v_cache
    tables = torch.full((rows, x.tables.shape[1] + 5), 2**31 - 1, dtype=torch.int32)
    tables[:, 3:-2] = x.tables
    both, tables = both.to(DEVICE), tables.to(DEVICE)
    spread = replace(x, k_cache=both[:, 0], v_cache=both[:, 1], tables=tables[:, 3:-2])
    for q in (fused.to(DEVICE)[:, 2:8], turned.to(DEVICE)):
        memory = torch.full((rows, 9, 24), 7.0, device=DEVICE)
        out = memory[:, 1:7, 2:22]
        assert same_bits([replace(spread, q_NHh=q).run(out=out)], [expected])
        assert same_bits([out.cpu()], [expected])
        memory[:, 1:7, 2:22] = 7.0
        assert (memory == 7.0).all()


def test_slots_that_lie_apart():
    """Slots before blocks, as a cache that is permuted has them."""
    x = case(4, 2, 12, 8)
    moved = [
        c.transpose(0, 1).contiguous().to(DEVICE).transpose(0, 1) for c in (x.k_cache, x.v_cache)
    ]
    assert same_bits([replace(x, k_cache=moved[0], v_cache=moved[1]).run()], [check(x, x.run())])


STEP = 2**30  # fits 32 bits itself, twice it does not
PARTS = {
    "blocks": (["k_cache", "v_cache"], 0),
    "slots": (["k_cache", "v_cache"], 1),
    "rows": (["q_NHh"], 0),
    "heads": (["q_NHh"], 1),
    "tables": (["tables"], 0),
}


def apart(near, axis, step=STEP):
    """A copy whose three parts along an axis lie far from each other, in untouched memory."""
    assert near.shape[axis] == 3
    memory = torch.empty(2 * step + near.numel(), dtype=near.dtype, device=DEVICE)
    strides = list(near.stride())
    strides[axis] = step
    return memory.as_strided(near.shape, strides).copy_(near)


@pytest.mark.parametrize("part", [*PARTS, "outputs, rows", "outputs, heads"])
@pytest.mark.parametrize("wide", [False, True])
def test_beyond_32_bit_offsets(part, wide):
    x = case(3, 1, 16, 3, lengths=(3, 2, 3), dtype=HALF)
    used = x.tables[:, 0].long()
    tables = torch.arange(3, dtype=torch.int32)[:, None]
    if wide:
        tables = tables.repeat(1, SPLIT // 3 + 1)
    x = replace(x, k_cache=x.k_cache[used], v_cache=x.v_cache[used], tables=tables)
    expected = check(x, x.run())
    if part in PARTS:
        names, axis = PARTS[part]
        far = replace(x, **{name: apart(getattr(x, name), axis) for name in names})
        assert same_bits([far.run()], [expected])
    else:
        out = apart(torch.full_like(x.q_NHh, NAN), 1 if part.endswith("heads") else 0)
        assert same_bits([x.run(out=out)], [expected])


def test_a_block_further_than_32_bits():
    x = case(2, 1, 16, 2, lengths=(1, 4), dtype=HALF)
    used = x.tables[1].long()
    used = torch.tensor([*used, x.tables[0, 0]])
    tables = torch.tensor([[2, 2], [0, 1]], dtype=torch.int32)
    near = replace(x, k_cache=x.k_cache[used], v_cache=x.v_cache[used], tables=tables)
    k, v = (apart(side, 0, 2 * STEP) for side in (near.k_cache, near.v_cache))
    assert same_bits([replace(near, k_cache=k, v_cache=v).run()], [check(x, x.run())])


def test_results_of_splits_beyond_32_bit_offsets(monkeypatch):
    """The last of 17 rows of width 64 with a table of 2^21 splits; most programs are left out."""
    monkeypatch.setattr(paged, "SPLIT", 16)
    kernel = paged._split_kernel

    class FirstSplits:
        def __getitem__(self, grid):
            assert grid == (17 * 2**21,)
            return kernel[(17 * 3,)]

    x = case(1, 1, 64, lengths=(*[0] * 16, 40), dtype=HALF)
    expected = check(x, x.run())
    monkeypatch.setattr(paged, "_split_kernel", FirstSplits())
    tables = torch.empty(2**21, dtype=torch.int32)
    tables[:3] = x.tables[16, :3]
    assert same_bits([replace(x, tables=tables.expand(17, -1)).run()], [expected])


@pytest.mark.skipif(DEVICE != "cpu", reason="the page behind the table is one of the host")
def test_nothing_behind_the_table_is_read():
    """The page there may not be read, and the last tile of tokens reaches into it."""
    x = case(2, 1, 16, 1, lengths=(3, 7))
    memory = torch.frombuffer(mmap.mmap(-1, 2 * mmap.PAGESIZE), dtype=torch.int32)
    words = mmap.PAGESIZE // 4
    behind = ctypes.c_void_p(memory.data_ptr() + mmap.PAGESIZE)
    assert ctypes.CDLL(None).mprotect(behind, mmap.PAGESIZE, 0) == 0
    tables = memory[words - x.tables.numel() : words].view_as(x.tables).copy_(x.tables)
    assert same_bits([replace(x, tables=tables).run()], [check(x, x.run())])


def test_scratch_that_several_calls_share():
    x = case(4, 2, 12, lengths=(SPLIT + 40, 9))
    expected = check(x, x.run())
    needed = paged.scratch_size(2, 4, 12, x.tables.shape[1] * 16)
    assert needed == 2 * 2 * 4 * 14
    scratch = torch.full((needed + 5,), NAN, device=DEVICE)
    assert same_bits([x.run(scratch=scratch)], [expected])
    assert scratch[needed:].isnan().all() and not scratch[: 4 * 12].isnan().any()
    assert same_bits([x.rows([1]).run(scratch=scratch)], [expected[1:]])
    with pytest.raises(AssertionError, match=f"{needed - 1} numbers of scratch, {needed} are"):
        x.run(scratch=scratch[: needed - 1])


@pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU bf16 is a type like others")
def test_the_interpreter_refuses_bf16():
    with pytest.raises(AssertionError, match="takes it for integers"):
        case(4, 2, 12, dtype=torch.bfloat16).run()


@needs_gpu
def test_a_graph_with_other_contexts_and_tables():
    x = case(4, 2, 32, lengths=(SPLIT + 30, 40, 2 * SPLIT, 17), dtype=HALF)
    expected = x.run()
    tensors = (x.q_NHh, x.k_cache, x.v_cache, x.tables, x.row_table, x.context)
    moved = [v.to(DEVICE) for v in tensors]
    scratch = torch.empty(paged.scratch_size(4, 4, 32, x.tables.shape[1] * 16), device=DEVICE)
    q, _, _, _, row_table, context = moved
    context[2:] = 0
    paged.paged_attention(*moved, scratch=scratch)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = paged.paged_attention(*moved, scratch=scratch)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 2, 2]):
        q.copy_(x.q_NHh[order])
        row_table.copy_(x.row_table[order])
        context.copy_(x.context[order])
        graph.replay()
        assert same_bits([out.cpu()], [expected[order]])
