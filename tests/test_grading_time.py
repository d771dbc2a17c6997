"""The grader's time: linear in the completion, two milliseconds for the worst answer."""

import time

import pytest

from fastrl.grading import MODES, grade

RUNS = 25


def least_time(bound, run, *arguments, **options):
    """The CPU time in seconds of the fastest run: up to RUNS of them, until one is in the bound.

    What else the machine does makes a run slower and none faster.
    """
    least = float("inf")
    for _ in range(RUNS):
        started = time.thread_time()
        run(*arguments, **options)
        least = min(least, time.thread_time() - started)
        if least < bound:
            break
    return least


def one(completion, gold="7", **options):
    (verdict,) = grade([completion], [gold], **options)
    return verdict


BIG = 2_000_000
LARGE = "".join(rf"\boxed{{\frac{{{d * 2000}}}{{{'7' * 2000}}}}}" for d in "12")


@pytest.mark.parametrize(
    "unit, head, tail",
    [
        (r"\boxed{", "", ""), (r"\[ \boxed{ ", "", ""), ("{", "", ""), ("\\", "", ""),
        (r"\boxed{1}", "", ""), (r"\boxed 1", "", ""), (r"\boxed ", "", ""), ("<think>", "", ""),
        ("</think", "", ""), ("}", r"\boxed{", ""), (" ", r"\boxed{", "}"), ("-", r"\boxed{", "}"),
        (" ", r"\boxed", "{7}"), (r"\boxed{1}", LARGE, ""), (r"\boxed{2}", LARGE, r"\boxed{7}"),
        (r"\boxed 1", rf"\boxed{{{'2' * 4090}}}", ""), (r"\boxed{ ", "", "7" + " }" * (BIG // 8)),
        (r"\boxed 1", rf"\boxed{{{'x' * 4090}}}", ""),
    ],
)  # fmt: skip
def test_two_megabytes_take_a_fraction_of_a_second(unit, head, tail):
    text = head + unit * (BIG // len(unit)) + tail
    assert least_time(0.5, grade, [text], ["7"], threads=1) < 0.5


HOSTILE = {
    "tower": "9^{9^{9^{9}}}",
    "factorial": "(10^9)!",
    "factorials": "+".join(["3000!"] * 600),
    "binomials": "+".join([r"\binom{5999}{3000}"] * 200),
    "powers": "+".join(["2^{16000}"] * 400),
    "real powers": "+".join([r"x^{\pi}"] * 500),
    "sines": "+".join(rf"\sin({i}x)" for i in range(400)),
    "quotients": "+".join(rf"\frac{{{10**17 + i}}}{{{10**17 + 7 + i}}}" for i in range(80)),
    "long fraction": rf"\frac{{{'1' * 20_000}}}{{{'3' * 20_000}}}",
    "numeral": "1" * 4000 + "_2",
    "braces": "{" * 100_000 + "42" + "}" * 100_000,
    "brackets": "(" * 2000 + "42" + ")" * 2000,
    "list": ",".join(str(i + 1) for i in range(500)),
    "signs": ",".join(rf"\pm\sqrt{{{i}}}" for i in range(200)),
    "intervals": r"\cup".join(rf"(\sqrt{{{3 * i}}},\sqrt{{{3 * i + 1}}})" for i in range(110)),
    "holes": r"\mathbb{R}" + "".join(rf"\setminus\{{{i}\}}" for i in range(250)),
    "determinant": r"\begin{vmatrix}"
    + r"\\".join(
        "&".join(rf"\sqrt{{{(7 * i + 3 * j) % 11 + 2}}}" for j in range(6)) for i in range(6)
    )
    + r"\end{vmatrix}",
    "gcd": r"\gcd(" + ",".join(str(10**17 + i) for i in range(200)) + ")",
}
GOLDS = ["42", r"\cos x+x^{\pi}", ",".join(map(str, range(499, -1, -1))), r"(0,1)\cup(2,3)"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_takes_two_milliseconds_at_most(name):
    for gold in GOLDS:
        answer = HOSTILE[name]
        assert least_time(2e-3, one, answer, gold, content="answer", threads=1) < 2e-3
        verdict = one(answer, gold, content="answer")
        assert verdict.correct is (name == "braces" and gold == "42")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "unit",
    [
        "words ", r"\boxed{ ", r"\[ \boxed{ ", "\\", "{", "}", "<", "<think", "<answer>", "$", "1",
        "1,",
        "the answer is 42 ", "the answer is 42. ", "#### 42 ", "####\n", "(A) ", "answer",
        "Option ",
        r"\boxed{1}, ", r"\frac{1}{2} ",
    ],
)  # fmt: skip
def test_time_grows_linearly_with_the_completion(unit, mode):
    def least(bound, size):
        return least_time(bound, grade, [unit * (size // len(unit))], ["42"], mode=mode, threads=1)

    bound = min(0.1, 25 * least(0, 200_000) + 2e-3)
    assert least(bound, 2_000_000) < bound


@pytest.mark.slow
def test_ten_megabytes_take_a_tenth_of_a_second():
    for unit in (
        "words ",
        r"\boxed{ ",
        "<",
        "the answer is 42. ",
        "#### 42 ",
        "(A) ",
        r"\boxed{1}, ",
    ):
        for mode in MODES:
            text = unit * (10_000_000 // len(unit))
            assert least_time(0.3, grade, [text], ["42"], mode=mode, threads=1) < 0.3
