"""pass@k, maj@k and intervals against brute force and simulation; an evaluation from end to end."""

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from fastrl.datasources import Example
from fastrl.errors import UsageError
from fastrl.evaluate import MAJORITY_DRAWS, bootstrap_interval, evaluate, maj_at_k, pass_at_k
from fastrl.sampler import PromptKey, SamplingParams
from fastrl.types import Completion


def subsets(n, k):
    return [list(s) for s in combinations(range(n), k)]


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_mean_over_all_subsets(n):
    for k in range(1, n + 1):
        for c in range(n + 1):
            correct = [i < c for i in range(n)]
            hits = [any(correct[i] for i in s) for s in subsets(n, k)]
            assert pass_at_k(np.array([c]), n, k) == pytest.approx(sum(hits) / len(hits))


def test_pass_at_k_of_many_prompts_and_many_samples():
    counts = np.array([0, 1, 3, 4])
    one_by_one = [pass_at_k(counts[i : i + 1], 4, 2) for i in range(4)]
    assert pass_at_k(counts, 4, 2) == pytest.approx(np.mean(one_by_one))
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
        expected = np.mean([majority(i, c, k) for i, c in zip(ids, correct, strict=True)])
        assert maj_at_k(ids, correct, k) == pytest.approx(expected)


def test_maj_at_k_draws_subsets_where_there_are_too_many():
    ids = np.array([[0] * c + list(range(1, 14 - c)) for c in range(1, 6)])
    correct = ids == 0
    assert math.comb(13, 6) > MAJORITY_DRAWS
    expected = np.mean([majority(i, c, 6) for i, c in zip(ids, correct, strict=True)])
    found = [maj_at_k(ids, correct, 6, seed) for seed in range(20)]
    assert found[3] == maj_at_k(ids, correct, 6, 3)
    assert len(set(found)) > 10
    assert max(abs(f - expected) for f in found) < 0.05
    assert np.mean(found) == pytest.approx(expected, abs=0.01)


def test_ties_are_broken_evenly_and_no_answer_has_no_vote():
    def maj(ids, right, k):
        ids = np.array([ids])
        return maj_at_k(ids, ids == right, k)

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


class Characters:
    """A tokenizer with one token a character."""

    def encode_chat(self, messages):
        return [ord(c) for m in messages for c in m["content"]]

    def decode(self, token_ids):
        return "".join(map(chr, token_ids))


class Script:
    """A sampler that says what it was told to; a text that ends in ~ ran out of tokens."""

    def __init__(self, *texts):
        self.texts = texts

    def generate(self, prompts, params, **keywords):
        self.call = {"prompts": prompts, "params": params, **keywords}
        return [[self.completion(t) for t in row] for row in self.texts]

    def completion(self, text):
        ids = tuple(map(ord, text))
        zeros = (0.0,) * len(ids)
        return Completion(ids, zeros, zeros, "length" if text.endswith("~") else "stop")


def run(*texts, golds=None, seed=0, **settings):
    golds = golds or ["7"] * len(texts)
    examples = [
        Example(50 + i, ({"role": "user", "content": f"q{i}"},), gold)
        for i, gold in enumerate(golds)
    ]
    sampler = Script(*texts)
    params = SamplingParams(n=len(texts[0]), seed=99)
    return evaluate(sampler, Characters(), examples, params, seed=seed, **settings), sampler.call


FIRST = [r"\boxed{7}", r"\boxed{7.0}", r"\boxed{8}", "no~"]
SECOND = [r"\boxed{ x  y}", r"\boxed{x y}", r"\boxed{7}", r"\boxed{8}~"]


def test_an_evaluation_samples_and_grades():
    evaluation, call = run(FIRST, SECOND, seed=3, stream="baseline", step=5)
    assert call["prompts"] == [(ord("q"), ord("0")), (ord("q"), ord("1"))]
    assert call["prompt_keys"] == [PromptKey(50), PromptKey(51)]
    assert (call["params"].seed, call["params"].n) == (3, 4)
    assert (call["stream"], call["step"]) == ("baseline", 5)
    assert evaluation.texts == [FIRST, SECOND]
    assert [[g.reason for g in row] for row in evaluation.grades] == [
        ["correct", "correct", "wrong", "no_answer"],
        ["wrong", "wrong", "correct", "wrong"],
    ]
    assert evaluation.answer_ids().tolist() == [[0, 0, 1, -1], [1, 1, 0, 2]]
    _, call = run(FIRST)
    assert (call["stream"], call["step"]) == ("eval", 0)


def test_every_prompt_is_graded_by_its_own_gold():
    evaluation, _ = run(FIRST, SECOND, FIRST, golds=["8", "x y", "1/0"])
    assert evaluation.correct_Pn.tolist() == [
        [False, False, True, False],
        [True, True, False, False],
        [False] * 4,  # a gold that cannot be read
    ]


def test_the_summary():
    evaluation, _ = run(FIRST, SECOND)
    summary = evaluation.summary()
    lengths = [len(t) for t in FIRST + SECOND]
    expected = {
        "pass@1": 3 / 8, "pass@2": (5 / 6 + 1 / 2) / 2, "pass@4": 1.0,
        "maj@1": 3 / 8, "maj@2": (2 / 3 + 1 / 4) / 2, "maj@4": 0.5,
        "accuracy": 3 / 8, "length_mean": np.mean(lengths), "num_prompts": 2, "num_samples": 4,
        "eos_share": 6 / 8, "truncated_share": 2 / 8, "no_answer_share": 1 / 8,
    }  # fmt: skip
    for key, value in expected.items():
        assert summary[key] == pytest.approx(value), key
    assert summary.keys() == {*expected, "ci95"}
    assert summary["ci95"] == list(bootstrap_interval(np.array([0.5, 0.25]), 0))
    assert all(type(v) in (int, float, list) for v in summary.values())  # as JSON wants them


def test_the_summary_asks_for_powers_of_two():
    for n, powers in ((1, {1}), (2, {1, 2}), (3, {1, 2}), (5, {1, 2, 4}), (8, {1, 2, 4, 8})):
        evaluation, _ = run([r"\boxed{7}"] * n)
        keys = {key for key in evaluation.summary() if "@" in key}
        assert keys == {f"{name}@{k}" for k in powers for name in ("pass", "maj")}


def test_more_samples_of_a_prompt_are_not_more_prompts():
    """The interval is over prompts: the same verdicts again make it no narrower."""
    texts = [[rf"\boxed{{{7 + i % 2}}}"] for i in range(20)]
    once, _ = run(*texts)
    often, _ = run(*([row[0]] * 16 for row in texts))
    assert once.summary()["ci95"] == often.summary()["ci95"]


def test_there_must_be_prompts():
    with pytest.raises(UsageError, match="there is no prompt to evaluate on"):
        evaluate(Script(), Characters(), [], SamplingParams(n=1), seed=0)
