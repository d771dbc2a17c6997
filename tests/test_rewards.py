"""Reward functions by name or one's own: TRL's signature, weights, errors that name the row."""

import pytest

from fastrl.config import (
    Config,
    DataConfig,
    EvalConfig,
    ObjectiveConfig,
    RewardConfig,
    SamplingConfig,
)
from fastrl.errors import UsageError
from fastrl.grading import grade
from fastrl.rewards import Rewarder, RewardError
from fastrl.run import assemble
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

def tokens(completion_ids, **columns):  # as some of TRL's own
    return [float(sum(ids)) for ids in completion_ids]

def ours(completions, prompts, answer, completion_ids, **columns):
    assert (completions, prompts, answer, completion_ids) == (["x"], ["q0"], ["7"], [[5]])
    assert columns == {"level": ["1"]}
    return [1.0]

value = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def score(functions, texts, weights=(), levels=None, columns=None, tokens=None, **settings):
    levels = levels or ["1"] * len(texts)
    prompts = [
        Prompt(
            i + 10,
            0,
            ({"role": "user", "content": f"q{i}"},),
            (1,),
            "7",
            {"level": level, **(columns or {})},
        )
        for i, level in enumerate(levels)
    ]
    completions = [
        Completion(ids, (-1.0,) * len(ids), (0.0,) * len(ids), "stop")
        for ids in tokens or [(5,)] * len(texts)
    ]
    rewarder = Rewarder(RewardConfig(functions, weights, **settings), max_tokens=10)
    return rewarder.score(prompts, completions, texts, grade(texts, [p.answer for p in prompts]))


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


def test_rule_rewards_stand_beside_the_verifier():
    text = r"<think>so</think><answer>\boxed{7}</answer>"
    names = ("math", "format_tags", "soft_overlong", "repetition")
    tokens = [(1, 2, 3), (5,) * 9, (5,) * 10]
    found = score(names, [text, text, "7"], (1.0, 0.5, 0.25, 2.0), tokens=tokens)
    # of 10 tokens the last two are the buffer; nine fives have 7 triples, all but one seen before
    expected = [1.5, 1.5 - 0.25 / 2 - 2 * 6 / 7, -0.25 - 2 * 7 / 8]
    assert [s.task_reward for s in found] == pytest.approx(expected)
    assert [s.grade.correct for s in found] == [True, True, False]


def test_rule_rewards_have_settings():
    (one,) = score(("format_tags",), ["<a>1</a><b>2</b>"], tags=("a", "b"))
    assert one.task_reward == 1.0
    four = [(5,) * 4]
    (two,) = score(("soft_overlong",), ["x"], tokens=four, max_tokens=4, buffer_tokens=4)
    assert two.task_reward == -1.0
    (two,) = score(("soft_overlong",), ["x"], tokens=four, max_tokens=8, buffer_tokens=8)
    assert two.task_reward == -0.5
    (three,) = score(("repetition",), ["x"], tokens=four, ngram_tokens=2, max_penalty=3.0)
    assert three.task_reward == pytest.approx(-3 * 2 / 3)


@pytest.mark.parametrize(
    "name, settings, said",
    [
        ("format_tags", {"tags": ()}, "'format_tags' cannot be made: reward.tags is"),
        ("soft_overlong", {"buffer_tokens": 11}, "reward.buffer_tokens is 11; .* 10$"),
        ("repetition", {"ngram_tokens": 0}, "reward.ngram_tokens is 0"),
        ("repetition", {"max_penalty": -1.0}, "reward.max_penalty is -1.0"),
    ],
)
def test_a_setting_that_cannot_be(name, settings, said):
    with pytest.raises(UsageError, match=said):
        Rewarder(RewardConfig((name,), **settings), max_tokens=10)
    Rewarder(RewardConfig(**settings))  # of no function that is used


def test_chance_is_another_when_a_prompt_is_drawn_again():
    """Else a policy could learn by heart what a prompt of a small data set pays."""
    rewarder = Rewarder(RewardConfig(("random",)))
    said = [Completion((7, 1), (0.0, 0.0), (0.0, 0.0), "stop")] * 64

    def rewards(draw):
        asked = [({"role": "user", "content": f"{i}"},) for i in range(64)]
        prompts = [Prompt(i, draw, messages, (1,), "1") for i, messages in enumerate(asked)]
        grades = grade(["x"] * 64, ["1"] * 64)
        return [s.task_reward for s in rewarder.score(prompts, said, ["x"] * 64, grades)]

    first, second = rewards(0), rewards(1)
    assert first == rewards(0)
    assert 16 < sum(a != b for a, b in zip(first, second, strict=True)) < 48


def test_overlong_needs_a_length():
    with pytest.raises(UsageError, match="reward.max_tokens is 0"):
        Rewarder(RewardConfig(("soft_overlong",)))
    run = assemble(
        Config(
            objective=ObjectiveConfig("task"),
            reward=RewardConfig(("soft_overlong",)),
            sampling=SamplingConfig(max_tokens=48),
            data=DataConfig(limit=4),
            eval=EvalConfig(prompts=0, test_prompts=0),
        )
    )
    assert run.rewarder.functions["soft_overlong"].max_tokens == 48


def test_a_function_of_the_tokens_alone(module):
    found = score(("my_rewards:tokens",), ["x", "y"], tokens=[(1, 2), (3,)])
    assert [s.task_reward for s in found] == [3.0, 3.0]


def test_columns_of_the_data_do_not_take_the_place_of_ours(module):
    taken = {"completions": "theirs", "prompts": "theirs", "answer": "8", "completion_ids": [1]}
    (one,) = score(("my_rewards:ours",), ["x"], columns=taken)
    assert one.task_reward == 1.0


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
        ("nonsense", "give .math., .*, .repetition., .random. or PACKAGE"),
        ("no_such_module_here:f", "cannot be imported"),
        ("my_rewards:none", "has no function"),
        ("my_rewards:value", "has no function"),
        ("my_rewards:", "give 'math', "),
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
