"""Attention of rows of queries over the paged cache of keys and values.

A row's head gives sum_t p_t v_t / sum_t p_t over the first `context` tokens of the row's sequence,
where p_t = 2^((s_t - max s) k), s_t = q . k_t and k = log2(e) scale; token t is slot t % block_size
of block table[t // block_size]. A program takes one key/value head of a row with all query heads
that share it, and SPLIT tokens; what lies beyond the row's context ends at once. A second kernel
merges the splits. SPLIT and every order of summation are fixed: the bits of a row depend neither on
the other rows nor on the width of the table.

Bytes moved: the keys and values of the context once, 2 K h numbers a token (Qwen2.5-3B in bf16:
1 KiB a token and layer). Tables wider than a split add 8 (h + 2) bytes a head and split: 6 % for
Qwen2.5-3B (H 16, K 2), 2.4 % for Llama-3.2-3B (H 24, K 8). Torch gathers the context, repeats it
for every query head, and makes a row of scores of it. Rows do not share what they read: a prompt's
own rows would each read it again.
"""

import torch
import triton
import triton.language as tl

from fastrl.kernels import online

SPLIT = 256  # tokens of a program; not yet measured on a GPU
MERGED = tl.constexpr(8)  # splits that are merged at a time
MERGE_SETTINGS = {"num_warps": 1, "enable_fp_fusion": True}


def launch_settings(dim: int, group: int, itemsize: int) -> dict[str, int]:
    """Tokens at a time, warps and stages, by what a model settles alone.

    16 KiB of keys in halves, beside as many of values; more registers spill with larger tiles of
    wide heads or of more query heads than 16, and in fp32, whose products are without tensor cores,
    with more than 16 tokens or fewer than 8 warps. Three stages, since the loads of keys wait for
    the table's. Not yet measured on a GPU.
    """
    tile, warps = (64 if dim <= 128 and group <= 16 else 32), 4
    if itemsize == 4:
        tile, warps = 16, 8
    # fused multiply-adds are wanted, and no longer Triton's default from 3.10 on
    return {"TILE": tile, "num_warps": warps, "num_stages": 3, "enable_fp_fusion": True}


def width_of(count: int) -> int:
    """The power of two that holds `count` numbers, at least the 16 of a matrix product."""
    return max(16, triton.next_power_of_2(count))


@triton.jit
def finite(peak):
    """The maximum, or 0 where all so far is -inf, for which any finite number can stand in."""
    return tl.where(peak == -float("inf"), 0.0, peak)


@triton.jit
def average(acc, total, seen):
    """The weighted mean; 0 for a row that sees nothing, NaN where all scores are -inf."""
    return tl.where(seen > 0, acc / total, 0.0)


