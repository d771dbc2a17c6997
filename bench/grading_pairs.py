"""Pairs of a gold and a completion with the verdict that is known, for timing the grader.

Half of the answers are wrong, most of them by one digit, sign or bracket. Of the right ones 20, 33
and 48 % of integers, fractions and expressions are written otherwise than the gold: what a
comparison of strings rejected of the pairs that the rivals of GRADING.md were timed on.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from fractions import Fraction
from itertools import cycle
from typing import NamedTuple


class Pair(NamedTuple):
    """A response, the gold it is graded with, and the truth."""

    gold: str
    completion: str
    is_right: bool


class Writing(NamedTuple):
    """A gold, the same value written otherwise, and another value."""

    gold: str
    other: str
    wrong: str


def boxed(answer: str) -> str:
    """The shortest completion with this answer."""
    return rf"\boxed{{{answer}}}"


def signed(value: int, unit: str = "") -> str:
    """`+ 3x`, `- x` or nothing at 0: a term that is not the first."""
    number = f"{abs(value)}" if abs(value) != 1 or not unit else ""
    return f"{'+' if value > 0 else '-'}{number}{unit}" if value else ""


def root(radicand: int) -> str:
    r"""\sqrt{5}."""
    return rf"\sqrt{{{radicand}}}"


def nonzero(rng: random.Random, most: int = 9) -> int:
    """A digit or a little more, of either sign."""
    return rng.choice((1, -1)) * rng.randint(1, most)


def integer(rng: random.Random) -> Writing:
    """1 to 9 digits, a quarter negative."""
    value = rng.randrange(10 ** rng.randint(1, 9)) * rng.choice((1, 1, 1, -1)) or 7
    grouped = f"{value:,}".replace(",", rng.choice(("{,}", ",", r"\,")))
    other = rng.choice((grouped, f"{value}.0", f"${value}$", f"x={value}"))
    near = value + rng.choice((1, -1, 10, -10, 100))
    return Writing(str(value), other, str(rng.choice((near, near, -value, 10 * value))))


def fraction(rng: random.Random) -> Writing:
    """Reduced, a third negative; gold and answer as \\frac, \\dfrac, a/b, mixed or decimal."""
    bottom = rng.randint(2, 99)
    value = Fraction(rng.choice([n for n in range(1, 200) if math.gcd(n, bottom) == 1]), bottom)
    value *= rng.choice((1, 1, -1))
    gold, other = rng.sample(notations(value), 2)
    near = value + Fraction(rng.choice((1, -1)), bottom)
    wrong = rng.choice((near, near, -value, 1 / value))
    return Writing(gold, other, rng.choice(notations(wrong)))


def notations(value: Fraction) -> list[str]:
    """The ways to write a fraction."""
    sign, top, bottom = "-" if value < 0 else "", abs(value.numerator), value.denominator
    found = [
        rf"{sign}\frac{{{top}}}{{{bottom}}}",
        rf"{sign}\dfrac{{{top}}}{{{bottom}}}",
        f"{sign}{top}/{bottom}",
        rf"\frac{{{sign}{2 * top}}}{{{2 * bottom}}}",
    ]
    if top > bottom > 1:
        found.append(rf"{sign}{top // bottom}\frac{{{top % bottom}}}{{{bottom}}}")
    if 10**4 % bottom == 0:
        found.append(f"{float(value)}")
    return found


def quadratic(rng: random.Random) -> Writing:
    """Expanded, factored."""
    a, b = nonzero(rng, 20), nonzero(rng, 20)
    front = f"x^2{signed(a + b, 'x')}"
    return Writing(
        f"{front}{signed(a * b)}", f"(x{signed(b)})(x{signed(a)})", f"{front}{signed(-a * b)}"
    )


def cubic(rng: random.Random) -> Writing:
    """Factored, expanded."""
    a, b, c = (nonzero(rng) for _ in range(3))
    gold = f"(x{signed(a)})(x^2{signed(b, 'x')}{signed(c)})"
    other = f"x^3{signed(a + b, 'x^2')}{signed(c + a * b, 'x')}{signed(a * c)}"
    return Writing(gold, other, f"{other}{signed(nonzero(rng), 'x')}")


def monomial(rng: random.Random) -> Writing:
    """6x^2y^5."""
    a, m, n = rng.randint(2, 60), rng.randint(2, 9), rng.randint(2, 9)
    return Writing(f"{a}x^{m}y^{n}", rf"{a}y^{{{n}}}x^{{{m}}}", f"{a}x^{m}y^{n + 1}")


def ratio(rng: random.Random) -> Writing:
    """A quotient of linear terms, and with both signs turned."""
    a, b, c = rng.randint(2, 20), nonzero(rng, 20), nonzero(rng, 20)
    gold = rf"\frac{{{a}x{signed(b)}}}{{x{signed(c)}}}"
    other = rf"\dfrac{{{-a}x{signed(-b)}}}{{{-c}-x}}"
    return Writing(gold, other, rf"\frac{{{a}x{signed(b)}}}{{x{signed(c + 30)}}}")


def surd(rng: random.Random) -> Writing:
    """a + b sqrt c."""
    a, b, c = rng.randint(1, 40), nonzero(rng, 20), rng.choice((2, 3, 5, 6, 7, 11, 13))
    gold = f"{a}{signed(b, root(c))}"
    return Writing(gold, f"{b}{root(c)}+{a}", f"{a}{signed(-b, root(c))}")


def root_ratio(rng: random.Random) -> Writing:
    """a sqrt c / b."""
    a, b, c = rng.randint(2, 60), rng.randint(2, 30), rng.choice((2, 3, 5, 6, 7, 11, 13))
    gold, wrong = (rf"\frac{{{a}{root(n)}}}{{{b}}}" for n in (c, c + 4))
    return Writing(gold, rf"\frac{{{a}}}{{{b}}}{root(c)}", wrong)


def circle(rng: random.Random) -> Writing:
    """A multiple of pi."""
    a, b = rng.randint(2, 90), rng.randint(2, 30)
    wrong = rf"\frac{{{a}\pi}}{{{b + 1}}}"
    return Writing(rf"\frac{{{a}\pi}}{{{b}}}", rf"\frac{{{a}}}{{{b}}}\pi", wrong)


def powers(rng: random.Random) -> Writing:
    """A product of powers."""
    a, b = rng.randint(5, 40), rng.randint(3, 20)
    return Writing(rf"2^{{{a}}}\cdot 3^{{{b}}}", rf"3^{{{b}}}\cdot 2^{{{a}}}", rf"6^{{{a + b}}}")


def complex_number(rng: random.Random) -> Writing:
    """a + bi."""
    a, b = nonzero(rng, 60), nonzero(rng, 60)
    return Writing(f"{a}{signed(b, 'i')}", f"{b}i{signed(a)}", f"{a}{signed(-b, 'i')}")


def point(rng: random.Random) -> Writing:
    """A pair of an integer and a fraction."""
    a, b, c = nonzero(rng, 30), rng.randint(1, 30), rng.choice((31, 37, 41))
    part = rf"\frac{{{b}}}{{{c}}}"
    return Writing(f"({a},{part})", rf"\left({a},\ {b}/{c}\right)", f"({part},{a})")


def interval(rng: random.Random) -> Writing:
    """Half open."""
    a = nonzero(rng, 60)
    b = a + rng.randint(1, 40)
    return Writing(f"[{a},{b})", rf"\left[{a}, {b}\right)", f"[{a},{b}]")


def two_rays(rng: random.Random) -> Writing:
    """A union of rays."""
    a = nonzero(rng, 60)
    b = a + rng.randint(1, 40)
    other = rf"({b}, \infty) \cup (-\infty, {a})"
    gold = rf"(-\infty,{a})\cup({b},\infty)"
    return Writing(gold, other, rf"(-\infty,{a}]\cup({b},\infty)")


def line(rng: random.Random) -> Writing:
    """y = ax + b, and as an equation that is 0."""
    a, b = rng.randint(2, 40), nonzero(rng, 40)
    other = f"{a}x-y{signed(b)}=0"
    return Writing(f"y={a}x{signed(b)}", other, f"y={a}x{signed(-b)}")


def solutions(rng: random.Random) -> Writing:
    """A list in any order."""
    a, b, c = rng.sample(range(-40, 100), 3)
    return Writing(f"{a}, {b}, {c}", f"{c},{a},{b}", f"{a}, {b}, {c + 200}")


EXPRESSIONS = (
    quadratic, cubic, monomial, ratio, surd, root_ratio, circle, powers, complex_number, point,
    interval, two_rays, line, solutions,
)  # fmt: skip


def expression(rng: random.Random) -> Writing:
    """Of the kinds that the golds of MATH have beside numbers."""
    return rng.choice(EXPRESSIONS)(rng)


def any_answer(rng: random.Random) -> Writing:
    """63 % integers and 13 % fractions, as in MATH."""
    makers = (integer, fraction, expression)
    return rng.choices(makers, weights=(63, 13, 24))[0](rng)


# of a worked solution; # is a number
SENTENCES = (
    r"First we simplify the left-hand side: $#x + # = #$, so $x = \frac{# - #}{#}$.",
    r"Let $n$ be the number of ways; there are $# \cdot #$ of them, since both choices are free.",
    "Wait, I should double-check that the case $k = #$ was not counted twice.",
    r"\[ \sum_{k=1}^{#} k^2 = \frac{#(#+1)(2\cdot #+1)}{6} \]",
    r"By the Pythagorean theorem $AB^2 = #^2 + #^2$, and therefore $AB = \sqrt{#^2+#^2}$.",
    "Substituting back gives $f(#) = #$ and $f(#) = #$, as the condition of the problem demands.",
    "The remainder when # is divided by # can be found by working modulo #.",
    "Hmm, if the answer were #, then the total would be #, but it has to be #.",
    "Therefore the triangle has sides #, # and #, and its semiperimeter is $s = (#+#+#)/2$.",
    "\\begin{align*}\nx^2 - #x + # &= 0 \\\\\nx &= \\frac{# \\pm \\sqrt{#}}{2}\n\\end{align*}",
    "**Step #.** We now multiply both sides by $#$ to clear the denominators.",
    r"So $\log_2 # + \log_2 # = \log_2(# \cdot #)$: the logarithm turns products into sums.",
    r"There are $\binom{#}{2}$ pairs, and each of them is counted # times.",
    r"Alternatively, the area is $\frac{1}{2} \cdot # \cdot # \cdot \sin #^\circ$.",
    r"- For $x < #$ the expression is negative, so only $\left[#, \infty\right)$ remains.",
)
ENDS = (
    "Therefore, the final answer is $#$.",
    "So the answer is\n\\[\n#\n\\]",
    "**Final Answer:** $#$\n\nThis agrees with the check above.",
)
COMPLETION_CHARACTERS = 8000  # about 2,000 tokens


def solution(rng: random.Random, answer: str) -> str:
    """A worked solution of about 8 kB with its answer in a box at the end."""
    parts: list[str] = []
    size = 0
    while size < COMPLETION_CHARACTERS:
        sentence = re.sub("#", lambda _: str(rng.randint(2, 400)), rng.choice(SENTENCES))
        parts += [sentence, rng.choice((" ", " ", "\n\n"))]
        size += len(sentence) + 1
    return "".join(parts) + rng.choice(ENDS).replace("#", boxed(answer))


WORKLOADS: dict[str, tuple[Callable[[random.Random], Writing], float, int]] = {
    # what makes a gold, the share of right answers that are written otherwise, how many
    "integers": (integer, 0.20, 8192),
    "fractions": (fraction, 0.33, 8192),
    "expressions": (expression, 0.48, 8192),
    "completions": (any_answer, 0.30, 2048),
}


def workload(name: str) -> list[Pair]:
    """The pairs of one workload, the same at every call; no gold is there twice."""
    make, otherwise, count = WORKLOADS[name]
    rng = random.Random(name)
    pairs: dict[str, Pair] = {}
    wanted = cycle((True, False))
    while len(pairs) < count:
        gold, other, wrong = make(rng)
        if gold in pairs:
            continue
        is_right = next(wanted)
        right = other if rng.random() < otherwise else gold
        answer = right if is_right else wrong
        completion = solution(rng, answer) if name == "completions" else boxed(answer)
        pairs[gold] = Pair(gold, completion, is_right)
    return rng.sample(list(pairs.values()), count)
