"""Rows of logits from hidden states and a head's weight, one chunk of them in memory at a time.

Each chunk of logits is a matrix product, and the row kernels write its gradient over it. The
products are the floor: 2 N V D operations forward, 6 N V D with the gradient in the forward. Half
precision stays so on a GPU's tensor cores, and in bf16 on CPUs with instructions for it: only what
a product takes is rounded, its sums, the logits and the accumulated gradients are fp32 (a CPU's
products for gradients are rounded before they are accumulated, and the weight's are of many chunks
together: few rows are slow, and so is adding up). Other CPUs take fp32 for all.

Legend: N: rows (tokens), C: those of a chunk, D: hidden width, V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastrl.losses import LossSpec, Rows
from fastrl.ops.dense import dense, multiplies_bf16
from fastrl.ops.library import on_large_pages
from fastrl.ops.rows import Kernels, LogitRows, wide_dtype

# log-probs and entropies -> the loss, its derivatives by both; [N] each but for the loss
LossOf = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]

# A chunk has CHUNK_BYTES of logits, and CHUNK_ROWS at least: products of fewer rows are slower, and
# logits of more leave the cache. On 2 cores, V = 49152, D = 576, 8 N V D of 1024 rows: 939 ms in
# 2 chunks, 991 in 3, 976 whole (929 the bare products); V = 151936: 2944, 3380, 3402 (2880).
CHUNK_BYTES, CHUNK_ROWS = 1 << 25, 512
GPU_CHUNK_BYTES = 1 << 30  # not yet measured
JOINED_BYTES = 1 << 28  # of the logits' gradients that a CPU keeps in half precision


def chunk_rows(rows: int, row_bytes: int, on_gpu: bool) -> int:
    """Rows of a chunk: as many as its bytes allow, and all chunks of one size; 0 of none."""
    budget = GPU_CHUNK_BYTES if on_gpu else CHUNK_BYTES
    most = max(1, CHUNK_ROWS, budget // row_bytes)
    return -(-rows // -(-rows // most)) if rows else 0


def joined_rows(rows: int, row_bytes: int) -> int:
    """Rows whose gradients of logits in half precision a CPU keeps for one product."""
    return min(rows, max(CHUNK_ROWS, JOINED_BYTES // row_bytes))


def keeps_half_precision(weight: Tensor) -> bool:
    """Whether products take the halves as they are, with sums and results in fp32."""
    if weight.device.type == "cuda":
        return weight.dtype in (torch.bfloat16, torch.float16)
    return multiplies_bf16(weight)


def mm(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a @ b; halves are multiplied as they are where `out` is fp32, on a CPU rounded then."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif a.device.type == "cuda":
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        out.copy_(torch.mm(a, b))


def add_mm(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a @ b, as `mm`."""
    if a.dtype == out.dtype:
        out.addmm_(a, b)
    elif a.device.type == "cuda":
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    else:
        out += torch.mm(a, b)


@dataclass(frozen=True)
class HeadRows:
    """Logits = hidden @ weight.T + bias that are never whole, and what LogitRows holds besides."""

    hidden_ND: Tensor
    weight_VD: Tensor  # the dtype of the hidden states
    bias_V: Tensor | None
    targets_N: Tensor
    mask_N: Tensor | None
    temperature: float | Tensor
    valid: int
    softcap: float | None
    logit_scale: float
    compact: bool  # leave out rows that nothing needs: their number is read on the host

    @property
    def dtype(self) -> torch.dtype:
        return wide_dtype(self.hidden_ND.dtype)

    def rows(self, needed_N: Tensor | None) -> Tensor:
        """The indices of rows to compute: those needed, or all without compaction."""
        if needed_N is None or not self.compact:
            return torch.arange(len(self.targets_N), device=self.targets_N.device)
        return needed_N.nonzero().squeeze(1)

    def zeros(self) -> Tensor:
        """One number a row."""
        return torch.zeros(self.targets_N.shape, dtype=self.dtype, device=self.targets_N.device)


@dataclass(frozen=True)
class Chunk:
    """Some of the rows, and where their gradient goes."""

    index_C: Tensor
    hidden_CD: Tensor
    rows: LogitRows
    gradient_CV: Tensor  # the logits' own memory where their dtype is that of the products


