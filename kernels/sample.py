"""A token from each row of logits: temperature, top-k, top-p, min-p, then the Gumbel maximum.

Of the columns that the filters keep, the one with the largest t - log2(-log2 u), where t is log2 p
up to a constant and the uniform u is ((word >> 9) + 0.5) / 2^23 of word v & 3 of Philox4x32-10 at
the counter {c0, v >> 2 << 14 | c1, c2, c3}. Kept are the columns above a threshold, and of its
equals those up to a last id; the threshold is found by counting what lies above four at a time, so
that nothing is sorted. Bytes moved: the logits once for the statistics; what follows reads the row
from the caches, once without filters, some 15 times with top-k or top-p.
"""

import torch
import triton
import triton.language as tl

from fastrl.kernels import online

SELECT_BLOCK = tl.constexpr(1024)  # columns at a time for eight sums at once
DRAW_BLOCK = tl.constexpr(2048)


@triton.jit
def key_of(z):
    """An integer in the order of floats."""
    bits = tl.where(z == 0, 0.0, z).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)


@triton.jit
def float_of(key):
    """The float of an integer of `key_of`."""
    bits = key.to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


@triton.jit
def log2(x):
    """For positive normal numbers, to a few units of the result, near 1 too; minimax polynomial."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    p = -0.14581167697906494 * f + 0.2340424358844757
    p = p * f - 0.2488768994808197
    p = p * f + 0.2870987057685852
    p = p * f - 0.3602396249771118
    p = p * f + 0.48092323541641235
    p = p * f - 0.7213528156280518
    p = p * f + 1.442694902420044
    return f * p + exponent.to(tl.float32)


@triton.jit
def noise(column, c0, c1, c2, c3, key0, key1, BLOCK: tl.constexpr):
    """-log2(-log2 u) of BLOCK columns, from a multiple of 4 on."""
    blocks = (column // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    zeros = blocks * 0
    w0, w1, w2, w3 = tl.philox(
        (key1.to(tl.uint32).to(tl.uint64) << 32) | key0.to(tl.uint32).to(tl.uint64),
        zeros + c0, (blocks << 14) | c1, zeros + c2, zeros + c3, n_rounds=10,
    )  # fmt: skip
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    u = ((words >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    return -tl.log2(-log2(u))


@triton.jit
def smallest(
    x_row, valid, k, base, logit_scale, softcap, wanted, least,
    CAPPED: tl.constexpr, BY_MASS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(threshold, how many of its equals, mass) of the smallest prefix that has `wanted`.

    No column of it lies below `least`. Each pass over the row tells of four thresholds.
    """
    low = key_of(least)
    high = key_of(base) + 1
    count_low = valid
    count_high = 0
    mass_high = 0.0
    while high - low > 1:
        step = (high - low + 4) // 5
        keys = tl.maximum(high - step * (1 + tl.arange(0, 4)), low)
        thresholds = float_of(keys)[:, None]
        counts = tl.zeros([4, BLOCK], tl.int32)
        masses = tl.zeros([4, BLOCK], tl.float32)
        for start in range(0, valid, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            z = online.load_z(x_row, columns, valid, logit_scale, softcap, CAPPED)
            e = tl.exp2((z - base) * k)
            above = z[None] >= thresholds
            # without this mask, which changes nothing, ptxas 12.9 spills for sm_80
            counts += (above & (columns < valid)[None]).to(tl.int32)
            masses += tl.where(above, e[None], 0.0)
        count = tl.sum(counts, 1)
        mass = tl.sum(masses, 1)
        enough = (mass if BY_MASS else count) >= wanted
        # of the thresholds that reach it the highest, of the others the lowest
        others = enough == 0
        high = tl.min(tl.where(others, keys, high), 0)
        count_high = tl.max(tl.where(others, count, count_high), 0)
        mass_high = tl.max(tl.where(others, mass, mass_high), 0)
        low = tl.max(tl.where(enough, keys, low), 0)
        count_low = tl.min(tl.where(enough, count, count_low), 0)
    threshold = float_of(low)
    equals = count_low - count_high
    one = tl.exp2((threshold - base) * k)
    if BY_MASS:
        # what is nothing does not fill up, all of it stays
        lacking = tl.where(one > 0, (wanted - mass_high) / one, equals)
        ties = tl.ceil(tl.minimum(lacking, equals)).to(tl.int32)
    else:
        ties = wanted - count_high
    ties = tl.minimum(tl.maximum(ties, 1), equals)
    return threshold, ties, mass_high + ties * one


@triton.jit
def kept_columns(
    x_row, valid, k, base, total, top_k, top_p, min_p, logit_scale, softcap,
    CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(threshold, last, log of the kept mass): kept are columns above, and equals up to `last`."""
    threshold = -float("inf")
    ties = valid
    within = total
    if (top_k > 0) & (top_k < valid):
        threshold, ties, within = smallest(
            x_row, valid, k, base, logit_scale, softcap, top_k, -float("inf"), CAPPED, False, BLOCK
        )
    if top_p < 1.0:
        # a column with less than an equal share of what top-p leaves out is left out; so it is
        # after top-k, whose columns have more than the average mass
        least = base + (tl.log2((1.0 - top_p) * total / valid) - 0.001) / k
        likely, likely_ties, _ = smallest(
            x_row, valid, k, base, logit_scale, softcap, top_p * within, least, CAPPED, True, BLOCK
        )
        fewer = (likely > threshold) | ((likely == threshold) & (likely_ties < ties))
        threshold = tl.where(fewer, likely, threshold)
        ties = tl.where(fewer, likely_ties, ties)
    if min_p > 0.0:
        likely = base + tl.log2(min_p) / k
        ties = tl.where(likely > threshold, valid, ties)
        threshold = tl.maximum(threshold, likely)
    # the last of the equals, and what is kept
    last = valid
    seen = 0
    kept = 0.0
    for start in range(0, valid, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        z = online.load_z(x_row, columns, valid, logit_scale, softcap, CAPPED)
        equal = ((z == threshold) & (columns < valid)).to(tl.int32)
        count = tl.sum(equal, 0)
        if (seen < ties) & (seen + count >= ties):
            rank = tl.cumsum(equal, 0)
            last = tl.max(tl.where((equal > 0) & (seen + rank == ties), columns, 0), 0)
        seen += count
        keep = (z > threshold) | ((equal > 0) & (columns <= last))
        kept += tl.sum(tl.where(keep, tl.exp2((z - base) * k), 0.0), 0)
    return threshold, last, tl.minimum(tl.log(kept / total), 0.0)


@triton.jit(do_not_specialize=["key0", "key1"])
def _kernel(
    x, temperatures, top_ks, top_ps, min_ps, counters, tokens, logprobs, log_kept, stride, valid,
    logit_scale, softcap, key0, key1,
    FILTERED: tl.constexpr, CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x_row = x + row * stride
    k = online.LOG2_E / tl.load(temperatures + row)
    _, _, base, total, log_total = online.row_statistics(
        x_row, 0, valid, k, logit_scale, softcap, CAPPED, BLOCK
    )
    # a NaN or an infinity anywhere reaches the total; nothing finite makes it 0
    if (total > 0) & (total < float("inf")):
        threshold = -float("inf")
        last = valid
        log_mass = 0.0
        if FILTERED:
            top_k = tl.load(top_ks + row)
            top_p = tl.load(top_ps + row)
            min_p = tl.load(min_ps + row)
            if ((top_k > 0) & (top_k < valid)) | (top_p < 1.0) | (min_p > 0.0):
                SELECT: tl.constexpr = min(BLOCK, SELECT_BLOCK)
                threshold, last, log_mass = kept_columns(
                    x_row, valid, k, base, total, top_k, top_p, min_p, logit_scale, softcap,
                    CAPPED, SELECT,
                )  # fmt: skip
        c0 = tl.load(counters + 4 * row).to(tl.uint32)
        c1 = tl.load(counters + 4 * row + 1).to(tl.uint32)
        c2 = tl.load(counters + 4 * row + 2).to(tl.uint32)
        c3 = tl.load(counters + 4 * row + 3).to(tl.uint32)
        DRAW: tl.constexpr = min(BLOCK, DRAW_BLOCK)
        best = tl.full([DRAW], -float("inf"), tl.float32)
        best_columns = tl.zeros([DRAW], tl.int32) + valid
        for start in range(0, valid, DRAW):
            columns = start + tl.arange(0, DRAW)
            z = online.load_z(x_row, columns, valid, logit_scale, softcap, CAPPED)
            keep = (z > threshold) | ((z == threshold) & (columns <= last))
            score = (z - base) * k + noise(start, c0, c1, c2, c3, key0, key1, DRAW)
            score = tl.where(keep & (z > -float("inf")), score, -float("inf"))
            better = score > best
            best = tl.where(better, score, best)
            best_columns = tl.where(better, columns, best_columns)
        peak = tl.max(best, 0)
        token = tl.min(tl.where(best == peak, best_columns, valid), 0)
        z = online.load_z(x_row, token, valid, logit_scale, softcap, CAPPED)
        tl.store(tokens + row, token.to(tl.int64))
        tl.store(logprobs + row, (z - base) * k * online.LN_2 - log_total)
        tl.store(log_kept + row, log_mass)
    else:
        tl.store(tokens + row, tl.full([], -1, tl.int64))
        tl.store(logprobs + row, float("nan"))
        tl.store(log_kept + row, float("nan"))


def sample(
    x: torch.Tensor,
    temperatures: torch.Tensor,
    valid: int,
    softcap: float | None,
    logit_scale: float,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    counters: torch.Tensor,
    key: tuple[int, int],
    filtered: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens (int64; -1 without a distribution), log-probs, log of the kept mass; [N] each.

    `x` [N, V] with a contiguous last axis; `temperatures`, `top_p`, `min_p` fp32 [N], `top_k` int32
    [N]; `counters` int64 [N, 4] and `key` of 32 bits each; without `filtered` no row has a limit.
    """
    assert x.dim() == 2 and (x.stride(1) == 1 or x.shape[1] == 1)
    assert top_k.dtype == torch.int32 and counters.dtype == torch.int64 and counters.is_contiguous()
    tokens = torch.empty(len(x), dtype=torch.int64, device=x.device)
    logprobs = torch.empty(len(x), dtype=torch.float32, device=x.device)
    log_kept = torch.empty_like(logprobs)
    # as signed numbers, which have one type whatever their value
    key0, key1 = (word - (word >> 31 << 32) for word in key)
    if len(x):
        _kernel[(len(x),)](
            x, temperatures, top_k, top_p, min_p, counters, tokens, logprobs, log_kept,
            x.stride(0), valid, logit_scale, softcap or 0.0, key0, key1, FILTERED=filtered,
            CAPPED=softcap is not None, **online.launch_settings(valid),
        )  # fmt: skip
    return tokens, logprobs, log_kept
