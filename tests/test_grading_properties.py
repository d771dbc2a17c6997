"""A gold equals itself however it is written, and nothing that differs in one place.

Expressions are trees: written twice they must be equal, changed in one leaf, sign or bracket they
must not be, where fifty digits of their values at a point differ.
"""

import random
from decimal import Decimal, DivisionByZero, InvalidOperation, localcontext
from fractions import Fraction
from typing import NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastrl.bench.grading_pairs import WORKLOADS, workload
from fastrl.grading import grade

FIXED = settings(max_examples=250, deadline=None, derandomize=True)
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
POINT = {"x": Decimal("1.7320508"), "y": Decimal("-0.6180339"), r"\pi": PI}


def equal(gold, prediction):
    """The verdict on a bare answer, which is the verdict on a box with it."""
    bare, boxed = (
        grade([text], [gold], content=content, threads=1)[0].correct
        for text, content in ((prediction, "answer"), (rf"\boxed{{{prediction}}}", "completion"))
    )
    assert bare is boxed
    return bare


class Node(NamedTuple):
    """number: a fraction; name; root: an integer; power: a node and an integer; else nodes."""

    kind: str
    parts: tuple


def nodes():
    """Sums, products, powers and quotients of numbers, names and roots."""
    numbers = st.fractions(-40, 40, max_denominator=12).filter(bool)
    leaves = st.one_of(
        numbers.map(lambda n: Node("number", (n,))),
        st.integers(1, 999).map(lambda n: Node("number", (Fraction(n),))),
        st.sampled_from(["x", "y", r"\pi"]).map(lambda n: Node("name", (n,))),
        st.sampled_from([2, 3, 5, 7, 11]).map(lambda n: Node("root", (n,))),
    )

    def grown(inner):
        several = st.lists(inner, min_size=2, max_size=3).map(tuple)
        return st.one_of(
            several.map(lambda p: Node("sum", p)),
            several.map(lambda p: Node("product", p)),
            st.tuples(inner, st.integers(2, 4)).map(lambda p: Node("power", p)),
            st.tuples(inner, inner).map(lambda p: Node("quotient", p)),
        )

    return st.recursive(leaves, grown, max_leaves=6)


def value(node):
    """Fifty digits at the point; None where there is no value."""
    with localcontext() as context:
        context.prec = 60
        try:
            return _value(node)
        except (DivisionByZero, InvalidOperation, OverflowError):
            return None


def _value(node):
    kind, parts = node
    if kind == "number":
        return Decimal(parts[0].numerator) / Decimal(parts[0].denominator)
    if kind == "name":
        return POINT[parts[0]]
    if kind == "root":
        return Decimal(parts[0]).sqrt()
    if kind == "power":
        return _value(parts[0]) ** parts[1]
    values = [_value(part) for part in parts]
    if kind == "sum":
        return sum(values)
    return (
        values[0] * values[1] * (values[2:] or [1])[0]
        if kind == "product"
        else values[0] / values[1]
    )


def is_decided(node):
    """Whether no addend is far below its sum: the verifier refuses those below 2^-60, "limit"."""
    if node.kind in ("number", "name", "root"):
        return True
    parts = [part for part in node.parts if isinstance(part, Node)]
    if node.kind == "sum":
        sizes = [abs(value(part)) for part in parts]
        if min((s for s in sizes if s), default=1) < Decimal(2) ** -50 * max(sizes):
            return False
    return all(is_decided(part) for part in parts)


def differ(a, b):
    """Whether two values are there and apart."""
    return a is not None and b is not None and abs(a - b) > Decimal("1e-20") * (abs(a) + abs(b))


def write(node, rng=None):
    """LaTeX: plain without a generator, else with its parts in any order and any notation."""

    def pick(*ways):
        return rng.choice(ways) if rng else ways[0]

    def inside(part):
        text = write(part, rng)
        opened, closed = pick(("(", ")"), (r"\left(", r"\right)"), (r"\left( ", r" \right)"))
        is_atom = part.kind in ("name", "root") or (part.kind == "number" and text.isdigit())
        return pick(text, f"{{{text}}}") if is_atom else f"{opened}{text}{closed}"

    kind, parts = node
    if kind == "number":
        number = parts[0]
        if number.denominator == 1:
            return str(number)
        sign = "-" if number < 0 else ""
        scale = pick(1, 1, 3)
        top, bottom = abs(number.numerator) * scale, number.denominator * scale
        return pick(
            rf"{sign}\frac{{{top}}}{{{bottom}}}",
            rf"{sign}\dfrac{{{top}}}{{{bottom}}}",
            rf"\tfrac{{{sign}{top}}}{{ {bottom} }}",
            f"{sign}{top}/{bottom}",
        )
    if kind == "name":
        return parts[0] + pick(" ", "  ") if parts[0] == r"\pi" else parts[0]
    if kind == "root":
        return pick(rf"\sqrt{{{parts[0]}}}", rf"\sqrt {{ {parts[0]} }}")
    if kind == "power":
        return inside(parts[0]) + pick(f"^{{{parts[1]}}}", f"^{parts[1]}")
    if kind == "quotient":
        top, bottom = (write(part, rng) for part in parts)
        return pick(
            rf"\frac{{{top}}}{{{bottom}}}", rf"\dfrac{{{top}}}{{{bottom}}}", f"({top})/({bottom})"
        )
    shuffled = rng.sample(parts, len(parts)) if rng else parts
    if kind == "product":
        return pick(r"\cdot ", r" \times ", r"\cdot").join(
            (" " if rng else "") + inside(part) for part in shuffled
        )
    text = "".join("+" + (write(p, rng) if p.kind == "product" else inside(p)) for p in shuffled)
    return text[1:].replace("+", pick("+", " + ", "\n+ "))


