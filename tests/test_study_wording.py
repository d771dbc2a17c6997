"""The same question in other words."""

import re

import pytest

from fastrl.datasources import load_examples
from fastrl.embedded.task import PROMPT
from fastrl.study.measure import _is_other
from fastrl.study.wording import reworded, rewordings

QUESTION = PROMPT + "3+4*(2-1)"


def test_the_embedded_task_in_nine_ways():
    found = {name: reword(QUESTION) for name, reword in rewordings("embedded").items()}
    assert found == {
        "a question mark": "Compute 3+4*(2-1)?",
        "an equals sign": "Compute 3+4*(2-1)=",
        "no verb": "3+4*(2-1)",
        "please": "please Compute 3+4*(2-1)",
        "now": "Compute 3+4*(2-1) now",
        "a space before": " Compute 3+4*(2-1)",
        "a line break after": "Compute 3+4*(2-1)\n",
        "double spaces": "Compute  3+4*(2-1)",
        "spaced operators": "Compute 3 + 4*(2 - 1)",
    }
    assert list(rewordings("embedded-long")) == list(found)


def test_other_data_in_nine_ways():
    text = "What is 2+3?\n\nPut it inside \\boxed{}."
    found = {name: reword(text) for name, reword in rewordings("rows.jsonl").items()}
    assert len(found) == len({*found.values()}) == 9
    for name, changed in found.items():
        assert changed != text
        assert "\\boxed{}" in changed
        assert re.sub(r"\s", "", text) in re.sub(r"\s", "", changed), name


@pytest.mark.parametrize("source", ["embedded", "rows.jsonl"])
def test_only_the_last_turn_is_reworded(source):
    shots = ("1+1", "\\boxed{2}")
    examples = load_examples("embedded", split="test", limit=3, shots=shots)
    before = [e.messages[-1]["content"] for e in examples]
    found = reworded(examples, rewordings(source)["please"])
    for e, now, text in zip(examples, found, before, strict=True):
        assert (now.id, now.answer, now.messages[:-1]) == (e.id, e.answer, e.messages[:-1])
        assert now.messages[-1] == {"role": "user", "content": rewordings(source)["please"](text)}
        assert e.messages[-1]["content"] == text  # and the examples are left as they are


def test_an_answer_is_another_where_not_both_are_right():
    from fastrl.grading import grade

    half, decimal, wrong, other, none = grade(
        ["\\boxed{1/2}", "\\boxed{0.5}", "\\boxed{3}", "\\boxed{4}", "no"], ["1/2"] * 5
    )
    assert half.correct and decimal.correct and half.answer != decimal.answer
    assert not _is_other(half, decimal)
    assert _is_other(wrong, half) and _is_other(wrong, other) and _is_other(none, wrong)
    assert not _is_other(wrong, wrong) and not _is_other(none, none)
