"""The gradient of rows of logits from those of their log-probs and entropies.

Bytes moved: the logits once, again from cache where a row fits there, and the gradient once (4 a
logit in bf16, 6 where the second read comes from memory). Rows without a gradient are not read.
"""

import torch
import triton
import triton.language as tl

from fastrl.kernels import online


@triton.jit
def _kernel(
    x, targets, mask, temperatures, a_rows, g_rows, out, stride, out_stride, valid, vocab,
    temperature, logit_scale, softcap, CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    target, keep, t = online.row_settings(row, targets, mask, temperatures, temperature)
    a = tl.load(a_rows + row)
    g = tl.load(g_rows + row)
    if keep & ((a != 0) | (g != 0)):
        k = online.LOG2_E / t
        logprob, h, base, total, log_total = online.row_statistics(
            x + row * stride, target, valid, k, logit_scale, softcap, CAPPED, BLOCK
        )
        online.write_gradient(
            x + row * stride, out + row * out_stride, target, valid, vocab, k, logit_scale / t,
            logit_scale, softcap, logprob, h, base, total, log_total, a, g, CAPPED, BLOCK,
        )  # fmt: skip
    else:
        online.write_zeros(out + row * out_stride, vocab, BLOCK)


def row_gradient(
    x: torch.Tensor,
    targets: torch.Tensor,
    mask: torch.Tensor | None,
    temperature: float | torch.Tensor,
    valid: int,
    softcap: float | None,
    logit_scale: float,
    a: torch.Tensor,
    g: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Write dL/dx into `out` [N, V], which may be `x`; `a` and `g` are fp32 [N]."""
    each, one, settings = online.row_launch(x, targets, temperature, valid, softcap)
    assert out.shape == x.shape and (out.stride(1) == 1 or out.shape[1] == 1)
    assert a.dtype == g.dtype == torch.float32 and a.is_contiguous() and g.is_contiguous()
    if len(x):
        _kernel[(len(x),)](
            x, targets, mask, each, a, g, out, x.stride(0), out.stride(0), valid, x.shape[1],
            one, logit_scale,
            softcap or 0.0, **settings,
        )  # fmt: skip
