"""The GPU's kernels by their twins in C++, where the interpreter would take hours.

They run over the same memory of the fake device, are captured in its graphs, and like a kernel wait
for nothing. What is in a Triton kernel is not run, nor its launch: the interpreter's tests do that.
"""

from __future__ import annotations

import torch

from fastrl.ops import fused, native, native_layer
from fastrl.ops.layer_rows import triton_kernels
from fastrl.ops.rows import wide_dtype


def install(launch):
    """`launch`: runs a function, its tensors those of the host over the device's bytes."""
    install_rows(launch)
    install_layers(launch)
    install_attention(launch)


def install_rows(launch):
    """The rows of logits: `fused`."""

    def run(name, outputs, *arguments):
        """A function of `native`, whose results go to `outputs`."""

        def kernel(outputs, *arguments):
            results = getattr(native, name)(*arguments)
            for out, result in zip(outputs, results or (), strict=True):
                out.copy_(result)

        launch(kernel, outputs, *arguments)
        return tuple(outputs)

    def through(out, x, work):
        """What `work` gives, which writes `out` by memory of the logits' dtype."""
        if out is None or out.dtype == x.logits_NV.dtype:
            return work(out)
        wide = torch.empty_like(x.logits_NV)
        found = work(wide)
        out.copy_(wide)
        return found

    def numbers(x, count):
        device, dtype = x.logits_NV.device, wide_dtype(x.logits_NV.dtype)
        return [torch.empty(len(x.logits_NV), dtype=dtype, device=device) for _ in range(count)]

    def statistics(x):
        return run("statistics", numbers(x, 2), x)

    def extras(x, thresholds):
        out = numbers(x, 6)
        out[4] = torch.empty_like(x.targets_N)
        return run("extras", out, x, thresholds)

    def gradient(x, a, g, out):
        through(out, x, lambda into: run("gradient", [], x, a, g, into))

    def policy_loss(x, rows, spec, scale, out):
        given = (numbers(x, 3), x, rows, spec, scale)
        return through(out, x, lambda into: run("policy_loss", *given, into))

    def sample(x, filters, noise):
        out = numbers(x, 3)
        out[0] = torch.empty_like(x.targets_N)
        return run("sample", out, x, filters, noise)

    def scale_(x, factor):
        launch(torch.Tensor.mul_, x, factor)

    for function in (statistics, extras, gradient, policy_loss, sample, scale_):
        assert hasattr(fused, function.__name__)
        setattr(fused, function.__name__, function)


def install_layers(launch):
    """What a layer does between its products."""
    kernels = triton_kernels()

    def of(twin):
        # the rows of heads may lie apart
        return lambda *arguments: launch(lambda x, *rest: twin(x.contiguous(), *rest), *arguments)

    for name in ("norm", "norm_gradient", "rotate", "swiglu", "swiglu_gradient"):
        object.__setattr__(kernels, name, of(getattr(native_layer, name)))


def weigh(q, k, scale, sees):
    """The softmax of the scores of [M, H, h] over [L, K, h]: [H, M, L]; nothing seen gives 0."""
    k = k.float().repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = torch.einsum("mhd,lhd->hml", q.float(), k) * scale
    return scores.masked_fill(~sees, -torch.inf).softmax(-1).nan_to_num(0.0)