class _Joined:
    """Rows of hidden states and of gradients of logits, for one product."""

    def __init__(self, rows: int, hidden_ND: Tensor, vocab: int) -> None:
        self.hidden_RD = hidden_ND.new_empty(rows, hidden_ND.shape[1])
        self.dlogits_RV = on_large_pages(hidden_ND.new_empty(rows, vocab))
        self.filled = 0

    def has_room(self, rows: int) -> bool:
        return self.filled + rows <= len(self.hidden_RD)

    def add(self, hidden_CD: Tensor, dlogits_CV: Tensor) -> Tensor:
        """The rows as they are kept."""
        rows = slice(self.filled, self.filled + len(hidden_CD))
        self.filled = rows.stop
        self.hidden_RD[rows] = hidden_CD
        return self.dlogits_RV[rows].copy_(dlogits_CV)

    def take(self) -> tuple[Tensor, Tensor]:
        """All rows, of which none is left."""
        filled, self.filled = self.filled, 0
        return self.hidden_RD[:filled], self.dlogits_RV[:filled]


class _Products:
    """The matrix products of a head, in fp32 (fp64 for fp64), and their accumulated gradients."""

    def __init__(self, kernels: Kernels, x: HeadRows, of_weight: bool = True) -> None:
        self.x = x
        self.of_weight = of_weight  # a weight that is not trained has no gradient
        self.half = keeps_half_precision(x.weight_VD)
        # fp32 logits may have a gradient in half precision, in memory of its own
        self.apart = self.half and kernels.WRITES_HALVES
        self.input_dtype = x.hidden_ND.dtype if self.half else x.dtype
        self.weight_VD = x.weight_VD[: x.valid].to(self.input_dtype)
        self.bias_V = None if x.bias_V is None else x.bias_V[: x.valid].to(x.dtype)
        self.gradients: tuple[Tensor, Tensor] | None = None  # of hidden states and bias
        self.by_weight: Tensor | None = None
        self.joined: _Joined | None = None

    def chunks(self, index_M: Tensor) -> Iterator[Chunk]:
        """Every row in chunks; the memory of logits and their gradient is used again."""
        x = self.x
        device = x.hidden_ND.device
        size = x.dtype.itemsize + (self.input_dtype.itemsize if self.apart else 0)
        rows = chunk_rows(len(index_M), size * x.valid, device.type == "cuda")
        if not rows:
            return
        memory = on_large_pages(torch.empty(rows, x.valid, dtype=x.dtype, device=device))
        gradients = torch.empty_like(memory, dtype=self.input_dtype) if self.apart else memory
        for index_C in index_M.split(rows):
            hidden_CD = x.hidden_ND[index_C].to(self.input_dtype)
            mask_C = None if x.compact or x.mask_N is None else x.mask_N[index_C]
            if mask_C is not None:  # a masked row may hold a NaN, and 0 * NaN is one
                hidden_CD = torch.where(mask_C[:, None], hidden_CD, 0.0)
            logits_CV = memory[: len(index_C)]
            self._logits(hidden_CD, logits_CV)
            t = x.temperature
            rows_C = LogitRows(
                logits_CV, x.targets_N[index_C], mask_C, t[index_C] if isinstance(t, Tensor) else t,
                x.valid, x.softcap, x.logit_scale,
            )  # fmt: skip
            yield Chunk(index_C, hidden_CD, rows_C, gradients[: len(index_C)])

    def _logits(self, hidden_CD: Tensor, logits_CV: Tensor) -> None:
        if self.half and hidden_CD.device.type == "cpu":
            dense(hidden_CD, self.weight_VD, out=logits_CV, backend="cpu")
        elif self.half or self.bias_V is None:
            mm(hidden_CD, self.weight_VD.T, logits_CV)
        else:
            torch.addmm(self.bias_V, hidden_CD, self.weight_VD.T, out=logits_CV)
        if self.half and self.bias_V is not None:
            logits_CV += self.bias_V

    def add(self, index_C: Tensor, hidden_CD: Tensor, dlogits_CV: Tensor) -> None:
        """Accumulate the gradients of hidden states, weight and bias from those of the logits."""
        hidden, bias = self.gradients = self.gradients or self._zeros()
        if not self.of_weight:
            dlogits_CV = dlogits_CV.to(self.input_dtype)
        elif self.half and hidden.device.type == "cpu":
            dlogits_CV = self._join(hidden_CD, dlogits_CV)
        else:
            dlogits_CV = dlogits_CV.to(self.input_dtype)
            self._add_by_weight(hidden_CD, dlogits_CV)
        by_hidden_CD = hidden.new_empty(hidden_CD.shape)
        mm(dlogits_CV, self.weight_VD, by_hidden_CD)
        hidden[index_C] = by_hidden_CD
        if self.bias_V is not None:
            bias[: self.x.valid] += dlogits_CV.sum(0, dtype=bias.dtype)

    def add_active(
        self, active_A: Tensor, index_C: Tensor, hidden_CD: Tensor, dlogits_CV: Tensor
    ) -> None:
        """`add`, without rows of the chunk that have no gradient where those are many."""
        if 4 * len(active_A) <= 3 * len(index_C):
            self.add(index_C[active_A], hidden_CD[active_A], dlogits_CV[active_A])
        else:
            self.add(index_C, hidden_CD, dlogits_CV)

    def _join(self, hidden_CD: Tensor, dlogits_CV: Tensor) -> Tensor:
        """Rows of gradients in half precision, that of the weight left for later."""
        if self.joined is None:
            row_bytes = self.x.valid * self.input_dtype.itemsize
            rows = joined_rows(len(self.x.targets_N), row_bytes)
            self.joined = _Joined(max(rows, len(hidden_CD)), hidden_CD, self.x.valid)
        elif not self.joined.has_room(len(hidden_CD)):
            self._add_by_weight(*self.joined.take())
        return self.joined.add(hidden_CD, dlogits_CV)

    def _add_by_weight(self, hidden_CD: Tensor, dlogits_CV: Tensor, last: bool = False) -> None:
        if self.by_weight is None:  # nothing is read and no zero written; alone no sum in fp32
            dtype = self.x.hidden_ND.dtype if last else self.x.dtype
            self.by_weight = self._weight_memory(dtype)
            mm(dlogits_CV.T, hidden_CD, self.by_weight[: self.x.valid])
        else:
            add_mm(self.by_weight[: self.x.valid], dlogits_CV.T, hidden_CD)

    def _weight_memory(self, dtype: torch.dtype) -> Tensor:
        """For the weight's gradient; no padding of the vocabulary has one."""
        weight = self.x.weight_VD
        memory = on_large_pages(torch.empty(weight.shape, dtype=dtype, device=weight.device))
        memory[self.x.valid :] = 0
        return memory

    def results(self) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients in their inputs' dtypes, empty for no bias and a weight without one."""
        hidden, bias = self.gradients or self._zeros()
        dtype = self.x.hidden_ND.dtype
        if not self.of_weight:
            self.by_weight = self.x.weight_VD.new_empty(0)
        if self.joined is not None:
            self._add_by_weight(*self.joined.take(), last=True)
        if self.by_weight is None:
            self.by_weight = self._weight_memory(dtype).zero_()
        bias_dtype = dtype if self.x.bias_V is None else self.x.bias_V.dtype
        return hidden.to(dtype), self.by_weight.to(dtype), bias.to(bias_dtype)

    def _zeros(self) -> tuple[Tensor, Tensor]:
        """The gradients of hidden states and bias before anything is added."""
        hidden, dtype = self.x.hidden_ND, self.x.dtype
        bias = hidden.new_empty(0) if self.x.bias_V is None else self.x.bias_V
        return (
            hidden.new_zeros(hidden.shape, dtype=dtype),
            bias.new_zeros(bias.shape, dtype=dtype),
        )


