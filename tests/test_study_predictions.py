"""What samples of a base say of an optimum, against enumeration."""

import math

import numpy as np
import pytest

from fastrl.config import ObjectiveConfig
from fastrl.errors import UsageError
from fastrl.objectives import make_objective
from fastrl.study.predictions import (
    MISSED,
    Drawn,
    correlation,
    covariance,
    log_z_bounds,
    optimum_accuracy,
)

RESPONSES = 200


def world(seed: int) -> tuple[np.ndarray, np.ndarray, list[tuple[int, ...]]]:
    """Probabilities of responses of several lengths, and which are right."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(RESPONSES, 0.15))
    responses = [(i,) * (1 + i % 5) for i in range(RESPONSES)]
    return p, rng.random(RESPONSES) < 0.4, responses


def draw(p: np.ndarray, right: np.ndarray, responses: list, n: int, seed: int) -> Drawn:
    index = np.random.default_rng(seed).choice(len(p), n, p=p)
    return Drawn(np.log(p[index]), right[index], [responses[i] for i in index])


def exact(objective, p, right, responses) -> float:
    """The accuracy of the optimum, by its formula."""
    lengths = np.array([len(y) for y in responses], float)
    alpha, norm = objective.alpha or 1.0, objective.length_power
    weight = p * np.exp((alpha - 1) * np.log(p) / lengths**norm)
    if objective.beta:
        weight = weight * np.exp(right / objective.beta)
    return float(weight @ right / weight.sum())


OBJECTIVES = [
    ObjectiveConfig(name="sharpen", alpha=1.0),
    ObjectiveConfig(name="sharpen", alpha=0.5),
    ObjectiveConfig(name="sharpen", alpha=1.25),
    ObjectiveConfig(name="sharpen", alpha=4.0),
    ObjectiveConfig(name="sharpen", alpha=2.0, length_norm="mean"),
    ObjectiveConfig(name="tilted", alpha=2.0, beta=1.0),
    ObjectiveConfig(name="task", beta=0.5),
]


@pytest.mark.parametrize("config", OBJECTIVES, ids=lambda c: f"{c.name}-{c.alpha}-{c.length_norm}")
def test_the_accuracy_of_the_optimum_is_found(config):
    """Over worlds and draws it is right on average; one that left out what was not seen is not."""
    objective = make_objective(config)
    errors, naive = [], []
    for seed in range(60):
        p, right, responses = world(seed)
        drawn = draw(p, right, responses, 256, seed)
        truth = exact(objective, p, right, responses)
        errors.append(optimum_accuracy(objective, drawn) - truth)
        naive.append(drawn.correct_n.mean() - truth)
    assert abs(np.mean(errors)) < 3 * np.std(errors) / math.sqrt(60) + 0.004
    assert np.std(errors) < 0.05
    if config.alpha == 4.0:
        assert np.std(naive) > 5 * np.std(errors)


def test_all_seen_is_exact():
    p, right, responses = world(1)
    many = Drawn(np.log(np.tile(p, 400)), np.tile(right, 400), responses * 400)
    objective = make_objective(ObjectiveConfig(name="sharpen", alpha=3.0))
    expected = exact(objective, p, right, responses)
    assert optimum_accuracy(objective, many) == pytest.approx(expected, abs=1e-4)


def test_optima_without_a_density():
    lp = np.log([0.5, 0.3, 0.2])
    drawn = Drawn(lp, np.array([False, True, True]), [(1,), (2, 2), (3,)])
    likelihood = ObjectiveConfig(name="sharpen", mode="likelihood")
    assert optimum_accuracy(make_objective(likelihood), drawn) == 0
    mean = ObjectiveConfig(name="sharpen", mode="likelihood", length_norm="mean")
    assert optimum_accuracy(make_objective(mean), drawn) == 1  # log .3 / 2 is the largest
    assert optimum_accuracy(make_objective(ObjectiveConfig(name="task")), drawn) == 1
    with pytest.raises(UsageError, match="has no density"):
        make_objective(likelihood).log_target(*[__import__("torch").ones(1)] * 3)


def test_a_certain_response():
    drawn = Drawn(np.zeros(4), np.ones(4, bool), [(1,)] * 4)
    assert optimum_accuracy(make_objective(ObjectiveConfig(name="sharpen")), drawn) == 1
    assert log_z_bounds(drawn, 4.0) == (0.0, 0.0)


def test_covariance_is_the_slope_of_the_accuracy():
    p, right, responses = world(3)
    drawn = draw(p, right, responses, 200_000, 0)
    h = 1e-4
    ends = []
    for alpha in (1 - h, 1 + h):
        objective = make_objective(ObjectiveConfig(name="sharpen", alpha=alpha))
        ends.append(exact(objective, p, right, responses))
    assert covariance(drawn) == pytest.approx((ends[1] - ends[0]) / (2 * h), abs=0.01)
    r, lp = drawn.correct_n, drawn.logprob_n
    assert correlation(drawn) == pytest.approx(np.corrcoef(r, lp)[0, 1])
    assert math.isnan(correlation(Drawn(lp[:3], np.ones(3, bool), responses[:3])))


@pytest.mark.parametrize("n", [32, 256])
@pytest.mark.parametrize("alpha", [1.25, 4.0])
def test_log_z_lies_between_its_bounds(alpha, n):
    outside = 0
    for seed in range(200):
        p, right, responses = world(seed)
        low, high = log_z_bounds(draw(p, right, responses, n, seed), alpha)
        truth = math.log((p**alpha).sum())
        assert low <= truth + 1e-12  # always
        outside += truth > high
        assert high - low < {1.25: 1.2, 4.0: 0.7}[alpha] or n < 256
    assert outside / 200 <= MISSED


@pytest.mark.parametrize("config", OBJECTIVES, ids=lambda c: f"{c.name}-{c.alpha}-{c.length_norm}")
def test_long_responses_are_no_less_likely_than_can_be_computed(config):
    """Of a thousand tokens p is far below the least float; only ratios count, and they are left."""
    lp = np.array([-900.0, -901.0, -902.0, -900.5])
    right = np.array([True, False, True, False])
    responses = [(i,) * 1000 for i in range(4)]
    objective = make_objective(config)
    found = optimum_accuracy(objective, Drawn(lp, right, responses))
    # each was seen once, with a chance of n p: its weight over that
    tilt = right / config.beta if config.beta else 0.0
    alpha, norm = objective.alpha or 1.0, objective.length_power
    log_weight = (alpha - 1) * lp / 1000**norm + tilt
    weight = np.exp(log_weight - log_weight.max())
    assert found == pytest.approx(weight @ right / weight.sum())


def test_log_z_of_long_responses():
    lp = np.array([-900.0, -901.0])
    low, high = log_z_bounds(Drawn(lp, np.array([True, False]), [(1,), (2,)]), 4.0)
    assert low == pytest.approx(-3600 + math.log1p(math.exp(-4)))
    assert low < high < 0  # next to nothing was seen: it may lie anywhere below


def test_one_sample_says_nothing_of_a_slope():
    one = Drawn(np.array([-1.0]), np.array([True]), [(1,)])
    assert math.isnan(covariance(one)) and math.isnan(correlation(one))
