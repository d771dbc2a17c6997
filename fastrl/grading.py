"""Completion and gold answer to a verdict.

Read natively, in threads, with a budget of operations, no clock and no evaluation of what a model
wrote. The answer is what stands in the answer region, which is the text after the last `</think>`:

    box            the last complete `\\boxed{}` or `\\fbox{}`
    box_or_anchor  the same; without any box what follows "the answer is", "Answer:", "####"
    flexible       the same; without an anchor the last number
    hash4          what follows the last "####"
    choice         the letter of an option: in a box, after an anchor, or alone on the last line
    tag            what the one `<answer>` section holds

Numbers are compared exactly, with a gold's decimals as its precision; expressions by identities in
a finite field and in 106-bit arithmetic at fixed places; sets, tuples, intervals, matrices,
equations and inequalities by their parts; anything else as text. `Grade.reason` is one of

    correct      the answer equals the gold
    wrong        it does not
    no_answer    nothing of what the mode looks for
    empty        the last box is empty; an earlier one is not looked at
    truncated    a box or tag opens after the last complete one and is never closed
    shotgun      more than three different values are boxed (two anchored, one tagged)
    hedge        the answer takes itself back: or, not, maybe
    thinking     a <think> is never closed
    limit        over a limit of size or over the budget, and not the gold's text
    gold_empty   the gold is empty or has no value (1/0); `correct` is None
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from fastrl.errors import UsageError

REASONS = (
    "correct",
    "wrong",
    "no_answer",
    "empty",
    "truncated",
    "shotgun",
    "hedge",
    "thinking",
    "limit",
    "gold_empty",
)
MODES = ("box", "box_or_anchor", "flexible", "hash4", "choice", "tag")
CONTENTS = ("completion", "answer")


class Grade(NamedTuple):
    """A verdict on one response."""

    correct: bool | None  # None where the gold cannot be read
    answer: str | None  # the extracted answer
    reason: str  # one of REASONS
    span: tuple[int, int] | None = None  # byte offsets of the answer in the UTF-8 completion


@dataclass(frozen=True)
class GradingPolicy:
    """What a reasonable person may rule either way."""

    shotgun: Literal["wrong", "last"] = "wrong"  # "last": the last value pays, however many
    bare_percent: bool = True  # 50 is right for 50 %, and 50 % for 50
    six_digits: bool = False  # a decimal right to six significant digits is right for an exact gold


class Gold:
    """A gold answer, compiled once for many completions.

    `kind` is "number", "expression", "list", "set", "tuple", "interval", "matrix", "relation",
    "option" or "text"; `problem` is "" or says why nothing can be compared with it ("empty",
    "undefined") or only its own text ("limit").
    """

    __slots__ = ("_compiled",)

    def __init__(self, text: str | bytes) -> None:
        from fastrl import _C

        self._compiled = _C.Gold(text)

    @classmethod
    def compile(cls, text: str | bytes) -> Gold:
        """The compiled gold; never fails, see `is_readable`."""
        return cls(text)

    @property
    def text(self) -> str:
        """The source."""
        return self._compiled.text

    @property
    def kind(self) -> str:
        """What it was read as."""
        return self._compiled.kind

    @property
    def problem(self) -> str:
        """Why it cannot be compared, or ""."""
        return self._compiled.problem

    @property
    def is_readable(self) -> bool:
        """Whether completions get a verdict with it."""
        return self._compiled.is_readable

    def __repr__(self) -> str:
        return f"Gold({self.text!r}, {self.kind})"


class Packed(NamedTuple):
    """Completions end to end: number i is `buffer[offsets[i]:offsets[i + 1]]`, in bytes."""

    buffer: Any  # bytes, or anything with the buffer protocol
    offsets: Any  # int64, one more than there are completions


AnyGold = str | bytes | Gold


def grade(
    completions: Sequence[str | bytes] | Packed,
    golds: Sequence[AnyGold | Iterable[AnyGold]],
    *,
    mode: str = "box",
    content: str = "completion",
    threads: int = 0,
    budget_ops: int = 20_000,
    policy: GradingPolicy = GradingPolicy(),  # noqa: B008 (frozen)
) -> list[Grade]:
    """One verdict a completion; `golds` are the right answers, one each or several of which any do.

    `content` "answer" takes each completion as the answer itself. `threads` 0 uses every core; the
    verdicts are the same for any number. `budget_ops` bounds one comparison, in products of
    18-digit limbs, nodes and comparisons: no clock, so that a verdict does not depend on the load.
    Spans are offsets in UTF-8 bytes, without the white space around the answer; of boxes side by
    side that are one list, from the first to the last. Raises UsageError for a mode, content or
    policy that is not known, for lists of unequal length, and for a negative budget or number of
    threads.
    """
    from fastrl import _C

    _check("mode", mode, MODES)
    _check("content", content, CONTENTS)
    _check("policy.shotgun", policy.shotgun, ("wrong", "last"))
    for name, value in (("threads", threads), ("budget_ops", budget_ops)):
        if value < 0:
            raise UsageError(f"{name} is {value}; it must not be negative")
    for name, texts in (("completions", completions), ("golds", golds)):
        if isinstance(texts, (str, bytes)):
            raise UsageError(f"{name} is one {type(texts).__name__}; give a list of them")
    packed = isinstance(completions, Packed)
    count = len(completions.offsets) - 1 if isinstance(completions, Packed) else len(completions)
    if count != len(golds):
        raise UsageError(f"{count} completions came with {len(golds)} golds; give one each")
    return _C.grade(
        completions[0] if packed else completions,
        completions[1] if packed else None,
        golds,
        MODES.index(mode),
        content == "answer",
        budget_ops,
        threads or os.cpu_count() or 1,
        policy.shotgun == "last",
        policy.bare_percent,
        policy.six_digits,
        Grade,
        REASONS,
    )


def _check(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UsageError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")


def count_reasons(grades: Iterable[Grade]) -> Counter[str]:
    """How often each reason was given, every one of REASONS present, in their order."""
    counts = Counter(dict.fromkeys(REASONS, 0))
    counts.update(g.reason for g in grades)
    return counts
