"""A policy-gradient loss of rows of logits, its gradient written while the row is at hand.

With rho = exp(log-prob - old): REINFORCE a = -A; clip a = -A rho where rho is not clipped, else 0
(dual clip: also 0 where A < 0 and rho > c); CISPO a = -clip(rho) A; times the sampler correction
and the row's weight. Bytes moved: one read and one write of the logits (4 a logit in bf16) where
the second read of a row comes from cache. Rows without a gradient write zeros only.
"""

import torch
import triton
import triton.language as tl

from fastrl.kernels import online


@triton.jit
def _coefficients(
    row, logprob, entropy, advantages, old_logprobs, sampler_logprobs, weights, low, high, dual,
    cap, entropy_coef, LOSS: tl.constexpr, CORRECTION: tl.constexpr,
):  # fmt: skip
    advantage = tl.load(advantages + row).to(tl.float32)
    old = logprob
    if old_logprobs is not None:
        old = tl.load(old_logprobs + row).to(tl.float32)
    a = -advantage
    loss = a * logprob
    if LOSS != 0:
        log_ratio = logprob - old
        bounded = log_ratio  # comparisons that a NaN survives
        if LOSS == 2:
            bounded = tl.where(bounded < low, low, bounded)
            bounded = tl.where(bounded > high, high, bounded)
        else:
            bounded = tl.where((advantage < 0) & (bounded < low), low, bounded)
            upper = tl.where(advantage < 0, dual, high)
            bounded = tl.where(bounded > upper, upper, bounded)
        a = a * tl.exp2(bounded * online.LOG2_E)
        if LOSS == 2:
            loss = a * logprob
        else:
            loss = a
            a = tl.where((bounded < log_ratio) | (bounded > log_ratio), 0.0, a)
    if CORRECTION != 0:
        gap = old - tl.load(sampler_logprobs + row).to(tl.float32)
        correction = tl.exp2(gap * online.LOG2_E)
        if CORRECTION == 1:
            correction = tl.where(correction > cap, cap, correction)
        else:
            correction = tl.where(correction > cap, 0.0, correction)
        loss = loss * correction
        a = a * correction
    weight = 1.0
    if weights is not None:
        weight = tl.load(weights + row).to(tl.float32)
    loss = loss - entropy_coef * entropy
    return loss * weight, a * weight, -entropy_coef * weight


@triton.jit
def _kernel(
    x, targets, mask, temperatures, advantages, old_logprobs, sampler_logprobs, weights, scale,
    losses, logprobs, entropies, out, stride, out_stride, valid, vocab, temperature, logit_scale,
    softcap, low, high, dual, cap, entropy_coef, LOSS: tl.constexpr, CORRECTION: tl.constexpr,
    CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    target, keep, t = online.row_settings(row, targets, mask, temperatures, temperature)
    if keep:
        k = online.LOG2_E / t
        logprob, entropy, base, total, log_total = online.row_statistics(
            x + row * stride, target, valid, k, logit_scale, softcap, CAPPED, BLOCK
        )
        loss, a, g = _coefficients(
            row, logprob, entropy, advantages, old_logprobs, sampler_logprobs, weights, low, high,
            dual, cap, entropy_coef, LOSS, CORRECTION,
        )  # fmt: skip
        tl.store(losses + row, loss)
        tl.store(logprobs + row, logprob)
        tl.store(entropies + row, entropy)
        if out is not None:
            step = tl.load(scale).to(tl.float32)
            a = a * step
            g = g * step
            if (a != 0) | (g != 0):
                online.write_gradient(
                    x + row * stride, out + row * out_stride, target, valid, vocab, k,
                    logit_scale / t, logit_scale, softcap, logprob, entropy, base, total,
                    log_total, a, g, CAPPED, BLOCK,
                )  # fmt: skip
            else:
                online.write_zeros(out + row * out_stride, vocab, BLOCK)
    else:
        tl.store(losses + row, 0.0)
        tl.store(logprobs + row, 0.0)
        tl.store(entropies + row, 0.0)
        if out is not None:
            online.write_zeros(out + row * out_stride, vocab, BLOCK)


def policy_loss(
    x: torch.Tensor,
    targets: torch.Tensor,
    mask: torch.Tensor | None,
    temperature: float | torch.Tensor,
    valid: int,
    softcap: float | None,
    logit_scale: float,
    advantages: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    sampler_logprobs: torch.Tensor | None,
    weights: torch.Tensor | None,
    scale: torch.Tensor,
    loss: int,
    correction: int,
    bounds: tuple[float, float, float],
    cap: float,
    entropy_coef: float,
    out: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses before `scale`, log-probs and entropies, fp32 [N]; the scaled gradient in `out`.

    `x` and `out` [N, V] with a contiguous last axis, and `out` may be `x`; vectors [N] contiguous;
    `scale` 0-d on the device; `loss` 0 REINFORCE, 1 clip, 2 CISPO; `correction` 0 none, 1 truncate,
    2 mask; `bounds` are the logs of 1 - low, 1 + high and the dual clip.
    """
    each, one, settings = online.row_launch(x, targets, temperature, valid, softcap)
    assert out is None or (out.shape == x.shape and (out.stride(1) == 1 or out.shape[1] == 1))
    rows = (advantages, old_logprobs, sampler_logprobs, weights)
    assert all(v is None or v.is_contiguous() for v in rows)
    losses, logprobs, entropy = (
        torch.empty(len(x), dtype=torch.float32, device=x.device) for _ in range(3)
    )
    if len(x):
        _kernel[(len(x),)](
            x, targets, mask, each, *rows, scale, losses, logprobs, entropy, out, x.stride(0),
            0 if out is None else out.stride(0), valid, x.shape[1],
            one, logit_scale,
            softcap or 0.0, *bounds, cap, entropy_coef, LOSS=loss,
            CORRECTION=correction, **settings,
        )  # fmt: skip
    return losses, logprobs, entropy
