"""What samples of a base model alone say of each arm's optimum, before anything is trained.

Legend: P: prompts, n: samples a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch

from fastrl.objectives import Objective

MISSED = 0.05  # the chance that the upper bound of log Z is too low
NEGLIGIBLE = -100.0  # nats


@dataclass(frozen=True)
class Drawn:
    """Samples of p to one prompt, at the temperature of training."""

    logprob_n: np.ndarray  # lp of each, in nats
    correct_n: np.ndarray  # bool
    responses: Sequence[tuple[int, ...]]  # their tokens

    @cached_property
    def distinct(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """lp, verdict and length of each different response."""
        first = {response: i for i, response in reversed(list(enumerate(self.responses)))}
        index = np.array(sorted(first.values()))
        lengths = np.array([len(self.responses[i]) for i in index], np.float64)
        return self.logprob_n[index], self.correct_n[index], lengths


def optimum_accuracy(objective: Objective, drawn: Drawn) -> float:
    """The accuracy of an objective's optimum on a prompt, from samples of p.

    Both sums over responses, of the right ones and Z, are estimated without bias from the different
    ones that were seen, each over the chance 1 - (1 - p)^n that n samples have it (Horvitz and
    Thompson 1952). Of pure likelihood it is whether the likeliest seen is right; of the task reward
    alone, whether any is.
    """
    lp, right, lengths = drawn.distinct
    if not objective.uses_likelihood:
        return float(right.any())
    if objective.mode == "likelihood":
        normed = lp / lengths**objective.length_power
        return float(right[normed == normed.max()].mean())
    r = torch.from_numpy(right.astype(np.float64))
    log_weight = objective.log_target(torch.from_numpy(lp), r, torch.from_numpy(lengths)).numpy()
    n = len(drawn.responses)
    with np.errstate(divide="ignore"):  # of a response that is certain
        missed = n * np.log1p(-np.exp(np.clip(lp, NEGLIGIBLE, 0.0)))
    # of one whose p is nothing beside 1, n p, whose log is finite however small p is
    log_weight -= np.where(lp > NEGLIGIBLE, np.log(-np.expm1(missed)), math.log(n) + lp)
    weight = np.exp(log_weight - log_weight.max())
    return float(weight @ right / weight.sum())


def covariance(drawn: Drawn) -> float:
    """Cov(r, log p) in nats, unbiased: the slope of the accuracy of p^alpha in alpha, at 1.

    (The derivative of E[r] under p^alpha / Z in alpha is Cov(r, log p) under that.)
    """
    if len(drawn.logprob_n) < 2:
        return math.nan
    r, lp = drawn.correct_n.astype(np.float64), drawn.logprob_n
    return float((r - r.mean()) @ (lp - lp.mean()) / (len(lp) - 1))


def correlation(drawn: Drawn) -> float:
    """corr(r, log p) over the samples; nan where one of them does not vary."""
    r, lp = drawn.correct_n.astype(np.float64), drawn.logprob_n
    if r.std() == 0 or lp.std() < 1e-9:
        return math.nan
    return float(np.corrcoef(r, lp)[0, 1])


def log_z_bounds(drawn: Drawn, alpha: float) -> tuple[float, float]:
    """Between what log sum_y p(y)^alpha lies, in nats, for alpha of at least 1.

    Below: the sum over the responses that were seen. Above, wrong with a chance of MISSED at most:
    a response of probability q is missed by n samples with a chance of (1 - q)^n, and there are at
    most 1 / q of them, so that none above the q of (1 - q)^n / q = MISSED was missed; the unseen
    mass then weighs at most q^(alpha - 1) each.
    """
    lp, _, _ = drawn.distinct
    seen = float(np.logaddexp.reduce(alpha * lp))
    unseen_mass = 1.0 - float(np.exp(lp).sum())
    if unseen_mass <= 0:
        return seen, seen
    unseen = (alpha - 1) * math.log(_missable(len(drawn.responses))) + math.log(unseen_mass)
    return seen, float(np.logaddexp(seen, unseen))


@lru_cache(maxsize=8)
def _missable(n: int) -> float:
    """The q of (1 - q)^n / q = MISSED, by bisection; it falls with q."""
    low, high = 1e-12, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        log_chance = n * math.log1p(-middle) - math.log(middle) if middle < 1 else -math.inf
        low, high = (middle, high) if log_chance > math.log(MISSED) else (low, middle)
    return high