def statistics(kernels: Kernels, x: HeadRows) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of the unmasked rows, 0 elsewhere, [N] each."""
    logprobs_N, entropy_N = x.zeros(), x.zeros()
    for chunk in _Products(kernels, x).chunks(x.rows(x.mask_N)):
        logprobs_N[chunk.index_C], entropy_N[chunk.index_C] = kernels.statistics(chunk.rows)
    return logprobs_N, entropy_N


def extras(kernels: Kernels, x: HeadRows) -> tuple[Tensor, ...]:
    """What `Kernels.extras` gives without thresholds, [N] each."""
    found = [x.zeros() for _ in range(6)]
    found[4] = torch.full_like(x.targets_N, -1)  # the argmax
    for chunk in _Products(kernels, x).chunks(x.rows(x.mask_N)):
        for whole_N, values_C in zip(found, kernels.extras(chunk.rows, None), strict=True):
            whole_N[chunk.index_C] = values_C
    return tuple(found)


def gradient(
    kernels: Kernels, x: HeadRows, a_N: Tensor, g_N: Tensor, of_weight: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden states, weight and bias; 6 N V D operations for rows in need, 4 without
    that of the weight, which is empty then."""
    needed_N = (a_N != 0) | (g_N != 0)
    if x.mask_N is not None:
        needed_N &= x.mask_N
    products = _Products(kernels, x, of_weight)
    for chunk in products.chunks(x.rows(needed_N)):
        a_C, g_C = a_N[chunk.index_C], g_N[chunk.index_C]
        kernels.gradient(chunk.rows, a_C, g_C, chunk.gradient_CV)
        products.add(chunk.index_C, chunk.hidden_CD, chunk.gradient_CV)
    return products.results()


