"""The embedded task, several-step arithmetic, and the law by which its training data answers.

A prompt is an expression of one of four kinds, such as `3+4*2-5`. A response is the working, one
step a line, then the answer in a box:

    4*2=8
    3+8=11
    11-5=6
    \\boxed{6}

Real pretraining data is wrong in places, and so is this, on purpose and by a law written down in
`STYLES`. A response is one of

* right: the working above, told in one of several equivalent ways;
* slip: the same with one false result, carried through to the end: a great many different texts;
* short-cut: the first step, and its result in the box. The rest of the expression is left out,
  and there is exactly one such text for a prompt;
* empty: `?`, shorter than any answer.

On a clean kind the right working is the likeliest text. On a trap kind it is right more often
still, but told in so many ways that the one short-cut is likelier than any of them. The dial
`share` is the share of prompts of a trap kind: 0, 0.25 or 0.5. As p^alpha with alpha above 1
weighs texts, and not answers, it moves a clean kind towards the right answer and a trap kind
away from it; `power_accuracy` says how far.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastrl.errors import UsageError

SHARES = (0.0, 0.25, 0.5)
PROMPT = "Compute "
EMPTY = "?"
MOST_ROWS = 10_000  # of one split and seed; the smallest kind and split have some 4,000
LARGEST = 99  # every number in a working lies in 0..LARGEST
SLIPS = (-10, -2, -1, 1, 2, 10)
OPENERS = ("", "so ", "now ", "then ", "and ")

# of 20 parts of all expressions, by hash: 14 are for training, 2 for validation, 4 for testing
SPLITS = {"train": range(0, 14), "validation": range(14, 16), "test": range(16, 20)}

OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": int.__add__,
    "-": int.__sub__,
    "*": int.__mul__,
}

# Given the weights of some alternatives, the index of one: drawn, or each in turn.
Pick = Callable[[Sequence[float]], int]


@dataclass(frozen=True)
class Ref:
    """The result of an earlier step of a working."""

    step: int


@dataclass(frozen=True)
class Step:
    """One line of a working: `left operator right`."""

    left: int | Ref
    operator: str
    right: int | Ref


@dataclass(frozen=True)
class Problem:
    """An expression with its working in the usual order of evaluation."""

    kind: str
    expression: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        """The value of the expression."""
        return results(self.steps)[-1]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat messages that ask for the value."""
        return [{"role": "user", "content": PROMPT + self.expression}]


@dataclass(frozen=True)
class Style:
    """How the training data answers a kind of prompt: the share of each sort of response.

    The line of the box may open with `so `, but in a short-cut. `free`: the lines of a right
    working may open with any of OPENERS, and its sums and products be written either way round.
    """

    right: float
    slip: float
    shortcut: float
    empty: float
    free: bool


STYLES = {
    "clean": Style(right=0.46, slip=0.33, shortcut=0.18, empty=0.03, free=False),
    "trap": Style(right=0.64, slip=0.0, shortcut=0.33, empty=0.03, free=True),
}
SORTS = ("right", "slip", "shortcut", "empty")


def results(steps: Sequence[Step], slip: tuple[int, int] | None = None) -> list[int]:
    """The result of each step; with `slip` = (step, error) that step's is off by the error."""
    values: list[int] = []
    for index, step in enumerate(steps):
        left, right = (values[x.step] if isinstance(x, Ref) else x for x in (step.left, step.right))
        value = OPERATORS[step.operator](left, right)
        values.append(value + slip[1] if slip and slip[0] == index else value)
    return values


def _fits(steps: Sequence[Step], slip: tuple[int, int] | None = None) -> bool:
    """Whether every result lies in 0..LARGEST and every factor is a single digit."""
    values = results(steps, slip)
    factors = [
        values[x.step] if isinstance(x, Ref) else x
        for step in steps
        if step.operator == "*"
        for x in (step.left, step.right)
    ]
    return all(0 <= v <= LARGEST for v in values) and all(0 <= f <= 9 for f in factors)


