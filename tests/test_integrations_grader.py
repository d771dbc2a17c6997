"""The verifier as TRL's and verl's reward function: their signatures, inputs and conventions."""

import importlib.util
import pickle
import subprocess
import sys
import threading
import warnings

import pytest

from fastrl.errors import UsageError
from fastrl.integrations import grader
from fastrl.integrations.grader import (
    SoftOverlong,
    accuracy_reward,
    compute_score,
    format_tags,
    repetition,
)

CHATS = [
    [{"role": "assistant", "content": r"My answer is \boxed{\frac{63}{400}}"}],
    [{"content": r"\boxed{\frac{64}{400}}"}],
    [{"content": r"\boxed{1}"}, {"content": r"no: \boxed{0.5}"}],
    [{"content": "the answer is 7"}],
]
SOLUTIONS = [r"\frac{63}{400}", "63/400", r"so it is $\boxed{\frac{1}{2}}$.", "7"]
TRL_COLUMNS = {
    "prompts": [[{"role": "user", "content": "?"}]] * 4,
    "completion_ids": [[1, 2]] * 4,
    "trainer_state": object(),
    "log_metric": lambda name, value: None,
    "mode": ["flexible"] * 4,  # a column of the data, no setting
}


def test_chats_and_texts_are_graded_alike():
    expected = [1.0, 0.0, 1.0, 0.0]
    assert accuracy_reward(completions=CHATS, solution=SOLUTIONS, **TRL_COLUMNS) == expected
    assert accuracy_reward([chat[-1]["content"] for chat in CHATS], SOLUTIONS) == expected
    assert accuracy_reward([], []) == []


def test_a_solution_that_cannot_be_read_gives_no_reward():
    completions = [r"\boxed{7}"] * 5
    solutions = ["1/0", "", None, r"\boxed{}", r"\boxed{1/0}"]
    assert accuracy_reward(completions, solutions) == [None] * 5


def test_a_solution_is_its_last_box_or_itself():
    cases = [
        (r"first \boxed{5}, then \boxed{7}", r"\boxed{7}", 1.0),
        (r"first \boxed{5}, then \boxed{7}", r"\boxed{5}", 0.0),
        (r"\boxed{1} and \boxed{2}", r"\boxed{2, 1}", 1.0),  # side by side they are a list
        (r"\fbox{\frac{1}{2}}", r"\boxed{0.5}", 1.0),
        (r"<think>\boxed{5}</think> \boxed{7}", r"\boxed{7}", 1.0),
        (r"\text{unboxed}", r"\boxed{\text{unboxed}}", 1.0),
        (7, r"\boxed{7}", 1.0),
    ]
    for solution, completion, reward in cases:
        assert accuracy_reward([completion], [solution]) == [reward], solution


def test_the_table_of_completions_is_told_why():
    told = {}
    accuracy_reward(CHATS, SOLUTIONS, log_extra=told.__setitem__)
    assert told == {
        "solution": SOLUTIONS,
        "answer": [r"\frac{63}{400}", r"\frac{64}{400}", "0.5", None],
        "reason": ["correct", "wrong", "correct", "no_answer"],
    }


def test_it_works_outside_of_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.extend(accuracy_reward(CHATS, SOLUTIONS)))
    thread.start()
    thread.join()
    assert found == [1.0, 0.0, 1.0, 0.0]


def test_it_agrees_with_trls_own_function():
    """On what TRL's tests grade; needs TRL with Math-Verify."""
    rewards = pytest.importorskip("trl.rewards")
    pytest.importorskip("math_verify")
    completions = [
        r"\boxed{\frac{63}{400}}", r"\boxed{\frac{63}{400}}", r"\boxed{\frac{64}{400}}",
        r"\boxed{3}", r"\boxed{0.1575}",
    ]  # fmt: skip
    solutions = [r"\frac{63}{400}", "63/400", r"\frac{63}{400}", "6", r"\boxed{\frac{63}{400}}"]
    chats = [[{"role": "assistant", "content": text}] for text in completions]
    assert accuracy_reward(chats, solutions) == rewards.accuracy_reward(chats, solutions)
    ids = [[1] * 50, [1] * 90, [1] * 110, [1, 2, 3] * 30]
    theirs = rewards.get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    assert SoftOverlong(100, 20)(completion_ids=ids) == pytest.approx(theirs(completion_ids=ids))


def test_rule_rewards_take_trls_columns():
    text = [{"role": "assistant", "content": "<think>a</think><answer>7</answer>"}]
    columns = TRL_COLUMNS | {"completion_ids": [[1, 2, 3, 4], [5] * 5]}
    found = [f(completions=[text, CHATS[0]], **columns) for f in (format_tags, repetition)]
    assert found == [[1.0, 0.0], pytest.approx([0.0, -2 / 3])]
    assert SoftOverlong(5)(completions=[text, CHATS[0]], **columns) == [0.0, -1.0]
    assert all(f.__name__ for f in (accuracy_reward, format_tags, repetition, SoftOverlong(5)))
    assert pickle.loads(pickle.dumps(accuracy_reward)) is accuracy_reward


def test_verl_calls_with_names_and_gets_a_number():
    def score(solution_str, ground_truth, **settings):
        return compute_score(
            data_source="math",
            solution_str=solution_str,
            ground_truth=ground_truth,
            extra_info={"index": 3},
            **settings,
        )

    assert score(r"so \boxed{7}<|im_end|>", "7") == 1.0
    assert score(r"so \boxed{8}", "7") == 0.0
    assert score(r"so \boxed{8}", ["7", "8"]) == 1.0
    assert score(r"so \boxed{8}", 8) == 1.0
    assert score("#### 8", "8") == 0.0
    assert score("#### 8", "8", mode="hash4") == 1.0
    assert score(r"\boxed{1}\boxed{2}\boxed{3}\boxed{4}", "4") == 0.0
    assert score(r"\boxed{1}\boxed{2}\boxed{3}\boxed{4}", "4", shotgun="last") == 1.0
    assert compute_score("math", r"\boxed{7}", "7") == 1.0
    with pytest.raises(UsageError, match="mode is 'eval'"):
        score("7", "7", mode="eval")
    with pytest.raises(TypeError, match="shotguns"):
        score("7", "7", shotguns="last")


def test_a_ground_truth_that_cannot_be_read_is_said():
    for truth in ("1/0", None, [], ""):
        with pytest.warns(UserWarning, match="cannot be read"):
            assert compute_score("math", r"\boxed{7}", truth) == 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compute_score("math", "no box", "7") == 0.0


def test_verl_loads_the_file_by_its_path():
    spec = importlib.util.spec_from_file_location("custom_module", grader.__file__)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    assert loaded.compute_score("math", r"\boxed{7}", "7") == 1.0


def test_it_needs_neither_torch_nor_numpy():
    code = (
        "import sys; from fastrl.integrations.grader import accuracy_reward, format_tags\n"
        r"assert accuracy_reward(['\\boxed{7}'], ['7']) == [1.0] and format_tags([''])"
        "\nprint({'torch', 'numpy', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
