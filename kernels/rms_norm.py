"""RMSNorm of rows, and its gradients: y = x s w with s = 1 / sqrt(mean x^2 + eps).

(Zhang and Sennrich 2019.) With z = x s: dx = s (dy w - z mean(dy w z)), dw = sum of dy z over rows.
A row is read once and written once, 4 bytes a number in bf16; backwards 6. s is kept, 4 bytes a
row. Rounded once, after the weight. torch's eager parts move 5 to 10 times as much.

The sum over rows has the same order on every GPU: PROGRAMS programs add up every PROGRAMS-th tile
of rows each, and torch adds up theirs.
"""

import torch
import triton
import triton.language as tl

PROGRAMS = 256  # partial sums of the weight's gradient, [PROGRAMS, D] in fp32
TILE = 2048  # numbers that a program has of its rows at a time, at least a row


def norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The same in torch, in fp32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    scale = (x.to(wide).square().mean(-1, keepdim=True) + eps).rsqrt()
    return (x.to(wide) * scale * weight.to(wide)).to(x.dtype)


@triton.jit
def _rows_of(first, rows, heads, stride, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    # row r of x is head r % heads at place r // heads, of which places lie `stride` apart
    row = first + tl.arange(0, ROWS).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    at = (row // heads) * stride + (row % heads) * width
    return row, column, inside, at[:, None] + column[None, :]


@triton.jit(do_not_specialize=["rows"])
def _forward(
    x, weight, y, scales, rows, heads, stride, width, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    first = tl.program_id(0).to(tl.int64) * ROWS
    row, column, inside, at = _rows_of(first, rows, heads, stride, width, ROWS, BLOCK)
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 1) / width + eps)
    tl.store(scales + row, scale, mask=row < rows)
    result = values * scale[:, None] * w[None, :]
    tl.store(y + row[:, None] * width + column[None, :], result, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _backward(
    x, weight, scales, dy, dx, partial, rows, heads, stride, width,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, BLOCK)
    w = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    for tile in range(program, tl.cdiv(rows, ROWS), programs):
        first = tile * ROWS
        row, column, inside, at = _rows_of(first, rows, heads, stride, width, ROWS, BLOCK)
        flat = row[:, None] * width + column[None, :]
        scale = tl.load(scales + row, mask=row < rows, other=0.0)[:, None]
        z = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * scale
        d = tl.load(dy + flat, mask=inside, other=0.0).to(tl.float32)
        sums += tl.sum(d * z, 0)
        d *= w[None, :]
        mean = tl.sum(d * z, 1)[:, None] / width
        tl.store(dx + flat, (d - z * mean) * scale, mask=inside)
    tl.store(partial + program.to(tl.int64) * width + column, sums, mask=column < width)


def launch_settings(width: int) -> dict[str, int]:
    """Rows of a tile, the block of a row and warps; compiled ahead of time, not yet timed."""
    block = triton.next_power_of_2(width)
    return {"ROWS": max(1, TILE // block), "BLOCK": block, "num_warps": 4 if block <= 2048 else 8}


def _layout(x: torch.Tensor) -> tuple[int, int, int, int]:
    """Rows, heads, the stride of places and the width of [R, D], or of [N, H, h] with heads that
    lie next to each other.
    """
    width = x.shape[-1]
    assert x.dim() in (2, 3) and (x.stride(-1) == 1 or width == 1)
    heads = x.shape[1] if x.dim() == 3 else 1
    assert x.dim() == 2 or x.stride(1) == width
    return x.numel() // max(1, width), heads, x.stride(0), width


def norm(
    x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, eps: float, y: torch.Tensor
) -> None:
    """Write the norm of x's rows into contiguous `y`, and their 1 / rms in fp32 into `scales`."""
    rows, heads, stride, width = _layout(x)
    assert y.is_contiguous() and scales.is_contiguous() and weight.is_contiguous()
    settings = launch_settings(width)
    if rows:
        _forward[(triton.cdiv(rows, settings["ROWS"]),)](
            x, weight, y, scales, rows, heads, stride, width, eps, **settings
        )


def norm_gradient(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    dy: torch.Tensor,
    dx: torch.Tensor,
    dweight: torch.Tensor,
) -> None:
    """Write the gradients of x, contiguous, and of the weight."""
    rows, heads, stride, width = _layout(x)
    assert dy.is_contiguous() and dx.is_contiguous() and weight.is_contiguous()
    settings = launch_settings(width)
    programs = min(PROGRAMS, triton.cdiv(rows, settings["ROWS"]))
    partial = torch.empty(programs, width, dtype=torch.float32, device=x.device)
    if rows:
        _backward[(programs,)](
            x, weight, scales, dy, dx, partial, rows, heads, stride, width, **settings
        )
    dweight.copy_(partial.sum(0))