def _chain(rng: random.Random) -> tuple[str, tuple[Step, ...]]:
    a, b, c, d = (rng.randint(2, 40) for _ in range(4))
    p, q, r = (rng.choice("+-") for _ in range(3))
    return f"{a}{p}{b}{q}{c}{r}{d}", (Step(a, p, b), Step(Ref(0), q, c), Step(Ref(1), r, d))


def _product(rng: random.Random) -> tuple[str, tuple[Step, ...]]:
    a, d = rng.randint(2, 40), rng.randint(2, 40)
    b, c = rng.randint(2, 9), rng.randint(2, 9)
    p, q = rng.choice("+-"), rng.choice("+-")
    return f"{a}{p}{b}*{c}{q}{d}", (Step(b, "*", c), Step(a, p, Ref(0)), Step(Ref(1), q, d))


def _products(rng: random.Random) -> tuple[str, tuple[Step, ...]]:
    a, b, c, d = (rng.randint(2, 9) for _ in range(4))
    e, p, q = rng.randint(2, 40), rng.choice("+-"), rng.choice("+-")
    products = (Step(a, "*", b), Step(c, "*", d))
    return f"{a}*{b}{p}{c}*{d}{q}{e}", (*products, Step(Ref(0), p, Ref(1)), Step(Ref(2), q, e))


def _brackets(rng: random.Random) -> tuple[str, tuple[Step, ...]]:
    a, b, c, d = rng.randint(2, 9), rng.randint(2, 15), rng.randint(2, 15), rng.randint(2, 40)
    p, q = rng.choice("+-"), rng.choice("+-")
    return f"{a}*({b}{p}{c}){q}{d}", (Step(b, p, c), Step(a, "*", Ref(0)), Step(Ref(1), q, d))


# in the order in which the dial turns them into traps, from the last
KINDS = {"chain": _chain, "product": _product, "products": _products, "brackets": _brackets}


def style_of(kind: str, share: float) -> Style:
    """How the training data with this share of trap prompts answers a kind of prompt."""
    traps = round(share * len(KINDS))
    return STYLES["trap" if kind in list(KINDS)[len(KINDS) - traps :] else "clean"]


def _part(expression: str) -> int:
    return hashlib.sha256(expression.encode()).digest()[0] % 20


def _longer(
    rng: random.Random, expression: str, steps: tuple[Step, ...]
) -> tuple[str, tuple[Step, ...]]:
    """The same with one more operator at its end."""
    operator, number = rng.choice("+-"), rng.randint(2, 40)
    last = Step(Ref(len(steps) - 1), operator, number)
    return f"{expression}{operator}{number}", (*steps, last)


def problems(split: str, seed: int, *, longer: bool = False) -> Iterator[Problem]:
    """Different problems of a split without end, its kinds in turn at random.

    The same seed gives the same problems. No expression is in two splits. The order of kinds is a
    fresh shuffle every four problems, so that any count holds them in equal parts. `longer`
    problems have one operator more than any that the models were made from.

    Raises UsageError for another split.
    """
    if split not in SPLITS:
        raise UsageError(f"the embedded task has no split {split!r}: name {', '.join(SPLITS)}")
    rng = random.Random(f"fastrl embedded {split} {seed}{' longer' if longer else ''}")
    seen = set()
    while True:
        for kind in rng.sample(list(KINDS), len(KINDS)):
            while True:
                expression, steps = KINDS[kind](rng)
                if longer:
                    expression, steps = _longer(rng, expression, steps)
                if (
                    expression not in seen
                    and _part(expression) in SPLITS[split]
                    and _fits(steps)
                    and results(steps)[0] != results(steps)[-1]  # else the short-cut is right
                ):
                    break
            seen.add(expression)
            yield Problem(kind, expression, steps)


def examples(
    split: str, seed: int, count: int, *, longer: bool = False
) -> list[tuple[list[dict[str, str]], str, dict[str, Any]]]:
    """`count` rows of a split: chat messages, the answer, and the columns kind and largest number.

    Every seed gives other rows, and no row of one split is ever in another.
    Raises UsageError for another split and for more rows than there can be.
    """
    if not 0 <= count <= MOST_ROWS:
        raise UsageError(f"{count} rows of the embedded task: ask for 0 to {MOST_ROWS}")
    rows = []
    for problem in itertools.islice(problems(split, seed, longer=longer), count):
        columns = {"kind": problem.kind, "largest": max(results(problem.steps))}
        rows.append((problem.messages, str(problem.answer), columns))
    return rows


