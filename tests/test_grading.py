"""The grader: what it takes as the answer, what it calls equal, and what it survives."""

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrl.errors import UsageError
from fastrl.grading import (
    REASONS,
    Gold,
    Grade,
    GradingPolicy,
    Packed,
    count_reasons,
    grade,
)

LONGEST = 4096


def one(completion, gold="7", **options):
    (verdict,) = grade([completion], [gold], **options)
    return verdict


def equal(answer, gold):
    return one(answer, gold, content="answer").correct


@pytest.mark.parametrize(
    "box",
    [
        r"42\text{ is wrong, it is 43}", r"42\text{ or 43}", "42!", "42_7", "42;43", "42 43",
        "42,43", "{1}42", "{42}7", r"\frac{1}{2 42", r"42\ldots", "42/", "4 2", "42e", "42e1",
        "42...", "x42", r"\frac{42}{1}2", r"\frac42", "42/1/2", "−", "-42", "042x", "42\x00",
        r"42\text{ maybe}", "42?", "42 or so", r"\text{not }42", "[42,42]", "42+", "+", "42^",
        "42^2",
    ],
)  # fmt: skip
def test_more_or_less_than_the_value_is_not_paid(box):
    assert equal(box, "42") is False
    assert one(rf"\boxed{{{box}}}", "42").correct is False


EQUAL = [
    ("1234", r"1,234"), ("1234567", r"1,234,567"), ("1234", r"1\,234"), ("12345", r"12{,}345"),
    ("32349", r"32,\! 349"), ("1234.5", "1,234.5"), ("7", "7."), ("7", "007"), ("7", "+7"),
    ("0", "-0"), ("0", "0.00"), ("-3", "−3"), ("-3", "- 3"), ("1/2", "0.50"), ("1/2", ".5"),
    (r"\frac12", "1/2"), (r"\frac12", r"\frac1{2}"), (r"\frac{1}{2}", r"\dfrac {1} {2}"),
    (r"\tfrac{-1}{2}", r"-\cfrac{1}{2}"), ("-1/2", "1/-2"), (r"\frac{-1}{-2}", "2/4"),
    ("3/2", r"1\frac{1}{2}"), ("3/2", r"1 \frac12"), ("-3/2", r"-1\frac{1}{2}"),
    ("3/4", r"3\div4"), ("1/6", r"{1\over6}"), ("2", r"\frac{1}{\frac12}"),
    ("1/3", r"\frac{1}{3}"), ("5", "$5$"), ("5", "$$ 5 $$"), ("$5$", "5.0"), ("0.1", r"\frac1{10}"),
    ("x +  1", "x\n+ 1"), ("x + 1", "x+1"), ("$x$", "x"), (r"\infty", r"\infty"), ("9" * 4000,
    "9" * 4000 + ".0"),
    ("1000000000/3", r"333333333\frac{1}{3}"),
]  # fmt: skip
DIFFERENT = [
    ("10000", "10001"), ("3", "3.0000001"), ("1000000", "1000000.4"), ("1/3", "0.333333"),
    ("3.2", "3,2"), ("1", "1,00"), ("1234", "12,34"), ("12345", "12, 345"), ("1000", "1,0000"),
    ("123", "0,123"), ("1/2", "-1/2"), ("31/2", r"1.5\frac12"), ("3/2", r"-1\frac{1}{2}"),
    ("9" * 40, "9" * 39 + "8"), ("1" + "0" * 4000, "1" + "0" * 3999), ("1234,567", "1234567"), ("x",
    "y"), ("7", "0/7"), ("0", "0/0"), ("0", r"\frac{0}{0}"),
    ("0", "1/0"), ("1", "1/0"), ("1", r"1\frac{1}{0}"), ("1", r"\frac{1/0}{1/0}"), ("0", "$$"),
    ("0", r"\frac{1}{1/0}"), ("1/2", r"\fracture12"),
]  # fmt: skip