def policy_loss(
    kernels: Kernels,
    x: HeadRows,
    rows: Rows,
    spec: LossSpec,
    scale: Tensor,
    wanted: bool,
    of_weight: bool = True,
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Losses, log-probs and entropies [N] and the gradients (empty if unwanted)."""
    losses_N, logprobs_N, entropy_N = x.zeros(), x.zeros(), x.zeros()
    products = _Products(kernels, x, of_weight)
    # without an advantage or an entropy term a row has no gradient, before anything is computed;
    # the chunks are those of `statistics`, so that log-probs have its bits
    active_N = (rows.advantages != 0) | (spec.entropy_coef != 0)
    for chunk in products.chunks(x.rows(x.mask_N)):
        index_C, hidden_CD = chunk.index_C, chunk.hidden_CD
        active_C = active_N[index_C].nonzero().squeeze(1) if x.compact else index_C
        out_CV = chunk.gradient_CV if wanted and len(active_C) else None
        losses_N[index_C], logprobs_N[index_C], entropy_N[index_C] = kernels.policy_loss(
            chunk.rows, rows.select(index_C), spec, scale, out_CV
        )
        if out_CV is not None:
            products.add_active(active_C, index_C, hidden_CD, out_CV)
    nothing = x.hidden_ND.new_empty(0)
    gradients = products.results() if wanted else (nothing, nothing.clone(), nothing.clone())
    return losses_N, logprobs_N, entropy_N, gradients


def rowwise_loss(
    kernels: Kernels, x: HeadRows, loss_of: LossOf, of_weight: bool = True
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor], bool]:
    """A loss of which each row has a term of its own: 6 N V D operations.

    (loss, log-probs [N], entropies [N], gradients, whether it was such a loss). `loss_of` is asked
    after each chunk, when later rows hold zeros, and what it says of the chunk's rows is used; in
    the end it is asked again, with every row there. Where it says otherwise then, the gradients
    are computed a second time.
    """
    logprobs_N, entropy_N, a_N, g_N = (x.zeros() for _ in range(4))
    products = _Products(kernels, x, of_weight)
    index_M = x.rows(x.mask_N)
    found = None
    for chunk in products.chunks(index_M):
        index_C = chunk.index_C
        logprobs_N[index_C], entropy_N[index_C] = kernels.statistics(chunk.rows)
        found = loss_of(logprobs_N, entropy_N)
        a_C, g_C = found[1][index_C], found[2][index_C]
        a_N[index_C], g_N[index_C] = a_C, g_C
        active_C = ((a_C != 0) | (g_C != 0)).nonzero().squeeze(1) if x.compact else index_C
        if len(active_C):
            kernels.gradient(chunk.rows, a_C, g_C, chunk.gradient_CV)
            products.add_active(active_C, index_C, chunk.hidden_CD, chunk.gradient_CV)
        if len(index_C) < len(index_M):
            found = None
    loss, *last = found or loss_of(logprobs_N, entropy_N)
    by_rows = all(
        _same(used_N[index_M], last_N[index_M])
        for used_N, last_N in zip((a_N, g_N), last, strict=True)
    )
    gradients = products.results() if by_rows else gradient(kernels, x, last[0], last[1], of_weight)
    return loss, logprobs_N, entropy_N, gradients, by_rows


def _same(x_M: Tensor, y_M: Tensor) -> bool:
    """Whether two vectors are equal but for rounding."""
    return bool(((x_M - y_M).abs() <= 1e-5 * y_M.abs().amax()).all()) if len(x_M) else True