def layout(text, rng):
    """Delimiters and white space around the whole."""
    ways = ["{}", "${}$", r"\({}\)", r"\[ {} \]", "{{{}}}", " {} ", r"\,{}\;"]
    if "," not in text:  # (1,000) is a pair
        ways.append(r"\left( {} \right)")
    return rng.choice(ways).format(text)


def changed(node, rng):
    """The tree with one number, sign or bracket changed."""
    kind, parts = node
    if kind == "number":
        number = parts[0]
        ways = (-number, number + Fraction(1, number.denominator), changed_digit(number, rng))
        return Node(kind, (rng.choice(ways),))
    if kind == "name":
        return Node("product", (Node("number", (Fraction(-1),)), node))
    if kind == "root":
        return Node(kind, (parts[0] + 2,))
    if kind == "power":
        if rng.random() < 0.5:
            return Node(kind, (parts[0], parts[1] + 1))
        return Node(kind, (changed(parts[0], rng), parts[1]))
    at = rng.randrange(len(parts))
    if kind == "product" and parts[at].kind == "sum" and rng.random() < 0.5:
        # (a + b) c, the bracket gone: a + b c
        others = tuple(part for i, part in enumerate(parts) if i != at)
        first, *rest = parts[at].parts
        return Node("sum", (first, *rest[:-1], Node("product", (rest[-1], *others))))
    return Node(kind, (*parts[:at], changed(parts[at], rng), *parts[at + 1 :]))


def changed_digit(number, rng):
    """Another number whose numerator has as many digits."""
    digits = list(str(abs(number.numerator)))
    at = rng.randrange(len(digits))
    digits[at] = rng.choice([digit for digit in "123456789" if digit != digits[at]])
    return Fraction(int("".join(digits)) * (1 if number > 0 else -1), number.denominator)


GENERATORS = st.integers(0, 2**32).map(random.Random)


@FIXED
@given(nodes(), GENERATORS)
def test_an_expression_equals_itself_in_any_notation_and_order(node, rng):
    assume(value(node) is not None and is_decided(node))
    gold = write(node)
    for _ in range(3):
        prediction = layout(write(node, rng), rng)
        assert equal(gold, prediction), prediction


@FIXED
@given(nodes(), GENERATORS)
def test_an_expression_differs_after_one_change(node, rng):
    gold = write(node)
    for _ in range(3):
        other = changed(node, rng)
        if differ(value(node), value(other)):
            prediction = layout(write(other, rng), rng)
            assert equal(gold, prediction) is False, prediction


@FIXED
@given(nodes(), st.fractions(-9, 9, max_denominator=5).filter(bool), GENERATORS)
def test_an_equation_may_be_scaled_and_turned(node, scale, rng):
    """z is in no tree. Where it is below 2^-33 of the rest, the verifier decides no equation."""
    assume(value(node) is not None and is_decided(node))
    assume(abs(value(node)) < 10**9)
    gold = f"z={write(node)}"
    factor = Node("number", (scale,))
    sides = [write(Node("product", (factor, Node("name", ("z",)))), rng)]
    sides.append(write(Node("product", (factor, node)), rng))
    rng.shuffle(sides)
    assert equal(gold, "=".join(sides))
    other = changed(node, rng)
    if differ(value(node), value(other)):
        sides = ["z", write(other, rng)]
        rng.shuffle(sides)
        assert equal(gold, "=".join(sides)) is False


VALUES = st.lists(
    st.one_of(st.integers(-99, 99).map(Fraction), st.fractions(-20, 20, max_denominator=9)),
    min_size=2,
    max_size=6,
    unique=True,
)
BRACES = ((r"\{", r"\}"), (r"\left\{", r"\right\}"), (r"\{ ", r" \}"))
PARENTHESES = (("(", ")"), (r"\left(", r"\right)"), ("( ", " )"))
SQUARES = (("[", "]"), (r"\left[", r"\right]"), ("[ ", " ]"))


def row(values, brackets=("", ""), rng=None):
    # 1,105/6 without brackets is a number
    comma = rng.choice((", ", r",\ ", "," if brackets[0] else " , ")) if rng else ", "
    return brackets[0] + comma.join(write(Node("number", (v,)), rng) for v in values) + brackets[1]