@pytest.mark.parametrize("gold, answer", EQUAL)
def test_equal_values(gold, answer):
    assert equal(answer, gold) is True
    assert equal(gold, answer) is True


@pytest.mark.parametrize("gold, answer", DIFFERENT)
def test_different_values(gold, answer):
    assert equal(answer, gold) is False


@pytest.mark.parametrize(
    "gold", ["", "  ", "$$", "$ $", "1/0", "0/0", r"\frac{1}{0}", r"1/\frac{0}{3}"]
)
def test_a_gold_that_cannot_be_read_gives_no_verdict(gold):
    for completion in (rf"\boxed{{{gold}}}", r"\boxed{7}", "", "<think>"):
        verdict = one(completion, gold)
        assert verdict.correct is None
        assert verdict.reason == "gold_empty"
    assert one(r"\boxed{7}", gold).answer == "7"


def written(draw):
    """A fraction in one of the ways it is written: its text, value and decimals."""
    sign = draw(st.sampled_from(["", "-", "−", "+"]))
    whole = draw(st.integers(0, draw(st.sampled_from([20, 10**12, 10**60]))))
    form = draw(st.sampled_from(["whole", "grouped", "decimal", "slash", "frac", "over", "mixed"]))
    bottom = draw(st.integers(2, 12))
    top = draw(st.integers(0, bottom - 1))
    digits = draw(st.text("0123456789", min_size=1, max_size=5))
    texts = {
        "whole": (f"{whole}", Fraction(whole)),
        "grouped": (f"{whole:,}", Fraction(whole)),
        "decimal": (f"{whole}.{digits}", Fraction(f"{whole}.{digits}")),
        "slash": (f"{whole} / {bottom}", Fraction(whole, bottom)),
        "frac": (rf"\frac{{{whole}}}{{{bottom}}}", Fraction(whole, bottom)),
        "over": (rf"{{{whole}\over {bottom}}}", Fraction(whole, bottom)),
        "mixed": (rf"{whole}\dfrac{{{top}}}{{{bottom}}}", whole + Fraction(top, bottom)),
    }
    text, value = texts[form]
    text = f"${sign}{text}$" if draw(st.booleans()) else f"{sign}{text}"
    places = len(digits) if form == "decimal" else None
    return text, -value if sign in ("-", "−") else value, places


def accepts(gold, gold_places, value, places):
    """Exactly; a gold with decimals to half a unit of its last, if given as many or none."""
    if gold_places is None or (places is not None and places < gold_places):
        return value == gold
    return abs(value - gold) <= Fraction(1, 2 * 10**gold_places)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_numbers_are_compared_as_fractions(data):
    (left, a, a_places), (right, b, b_places) = (written(data.draw) for _ in range(2))
    assert equal(left, right) is accepts(b, b_places, a, a_places)
    scale = data.draw(st.integers(1, 10**9))
    nudge = data.draw(st.sampled_from([0, 0, 1, -1]))
    ratio = f"{a.numerator * scale + nudge}/{a.denominator * scale}"
    assert equal(ratio, left) is accepts(
        a, a_places, a + Fraction(nudge, a.denominator * scale), None
    )


def test_long_answers_are_compared_as_text_only():
    fits = "1" * LONGEST
    assert one(fits, fits + ".0", content="answer").reason == "limit"  # the gold is too long
    assert one(f"\\boxed{{{'0' * LONGEST}}}", "0").reason == "correct"
    assert one(f"\\boxed{{{'0' * (LONGEST + 1)}}}", "0").reason == "limit"
    long = "x " * LONGEST
    assert one(f"\\boxed{{{long}}}", long.replace(" ", "\n")).reason == "correct"
    assert one(f"\\boxed{{{long}y}}", long).reason == "limit"


