"""pass@k, maj@k, best-of-k of each prompt, and bootstrap intervals over prompts and seeds.

Legend: P: prompts, n: samples a prompt, S: seeds, B: bootstrap resamples.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from fastrl.errors import UsageError

RESAMPLES = 2_000  # of the bootstrap
MAJORITY_DRAWS = 1_000  # subsets a prompt for maj@k
# of a test of size 5 % that has a power of 80 %, in standard errors: 1.96 + 0.84
DETECTABLE = 2.8


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4, ... up to n."""
    return [1 << i for i in range(n.bit_length())]


def pass_at_k(correct_P: np.ndarray, n: int, k: int) -> np.ndarray:
    """The chance of each prompt that one of k samples is right, unbiased: 1 - C(n-c, k) / C(n, k).

    `correct_P`: right samples of each prompt out of n (Chen et al. 2021, arXiv:2107.03374).
    """
    _check("pass", n, k)
    return np.array([1 - math.comb(n - int(c), k) / math.comb(n, k) for c in correct_P])


def best_of_k(scores_Pn: np.ndarray, correct_Pn: np.ndarray, k: int) -> np.ndarray:
    """The chance of each prompt that the sample of k with the largest score is right, unbiased.

    The mean over all subsets: the sample of rank i from below is the best of C(i, k-1) of the
    C(n, k). Equal scores share what is theirs evenly.
    """
    n = scores_Pn.shape[1]
    _check("best", n, k)
    weights_n = np.array([math.comb(i, k - 1) / math.comb(n, k) for i in range(n)])
    chances = []
    for scores_n, correct_n in zip(scores_Pn, correct_Pn, strict=True):
        values, which_n = np.unique(scores_n, return_inverse=True)
        count = np.bincount(which_n)
        right = np.bincount(which_n, weights=correct_n) / count
        ends = np.cumsum(count)
        mass = np.add.reduceat(weights_n, ends - count)
        assert len(mass) == len(values)
        chances.append(float(mass @ right))
    return np.array(chances)


def maj_at_k(ids_Pn: np.ndarray, correct_Pn: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """The chance of each prompt that the most frequent answer of k samples is right.

    Ties are broken evenly. `ids_Pn`: equal non-negative numbers for equal answers, -1 for none,
    which never votes. The k are drawn without replacement: every subset where there are at most
    MAJORITY_DRAWS, else that many seeded draws.
    """
    n = ids_Pn.shape[1]
    _check("maj", n, k)
    if math.comb(n, k) <= MAJORITY_DRAWS:
        from itertools import combinations

        subsets = np.array(list(combinations(range(n), k)), np.int64)
    else:
        rng = np.random.default_rng(seed)
        subsets = np.argsort(rng.random((MAJORITY_DRAWS, n)), axis=1)[:, :k]
    return np.array(
        [_majority(*prompt, subsets) for prompt in zip(ids_Pn, correct_Pn, strict=True)]
    )


def _majority(ids_n: np.ndarray, correct_n: np.ndarray, subsets: np.ndarray) -> float:
    """The mean over the subsets [C, k] of the share of right answers among the most frequent."""
    answers, index_n = np.unique(np.maximum(ids_n, -1), return_inverse=True)
    right_A = np.zeros(len(answers))
    right_A[index_n] = correct_n
    firsts_C = np.arange(len(subsets)) * len(answers)
    flat = (index_n[subsets] + firsts_C[:, None]).ravel()
    votes_CA = np.bincount(flat, minlength=len(subsets) * len(answers))
    votes_CA = votes_CA.reshape(len(subsets), -1) * (answers >= 0)  # no answer never votes
    won_CA = (votes_CA == votes_CA.max(1, keepdims=True)) & (votes_CA > 0)
    return float((won_CA @ right_A / np.maximum(1, won_CA.sum(1))).mean())


def _check(name: str, n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise UsageError(f"{name}@{k} needs 1 to {n} of the {n} samples; lower k or sample more")


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, its standard error, and what could have been detected."""

    mean: float
    low: float
    high: float
    error: float

    @property
    def detectable(self) -> float:
        """The smallest true difference from 0 that would be found with a chance of 80 %."""
        return DETECTABLE * self.error


def bootstrap_interval(
    values_P: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The 95 % percentile interval of the mean, prompts resampled with replacement, seeded."""
    values, counts = np.unique(values_P.astype(np.float64), return_counts=True)
    rng = np.random.default_rng(seed)
    means_B = rng.multinomial(len(values_P), counts / len(values_P), resamples) @ values
    means_B /= len(values_P)
    low, high = np.percentile(means_B, [2.5, 97.5])
    return float(low), float(high)


def estimate(values_SP: ArrayLike, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """The mean over seeds and prompts, both resampled with replacement and independently.

    Give the difference of two policies on the same prompts and seeds for a paired comparison. One
    less than there are is drawn of each, so that the error is right with few seeds too (Rao and Wu
    1988); where three seeds differ more than prompts, the interval still covers 0.85 and not 0.95.
    With one seed the interval is over prompts alone. Raises UsageError for no values.
    """
    values = np.atleast_2d(np.asarray(values_SP, np.float64))
    seeds, prompts = values.shape
    if not values.size:
        raise UsageError("there is nothing to estimate from: no prompt, or no seed")
    weights_BS, weights_BP = _weights(seeds, prompts, seed, resamples)
    means_B = (weights_BS * (weights_BP @ values.T)).sum(1)
    low, high = np.percentile(means_B, [2.5, 97.5])
    error = float(means_B.std(ddof=1))
    return Estimate(float(values.mean()), float(low), float(high), error)


def figure(values_SP: ArrayLike) -> dict[str, float]:
    """An estimate as plain numbers: mean, low, high, error and detectable."""
    found = estimate(values_SP)
    return {**asdict(found), "detectable": found.detectable}


@lru_cache(maxsize=8)  # a study has a thousand figures of few shapes
def _weights(seeds: int, prompts: int, seed: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """The share of each seed, [B, S], and of each prompt, [B, P], in the resamples."""
    rng = np.random.default_rng(seed)
    weights_BS, weights_BP = (
        rng.multinomial(max(1, n - 1), np.full(n, 1 / n), resamples) / max(1, n - 1)
        for n in (seeds, prompts)
    )
    return weights_BS, weights_BP
