"""Device functions of the row kernels: what turns logits into z, a row's statistics, its gradient.

A row of logits x with target y: z = softcap(logit_scale x), all exponentials in base 2 with the
factor k = log2(e) / T: with m = max z, t_j = (z_j - m) k and l = sum 2^t,
log-prob = ln 2 t_y - log l, entropy H = log l - ln 2 sum 2^t t / l, and
dL/dx_j = 2^t_j (constant + slope t_j) outer', where constant = -(a + g (H - log l)) / l and
slope = -g ln 2 / l. A column at -inf adds nothing, a NaN reaches every result.
"""

import torch
import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
MAX_BLOCK = 8192  # columns at a time; a thread of 8 warps holds 32 of them


def launch_settings(vocab: int) -> dict[str, int]:
    """Columns at a time and warps; the same for every kernel of rows, so that their bits agree.

    Not yet measured on a GPU.
    """
    block = min(triton.next_power_of_2(max(vocab, 16)), MAX_BLOCK)
    warps = max(1, min(8, block // 256))
    # fused multiply-adds are wanted, and no longer Triton's default from 3.10 on
    return {"BLOCK": block, "num_warps": warps, "enable_fp_fusion": True}


def row_launch(
    x: torch.Tensor,
    targets: torch.Tensor,
    temperature: float | torch.Tensor,
    valid: int,
    softcap: float | None,
) -> tuple[torch.Tensor | None, float, dict[str, int]]:
    """(a temperature a row or None, the one temperature, the launch's settings) of a row kernel.

    Asserts the layout that every row kernel assumes: a contiguous last axis, int64 targets.
    """
    assert x.dim() == 2 and (x.stride(1) == 1 or x.shape[1] == 1)
    assert targets.dtype == torch.int64 and targets.is_contiguous()
    settings = {"CAPPED": softcap is not None, **launch_settings(valid)}
    if isinstance(temperature, torch.Tensor):
        return temperature, 1.0, settings
    return None, temperature, settings


@triton.jit
def tanh(u):
    """To a few units in the last place; the polynomial is the minimax of tanh(u) / u below 0.6."""
    square = u * u
    p = -0.005895158741623163 * square + 0.020795971155166626
    p = p * square - 0.053783830255270004
    p = p * square + 0.13331924378871918
    p = p * square - 0.33333298563957214
    small = u + u * (square * p)
    size = tl.abs(u)
    e = tl.exp2(size * -2.8853900817779268)
    large = (1.0 - e) / (1.0 + e)
    large = tl.where(u < 0, -large, large)
    return tl.where(size < 0.6, small, large)


@triton.jit
def expm1(x):
    """e^x - 1 for x <= 0, without cancellation near 0 (Taylor's series below 1/2)."""
    p = 1.0 + x * (1.0 / 9.0)
    p = 1.0 + x * (1.0 / 8.0) * p
    p = 1.0 + x * (1.0 / 7.0) * p
    p = 1.0 + x * (1.0 / 6.0) * p
    p = 1.0 + x * (1.0 / 5.0) * p
    p = 1.0 + x * (1.0 / 4.0) * p
    p = 1.0 + x * (1.0 / 3.0) * p
    p = 1.0 + x * (1.0 / 2.0) * p
    return tl.where(x > -0.5, x * p, tl.exp2(x * LOG2_E) - 1.0)


@triton.jit
def load_z(x_row, columns, valid, logit_scale, softcap, CAPPED: tl.constexpr):
    """z of some columns, -inf from `valid` on."""
    x = tl.load(x_row + columns, mask=columns < valid, other=-float("inf")).to(tl.float32)
    z = x * logit_scale
    if CAPPED:
        z = softcap * tanh(z / softcap)
    return tl.where(columns < valid, z, -float("inf"))


@triton.jit
def row_statistics(
    x_row, target, valid, k, logit_scale, softcap, CAPPED: tl.constexpr, BLOCK: tl.constexpr
):
    """(log-prob, entropy, m, l, log l) of one row; NaN for a target outside the vocabulary."""
    peak = -float("inf")
    total = 0.0
    weighted = 0.0
    for start in range(0, valid, BLOCK):
        z = load_z(x_row, start + tl.arange(0, BLOCK), valid, logit_scale, softcap, CAPPED)
        larger = tl.maximum(peak, tl.max(z, 0))
        # all -inf so far: any finite number stands in for the maximum
        base = tl.where(larger == -float("inf"), 0.0, larger)
        t = (z - base) * k
        e = tl.exp2(t)
        moved = (peak - base) * k
        factor = tl.exp2(moved)
        weighted = tl.where(total > 0, (weighted + moved * total) * factor, 0.0)
        weighted += tl.sum(e * tl.where(t == -float("inf"), 0.0, t), 0)
        total = total * factor + tl.sum(e, 0)
        peak = larger
    base = tl.where(peak == -float("inf"), 0.0, peak)
    log_total = tl.log(total)
    inside = (target >= 0) & (target < valid)
    x_y = tl.load(x_row + target, mask=inside, other=float("nan")).to(tl.float32) * logit_scale
    if CAPPED:
        x_y = softcap * tanh(x_y / softcap)
    logprob = (x_y - base) * k * LN_2 - log_total
    entropy = log_total - LN_2 * weighted / total
    return logprob, entropy, base, total, log_total


@triton.jit
def write_gradient(
    x_row, out_row, target, valid, vocab, k, outer, logit_scale, softcap,
    logprob, entropy, base, total, log_total, a, g,
    CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dL/dx of one row; `outer` is logit_scale / T. The row may be written over."""
    constant = -(a + g * (entropy - log_total)) / total * outer
    slope = -g * LN_2 / total * outer
    # at the target 1 - p is taken without cancellation
    p = tl.exp2(logprob * LOG2_E)
    surprise = tl.where(p > 0, p * (logprob + entropy), 0.0)
    at_target = (-a * expm1(logprob) - g * surprise) * outer
    for start in range(0, vocab, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        z = load_z(x_row, columns, valid, logit_scale, softcap, CAPPED)
        t = (z - base) * k
        dx = tl.exp2(t) * (slope * tl.where(t == -float("inf"), 0.0, t) + constant)
        dx = tl.where(columns == target, at_target, dx)
        if CAPPED:
            tanh_z = tl.where(columns < valid, z / softcap, 0.0)
            dx = dx * (1.0 - tanh_z * tanh_z)
        dx = tl.where(columns < valid, dx, 0.0)  # in a row of NaN too
        tl.store(out_row + columns, dx.to(out_row.dtype.element_ty), mask=columns < vocab)


@triton.jit
def write_zeros(out_row, vocab, BLOCK: tl.constexpr):
    """A row of zeros."""
    for start in range(0, vocab, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        zeros = tl.zeros([BLOCK], tl.float32).to(out_row.dtype.element_ty)
        tl.store(out_row + columns, zeros, mask=columns < vocab)


@triton.jit
def row_settings(row, targets, mask, temperatures, temperature):
    """(target, is computed, temperature) of a row; absent vectors are None."""
    target = tl.load(targets + row)
    keep = True
    if mask is not None:
        keep = tl.load(mask + row) != 0
    t = temperature
    if temperatures is not None:
        t = tl.load(temperatures + row)
    return target, keep, t