def test_one_long_integer_over_itself_is_one():
    long = "1" * 20_000
    for whole, gold in ((rf"\frac{{{long}}}{{{long}}}", "1"), (f"-{long}/{long}", "-1")):
        assert equal(whole, gold) is True
        assert one(whole, "2", content="answer").reason == "wrong"
    assert one(rf"\frac{{{long}}}{{{long}1}}", "1", content="answer").reason == "limit"
    assert one(rf"\frac{{{'0' * 5000}}}{{{'0' * 5000}}}", "1", content="answer").reason == "limit"


def test_a_comparison_has_a_budget():
    """A product costs its limbs of 18 digits; the same text needs none."""
    a, b = "1" * 1800, "3" * 1800  # 100 limbs each: a quotient 100, a cross product 10,000
    verdict = one(rf"\boxed{{{a}/{b}}}", "1/3")
    assert (verdict.correct, verdict.reason) == (True, "correct")
    third = f"{'3' * 1800}/{'9' * 1800}"
    assert one(f"{a}/{b}", third, content="answer").reason == "limit"
    assert one(f"{a}/{b}", third, content="answer", budget_ops=10**6).reason == "correct"
    assert one(f"{a}/{b}", f"{a}/{b}", content="answer", budget_ops=0).reason == "correct"
    assert one("7", "7.0", content="answer", budget_ops=0).reason == "limit"
    assert one("1" * 4000, "2" * 4000, content="answer", budget_ops=0).reason == "wrong"


def test_every_limit_is_kept_and_the_same_text_passes():
    pairs = [
        ("+".join(f"x_{{{i}}}" for i in range(70)), "+".join(f"x_{{{i}}}" for i in range(69, -1,
        -1))),
        (",".join(map(str, range(600))), ",".join(map(str, range(599, -1, -1)))),
        ("10^{5000}", "10^{4999}\\cdot 10"),
        ("9^{9^{9^{9}}}", "9^{9^{9^{9}}}+0"),
        ("10^9!", "(10^9)!+0"),
        ("+".join("x" * 600), "600x"),
    ]  # fmt: skip
    for gold, answer in pairs:
        assert one(answer, gold, content="answer").reason == "limit", gold[:40]
        assert one(gold, gold, content="answer").reason == "correct", gold[:40]
    assert equal(",".join(map(str, range(500))), ",".join(map(str, range(499, -1, -1))))


def test_nesting_has_a_limit():
    def tower(depth):
        return r"\frac{" * depth + "5" + "}{1}" * depth

    assert equal(tower(60), "5") is True
    assert one(tower(70), "5", content="answer").reason == "limit"
    assert equal("-" * 4000 + "5", "5") is True
    for opened, closed in ("()", ("[", "]"), (r"\sqrt{", "}"), ("x^{", "}"), (r"\sin ", ""),
        (r"\sqrt", ""),
                           (r"\text{", "}"), (r"\frac1", ""), ("|", "|"), (r"\{", r"\}"), ("x^",
                           "")):  # fmt: skip
        text = opened * 500 + "5" + closed * 500
        assert one(text, "5", content="answer").reason in ("limit", "wrong"), opened
    assert equal("{" * 1000 + "5" + "}" * 1000, "5") is True  # nothing but braces


PIECES = [
    r"\boxed{", r"\boxed", r"\fbox{", "{", "}", r"\{", r"\}", "\\", "$", "<think>", "</think>",
    r"\frac", r"\over", r"\div", "/", "-", "−", "+", ",", "{,}", r"\,", r"\!", ".", " ", "\n", "7",
    "0", "123", "9" * 40, "x", "\x00", "é", "\ud800", "1/0", r"\frac12",
]  # fmt: skip
TEXTS = st.one_of(
    st.binary(max_size=60),
    st.lists(st.sampled_from(PIECES), max_size=25).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=12).map(lambda p: r"\boxed{" + "".join(p) + "}"),
    st.text(max_size=40),
)