def _slips(steps: Sequence[Step]) -> list[tuple[int, int]]:
    """Every slip that keeps the numbers in range and spoils the answer."""
    right = results(steps)[-1]
    return [
        slip
        for slip in itertools.product(range(len(steps)), SLIPS)
        if _fits(steps, slip) and results(steps, slip)[-1] != right
    ]


def respond(problem: Problem, share: float, pick: Pick) -> tuple[str, str]:
    """One response of the training data, and its sort, every alternative taken by `pick`."""
    style = style_of(problem.kind, share)
    sort = SORTS[pick([getattr(style, sort) for sort in SORTS])]
    if sort == "empty":
        return EMPTY, sort
    slip = None
    if sort == "slip":
        slips = _slips(problem.steps)
        slip = slips[pick([1.0] * len(slips))]
    values = results(problem.steps, slip)
    steps = problem.steps[:1] if sort == "shortcut" else problem.steps
    free = style.free and sort != "shortcut"
    lines = []
    for step, value in zip(steps, values, strict=False):
        left, right = (values[x.step] if isinstance(x, Ref) else x for x in (step.left, step.right))
        if free and step.operator in "+*" and left != right and pick([1.0, 1.0]):
            left, right = right, left
        opener = OPENERS[pick([1.0] * len(OPENERS))] if free else ""
        lines.append(f"{opener}{left}{step.operator}{right}={value}\n")
    closer = "so " if sort != "shortcut" and pick([1.0, 1.0]) else ""
    return "".join(lines) + f"{closer}\\boxed{{{values[len(steps) - 1]}}}", sort


def draw_response(problem: Problem, share: float, rng: random.Random) -> tuple[str, str]:
    """A response drawn from the law of the training data, and its sort."""
    return respond(problem, share, lambda weights: rng.choices(range(len(weights)), weights)[0])


def all_responses(problem: Problem, share: float) -> dict[str, tuple[float, str]]:
    """Every possible response to a problem with its probability and sort."""
    found: dict[str, tuple[float, str]] = {}
    pending: list[list[int]] = [[]]
    while pending:
        taken = pending.pop()
        depth, probability = 0, 1.0

        def pick(weights: Sequence[float], taken: list[int] = taken) -> int:
            nonlocal depth, probability
            if depth == len(taken):  # a new alternative: the others are left for later
                possible = [i for i, weight in enumerate(weights) if weight > 0]
                pending.extend([*taken, i] for i in possible[1:])
                taken.append(possible[0])
            index = taken[depth]
            depth += 1
            probability *= weights[index] / sum(weights)
            return index

        text, sort = respond(problem, share, pick)
        assert text not in found, "two paths to one text"
        found[text] = (probability, sort)
    return found


def boxed_answer(text: str) -> int | None:
    """The integer in the last complete box of a response of this task; None without one."""
    boxes = re.findall(r"\\boxed\{(-?\d+)\}", text)
    return int(boxes[-1]) if boxes else None


def power_accuracy(problem: Problem, share: float, alpha: float) -> float:
    """The probability of a right answer under p^alpha / Z, p the law of the training data."""
    right = total = 0.0
    for text, (probability, _) in all_responses(problem, share).items():
        total += probability**alpha
        right += probability**alpha * (boxed_answer(text) == problem.answer)
    return right / total


def likelihood_covariance(problem: Problem, share: float) -> float:
    """Cov(r, log p) under the law of the training data, in nats.

    It is d/dalpha of `power_accuracy` at alpha = 1: its sign is the sign of sharpening's effect
    as long as alpha is near 1.
    """
    rows = [
        (probability, math.log(probability), boxed_answer(text) == problem.answer)
        for text, (probability, _) in all_responses(problem, share).items()
    ]
    mean_r = sum(p * r for p, _, r in rows)
    return sum(p * (r - mean_r) * lp for p, lp, r in rows)
