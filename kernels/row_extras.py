"""More of a row of logits from the read that gives its log-prob and entropy.

sum p^2, the largest p and where it is, and the mass of the support {z >= threshold}. Bytes moved:
the logits once (2 a logit in bf16) and 32 a row.
"""

import torch
import triton
import triton.language as tl

from fastrl.kernels import online


@triton.jit
def _kernel(
    x, targets, mask, temperatures, thresholds, logprobs, entropies, squares, max_probs, argmaxes,
    log_kept, stride, valid, temperature, logit_scale, softcap, CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    target, keep, t_row = online.row_settings(row, targets, mask, temperatures, temperature)
    if keep:
        k = online.LOG2_E / t_row
        x_row = x + row * stride
        logprob, entropy, base, total, log_total = online.row_statistics(
            x_row, target, valid, k, logit_scale, softcap, CAPPED, BLOCK
        )
        threshold = -float("inf")
        if thresholds is not None:
            threshold = tl.load(thresholds + row)
        # the row again, from cache: the peak is known, so that nothing is rescaled; half a block
        # at a time, or the indices of columns spill on sm_90
        HALF: tl.constexpr = BLOCK // 2
        square = 0.0
        kept = 0.0
        first = valid
        for start in range(0, valid, HALF):
            columns = start + tl.arange(0, HALF)
            z = online.load_z(x_row, columns, valid, logit_scale, softcap, CAPPED)
            p = tl.exp2((z - base) * k) / total
            square += tl.sum(p * p, 0)
            kept += tl.sum(tl.where(z >= threshold, p, 0.0), 0)
            found = tl.where((z == base) & (columns < valid), columns, valid)
            first = tl.minimum(first, tl.min(found, 0))
        tl.store(logprobs + row, logprob)
        tl.store(entropies + row, entropy)
        tl.store(squares + row, square)
        tl.store(max_probs + row, 1.0 / total)
        tl.store(argmaxes + row, tl.where(total == total, first, -1).to(tl.int64))
        if thresholds is not None:
            tl.store(log_kept + row, tl.log(kept))
        else:
            tl.store(log_kept + row, 0.0)
    else:
        tl.store(logprobs + row, 0.0)
        tl.store(entropies + row, 0.0)
        tl.store(squares + row, 0.0)
        tl.store(max_probs + row, 0.0)
        tl.store(argmaxes + row, tl.full([], -1, tl.int64))
        tl.store(log_kept + row, 0.0)


def row_extras(
    x: torch.Tensor,
    targets: torch.Tensor,
    mask: torch.Tensor | None,
    temperature: float | torch.Tensor,
    valid: int,
    softcap: float | None,
    logit_scale: float,
    thresholds: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """Log-probs, entropies, sum p^2, largest p, argmax (int64), log of the kept mass; [N] each.

    As `row_statistics`, with `thresholds` fp32 [N] of softcap(logit_scale x), or None.
    """
    each, one, settings = online.row_launch(x, targets, temperature, valid, softcap)
    numbers = [torch.empty(len(x), dtype=torch.float32, device=x.device) for _ in range(5)]
    logprobs, entropy, squares, max_probs, log_kept = numbers
    argmaxes = torch.empty_like(targets)
    if len(x):
        _kernel[(len(x),)](
            x, targets, mask, each, thresholds, logprobs, entropy, squares, max_probs, argmaxes,
            log_kept, x.stride(0), valid,
            one, logit_scale,
            softcap or 0.0, **settings,
        )  # fmt: skip
    return logprobs, entropy, squares, max_probs, argmaxes, log_kept
