"""fastrl's verdicts and Math-Verify's on pairs that are equal, or not, by construction.

python bench/grading_oracle.py: writes bench/results/grading_oracle.md, the disagreements in classes
with a ruling for each; prints the pairs that fastrl has wrong. Two minutes; needs fastrl[bench].
"""

from __future__ import annotations

import importlib.metadata
import logging
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from fastrl.bench import grading_forms as forms
from fastrl.bench import grading_rewriting as rewriting
from fastrl.bench.grading import RIVAL, math_verify
from fastrl.bench.grading_pairs import boxed
from fastrl.grading import grade

TABLE = Path(__file__).parent / "results" / "grading_oracle.md"


class Case(NamedTuple):
    """Two answers, the kind of both, how they are written, and whether they are equal."""

    kind: str
    form: str
    gold: str
    prediction: str
    is_equal: bool


class Judged(NamedTuple):
    """A case and the two verdicts."""

    case: Case
    ours: bool
    theirs: bool


KINDS: dict[str, tuple[Callable[[random.Random], forms.Half], int]] = {
    # one pair, how many
    "number": (forms.numbers, 400),
    "fraction": (forms.fractions, 400),
    "rounding": (forms.rounding, 120),
    "percent": (forms.percent, 120),
    "unit": (forms.units, 250),
    "root": (rewriting.roots, 250),
    "closed form": (rewriting.closed, 300),
    "expression": (rewriting.expressions, 700),
    "piecewise": (rewriting.piecewise, 150),
    "complex": (rewriting.complex_numbers, 150),
    "tuple": (rewriting.tuples, 200),
    "set": (rewriting.sets, 200),
    "list": (rewriting.lists, 200),
    "interval": (rewriting.intervals, 300),
    "equation": (rewriting.equations, 250),
    "inequality": (rewriting.inequalities, 250),
    "matrix": (rewriting.matrices, 200),
    "text": (forms.texts, 150),
    "option": (forms.options, 120),
    "numeral": (forms.numerals, 100),
}

# a ruling by GRADING.md: its title, the reason, and the forms that it is about
RULINGS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "two units",
        "Different: two units must be the same or synonyms. Math-Verify drops both.",
        (
            "unit: changed unit", "unit: changed power", "unit: changed currency",
            "unit: other angle",
        ),
    ),
    (
        "words that count",
        "Different: a dozen, a third, a square of 12 is not 12; only a label may follow a value.",
        ("unit: other, a word counts",),
    ),
    (
        "units as words",
        r"Equal: synonyms, with or without `\text`. Math-Verify reads letters as a product.",
        ("unit: no text command",),
    ),
    (
        "decimals for exact golds",
        r"Different: a decimal is right for an exact gold only if it equals it, and none is `\pi`.",
        ("root: other decimal, long", "closed form: other decimal, long"),
    ),
    (
        "close, but not equal",
        r"Different: `e^{\pi\sqrt{163}}` is no integer, though it lies 7.5e-13 from one.",
        ("closed form: other integer, near",),
    ),
    (
        "equal on one side only",
        "Different: `x + 5` is `|x + 5|` only where it is positive.",
        (
            "piecewise: other, absolute", "piecewise: other, root of a square",
            "piecewise: other, product", "piecewise: other, triangle", "piecewise: other, maximum",
            "piecewise: other, minimum", "piecewise: other, floor of twice",
            "piecewise: other, rounded",
        ),
    ),
    (
        "piecewise functions",
        "Equal: the same function. Math-Verify does not find the identity.",
        (
            "piecewise: absolute, turned", "piecewise: absolute, scaled",
            "piecewise: absolute product", "piecewise: absolute square",
            "piecewise: root of a square", "piecewise: maximum", "piecewise: minimum",
            "piecewise: floor, moved",
        ),
    ),
    (
        "decimals as precision",
        "Equal: a gold with d decimals accepts what lies within half a unit of the last one. "
        "Math-Verify compares six decimals, whatever the gold has.",
        ("rounding: more digits, within",),
    ),
    (
        "notations of numbers",
        r"Equal: the same number. Math-Verify reads `75\,153` as 228 and `6 5/9` as 11/9, and "
        r"cannot read `672.`, `\frac52`, `0.\overline{3}`, `\boldsymbol{7}`.",
        (
            "number: 1.2e3", "number: 1\\,234", "number: 7.", "number: \\boldsymbol{7}",
            "number: \\textcolor{red}{7}", "number: 1.2 \\cdot 10^3", "percent: 50\\,\\%",
            "fraction: \\frac12", "fraction: mixed, plain", "fraction: repeating",
            "fraction: unicode slash",
        ),
    ),
    (
        "notations of functions and constants",
        r"Equal: the same value. Math-Verify reads `7pi` as a product and `60^\circ` in a cosine "
        r"as 60, and cannot read `\sqrt3`, `6√10`, `\lg`.",
        (
            "root: without braces", "root: sqrt(b)", "root: unicode", "closed form: pi by name",
            "closed form: \\lg", "closed form: cosine of degrees",
        ),
    ),
    (
        "complex numbers",
        r"Equal: products and quotients are values, and the unit may be upright. Math-Verify drops "
        r"`\mathrm{i}` and does not multiply.",
        ("complex: \\mathrm{i}", "complex: i in front", "complex: product", "complex: quotient"),
    ),
    (
        "inequalities and intervals",
        "Equal: a solved bound of one variable is its interval. Math-Verify takes an interval for "
        "an inequality, but not the other way round, and neither scales nor turns them.",
        (
            "interval: as inequality", "interval: as inequation", "interval: ray as inequality",
            "inequality: two", "inequality: scaled", "inequality: chain turned",
        ),
    ),
    (
        "sets",
        r"Equal: `\lbrace` is a brace, and a set has each element once.",
        ("set: notation", "set: twice the same"),
    ),
    (
        "numerals by value",
        "By value: `143_5` is `48_{10}`, and the same digits to another base are another number. "
        "Math-Verify drops the base.",
        ("numeral: changed base", "numeral: in ten", "numeral: \\text{base}"),
    ),
    (
        "options",
        "Equal: an option is its letter, with or without its text. Math-Verify multiplies them.",
        (
            "option: B.", "option: with its text", "option: letter without its text",
            "option: text without its letter",
        ),
    ),
    (
        "words",
        r"Equal: a word is the same with a full stop and without `\text`.",
        ("text: bare", "text: bare gold", "text: full stop"),
    ),
    (
        "transposes",
        "Equal: the exponent T transposes.",
        ("matrix: transposed twice",),
    ),
)  # fmt: skip


