"""The nouns that every loss kernel takes: rows of logits, and how a loss of rows is made.

Legend: N: rows (tokens), V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fastrl.losses import LossSpec, Rows


@dataclass(frozen=True)
class LogitRows:
    """Logits x with what turns them into z = softcap(logit_scale x) / T, and their targets."""

    logits_NV: Tensor  # fp32, bf16, fp16 or fp64; the last axis contiguous
    targets_N: Tensor  # int64, in 0..valid-1 where unmasked
    mask_N: Tensor | None  # bool, True: computed; None: every row
    temperature: float | Tensor  # a number, or one per row
    valid: int  # columns from here on take no part
    softcap: float | None = None
    logit_scale: float = 1.0

    def select(self, index: Tensor) -> LogitRows:
        """Some of the rows, all of them unmasked."""
        t = self.temperature
        return replace(
            self,
            logits_NV=self.logits_NV[index],
            targets_N=self.targets_N[index],
            mask_N=None,
            temperature=t[index] if isinstance(t, Tensor) else t,
        )

    def unmasked(self) -> Tensor:
        """The indices of the unmasked rows."""
        if self.mask_N is None:
            return torch.arange(len(self.targets_N), device=self.targets_N.device)
        return self.mask_N.nonzero().squeeze(1)


@dataclass(frozen=True)
class Filters:
    """Which columns may be chosen, a number a row each."""

    top_k_N: Tensor  # int32; 0: no limit
    top_p_N: Tensor  # fp32 (fp64 for fp64 logits); 1: no limit
    min_p_N: Tensor  # the same; 0: no limit
    none: bool  # known on the host: no row has a limit

    @classmethod
    def nothing(cls, rows: int, device: torch.device, dtype: torch.dtype) -> Filters:
        """Every column may be chosen."""
        top_k_N = torch.zeros(rows, dtype=torch.int32, device=device)
        least_N = torch.zeros(rows, dtype=dtype, device=device)
        return cls(top_k_N, torch.ones_like(least_N), least_N, True)

    def select(self, index: Tensor) -> Filters:
        """Those of some of the rows."""
        return Filters(self.top_k_N[index], self.top_p_N[index], self.min_p_N[index], self.none)


@dataclass(frozen=True)
class Noise:
    """Where the random numbers of rows come from."""

    counters_N4: Tensor  # int64, 32 bits each
    key: tuple[int, int]  # 32 bits each

    def select(self, index: Tensor) -> Noise:
        """That of some of the rows."""
        return Noise(self.counters_N4[index], self.key)


class Kernels(Protocol):
    """What a backend offers; results are fp32 (fp64 for fp64 logits), 0 in masked rows."""

    WRITES_HALVES: bool  # whether the gradient of fp32 logits may be in half precision

    def statistics(self, x: LogitRows) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies, [N] each."""

    def extras(self, x: LogitRows, thresholds_N: Tensor | None) -> tuple[Tensor, ...]:
        """Log-probs, entropies, sum p^2, largest p, argmax (int64), log of the kept mass; [N] each.

        The argmax is -1 in masked rows and in rows that hold a NaN; without thresholds, which are
        of softcap(logit_scale x), everything is kept.
        """

    def gradient(self, x: LogitRows, a_N: Tensor, g_N: Tensor, out_NV: Tensor) -> None:
        """Write dL/dlogits from a = dL/dlogprob and g = dL/dentropy; `out_NV` may be the logits."""

    def policy_loss(
        self, x: LogitRows, rows: Rows, spec: LossSpec, scale: Tensor, out_NV: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses before `scale`, log-probs, entropies [N]; the scaled gradient in `out_NV`."""

    def sample(self, x: LogitRows, filters: Filters, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, their log-probs, logs of the kept mass [N]; targets take no part, nor a mask.

        A token is -1, and its numbers are NaN, where a row holds a NaN, +inf or nothing finite.
        """


def by_row(reduction: Callable[..., Tensor], *x_CV: Tensor) -> Tensor:
    """A reduction of each row, with the same bits whatever the number of rows and threads.

    torch splits the sum of one row alone over its threads, and of several rows never a row.
    """
    if len(x_CV[0]) != 1:
        return reduction(*x_CV)
    return reduction(*(torch.cat([x, x]) for x in x_CV))[:1]


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What inputs of `dtype` are computed in: fp64 for fp64, fp32 for the rest."""
    return torch.float64 if dtype == torch.float64 else torch.float32
