"""Gold answers to what is wrong with them, before anything is trained or graded on them.

`GoldProblem.kind` is one of

    empty       nothing to compare with
    unreadable  no value (1/0), beyond a limit, or mathematics that was not understood
    unequal     not right when it is graded against itself
    ambiguous   it may be meant in two ways, both of which the message names
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastrl.grade_file import golds_of, json_object, reading, report_line
from fastrl.grading import Gold, grade

KINDS = ("empty", "unreadable", "unequal", "ambiguous")
SHOWN = 60  # characters of a gold in a message


@dataclass(frozen=True)
class GoldProblem:
    """What is wrong with one gold."""

    index: int  # of the gold in what was linted
    gold: str
    kind: str  # one of KINDS
    message: str  # a sentence with the way out


def lint_golds(golds: Sequence[str]) -> list[GoldProblem]:
    """The problems of the golds in their order, at most one for each."""
    compiled = [Gold(text) for text in golds]
    verdicts = grade(golds, compiled, content="answer")
    problems = []
    for i, (text, gold, verdict) in enumerate(zip(golds, compiled, verdicts, strict=True)):
        found = _problem(text, gold, verdict.correct is True)
        if found:
            kind, message = found
            problems.append(GoldProblem(i, text, kind, f"{_short(text)} {message}"))
    return problems


def _short(text: str) -> str:
    shown = repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")
    return shown.replace("\\\\", "\\")  # LaTeX as it was written


def _problem(text: str, gold: Gold, equals_itself: bool) -> tuple[str, str] | None:
    """(kind, what the gold is and the way out), or None."""
    if gold.problem == "empty":
        return "empty", "is empty, so that no answer gets a verdict; give an answer or drop the row"
    if gold.problem == "undefined":
        return "unreadable", "has no value, so that no answer gets a verdict; mend it or drop it"
    if gold.problem == "limit":
        return (
            "unreadable",
            "is beyond a limit of size, so that only the same text is right; write it shorter",
        )
    if not equals_itself:
        return (
            "unequal",
            "is not right when it is graded against itself; write it in another way or drop it",
        )
    if gold.kind == "text" and not _is_prose(text):
        return (
            "unreadable",
            "was not understood, so that only the same text is right; mend its notation, or grade"
            " it with a function of your own",
        )
    if readings := _two_readings(text, gold.kind):
        return "ambiguous", readings
    return None


WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
SPACING = re.compile(r"\\[,;:! ]|\\q?quad\b|[$~]")
OPERATOR = "[-+*/×÷±−]"  # noqa: RUF001
NOTATION = re.compile(rf"\\|[=^<>_{{}}]|\d\s*{OPERATOR}|{OPERATOR}\s*\d")


def _is_prose(text: str) -> bool:
    """Whether a gold that is compared as text is meant as words."""
    bare = SPACING.sub(" ", WRAPPED.sub(r"\1", text))
    return any(map(str.isalpha, bare)) and not NOTATION.search(bare)


WHOLE_READINGS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (
        re.compile(r"-?[1-9]\d\d(?:,[1-9]\d\d){2,}"),
        lambda m: (
            f"may be the number {m[0].replace(',', '')} or the list {m[0].replace(',', ', ')};"
            " write the number without commas, or the list with blanks"
        ),
    ),
    (
        re.compile(r"(?!-?[1-9]\d{0,2},\d{3}$)(-?\d+(?:\.\d{3})*),(\d+)"),
        lambda m: (
            f"may be the decimal {m[1].replace('.', '')}.{m[2]} or the list of {m[1]} and {m[2]};"
            " write the decimal with a point, or the list with a blank"
        ),
    ),
    (
        re.compile(r"([01]?\d|2[0-3])\s*:\s*([0-5]\d)"),
        lambda m: (
            f"may be a time of day or the ratio of {m[1]} to {m[2]}; write AM or PM after a time,"
            " or the ratio in lowest terms"
        ),
    ),
    (
        re.compile(r"\d{4}([-/])\d\d?\1\d\d?|\d\d?([-/])\d\d?\2\d{4}"),
        lambda m: "may be a date or arithmetic; write the month of a date as a word",
    ),
)
ALTERNATIVE = re.compile(r"\bor\b")
# what makes "or" a union: a relation, or an interval without an end
SOLUTIONS = re.compile(r"[=<>≤≥≠∈∞]|\\(?:leq?|geq?|neq?|in|lt|gt|infty)\b")
GREEK = r"\\(?:pi|theta|alpha|beta|lambda|mu|sigma)"
QUOTIENT = re.compile(
    # neither 1/f(x) nor dy/dx
    r"/\s*(?!d[a-z]|[fgh]\()"
    rf"((?:\d+(?:\.\d+)?|[A-Za-z]|{GREEK}|\([^()]*\))(?:\^(?:\w|\{{[^{{}}]*\}}))?)"
    rf"([A-Za-z]+|\(|{GREEK}|\\(?:sqrt|[dt]?frac|sin|cos|tan|ln|log|left))"
)
UNIT = re.compile(r"(?![ei]$)[A-Za-z]+")


def _two_readings(text: str, kind: str) -> str:
    """The two readings of a gold and the way out, or ""."""
    bare = text.strip(" $")
    for pattern, describe in WHOLE_READINGS:
        if match := pattern.fullmatch(bare):
            return describe(match)
    if kind not in ("relation", "interval"):
        parts = ALTERNATIVE.split(text)
        if len(parts) > 1 and not all(map(SOLUTIONS.search, parts)):
            return (
                "may ask for one of its answers or for all of them; give a list of golds where"
                " any is right, or commas for 'or' where all are needed"
            )
    quotient = QUOTIENT.search(text) if kind != "text" else None
    # 3/4kg is a number with a unit
    if quotient and (kind != "number" or not UNIT.fullmatch(quotient[2])):
        return (
            f"may divide by {quotient[1]} or by {quotient[1]}{quotient[2]}...; write"
            " \\frac{...}{...}, or brackets around the divisor"
        )
    return ""


def read_golds(source: str) -> tuple[list[str], list[int], int]:
    """The golds of a JSONL file, their line numbers, and how many lines could not be read.

    An object holds `gold` (or `answer`): a string, a number or a list of them. "-" is standard
    input. A line that cannot be read is named on stderr. Raises UsageError for a file that cannot
    be opened.
    """
    golds: list[str] = []
    numbers: list[int] = []
    bad = 0
    with reading(source) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json_object(line, parse_int=str, parse_float=str)
                found = golds_of(row, "gold" if "gold" in row else "answer")
            except ValueError as error:
                report_line(source, number, error)
                bad += 1
            else:
                golds += found
                numbers += [number] * len(found)
    return golds, numbers, bad


def count_kinds(problems: Sequence[GoldProblem]) -> str:
    """How often each kind of problem was found, as in "2 unreadable, 1 ambiguous"."""
    counts = Counter(p.kind for p in problems)
    return ", ".join(f"{counts[kind]:,} {kind}" for kind in KINDS if counts[kind])
