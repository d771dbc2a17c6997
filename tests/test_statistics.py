"""pass@k, maj@k, best-of-k and intervals against brute force and simulation."""

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from fastrl.errors import UsageError
from fastrl.statistics import (
    DETECTABLE,
    MAJORITY_DRAWS,
    best_of_k,
    bootstrap_interval,
    estimate,
    maj_at_k,
    pass_at_k,
    powers_of_two,
)


def subsets(n, k):
    return [list(s) for s in combinations(range(n), k)]


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_mean_over_all_subsets(n):
    for k in range(1, n + 1):
        for c in range(n + 1):
            correct = [i < c for i in range(n)]
            hits = [any(correct[i] for i in s) for s in subsets(n, k)]
            assert pass_at_k(np.array([c]), n, k)[0] == pytest.approx(sum(hits) / len(hits))


def test_pass_at_k_of_many_prompts_and_many_samples():
    counts = np.array([0, 1, 3, 4])
    assert pass_at_k(counts, 4, 2) == pytest.approx([0, 0.5, 1, 1])
    assert pass_at_k(np.array([1]), 4096, 1024) == pytest.approx(0.25)
    assert pass_at_k(np.array([4096]), 4096, 4096) == 1


@pytest.mark.parametrize("k", [-1, 0, 5])
def test_a_k_that_the_samples_do_not_give(k):
    with pytest.raises(UsageError, match=rf"pass@{k} needs 1 to 4 of the 4 samples; lower k or"):
        pass_at_k(np.array([2]), 4, k)
    with pytest.raises(UsageError, match=rf"maj@{k} needs 1 to 4 of the 4 samples; lower k or"):
        maj_at_k(np.zeros((1, 4), np.int64), np.ones((1, 4), bool), k)


def majority(ids, correct, k):
    """maj@k of one prompt, every subset by itself."""
    total = 0.0
    every = subsets(len(ids), k)
    for subset in every:
        votes = Counter(ids[i] for i in subset if ids[i] >= 0)
        winners = [a for a, n in votes.items() if n == max(votes.values())]
        right = {ids[i] for i in subset if correct[i]}
        total += sum(a in right for a in winners) / max(len(winners), 1)
    return total / len(every)


def answers(rng, prompts, n):
    """ids and verdicts: one answer of a prompt is right, at most; some samples have none."""
    ids = rng.integers(-1, 4, (prompts, n))
    return ids, ids == rng.integers(0, 5, (prompts, 1))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_maj_at_k_is_the_mean_over_all_subsets(n):
    ids, correct = answers(np.random.default_rng(n), 6, n)
    for k in range(1, n + 1):
        expected = [majority(i, c, k) for i, c in zip(ids, correct, strict=True)]
        assert maj_at_k(ids, correct, k) == pytest.approx(np.array(expected))


def test_maj_at_k_draws_subsets_where_there_are_too_many():
    ids = np.array([[0] * c + list(range(1, 14 - c)) for c in range(1, 6)])
    correct = ids == 0
    assert math.comb(13, 6) > MAJORITY_DRAWS
    expected = np.mean([majority(i, c, 6) for i, c in zip(ids, correct, strict=True)])
    found = [float(maj_at_k(ids, correct, 6, seed).mean()) for seed in range(20)]
    assert found[3] == maj_at_k(ids, correct, 6, 3).mean()
    assert len(set(found)) > 10
    assert max(abs(f - expected) for f in found) < 0.05
    assert np.mean(found) == pytest.approx(expected, abs=0.01)


def test_ties_are_broken_evenly_and_no_answer_has_no_vote():
    def maj(ids, right, k):
        ids = np.array([ids])
        return maj_at_k(ids, ids == right, k)[0]

    assert maj([0, 1], 0, 2) == 0.5
    assert maj([0, 1, 2, 2], 2, 4) == 1
    assert maj([0, 1, 2, 2], 0, 4) == 0
    assert maj([-1, -1, -1, 0], 0, 4) == 1
    assert maj([-1, -1], 0, 2) == 0
    assert maj([-1, 0, 1], 0, 1) == pytest.approx(1 / 3)


def test_the_interval_covers_the_truth_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(400):
        rate = rng.beta(2, 1, 60)  # of each prompt; the mean over prompts is 2/3
        values = rng.binomial(8, rate) / 8
        low, high = bootstrap_interval(values, trial, 1000)
        covered += low <= 2 / 3 <= high
    assert 0.915 < covered / 400 < 0.98  # 0.95, three standard errors and the bootstrap's bias