@settings(max_examples=800, deadline=None)
@given(TEXTS, TEXTS, st.sampled_from(["completion", "answer"]), st.integers(0, 30))
def test_any_bytes_get_a_verdict(completion, gold, content, budget_ops):
    verdict = one(completion, gold, content=content, budget_ops=budget_ops)
    assert verdict.reason in REASONS
    assert verdict.correct is {"correct": True, "gold_empty": None}.get(verdict.reason, False)
    assert (verdict.answer is None) == (verdict.span is None)
    raw = completion if isinstance(completion, bytes) else completion.encode(errors="surrogatepass")
    if verdict.span is not None:
        begin, end = verdict.span
        assert 0 <= begin < end <= len(raw)
        assert raw[begin:end] == raw[begin:end].strip()
        assert verdict.answer == raw[begin:end].decode(errors="replace")
    elif content == "answer" and verdict.reason != "gold_empty":
        assert verdict.reason == "empty" and not raw.strip()


def test_broken_text_is_text():
    assert one(b"\\boxed{\xff\xfe}", b"\xff\xfe").correct is True
    assert one(b"\\boxed{\xff}", "7").answer == "\ufffd"
    assert one("\\boxed{\ud800}", "\ud800").correct is True
    assert one("\\boxed{7}\ud800", "7").correct is True
    assert one("\\boxed{7\x00}", "7").correct is False


def test_verdicts_do_not_depend_on_threads_or_order():
    rng = random.Random(0)
    pieces = [*PIECES, *["7"] * 30]
    texts = [r"\boxed{" + "".join(rng.choices(pieces, k=i % 5)) + "}" for i in range(500)]
    golds = rng.choices(["7", "7", "77", "0", "1/0"], k=500)
    verdicts = grade(texts, golds, threads=1)
    assert {v.reason for v in verdicts} >= {"correct", "wrong", "empty", "no_answer", "gold_empty"}
    for threads in (0, 2, 4, 10**6):
        assert grade(texts, golds, threads=threads) == verdicts
    assert grade(texts[::-1], golds[::-1], threads=3) == verdicts[::-1]
    assert grade([], [], threads=4) == []
    many = ["7"] * 100_000  # more threads than a process may start
    assert all(v.correct for v in grade(many, many, content="answer", threads=len(many)))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"mode": "boxes"}, "mode is 'boxes'; allowed: box, box_or_anchor, flexible, hash4"),
        ({"content": "text"}, "content is 'text'; allowed: completion, answer"),
        ({"threads": -1}, "threads is -1"),
        ({"policy": GradingPolicy(shotgun="all")}, "policy.shotgun is 'all'; allowed: wrong, last"),
        ({"budget_ops": -1}, "budget_ops is -1"),
    ],
)
def test_an_option_that_cannot_be(options, said):
    with pytest.raises(UsageError, match=said):
        one("7", **options)
    with pytest.raises(UsageError, match="2 completions came with 1 golds"):
        grade(["7", "8"], ["7"])


def test_any_of_several_golds_will_do():
    answers = [r"\boxed{7}", r"\boxed{x}", r"\boxed{9}"]
    verdicts = grade(answers, [["6", "7"], [Gold("y"), b"x"], ("7", "8")])
    assert [v.correct for v in verdicts] == [True, True, False]
    assert one(r"\boxed{7}", ["", "7"]).correct is True  # the one that can be read
    assert one(r"\boxed{7}", ["", "1/0"]).reason == "gold_empty"
    assert one(r"\boxed{7}", []).reason == "gold_empty"