def attend(q, k, v, scale, sees):
    """Attention of [M, H, h] over [L, K, h] where `sees` [M, L]."""
    wide = v.float().repeat_interleave(q.shape[1] // v.shape[1], 1)
    return torch.einsum("hml,lhd->mhd", weigh(q, k, scale, sees), wide)


def attention_gradient(dout, q, k, v, scale, sees):
    """The gradients of `attend` by q, k and v."""
    group = q.shape[1] // k.shape[1]
    weights, dout = weigh(q, k, scale, sees), dout.float()
    wide_k, wide_v = (x.float().repeat_interleave(group, 1) for x in (k, v))
    by_weights = torch.einsum("mhd,lhd->hml", dout, wide_v)
    mean = (by_weights * weights).sum(-1, keepdim=True)
    by_scores = scale * weights * (by_weights - mean)
    dk = torch.einsum("hml,mhd->lhd", by_scores, q.float())
    dv = torch.einsum("hml,mhd->lhd", weights, dout)
    dk, dv = (x.view(len(x), -1, group, x.shape[2]).sum(2) for x in (dk, dv))
    return torch.einsum("hml,lhd->mhd", by_scores, wide_k), dk, dv


def install_attention(launch):
    """Attention over the paged cache, and over sequences of any lengths."""
    from fastrl.kernels import paged_attention as paged

    def paged_attention(q, k_cache, v_cache, tables, row_table, context, **given):
        out = given.get("out")
        out = torch.empty_like(q) if out is None else out
        scale = given.get("scale") or q.shape[2] ** -0.5

        def kernel(q, k_cache, v_cache, tables, row_table, context, out):
            for row, (table, seen) in enumerate(
                zip(row_table.tolist(), context.tolist(), strict=True)
            ):
                blocks = tables[table, : -(-seen // k_cache.shape[1])].long()
                k, v = (x[blocks].flatten(0, 1)[:seen] for x in (k_cache, v_cache))
                sees = torch.ones(1, seen, dtype=torch.bool)
                out[row] = attend(q[row : row + 1], k, v, scale, sees)[0]

        launch(kernel, q, k_cache, v_cache, tables, row_table, context, out)
        return out

    paged.paged_attention = paged_attention
    library = torch.library.Library("aten", "IMPL")

    def pieces(q, k, rows, seen, is_causal):
        for a, b, c, d in zip(rows[:-1], rows[1:], seen[:-1], seen[1:], strict=True):
            m, n = b - a, d - c
            sees = torch.ones(m, n, dtype=torch.bool).tril(n - m)
            yield slice(a, b), slice(c, d), sees if is_causal else torch.ones_like(sees)

    def forward(q, k, v, rows, seen, max_q, max_k, dropout, is_causal, debug, *, scale=None, **_):
        assert q.dtype in (torch.bfloat16, torch.float16) and not dropout
        out = torch.empty_like(q)
        scale = scale or q.shape[2] ** -0.5

        def kernel(q, k, v, rows, seen, out):
            for m, n, sees in pieces(q, k, rows.tolist(), seen.tolist(), is_causal):
                assert len(sees) <= max_q and sees.shape[1] <= max_k
                out[m] = attend(q[m], k[n], v[n], scale, sees).to(q.dtype)

        launch(kernel, q, k, v, rows, seen, out)
        sums = torch.zeros(q.shape[1], len(q), device=q.device)
        state = torch.zeros(2, dtype=torch.uint64, device=q.device)
        return out, sums, state, torch.empty(0, device=q.device), torch.empty(0, device=q.device)

    def backward(
        dout, q, k, v, out, sums, rows, seen, max_q, max_k, dropout, is_causal, *_, scale=None, **__
    ):
        gradients = [torch.zeros_like(x) for x in (q, k, v)]
        scale = scale or q.shape[2] ** -0.5

        def kernel(dout, q, k, v, rows, seen, dq, dk, dv):
            for m, n, sees in pieces(q, k, rows.tolist(), seen.tolist(), is_causal):
                by = attention_gradient(dout[m], q[m], k[n], v[n], scale, sees)
                for target, index, value in zip((dq, dk, dv), (m, n, n), by, strict=True):
                    target[index] = value.to(target.dtype)

        launch(kernel, dout, q, k, v, rows, seen, *gradients)
        return tuple(gradients)

    library.impl("_flash_attention_forward", forward, "CUDA")
    library.impl("_flash_attention_backward", backward, "CUDA")
    install_attention.library = library
