"""Own reward functions: TRL's signature, weights, and errors that name the row."""

import pytest

from fastrl.config import RewardConfig
from fastrl.errors import UsageError
from fastrl.rewards import Rewarder, RewardError
from fastrl.types import Completion, Prompt

MODULE = """
def length(completions, **columns):
    return [float(len(c)) for c in completions]

def matches(completions, answer, level, **columns):
    return [1.0 if a in c else None if l == "?" else 0.0
            for c, a, l in zip(completions, answer, level)]

def raises(completions, **columns):
    return [1.0 / (len(c) - 3) for c in completions]

def short(completions, **columns):
    return [0.0]

def strange(completions, **columns):
    return [0.0] * (len(completions) - 1) + ["high"]

def infinite(completions, **columns):
    return [float("inf")] * len(completions)

def number(completions, **columns):
    return 1.0

value = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def score(functions, texts, weights=(), levels=None):
    levels = levels or ["1"] * len(texts)
    prompts = [
        Prompt(i + 10, 0, ({"role": "user", "content": f"q{i}"},), (1,), "7", {"level": level})
        for i, level in enumerate(levels)
    ]
    completions = [Completion((5,), (-1.0,), (0.0,), "stop") for _ in texts]
    return Rewarder(RewardConfig(functions, weights)).score(prompts, completions, texts)


def test_the_verifier_is_the_default():
    right, wrong = score(("math",), [r"so \boxed{7}", r"so \boxed{8}"])
    assert (right.task_reward, wrong.task_reward) == (1.0, 0.0)
    assert right.grade.correct is True and right.grade.answer == "7"


def test_functions_are_summed_with_weights(module):
    names = ("math", "my_rewards:length")
    (one,) = score(names, [r"\boxed{7}"], weights=(2.0, 0.5))
    assert one.task_reward == 2.0 + 0.5 * 9


def test_columns_reach_the_function_and_none_is_no_verdict(module):
    found = score(("my_rewards:matches",), ["a7", "b", "c"], levels=["1", "1", "?"])
    assert [s.task_reward for s in found] == [1.0, 0.0, None]
    assert found[0].grade is not None  # the log's accuracy comes from the verifier all the same


@pytest.mark.parametrize(
    "name, said",
    [
        ("raises", r"raised ZeroDivisionError: .* on row 1 \(prompt 11\)"),
        ("short", "returned 1 values for 3 completions"),
        ("strange", r"returned 'high' on row 2 \(prompt 12\)"),
        ("infinite", r"returned inf on row 0"),
        ("number", "returned float for 3"),
    ],
)
def test_an_error_names_the_row(module, name, said):
    with pytest.raises(RewardError, match=said):
        score((f"my_rewards:{name}",), ["x", "xyz", "xy"])


@pytest.mark.parametrize(
    "name, said",
    [
        ("nonsense", "give 'math' or"),
        ("no_such_module_here:f", "cannot be imported"),
        ("my_rewards:none", "has no function"),
        ("my_rewards:value", "has no function"),
        ("my_rewards:", "give 'math' or"),
    ],
)
def test_a_name_that_is_none(module, name, said):
    with pytest.raises(UsageError, match=said):
        Rewarder(RewardConfig((name,)))


def test_counts_that_do_not_fit():
    with pytest.raises(UsageError, match="empty"):
        Rewarder(RewardConfig(()))
    with pytest.raises(UsageError, match="entries"):
        Rewarder(RewardConfig(("math",), (1.0, 2.0)))
