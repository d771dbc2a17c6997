"""Attention of packed sequences, the prompt of a group once for all of its responses.

Legend: N: packed rows (tokens), H: query heads, K: key/value heads, h: head dimension,
S: segments of rows, B: segments of a bucket, P: rows of a prefix, L: longest segment of a bucket.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastrl import varlen
from fastrl.attention import Rotary
from fastrl.ops import attention as native

NATIVE, SDPA = "cpu", "sdpa"


def choose(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Who computes packed attention: "cpu", in C++, on a GPU a name in `varlen.FUNCTIONS`, or else
    torch's padded "sdpa".
    """
    if native.runs(device, dtype):
        return NATIVE
    found = varlen.first(device, dtype, head_dim) if device.type == "cuda" else None
    return found or SDPA


@dataclass(frozen=True)
class _Bucket:
    """Segments that torch's kernel takes together, padded to the longest."""

    segments: int
    longest: int  # rows
    prefix: int  # rows of each segment's prefix
    prefix_rows: Tensor | None  # int64 [B P]
    mask: Tensor | None  # bool [L, P + L], True: seen; None: causal


@dataclass(frozen=True)
class _Padding:
    """The rows as padded buckets."""

    buckets: list[_Bucket]
    num_rows: int  # with padding
    slots: Tensor | None  # int64 [N], where a row lies; None: where it lies without padding

    def pad(self, x_N: Tensor) -> Tensor:
        if self.slots is None:
            return x_N
        zeros = x_N.new_zeros(self.num_rows, *x_N.shape[1:])
        return zeros.index_copy(0, self.slots, x_N)


