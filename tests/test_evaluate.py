"""An evaluation from end to end."""

import numpy as np
import pytest

from fastrl.datasources import Example
from fastrl.errors import UsageError
from fastrl.evaluate import evaluate
from fastrl.sampler import PromptKey, SamplingParams
from fastrl.statistics import bootstrap_interval
from fastrl.types import Completion


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