def test_a_compiled_gold_says_what_it_is():
    kinds = {
        "7": "number", r"\sqrt2": "number", "x+1": "expression", "1,2": "list", r"\{1\}": "set",
        "(1,2)": "tuple", "[1,2)": "interval", "x=5": "relation", "x>5": "relation",
        "(C)": "option",
        r"\begin{pmatrix}1\end{pmatrix}": "matrix", "blue": "text", r"x \mapsto 2": "text",
    }  # fmt: skip
    for text, kind in kinds.items():
        gold = Gold.compile(text)
        assert (gold.text, gold.kind, gold.is_readable, gold.problem) == (text, kind, True, "")
        assert grade([text], [gold], content="answer")[0].correct is True
    for text, problem in (
        ("", "empty"),
        ("$ $", "empty"),
        ("1/0", "undefined"),
        (r"\log 0", "undefined"),
    ):
        gold = Gold(text)
        assert (gold.is_readable, gold.problem) == (False, problem)
    long = "+".join("x" * 600)
    assert Gold(long).problem == "limit" and Gold(long).is_readable
    assert Gold(b"\xff").text == "\ufffd"
    with pytest.raises(TypeError, match="str or bytes, not int"):
        Gold(7)


def test_completions_may_lie_end_to_end_in_one_buffer():
    texts = [r"\boxed{7}", "", "日本 \\boxed{8}"]
    raw = [t.encode() for t in texts]
    offsets = [0, *(sum(map(len, raw[: i + 1])) for i in range(3))]
    golds = ["7", "7", "8"]
    for buffer in (b"".join(raw), bytearray(b"".join(raw)), memoryview(b"".join(raw))):
        assert grade(Packed(buffer, offsets), golds) == grade(texts, golds)
    for wrong in ([0, 5, 3, 9], [0, 1, 2, 1000], [-1, 0, 1, 2]):
        with pytest.raises(ValueError, match="offsets must not fall and must lie in the buffer"):
            grade(Packed(b"".join(raw), wrong), golds)


def test_what_can_be_ruled_either_way_is_a_setting():
    boxes = "".join(rf"\boxed{{{v}}}" for v in (1, 2, 3, 7))
    assert one(boxes).reason == "shotgun"
    assert one(boxes, policy=GradingPolicy(shotgun="last")).correct is True
    assert one(r"\boxed{50}", r"50\%").correct is True
    strict = GradingPolicy(bare_percent=False)
    assert one(r"\boxed{50}", r"50\%", policy=strict).correct is False
    assert one(r"\boxed{0.5}", r"50\%", policy=strict).correct is True
    digits = GradingPolicy(six_digits=True)
    for gold, right, wrong in ((r"\pi", "3.14159", "3.1416"), (r"\frac13", "0.333333", "0.33333"),
                               (r"1000\sqrt2", "1414.21", "1414.2"), ("-2/3", "-0.666667",
                               "0.666667")):  # fmt: skip
        assert equal(right, gold) is False
        assert one(right, gold, content="answer", policy=digits).correct is True
        assert one(wrong, gold, content="answer", policy=digits).correct is False


def test_reasons_are_counted():
    grades = [
        Grade(True, "7", "correct"),
        Grade(False, None, "shotgun"),
        Grade(True, "7", "correct"),
    ]
    counts = count_reasons(grades)
    assert list(counts) == list(REASONS)
    assert (counts["correct"], counts["shotgun"], counts["hedge"], counts.total()) == (2, 1, 0, 3)


@pytest.mark.parametrize("large", ["10^{17}", "297^4 \\cdot 297^4", "14^{16}"])
def test_equations_whose_name_is_lost_beside_a_number_are_not_paid(large):
    """Where z is far below both, (z - a) / (z - b) is the same at every place for any a and b."""
    gold = rf"z=\sqrt{{2}}+{large}"
    for wrong in (
        rf"z=\sqrt{{3}}+{large}",
        rf"\sqrt{{3}}+{large}=z",
        rf"2z=\sqrt{{2}}+2\cdot {large}",
    ):
        (verdict,) = grade([wrong], [gold], content="answer")
        assert verdict.correct is False, wrong
    (verdict,) = grade([gold], [gold], content="answer")
    assert verdict.correct is True
