"""A sampled token by definition, in plain torch: temperature, top-k, top-p, min-p, Gumbel maximum.

Of the columns that the filters keep, the one with the largest log p_T + Gumbel noise -log(-log u).
The uniforms u are numbers of a counter: ((word >> 9) + 0.5) / 2^23 of word v & 3 of Philox4x32-10
(Salmon et al. 2011) at the counter {c0, v >> 2 << 14 | c1, c2, c3} for column v.

Legend: N: rows, V: vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastrl.ops.rows import Filters, Noise, by_row

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
LOW = 0xFFFFFFFF


def _product(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """The high and the low 32 bits of a product of 32-bit numbers in int64."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    middle = high + (low >> 16)
    return middle >> 16, (middle & 0xFFFF) << 16 | (low & 0xFFFF)


def philox(counters: Tensor, key: tuple[int, int]) -> Tensor:
    """Philox4x32-10: int64 counters [..., 4] of 32 bits each to random words of the same shape."""
    c0, c1, c2, c3 = counters.unbind(-1)
    key0, key1 = key
    for _ in range(10):
        (high0, low0), (high1, low1) = _product(c0, MULTIPLIERS[0]), _product(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + WEYL[0]) & LOW, (key1 + WEYL[1]) & LOW
    return torch.stack([c0, c1, c2, c3], -1)


def uniforms(noise: Noise, vocab: int) -> Tensor:
    """The uniforms in (0, 1) of every column, fp32 [N, V]; each is exact."""
    counters_N4 = noise.counters_N4 & LOW
    blocks_B = torch.arange((vocab + 3) // 4, device=counters_N4.device) << 14
    counters_NB4 = counters_N4[:, None].repeat(1, len(blocks_B), 1)
    counters_NB4[..., 1] |= blocks_B
    words_NV = philox(counters_NB4, noise.key).flatten(1)[:, :vocab]
    return ((words_NV >> 9).float() + 0.5) * 2**-23


def kept(scaled_NV: Tensor, filters: Filters) -> Tensor:
    """Which columns top-k, then top-p, then min-p keep, bool [N, V]; the likeliest always stays.

    top-p keeps the smallest set of the likeliest whose mass, after top-k, reaches it. Equal logits
    are taken in the order of their ids.
    """
    vocab = scaled_NV.shape[1]
    top_k, top_p, min_p = filters.top_k_N, filters.top_p_N, filters.min_p_N
    sorted_NV, order_NV = scaled_NV.sort(dim=1, descending=True, stable=True)
    rank_1V = torch.arange(vocab, device=scaled_NV.device)[None]
    keep_NV = rank_1V < torch.where(top_k > 0, top_k, vocab)[:, None]
    # in fp64: a sum of half a vocabulary in fp32 is off by more than many of its columns
    e_NV = (sorted_NV.double() - sorted_NV[:, :1]).exp().masked_fill(~keep_NV, 0.0)
    sums_NV = e_NV.cumsum(1)
    # a sum before a column may round up to the whole: no limit is no comparison
    limits_N = torch.where(top_p < 1, top_p * sums_NV[:, -1], torch.inf)
    keep_NV &= sums_NV - e_NV < limits_N[:, None]
    keep_NV &= e_NV >= min_p[:, None] * e_NV[:, :1]
    return torch.zeros_like(keep_NV).scatter_(1, order_NV, keep_NV)


def choose(scaled_NV: Tensor, filters: Filters, noise: Noise) -> tuple[Tensor, Tensor]:
    """Tokens, and the log of the kept mass, of rows of logits over their temperature; [N] each."""
    uniforms_NV = uniforms(noise, scaled_NV.shape[1]).to(scaled_NV.dtype)
    scores_NV = scaled_NV - (-uniforms_NV.log()).log()
    log_kept_N = torch.zeros_like(scaled_NV[:, 0])
    if not filters.none:
        keep_NV = kept(scaled_NV, filters)
        p_NV = scaled_NV.double().softmax(1).masked_fill(~keep_NV, 0.0)
        log_kept_N = by_row(lambda p: p.sum(1), p_NV).log().clamp(max=0.0)
        log_kept_N = torch.where(keep_NV.all(1), 0.0, log_kept_N).to(scaled_NV.dtype)
        scores_NV = scores_NV.masked_fill(~keep_NV, -torch.inf)
    # a NaN or an infinity reaches the sum; nothing finite makes it -inf
    broken_N = ~scaled_NV.logsumexp(1).isfinite()
    return (
        torch.where(broken_N, -1, scores_NV.argmax(1)),
        torch.where(broken_N, torch.nan, log_kept_N),
    )
