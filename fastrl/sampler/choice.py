"""From a row of logits to a token: temperature, top-k, top-p, min-p, then the Gumbel maximum.

Legend: R: rows, V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastrl import ops
from fastrl.sampler.sequence import SamplingParams


@dataclass(frozen=True)
class Choice:
    """The chosen token of each row, [R] each."""

    tokens: Tensor  # int64
    logprobs: Tensor  # under the full softmax at the row's temperature (greedy: 1)
    log_kept_mass: Tensor  # log of the mass that the filters kept; 0 without a filter


def choose(logits_RV: Tensor, uniforms_RV: Tensor, params: Sequence[SamplingParams]) -> Choice:
    """A token for each row: the argmax over the kept set of log p_T + Gumbel noise.

    `logits_RV` holds the valid vocabulary only; `uniforms_RV` are in (0, 1).
    """
    first = params[0]
    if all(p is first for p in params):
        temperatures: Tensor | float = first.temperature or 1.0
        scaled_RV = logits_RV if temperatures == 1.0 else logits_RV / temperatures
        greedy = first.temperature == 0
        scores_RV = scaled_RV if greedy else scaled_RV - (-uniforms_RV.log()).log()
    else:
        device = logits_RV.device
        temperatures = torch.tensor([p.temperature or 1.0 for p in params], device=device)
        scaled_RV = logits_RV / temperatures[:, None].to(logits_RV.dtype)
        greedy_R1 = torch.tensor([p.temperature == 0 for p in params], device=device)[:, None]
        noise_RV = -(-uniforms_RV.log()).log()
        scores_RV = torch.where(greedy_R1, scaled_RV, scaled_RV + noise_RV)
    kept_mass_R = torch.zeros(len(logits_RV), dtype=logits_RV.dtype, device=logits_RV.device)
    rows = [r for r, p in enumerate(params) if p.truncates and p.temperature > 0]
    if rows:
        index = torch.tensor(rows, device=logits_RV.device)
        keep = kept(scaled_RV[index], [params[r] for r in rows])
        all_R = scaled_RV[index].logsumexp(1)
        kept_mass_R[index] = scaled_RV[index].masked_fill(~keep, -torch.inf).logsumexp(1) - all_R
        if scores_RV is logits_RV:
            scores_RV = scores_RV.clone()
        scores_RV[index] = scores_RV[index].masked_fill(~keep, -torch.inf)
    tokens_R = scores_RV.argmax(1)
    logprobs_R, _ = ops.logprobs_and_entropy(logits_RV, tokens_R, temperature=temperatures)
    return Choice(tokens_R, logprobs_R, kept_mass_R)


def kept(scaled_RV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Which tokens top-k, then top-p, then min-p keep, bool [R, V]; the likeliest always stays.

    top-p keeps the smallest set of the likeliest tokens whose mass, after top-k, reaches it. Equal
    logits are taken in the order of their ids.
    """
    vocab = scaled_RV.shape[1]
    device, dtype = scaled_RV.device, scaled_RV.dtype

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=device, dtype=dtype)[:, None]

    sorted_RV, order_RV = scaled_RV.sort(dim=1, descending=True, stable=True)
    rank_1V = torch.arange(vocab, device=device)[None]
    top_k = torch.tensor([p.top_k or vocab for p in params], device=device)[:, None]
    keep_RV = rank_1V < top_k
    p_RV = sorted_RV.masked_fill(~keep_RV, -torch.inf).softmax(1)
    before_RV = p_RV.cumsum(1) - p_RV
    # a cumulative sum may round past 1: no limit is no comparison
    limits = column([p.top_p if p.top_p < 1 else float("inf") for p in params])
    keep_RV &= (before_RV < limits) | (rank_1V == 0)
    keep_RV &= p_RV >= column([p.min_p for p in params]) * p_RV[:, :1]
    return torch.zeros_like(keep_RV).scatter_(1, order_RV, keep_RV)
