"""Golds that can mislead: found before training, named with their line and the way out."""

import pytest

from fastrl import lint_golds as module
from fastrl.lint_golds import lint_golds

SOUND = [
    "7", "-3", "1,234", "1,234,567", "12,345", "0.5", "3, 2", "1,2,3", "(0,1)", "[0,1)", r"\{3,2\}",
    "(3,2)", "1:2", "3:4:5", "7:30 PM", r"\frac{1}{2}x", r"1/(2x)", "(1/2)x", "x/2", "5/3", "3/4 m",
    "dy/dx", "1/f(x)", r"1/2 \text{ cm}", "x=1 or x=2", "x<1 or x>2", r"(0,1)\cup(2,3)", "A", "(B)",
    r"[0,1) \text{ or } [2,3)", r"(-\infty,0) or (1,\infty)", "3/4kg", "5/6in",
    "east", r"\text{Evelyn}", r"\text{ Monday }", "New York", "Apollo 11", r"\text{no solution}",
    r"\begin{pmatrix}1\\2\end{pmatrix}", "y = 2x+3", r"90^\circ", r"\$5", r"12\%", r"\sqrt[3]{2}",
]  # fmt: skip


@pytest.mark.parametrize("gold", SOUND)
def test_a_sound_gold_has_no_problem(gold):
    assert lint_golds([gold]) == []


UNSOUND = [
    ("empty", ["", "  ", "$$"], "give an answer"),
    ("unreadable", ["1/0", r"\frac{0}{0}"], "has no value"),
    ("unreadable", ["9" * 5000, "x" * 5000, "10^{10^{10}}"], "beyond a limit"),
    (
        "unreadable",
        [
            r"\frac{1}{", r"\sqrt{2", r"\foo{3}", r"3 \oplus 4", r"p \implies q", "?", "1,2,...",
            r"the answer is $\boxed{42}$", r"\text{about } 3 + \foo", "1.234.567",
        ],
        "was not understood",
    ),
    ("ambiguous", ["100,200,300", "-123,456,789"], "or the list"),
    ("ambiguous", ["3,2", "$3,2$", "-1,1", "0,5", "0,123", "1.000,5", "12,34"], "the decimal"),
    ("ambiguous", ["12:30", "9 : 05", "23:59"], "a time of day or the ratio"),
    ("ambiguous", ["2024-05-01", "5/12/2020"], "a date or arithmetic"),
    (
        "ambiguous",
        [
            "1/2x", "a/bc", "1/2e", r"1/2\pi", "2/3(x+1)", "x/2y + 1", "(x+1)/(x-1)(x+2)", "1/x^2y",
            "y=1/2x",
        ],
        "may divide by",
    ),
    ("ambiguous", ["x or y", r"2 \text{ or } 3", "yes or no", "x=1 or 2"], "for all of them"),
]  # fmt: skip


@pytest.mark.parametrize(
    "kind, gold, said", [(kind, gold, said) for kind, golds, said in UNSOUND for gold in golds]
)
def test_an_unsound_gold_is_named_with_the_way_out(kind, gold, said):
    (problem,) = lint_golds([gold])
    assert (problem.kind, problem.gold, problem.index) == (kind, gold, 0)
    assert said in problem.message and "; " in problem.message
    assert problem.message.startswith(f"'{gold[:50]}") and len(problem.message) < 250


def test_the_two_readings_are_named():
    def said(gold):
        return lint_golds([gold])[0].message

    assert "may be the number 100200300 or the list 100, 200, 300" in said("100,200,300")
    assert "may be the decimal 3.2 or the list of 3 and 2" in said("3,2")
    assert "may be the decimal 1000.5 or the list of 1.000 and 5" in said("1.000,5")
    assert "a time of day or the ratio of 12 to 30" in said("12:30")
    assert "may divide by b or by bc" in said("a/bc")
    assert r"may divide by 2 or by 2\pi" in said(r"1/2\pi")


def test_problems_come_in_order_one_for_each_gold():
    problems = lint_golds(["7", "", "3,2", "8", "1/0"])
    assert [(p.index, p.kind) for p in problems] == [
        (1, "empty"), (2, "ambiguous"), (4, "unreadable"),
    ]  # fmt: skip
    assert lint_golds([]) == []


def test_a_gold_that_is_not_right_against_itself(monkeypatch):
    from fastrl.grading import Grade

    found = [Grade(True, "7", "correct"), Grade(False, "8", "wrong"), Grade(None, "9", "limit")]
    monkeypatch.setattr(module, "grade", lambda golds, compiled, content: found)
    problems = lint_golds(["7", "8", "9"])
    assert [(p.index, p.kind) for p in problems] == [(1, "unequal"), (2, "unequal")]
