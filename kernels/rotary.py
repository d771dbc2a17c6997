"""The rotary embedding of rows: each head turned by its row's angles, halves as in GPT-NeoX.

(Su et al. 2021.) With halves a and b: a cos - b sin, b cos + a sin; the gradient is the turn back.
Read once and written once, 4 bytes a number in bf16, and the angles once for HEADS heads.
"""

import torch
import triton
import triton.language as tl

TILE = 1024  # numbers of half heads that a program has


def rotate_reference(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The same in torch, in the dtype of the angles."""
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


@triton.jit
def _kernel(x, cos, sin, out, heads, stride, half, sign, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, BLOCK)
    c = tl.load(cos + row * half + column, mask=column < half, other=0.0)[None, :]
    s = tl.load(sin + row * half + column, mask=column < half, other=0.0)[None, :] * sign
    inside = (head < heads)[:, None] & (column < half)[None, :]
    at = head[:, None] * (2 * half) + column[None, :]
    first = tl.load(x + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + row * stride + at + half, mask=inside, other=0.0).to(tl.float32)
    target = out + row * (2 * half * heads) + at
    tl.store(target, first * c - second * s, mask=inside)
    tl.store(target + half, second * c + first * s, mask=inside)


def launch_settings(heads: int, half: int) -> dict[str, int]:
    """Heads of a program, the block of half a head and warps; not yet timed."""
    block = triton.next_power_of_2(half)
    most = min(triton.next_power_of_2(heads), max(1, TILE // block))
    return {"HEADS": most, "BLOCK": block, "num_warps": 4}


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, back: bool, out: torch.Tensor
) -> None:
    """Write x [N, H, h], whose rows may lie anywhere, turned (or turned back) into contiguous out;
    angles are fp32 [N, h / 2].
    """
    rows, heads, dim = x.shape
    assert x.stride()[1:] == (dim, 1) and out.is_contiguous() and dim % 2 == 0
    assert cos.dtype == sin.dtype == torch.float32 and cos.is_contiguous() and sin.is_contiguous()
    settings = launch_settings(heads, dim // 2)
    if rows:
        _kernel[(rows, triton.cdiv(heads, settings["HEADS"]))](
            x, cos, sin, out, heads, x.stride(0), dim // 2, -1.0 if back else 1.0, **settings
        )
