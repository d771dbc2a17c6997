"""The grader: what it takes as the answer, what it calls equal, and what it survives."""

import io
import json
import random
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrl.cli import main
from fastrl.errors import UsageError
from fastrl.grading import REASONS, grade, grade_file

FASTRL = Path(sys.executable).parent / "fastrl"
LONGEST = 4096


def one(completion, gold="7", **options):
    (verdict,) = grade([completion], [gold], **options)
    return verdict


def equal(answer, gold):
    return one(answer, gold, content="answer").correct


@pytest.mark.parametrize(
    "completion, answer",
    [
        (r"so \boxed{7}.", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed{ 7" + "\n}", "7"),
        (r"\boxed {7}", "7"),
        (r"$\boxed{\frac{\sqrt{3}}{2}}$", r"\frac{\sqrt{3}}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{x\right\}}", r"\left\{x\right\}"),
        (r"\boxed{1\\}", r"1\\"),  # an escaped backslash escapes no brace
        (r"\boxed 7", "7"),
        (r"\boxed 7.", "7"),
        (r"\boxed -3/4, so", "-3/4"),
        (r"\boxed 1,234 km", "1,234"),
        (r"\boxed{5}, no: \boxed{7}", "7"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{ \fbox{ 5 } }", "5"),
        (r"\boxed{\boxed 5}", "5"),
        (r"\boxed{x=\boxed{5}}", r"x=\boxed{5}"),
        (r"\boxed{\boxed{5}\boxed{6}}", r"\boxed{5}\boxed{6}"),
        (r"\boxed{7} then \boxed{8", "7"),  # the last complete one
        (r"\boxed{8 then \boxed{7}", "7"),
        (r"} \{ \boxed{7} {", "7"),
        (r"<think>\boxed{5}</think>\boxed{7}", "7"),
        (r"<think>a</think>\boxed{5}<think>b</think>\boxed{7}", "7"),
        (r"no opening </think>\boxed{7}", "7"),
        ("日本 \\boxed{七\x00七} end", "七\x00七"),
    ],
)
def test_the_answer_is_the_last_complete_box(completion, answer):
    verdict = one(completion)
    assert verdict.answer == answer
    begin, end = verdict.span
    assert completion.encode()[begin:end].decode() == answer


@pytest.mark.parametrize(
    "completion, reason",
    [
        ("the answer is 7", "no_answer"),
        (r"\boxed{7", "no_answer"),
        (r"\boxed{7\}", "no_answer"),
        (r"\boxed", "no_answer"),
        (r"\boxed x7", "no_answer"),
        (r"\boxedly{7}", "no_answer"),
        (r"\\boxed{7}", "no_answer"),  # a line break, then a word
        (r"\boxed{7}</think> I am done", "no_answer"),
        (r"<think>\boxed{7}", "thinking"),
        (r"<think>a</think> <think>\boxed{7}", "thinking"),
        (r"\boxed{}", "empty"),
        ("\\boxed{ \n\t\v}", "empty"),
        (r"\boxed{7} or rather \boxed{}", "empty"),  # no fall-through to the earlier box
        (r"\boxed{7}\boxed{1}\boxed{2}\boxed{3}\boxed{\boxed{}}", "empty"),
    ],
)
def test_where_there_is_no_answer_there_is_a_reason(completion, reason):
    verdict = one(completion)
    assert (verdict.correct, verdict.answer, verdict.span) == (False, None, None)
    assert verdict.reason == reason


def test_more_than_three_values_are_a_shotgun():
    def boxes(*values):
        return one("".join(rf"\boxed{{{v}}}" for v in values))

    assert boxes("1", "2", "7").reason == "correct"
    shotgun = boxes("1", "2", "3", "7")
    assert (shotgun.correct, shotgun.reason, shotgun.answer) == (False, "shotgun", "7")
    assert boxes("1", "1.0", "2/2", "$1$", "2", "7", "7").reason == "correct"  # values, not boxes
    assert boxes("1", "2", "", "7").reason == "correct"
    assert one(r"<think>\boxed{1}\boxed{2}\boxed{3}</think>\boxed{7}").correct


@pytest.mark.parametrize(
    "box",
    [
        r"42\text{ is wrong, it is 43}", r"42\text{ or 43}", "42!", "42_7", "42;43", "42 43",
        "42,43", "{1}42", "{42}7", r"\frac{1}{2 42", r"42\ldots", "42^1", "42/", "4 2", "42e0",
        "42..", "x42", r"\frac{42}{1}2", r"\frac42", "42/1/1", r"--\text{42}", "−", "-42", "042x",
        "$42", "42\x00",
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
    ("x +  1", "x\n+ 1"), ("$x$", "x"), (r"\infty", r"\infty"), ("9" * 4000, "9" * 4000 + ".0"),
    ("1000000000/3", r"333333333\frac{1}{3}"),
]  # fmt: skip
DIFFERENT = [
    ("10000", "10001"), ("3", "3.0000001"), ("1000000", "1000000.4"), ("1/3", "0.333333"),
    ("3.2", "3,2"), ("1", "1,00"), ("1234", "12,34"), ("12345", "12, 345"), ("1000", "1,0000"),
    ("123", "0,123"), ("1/2", "-1/2"), ("31/2", r"1.5\frac12"), ("3/2", r"-1\frac{1}{2}"),
    ("9" * 40, "9" * 39 + "8"), ("1" + "0" * 4000, "1" + "0" * 3999), ("x + 1", "x+1"),
    ("1234,567", "1234567"), ("x", "y"), ("7", "0/7"), ("0", "0/0"), ("0", r"\frac{0}{0}"),
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
    """A fraction in one of the ways it is written."""
    sign = draw(st.sampled_from(["", "-", "−", "+"]))
    whole = draw(st.integers(0, draw(st.sampled_from([20, 10**12, 10**60]))))
    form = draw(st.sampled_from(["whole", "grouped", "decimal", "slash", "frac", "over", "mixed"]))
    top, bottom = draw(st.integers(0, 30)), draw(st.integers(1, 12))
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
    return text, -value if sign in ("-", "−") else value


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_numbers_are_compared_as_fractions(data):
    (left, a), (right, b) = (written(data.draw) for _ in range(2))
    assert equal(left, right) is (a == b)
    scale = data.draw(st.integers(1, 10**9))
    nudge = data.draw(st.sampled_from([0, 0, 1, -1]))
    ratio = f"{a.numerator * scale + nudge}/{a.denominator * scale}"
    assert equal(ratio, left) is (nudge == 0)


def test_long_answers_are_compared_as_text_only():
    fits = "1" * LONGEST
    assert one(fits, fits + ".0", content="answer").reason == "limit"  # the gold is too long
    assert one(f"\\boxed{{{'0' * LONGEST}}}", "0").reason == "correct"
    assert one(f"\\boxed{{{'0' * (LONGEST + 1)}}}", "0").reason == "limit"
    long = "x " * LONGEST
    assert one(f"\\boxed{{{long}}}", long.replace(" ", "\n")).reason == "correct"
    assert one(f"\\boxed{{{long}y}}", long).reason == "limit"


def test_a_comparison_has_a_budget():
    """A product costs its nine-digit limbs; the same text needs none."""
    a, b = "1" * 1800, "3" * 1800  # 200 limbs each: a quotient 400, a cross product 40,000
    verdict = one(rf"\boxed{{{a}/{b}}}", "1/3")
    assert (verdict.correct, verdict.reason) == (True, "correct")
    assert one(f"{a}/{b}", f"{a}/{b}1", content="answer").reason == "limit"
    assert one(f"{a}/{b}", f"{a}/{b}1", content="answer", budget_ops=10**6).reason == "wrong"
    assert one(f"{a}/{b}", f"{a}/{b}", content="answer", budget_ops=0).reason == "correct"
    nested = rf"\frac{{{a[:1000]}/{b[:900]}}}{{{b[:1000]}/{a[:900]}}}"
    assert one(nested, nested, content="answer", budget_ops=100).reason == "correct"
    assert one("7", "7.0", content="answer", budget_ops=0).reason == "limit"
    assert one("1" * 4000, "2" * 4000, content="answer", budget_ops=0).reason == "wrong"


def test_nesting_has_a_limit():
    def tower(depth):
        return r"\frac{" * depth + "5" + "}{1}" * depth

    assert equal(tower(60), "5") is True
    assert equal(tower(70), "5") is False
    assert equal("-" * 4000 + "5", "5") is True


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
    started = time.thread_time()
    grade([text], ["7"], threads=1)
    assert time.thread_time() - started < 0.5


@pytest.mark.parametrize(
    "options, said",
    [
        ({"mode": "flexible"}, "mode is 'flexible'; allowed: box"),
        ({"content": "text"}, "content is 'text'; allowed: completion, answer"),
        ({"threads": -1}, "threads is -1"),
        ({"budget_ops": -1}, "budget_ops is -1"),
    ],
)
def test_an_option_that_cannot_be(options, said):
    with pytest.raises(UsageError, match=said):
        one("7", **options)
    with pytest.raises(UsageError, match="2 completions came with 1 golds"):
        grade(["7", "8"], ["7"])


ROWS = [
    {"prediction": r"\boxed{7}", "gold": "7", "id": 3, "note": "日本"},
    {"prediction": r"\boxed{8}", "gold": "7", "mode": "box"},
    {"prediction": r"\boxed{7}", "gold": "1/0"},
    {"prediction": "none \ud800", "gold": "7"},
]
ADDED = [
    (True, "7", "correct"), (False, "8", "wrong"),
    (None, "7", "gold_empty"), (False, None, "no_answer"),
]  # fmt: skip


def check_rows(text, rows=ROWS, added=ADDED):
    found = [json.loads(line) for line in text.decode().splitlines()]
    for row, source, (correct, answer, reason) in zip(found, rows, added, strict=True):
        assert row == {**source, "correct": correct, "answer": answer, "reason": reason}


@pytest.mark.parametrize("batch", [1, 2, 3, 4096])
def test_a_file_is_graded_in_order(tmp_path, batch):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n\n".join(map(json.dumps, ROWS)))
    summary = grade_file(str(source), str(target), batch=batch)
    check_rows(target.read_bytes())
    assert not summary.bad_lines
    assert str(summary).startswith("4 graded, 25.0 % correct (")


BAD = [
    (b'{"prediction": "7", ', "no JSON"), (b"[1]", "not an object"), (b"7", "not an object"),
    (b'{"prediction": "7"}', "'gold' is missing"), (b'{"gold": "7"}', "'prediction' is missing"),
    (b'{"prediction": 7, "gold": "7"}', "'prediction' is missing or no string"),
    (b'{"prediction": "7", "gold": "7", "mode": "tag"}', "mode 'tag' is not known; allowed: box"),
    (b'{"prediction": "\xff", "gold": "7"}', "utf-8"), (b"[" * 100_000, "nested too deeply"),
]  # fmt: skip


def test_a_bad_line_is_named_and_loses_no_other(tmp_path, capsys):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    good = json.dumps(ROWS[0]).encode()
    source.write_bytes(b"\n".join(line for bad, _ in BAD for line in (good, bad)) + b"\n" + good)
    assert main(["grade", str(source), "--out", str(target)]) == 2
    check_rows(target.read_bytes(), [ROWS[0]] * (len(BAD) + 1), [ADDED[0]] * (len(BAD) + 1))
    said = capsys.readouterr().err.splitlines()
    for i, (_, reason) in enumerate(BAD):
        assert said[i].startswith(f"fastrl: line {2 * i + 2} of {source} was left out: ")
        assert reason in said[i]
    assert said[-1] == f"{len(BAD) + 1} graded, 100.0 % correct (correct {len(BAD) + 1})"


def test_grade_is_a_pipe(monkeypatch, capfdbinary):
    text = "\n".join([*map(json.dumps, ROWS), "nonsense"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["grade", "-", "--out", "-"]) == 2
    out, err = capfdbinary.readouterr()
    check_rows(out)
    assert b"line 5 of - was left out" in err


def test_a_reader_that_has_enough_is_no_error():
    line = json.dumps(ROWS[0])
    shell = f"yes '{line}' | head -n 20000 | {FASTRL} grade - --out - | head -n 1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True)
    check_rows(done.stdout, ROWS[:1], ADDED[:1])
    assert b"Error" not in done.stderr


def test_files_that_cannot_be_used(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(ROWS[0]))
    (tmp_path / "link.jsonl").symlink_to(source)
    for target in (source, tmp_path / "link.jsonl"):
        with pytest.raises(UsageError, match="is the file to be read; give another --out"):
            grade_file(str(source), str(target))
    with pytest.raises(UsageError, match="cannot read .*missing.jsonl: No such file"):
        grade_file(str(tmp_path / "missing.jsonl"), str(tmp_path / "out.jsonl"))
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(UsageError, match="cannot write .*: No such file.*give another --out"):
        grade_file(str(source), str(tmp_path / "no" / "out.jsonl"))
    assert json.loads(source.read_text()) == ROWS[0]