def cases() -> Iterator[Case]:
    """All pairs, the same at every call, none twice."""
    for kind, (make, count) in KINDS.items():
        rng = random.Random(kind)
        seen: set[tuple[str, str]] = set()
        for _ in range(20 * count):
            form, gold, prediction, is_equal = make(rng)
            if gold == prediction or (gold, prediction) in seen:
                continue
            seen.add((gold, prediction))
            yield Case(kind, form, gold, prediction, is_equal)
            if len(seen) == count:
                break


def judged() -> list[Judged]:
    """Every pair with both verdicts."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    theirs = math_verify()
    pairs = list(cases())
    ours = grade([p.prediction for p in pairs], [p.gold for p in pairs], content="answer")
    return [
        Judged(pair, found.correct is True, theirs(boxed(pair.prediction), pair.gold))
        for pair, found in zip(pairs, ours, strict=True)
    ]


def by_kind(found: list[Judged]) -> str:
    """How many of each kind either has wrong."""
    lines = [
        "| kind | pairs | fastrl: paid wrongly | not paid | Math-Verify: paid wrongly | not paid |",
        "|---|---|---|---|---|---|",
    ]
    for kind in [*KINDS, "all"]:
        of_kind = [one for one in found if kind in ("all", one.case.kind)]
        counts = [
            sum(getattr(one, who) != truth and one.case.is_equal is truth for one in of_kind)
            for who in ("ours", "theirs")
            for truth in (False, True)
        ]
        lines.append("| " + " | ".join(map(str, [kind, len(of_kind), *counts])) + " |")
    return "\n".join(lines)


def by_class(found: list[Judged]) -> str:
    """Where anybody is wrong, in classes, with the ruling."""
    titles = {form: title for title, _, about in RULINGS for form in about}
    reasons = {title: reason for title, reason, _ in RULINGS}
    classes: dict[str, list[Judged]] = {}
    for one in found:
        if not one.ours == one.theirs == one.case.is_equal:
            form = f"{one.case.kind}: {one.case.form}"
            classes.setdefault(titles.get(form, f"{form}, not ruled on"), []).append(one)
    lines = [
        "| class | pairs | fastrl right | Math-Verify right | for example | ruling |",
        "|---|---|---|---|---|---|",
    ]
    for title, pairs in sorted(classes.items(), key=lambda item: -len(item[1])):
        example = min((one.case for one in pairs), key=lambda case: len(case.gold))
        sign = "is" if example.is_equal else "is not"
        shown = f"`{example.prediction}` {sign} `{example.gold}`"
        right = [sum(getattr(o, w) == o.case.is_equal for o in pairs) for w in ("ours", "theirs")]
        cells = [title, len(pairs), *right, shown, reasons.get(title, "")]
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Write the table; 1 where fastrl is wrong or a class has no ruling."""
    found = judged()
    agreed = sum(one.ours == one.theirs == one.case.is_equal for one in found)
    table = by_class(found)
    version = importlib.metadata.version(RIVAL)
    TABLE.write_text(
        f"""# fastrl and Math-Verify {version} on pairs whose truth is known

Made by `python bench/grading_oracle.py`: {len(found):,} pairs, equal by construction or made
different by one digit, sign, bracket, unit or word. On {agreed:,} of them both are right.

{by_kind(found)}

The pairs that either has wrong, and who is right:

{table}
""",
        encoding="utf-8",
    )
    wrong = [one for one in found if one.ours != one.case.is_equal]
    for one in wrong:
        print(*one.case, sep="  |  ")
    kinds = Counter(one.case.kind for one in wrong)
    print(f"{len(wrong)} of {len(found)} wrong {dict(kinds)}; see {TABLE}", file=sys.stderr)
    return 1 if wrong or "not ruled on" in table else 0


if __name__ == "__main__":
    sys.exit(main())
