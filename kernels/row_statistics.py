"""Log-probs and entropies of rows of logits in one read.

Bytes moved: the logits once (2 a logit in bf16) and 8 a row. Eager torch reads and writes a row of
fp32 several times; its peak memory is a few times the logits.
"""

import torch
import triton
import triton.language as tl

from fastrl.kernels import online


@triton.jit
def _kernel(
    x, targets, mask, temperatures, logprobs, entropy, stride, valid, temperature, logit_scale,
    softcap, CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    target, keep, t = online.row_settings(row, targets, mask, temperatures, temperature)
    if keep:
        k = online.LOG2_E / t
        logprob, h, _, _, _ = online.row_statistics(
            x + row * stride, target, valid, k, logit_scale, softcap, CAPPED, BLOCK
        )
        tl.store(logprobs + row, logprob)
        tl.store(entropy + row, h)
    else:
        tl.store(logprobs + row, 0.0)
        tl.store(entropy + row, 0.0)


def row_statistics(
    x: torch.Tensor,
    targets: torch.Tensor,
    mask: torch.Tensor | None,
    temperature: float | torch.Tensor,
    valid: int,
    softcap: float | None,
    logit_scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies, fp32 [N] each; 0 in masked rows.

    `x` [N, V] with a contiguous last axis, `targets` int64 [N], `mask` bool [N] or None,
    `temperature` a number or fp32 [N].
    """
    each, one, settings = online.row_launch(x, targets, temperature, valid, softcap)
    logprobs = torch.empty(len(x), dtype=torch.float32, device=x.device)
    entropy = torch.empty_like(logprobs)
    if len(x):
        _kernel[(len(x),)](
            x, targets, mask, each, logprobs, entropy, x.stride(0), valid,
            one, logit_scale,
            softcap or 0.0, **settings,
        )  # fmt: skip
    return logprobs, entropy