def test_the_interval_is_that_of_the_mean():
    rng = np.random.default_rng(1)
    values = rng.random(300)
    low, high = bootstrap_interval(values, 0)
    half = 1.96 * values.std() / math.sqrt(300)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert bootstrap_interval(np.full(9, 0.25), 0) == (0.25, 0.25)
    assert bootstrap_interval(np.array([True, False] * 8), 0)[1] < 1


def test_the_interval_is_the_seeds():
    values = np.random.default_rng(2).random(40)
    found = [bootstrap_interval(values, seed, 200) for seed in (0, 1, 2, 2**32 - 1, 2**40 + 3)]
    assert len(set(found)) == 5
    assert found == [
        bootstrap_interval(values, seed, 200) for seed in (0, 1, 2, 2**32 - 1, 2**40 + 3)
    ]


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_best_of_k_is_the_mean_over_all_subsets(n):
    rng = np.random.default_rng(n)
    scores = rng.integers(0, 4, (5, n)).astype(float)  # many are equal
    correct = rng.random((5, n)) < 0.5
    for k in range(1, n + 1):
        expected = []
        for s, c in zip(scores, correct, strict=True):
            hits = []
            for subset in map(list, combinations(range(n), k)):
                best = [i for i in range(n) if s[i] == s[subset].max()]
                # of equal scores any stands for all: they are the same response, or as good
                hits.append(c[best].mean())
            expected.append(np.mean(hits))
        assert best_of_k(scores, correct, k) == pytest.approx(np.array(expected))
    assert best_of_k(scores, correct, 1) == pytest.approx(correct.mean(1))
    with pytest.raises(UsageError, match="best@0 needs 1"):
        best_of_k(scores, correct, 0)


def test_powers_of_two():
    assert powers_of_two(1) == [1]
    assert powers_of_two(16) == [1, 2, 4, 8, 16]
    assert powers_of_two(17) == [1, 2, 4, 8, 16]


def test_an_estimate_covers_the_truth_over_seeds_and_prompts():
    """Every seed has its own level, every prompt its own: both must be resampled."""
    rng = np.random.default_rng(0)
    covered, alone = 0, 0
    for trial in range(300):
        values = rng.normal(0, 0.1, (10, 1)) + rng.normal(0, 0.3, (1, 100)) + 0.5
        found = estimate(values + rng.normal(0, 0.2, (10, 100)), trial, 500)
        covered += found.low <= 0.5 <= found.high
        low, high = bootstrap_interval(values.mean(0), trial, 500)
        alone += low <= 0.5 <= high
    assert 0.88 < covered / 300 <= 0.99
    assert alone / 300 < 0.85  # prompts alone would claim too much


def test_an_estimate_of_one_seed_is_over_its_prompts():
    values = np.random.default_rng(3).random(400)
    found = estimate(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.std() / 20, rel=0.1)
    assert found.detectable == pytest.approx(DETECTABLE * found.error)
    assert estimate(values) == found
    constant = estimate(np.full((3, 5), 0.25))
    assert (constant.low, constant.high) == pytest.approx((0.25, 0.25))
    with pytest.raises(UsageError, match="nothing to estimate"):
        estimate(np.zeros((2, 0)))


def test_an_effect_of_the_detectable_size_is_found_four_times_in_five():
    rng = np.random.default_rng(5)
    found = 0
    size = DETECTABLE / math.sqrt(200)
    for trial in range(300):
        found += estimate(rng.normal(size, 1, 200), trial, 500).low > 0
    assert 0.73 < found / 300 < 0.87


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_error_of_few_seeds_is_right(seeds):
    """With n draws of n seeds it would be too small by sqrt(1 - 1 / n)."""
    rng = np.random.default_rng(seeds)
    means, squares = [], []
    for _ in range(600):
        found = estimate(rng.normal(0, 1, (seeds, 1)) + rng.normal(0, 0.1, 20), resamples=400)
        means.append(found.mean)
        squares.append(found.error**2)
    assert np.sqrt(np.mean(squares)) == pytest.approx(np.std(means), rel=0.09)
    assert 1 - math.sqrt(1 - 1 / seeds) > 0.1  # what would be missing is more than is allowed