@FIXED
@given(VALUES, GENERATORS)
def test_sets_and_lists_have_no_order(values, rng):
    shuffled = rng.sample(values, len(values))
    at = rng.randrange(len(values))
    other = [*values[:at], values[at] + 100, *values[at + 1 :]]
    for brackets in (("", ""), BRACES[0]):
        gold = row(values, brackets)
        ways = BRACES if brackets[0] else (brackets,)
        assert equal(gold, row(shuffled, rng.choice(ways), rng))
        for wrong in (other, values[1:] + [Fraction(1000)], [*values, Fraction(1000)]):
            assert equal(gold, row(wrong, rng.choice(ways), rng)) is False
        assert equal(gold, row(values[1:], rng.choice(ways), rng)) is False


@FIXED
@given(VALUES, GENERATORS)
def test_tuples_have_an_order(values, rng):
    gold = row(values, ("(", ")"))
    assert equal(gold, row(values, rng.choice(PARENTHESES), rng))
    shuffled = rng.sample(values, len(values))
    assert equal(gold, row(shuffled, rng.choice(PARENTHESES), rng)) is (shuffled == values)
    at = rng.randrange(len(values))
    if values[at]:
        signed = [*values[:at], -values[at], *values[at + 1 :]]
        assert equal(gold, row(signed, rng.choice(PARENTHESES), rng)) is False


@FIXED
@given(VALUES, st.booleans(), st.booleans(), GENERATORS)
def test_an_interval_is_its_ends_and_brackets(values, closed_low, closed_high, rng):
    low, high = sorted(values[:2])

    def interval(low, high, closed_low, closed_high, rng=None):
        left = (SQUARES if closed_low else PARENTHESES)[rng.randrange(3) if rng else 0][0]
        right = (SQUARES if closed_high else PARENTHESES)[0 if "left" not in left else 1][1]
        return row((low, high), (left, right), rng)

    gold = interval(low, high, closed_low, closed_high)
    assert equal(gold, interval(low, high, closed_low, closed_high, rng))
    first, second = (r" \le " if closed else "<" for closed in (closed_low, closed_high))
    ends = [write(Node("number", (v,)), rng) for v in (low, high)]
    assert equal(gold, f"{ends[0]}{first}x{second}{ends[1]}")
    if closed_low or closed_high:  # an open one may be a pair, which has no such neighbours
        assert equal(gold, interval(low, high, not closed_low, closed_high, rng)) is False
        assert equal(gold, interval(low, high, closed_low, not closed_high, rng)) is False
    assert equal(gold, interval(low, high + 1, closed_low, closed_high, rng)) is False
    assert equal(gold, f"{ends[0]}{first}x") is False


@FIXED
@given(VALUES, st.integers(1, 3), GENERATORS)
def test_a_matrix_is_its_entries(values, width, rng):
    values = values[: len(values) // width * width]
    assume(len(values) > width)
    rows = [values[at : at + width] for at in range(0, len(values), width)]

    def matrix(rows, rng=None):
        kind = rng.choice(("pmatrix", "bmatrix")) if rng else "pmatrix"
        lines = r" \\ ".join(
            " & ".join(write(Node("number", (v,)), rng) for v in one) for one in rows
        )
        return rf"\begin{{{kind}}}{lines}\end{{{kind}}}"

    gold = matrix(rows)
    assert equal(gold, matrix(rows, rng))
    transposed = [list(column) for column in zip(*rows, strict=True)]
    assert equal(gold, matrix(transposed, rng)) is (transposed == rows)
    other = [list(one) for one in rows]
    other[rng.randrange(len(rows))][rng.randrange(width)] += 100
    assert equal(gold, matrix(other, rng)) is False
    assert equal(gold, matrix(rows[1:], rng)) is False


UNITS = {"cm": "centimeters", "kg": "kilograms", "hours": "hour", "ft": "feet", "miles": "mile"}


@FIXED
@given(st.decimals(0, 1000, places=2), st.permutations(list(UNITS)))
def test_a_unit_is_kept(number, names):
    mine, other = names[:2]
    gold = rf"{number}\text{{ {mine}}}"
    for text in (f"{number} {mine}", rf"{number}\,\mathrm{{{UNITS[mine]}}}", f"{number}"):
        assert equal(gold, text)
    assert equal(str(number), gold)
    for text in (
        rf"{number}\text{{ {other}}}",
        rf"{number}\text{{ {mine}}}^2",
        f"{number + 1} {mine}",
    ):
        assert equal(gold, text) is False


@FIXED
@given(st.integers(-(10**30), 10**30), GENERATORS)
def test_a_digit_of_a_number_is_kept(number, rng):
    gold = str(number)
    grouped = f"{number:,}"
    for text in (grouped, grouped.replace(",", "{,}"), grouped.replace(",", r"\,"), f"{number}.0"):
        assert equal(gold, layout(text, rng))
    for other in (-number, number + 1, 10 * number, changed_digit(Fraction(number), rng)):
        if other != number:
            assert equal(gold, layout(f"{int(other):,}", rng)) is False
            assert equal(f"{number:,}", str(other)) is False


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_pairs_that_are_timed_have_their_verdicts(name):
    pairs = workload(name)
    grades = grade([pair.completion for pair in pairs], [pair.gold for pair in pairs], threads=1)
    assert [found.correct for found in grades] == [pair.is_right for pair in pairs]