@triton.jit(do_not_specialize=["table_stride", "rows", "splits"])
def _split_kernel(
    q, k_cache, v_cache, tables, row_table, context, out, partial, peaks, totals,
    q_stride, q_head_stride, block_stride, slot_stride, table_stride, out_stride, out_head_stride,
    rows, kv_heads, group, splits, k,
    DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr,
    SPLIT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # the heads of a token lie side by side, and neighbouring rows often share a prompt
    program = tl.program_id(0)
    kv_head = program % kv_heads
    row = (program // kv_heads % rows).to(tl.int64)
    split = program // kv_heads // rows
    start = split * SPLIT
    seen = tl.load(context + row)
    # without splits the program of a row that sees nothing writes its zeros
    if (start < seen) | (partial is None):
        dims = tl.arange(0, WIDTH)
        members = tl.arange(0, GROUP)
        heads = kv_head * group + members
        inside = (members < group)[:, None] & (dims < DIM)[None]
        q_at = q + row * q_stride + heads[:, None].to(tl.int64) * q_head_stride + dims[None]
        queries = tl.load(q_at, mask=inside, other=0.0)
        table = tables + tl.load(row_table + row).to(tl.int64) * table_stride
        kv_dims = kv_head * DIM + dims
        peak = tl.full([GROUP], -float("inf"), tl.float32)
        total = tl.zeros([GROUP], tl.float32)
        acc = tl.zeros([GROUP, WIDTH], tl.float32)
        end = tl.minimum(start + SPLIT, seen)
        for first in range(start, end, TILE):
            tokens = first + tl.arange(0, TILE)
            blocks = tl.load(table + tokens // BLOCK_SIZE, mask=tokens < end, other=0)
            slots = blocks.to(tl.int64) * block_stride
            slots += (tokens % BLOCK_SIZE).to(tl.int64) * slot_stride
            at = slots[:, None] + kv_dims[None]
            held = (tokens < end)[:, None] & (dims < DIM)[None]
            keys = tl.load(k_cache + at, mask=held, other=0.0)
            scores = tl.dot(queries, keys.T, input_precision="ieee")
            scores = tl.where((tokens < end)[None], scores, -float("inf"))
            larger = tl.maximum(peak, tl.max(scores, 1))
            base = finite(larger)
            factor = tl.exp2((peak - base) * k)
            values = tl.load(v_cache + at, mask=held, other=0.0)
            # what is summed is what multiplies the values: the weights' roundings cancel
            p = tl.exp2((scores - base[:, None]) * k).to(values.dtype)
            acc = tl.dot(p, values, acc * factor[:, None], input_precision="ieee")
            total = tl.fma(total, factor, tl.sum(p.to(tl.float32), 1))
            peak = larger
        if partial is None:
            result = average(acc, total[:, None], seen).to(out.dtype.element_ty)
            out_at = out + row * out_stride + heads[:, None].to(tl.int64) * out_head_stride
            tl.store(out_at + dims[None], result, mask=inside)
        else:
            index = (row * splits + split) * (kv_heads * group) + heads
            tl.store(partial + index[:, None] * DIM + dims[None], acc, mask=inside)
            tl.store(peaks + index, peak, mask=members < group)
            tl.store(totals + index, total, mask=members < group)


@triton.jit(do_not_specialize=["splits"])
def _merge_kernel(
    partial, peaks, totals, context, out, out_stride, out_head_stride, heads, splits, k,
    DIM: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row = (program // heads).to(tl.int64)
    head = program % heads
    seen = tl.load(context + row)
    count = tl.cdiv(seen, SPLIT)
    dims = tl.arange(0, WIDTH)
    peak = -float("inf")
    total = 0.0
    acc = tl.zeros([WIDTH], tl.float32)
    for first in range(0, count, MERGED):
        split = first + tl.arange(0, MERGED)
        index = (row * splits + split) * heads + head
        written = split < count
        part_peaks = tl.load(peaks + index, mask=written, other=-float("inf"))
        part_totals = tl.load(totals + index, mask=written, other=0.0)
        parts = tl.load(
            partial + index[:, None] * DIM + dims[None],
            mask=written[:, None] & (dims < DIM)[None], other=0.0,
        )  # fmt: skip
        larger = tl.maximum(peak, tl.max(part_peaks, 0))
        base = finite(larger)
        factor = tl.exp2((peak - base) * k)
        weights = tl.exp2((part_peaks - base) * k)
        acc = acc * factor + tl.sum(parts * weights[:, None], 0)
        total = total * factor + tl.sum(part_totals * weights, 0)
        peak = larger
    result = average(acc, total, seen).to(out.dtype.element_ty)
    out_at = out + row * out_stride + head.to(tl.int64) * out_head_stride
    tl.store(out_at + dims, result, mask=dims < DIM)


def split_count(tokens: int) -> int:
    """Splits of a table of `tokens` slots."""
    return max(1, triton.cdiv(tokens, SPLIT))


def scratch_size(rows: int, heads: int, dim: int, tokens: int) -> int:
    """How many numbers of fp32 a call needs for its splits, with tables of `tokens` slots."""
    splits = split_count(tokens)
    return rows * splits * heads * (dim + 2) if splits > 1 else 0


def paged_attention(
    q_NHh: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    tables_SB: torch.Tensor,
    row_table_N: torch.Tensor,
    context_N: torch.Tensor,
    *,
    scale: float | None = None,
    out: torch.Tensor | None = None,
    scratch: torch.Tensor | None = None,
) -> torch.Tensor:
    """Each row's attention over the first `context` tokens of its table, [N, H, h] in q's dtype.

    `q_NHh` with a contiguous last axis; the caches [blocks, block_size, K, h] with the same strides
    and two contiguous last axes, K dividing H; int32 `tables_SB`, `row_table_N` (each row's table),
    `context_N` (at most B block_size; a row of 0 gives 0 and reads neither table nor cache). Slots
    beyond a context are not read. `scale` is h^-0.5 unless given. `scratch`, fp32 with at least
    `scratch_size` numbers, is written; several calls may have the same one, one after another.
    Nothing waits for the GPU and the launches depend on shapes alone, as CUDA graphs need it.
    """
    rows, heads, dim = q_NHh.shape
    _, block_size, kv_heads, _ = k_cache.shape
    assert k_cache.shape[3] == dim and heads % kv_heads == 0
    assert v_cache.shape == k_cache.shape and v_cache.stride() == k_cache.stride()
    assert k_cache.stride()[2:] == (dim, 1) and q_NHh.stride(2) == 1
    assert q_NHh.dtype == k_cache.dtype == v_cache.dtype
    assert q_NHh.dtype in (torch.float32, torch.bfloat16, torch.float16)
    interpreted = q_NHh.device.type == "cpu"
    assert not interpreted or q_NHh.dtype != torch.bfloat16, "tl.dot takes it for integers there"
    for indices in (tables_SB, row_table_N, context_N):
        assert indices.dtype == torch.int32 and (indices.stride(-1) == 1 or indices.shape[-1] <= 1)
    assert row_table_N.shape == context_N.shape == (rows,)
    scale = dim**-0.5 if scale is None else scale
    assert scale > 0
    out = q_NHh.new_empty(q_NHh.shape) if out is None else out
    assert out.shape == q_NHh.shape and out.dtype == q_NHh.dtype and out.stride(2) == 1
    tokens = tables_SB.shape[1] * block_size
    splits = split_count(tokens)
    assert rows * kv_heads * splits < 2**31
    if not rows:
        return out
    partial = peaks = totals = None
    if splits > 1:
        size = scratch_size(rows, heads, dim, tokens)
        if scratch is None:
            scratch = torch.empty(size, dtype=torch.float32, device=q_NHh.device)
        assert scratch.dtype == torch.float32 and scratch.is_contiguous()
        assert scratch.numel() >= size, f"{scratch.numel()} numbers of scratch, {size} are needed"
        each = rows * splits * heads
        partial, peaks, totals, _ = scratch.view(-1).tensor_split(
            (each * dim, each * (dim + 1), size)
        )
    k = scale * online.LOG2_E.value
    group = heads // kv_heads
    sizes = {"DIM": dim, "WIDTH": width_of(dim), "SPLIT": SPLIT}
    _split_kernel[(rows * kv_heads * splits,)](
        q_NHh, k_cache, v_cache, tables_SB, row_table_N, context_N, out, partial, peaks, totals,
        q_NHh.stride(0), q_NHh.stride(1), k_cache.stride(0), k_cache.stride(1),
        tables_SB.stride(0), out.stride(0), out.stride(1), rows, kv_heads, group, splits, k,
        BLOCK_SIZE=block_size, GROUP=width_of(group), **sizes,
        **launch_settings(dim, group, q_NHh.element_size()),
    )  # fmt: skip
    if splits > 1:
        _merge_kernel[(rows * heads,)](
            partial, peaks, totals, context_N, out, out.stride(0), out.stride(1), heads, splits, k,
            **sizes, **MERGE_SETTINGS,
        )  # fmt: skip
    return out