class PackedAttention:
    """Causal attention over segments of rows packed end to end.

    `cu_seqlens`: int32 [S + 1] offsets over the rows, from 0 to N; `max_seqlen`: the longest.
    `prefixes`: int64 [S, 2], the first and the number of other rows that a segment continues, all
    of which its rows see; None, or a number of 0: a segment is a sequence of its own.

    By `backend`: "cpu" takes rows as they lie, and `prefixes` each in one other segment; kernels
    for variable lengths take keys and values gathered for each segment; "sdpa" right-padded buckets
    of segments of like length: with causality no row sees padding, and torch's fused kernel runs.
    """

    # A bucket takes segments down to this share of its longest. Forward and backward of 256
    # sequences of 20 to 80 rows, 4 heads of 32, on one core: 83 ms in one bucket, 73 ms at 0.5,
    # 58 ms at 0.67, 53 to 66 ms from 0.8 to 0.9; 64 sequences of 10 to 300: 164, 110, 90, 84, 81.
    shortest_share = 0.8

    def __init__(
        self,
        cu_seqlens: Tensor,
        max_seqlen: int,
        prefixes: np.ndarray | None = None,
        backend: str | None = None,
    ) -> None:
        offsets = cu_seqlens.detach().cpu().numpy().astype(np.int64)
        lengths = np.diff(offsets)
        assert offsets[0] == 0 and (lengths >= 0).all(), "cu_seqlens has to rise from 0"
        assert lengths.max(initial=0) <= max_seqlen, "max_seqlen is too small"
        if prefixes is None:
            prefixes = np.zeros((len(lengths), 2), np.int64)
        assert prefixes.shape == (len(lengths), 2), "a prefix for each segment"
        self.cu_seqlens, self.max_seqlen = cu_seqlens, max_seqlen
        self.num_rows = int(offsets[-1])
        self.prefixes, self.backend = prefixes, backend
        self._offsets, self._lengths = offsets, lengths

    def layer(self, layer: int, hidden_ND: Tensor, rotary: Rotary) -> Tensor | None:
        """None: a layer's parts are computed one by one, with gradients."""
        return None

    def attend(
        self, layer: int, q_NHh: Tensor, k_NKh: Tensor, v_NKh: Tensor, rotary: Rotary | None = None
    ) -> Tensor:
        """Causal attention inside each sequence: [N, H, h]."""
        assert q_NHh.shape[0] == self.num_rows, "the rows do not match cu_seqlens"
        if not self.num_rows:
            return torch.zeros_like(q_NHh)
        backend = self.backend or choose(q_NHh.device, q_NHh.dtype, q_NHh.shape[2])
        if backend == NATIVE:
            angles = None if rotary is None else (rotary.cos_Na, rotary.sin_Na)
            return native.packed_attention(q_NHh, k_NKh, v_NKh, self._families, angles)
        if rotary is not None:
            q_NHh, k_NKh = rotary(q_NHh), rotary(k_NKh)
        if backend == SDPA:
            return self._padded(q_NHh, k_NKh, v_NKh)
        function = varlen.FUNCTIONS[backend]()
        assert function is not None, f"{backend} is not installed"
        seen_rows, seen_offsets, most = self._seen
        if seen_rows is not None:
            k_NKh, v_NKh = k_NKh[seen_rows], v_NKh[seen_rows]
        offsets = self.cu_seqlens, seen_offsets
        return function(q_NHh, k_NKh, v_NKh, *offsets, self.max_seqlen, most)

    @cached_property
    def _families(self) -> object:
        """The segments as "cpu" takes them."""
        return native.families(self._offsets.astype(np.int32), self.prefixes)

    @cached_property
    def _seen(self) -> tuple[Tensor | None, Tensor, int]:
        """The rows that segments see, end to end (None: as they lie), their offsets, the most."""
        counts = self._lengths + self.prefixes[:, 1]
        if (counts == self._lengths).all():
            return None, self.cu_seqlens, self.max_seqlen
        # a segment's prefix, then its own rows
        starts = np.stack([self.prefixes[:, 0], self._offsets[:-1]], 1).flatten()
        rows = _ranges(starts, np.stack([self.prefixes[:, 1], self._lengths], 1).flatten())
        offsets = np.concatenate([[0], counts.cumsum()]).astype(np.int32)
        rows_, offsets_ = (torch.from_numpy(x).to(self.cu_seqlens.device) for x in (rows, offsets))
        return rows_, offsets_, int(counts.max())

    def _padded(self, q_NHh: Tensor, k_NKh: Tensor, v_NKh: Tensor) -> Tensor:
        padding = self.padding
        sizes = [bucket.segments * bucket.longest for bucket in padding.buckets]
        padded = [padding.pad(x).split(sizes) for x in (q_NHh, k_NKh, v_NKh)]
        grouped = q_NHh.shape[1] != k_NKh.shape[1]
        outputs = []
        for bucket, *own in zip(padding.buckets, *padded, strict=True):
            q, k, v = (x.unflatten(0, (bucket.segments, bucket.longest)) for x in own)
            if bucket.prefix_rows is not None:
                shape = bucket.segments, bucket.prefix
                k, v = (
                    torch.cat((x[bucket.prefix_rows].unflatten(0, shape), end), 1)
                    for x, end in ((k_NKh, k), (v_NKh, v))
                )
            out = F.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), bucket.mask,
                is_causal=bucket.mask is None, enable_gqa=grouped,
            )  # fmt: skip
            outputs.append(out.transpose(1, 2).flatten(0, 1))
        out_NHh = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return out_NHh if padding.slots is None else out_NHh.index_select(0, padding.slots)

    @cached_property
    def padding(self) -> _Padding:
        """How "sdpa" lays out the rows."""
        lengths, device = self._lengths, self.cu_seqlens.device
        order = np.lexsort((-lengths, self.prefixes[:, 1]))
        order = order[lengths[order] > 0]
        starts = np.zeros_like(lengths)  # first padded row of each segment
        buckets: list[_Bucket] = []
        num_padded = 0
        while len(order):
            longest, prefix = int(lengths[order[0]]), int(self.prefixes[order[0], 1])
            fits = (self.prefixes[order, 1] == prefix) & (
                lengths[order] >= longest * self.shortest_share
            )
            count = len(fits) if fits.all() else int(fits.argmin())
            chosen, order = order[:count], order[count:]
            starts[chosen] = num_padded + longest * np.arange(count)
            rows = mask = None
            if prefix:
                begins = self.prefixes[chosen, 0]
                rows = torch.from_numpy(_ranges(begins, np.full(count, prefix))).to(device)
                mask = torch.ones(longest, prefix + longest, dtype=torch.bool, device=device)
                mask = mask.tril(prefix)
            buckets.append(_Bucket(count, longest, prefix, rows, mask))
            num_padded += count * longest
        slots = _ranges(starts, lengths)
        # segments of one length lie as they should already
        in_place = bool((slots == np.arange(self.num_rows)).all()) and num_padded == self.num_rows
        moved = None if in_place else torch.from_numpy(slots).to(device)
        return _Padding(buckets, num_padded, moved)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, ... of each length, end to end."""
    ends = lengths.cumsum()
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)
