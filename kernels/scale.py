"""A tensor times a number that lies on the device, in place; by 1, nothing is read or written."""

import torch
import triton
import triton.language as tl

BLOCK = 4096


@triton.jit
def _kernel(x, factor, count, BLOCK: tl.constexpr):
    f = tl.load(factor).to(tl.float32)
    if f != 1.0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        values = tl.load(x + at, mask=at < count).to(tl.float32) * f
        tl.store(x + at, values.to(x.dtype.element_ty), mask=at < count)


def scale_(x: torch.Tensor, factor: torch.Tensor) -> None:
    """x *= factor for a contiguous `x` of any shape and a 0-d `factor`, without synchronisation."""
    assert x.is_contiguous() and factor.numel() == 1
    if x.numel():
        _kernel[(triton.cdiv(x.numel(), BLOCK),)](x, factor, x.numel(), BLOCK=BLOCK)
