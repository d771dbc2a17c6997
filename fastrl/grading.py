"""Completion and gold answer to a verdict.

Read natively, in threads, with no clock and no evaluation of what a model wrote: the answer is the
last complete `\\boxed{}` or `\\fbox{}` after the last `</think>`; integers, decimals and fractions
are compared exactly, anything else as text with white space folded and without the dollar signs
around it. `Grade.reason` is one of

    correct      the answer equals the gold
    wrong        it does not
    no_answer    there is no complete box
    empty        the last box is empty; an earlier one is not looked at
    shotgun      more than three different values are boxed, empty boxes not counted
    thinking     a <think> is never closed
    limit        longer than 4,096 bytes, or over the budget, and not the gold's text
    gold_empty   the gold is empty or undefined (1/0); `correct` is None
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fastrl.errors import UsageError
from fastrl.types import Grade

REASONS = (
    "correct",
    "wrong",
    "no_answer",
    "empty",
    "shotgun",
    "thinking",
    "limit",
    "gold_empty",
)
MODES = ("box",)
CONTENTS = ("completion", "answer")


def grade(
    completions: Sequence[str | bytes],
    golds: Sequence[str | bytes],
    *,
    mode: str = "box",
    content: str = "completion",
    threads: int = 0,
    budget_ops: int = 20_000,
) -> list[Grade]:
    """One verdict a completion; `golds` are the right answers, one each.

    `content` "answer" takes each completion as the answer itself. `threads` 0 uses every core; the
    verdicts are the same for any number. `budget_ops` bounds one comparison, in products of
    nine-digit limbs: no clock, so that a verdict does not depend on the load. Spans are offsets in
    UTF-8 bytes, without the white space around the answer. Raises UsageError for a mode or content
    that is not known, for lists of unequal length, and for a negative budget or number of threads.
    """
    from fastrl import _C

    if mode not in MODES:
        raise UsageError(f"mode is {mode!r}; allowed: {', '.join(MODES)}")
    if content not in CONTENTS:
        raise UsageError(f"content is {content!r}; allowed: {', '.join(CONTENTS)}")
    if len(completions) != len(golds):
        raise UsageError(
            f"{len(completions)} completions came with {len(golds)} golds; give one each"
        )
    for name, value in (("threads", threads), ("budget_ops", budget_ops)):
        if value < 0:
            raise UsageError(f"{name} is {value}; it must not be negative")
    texts, wanted = ([_bytes(t) for t in side] for side in (completions, golds))
    cells = _C.grade(texts, wanted, content == "answer", budget_ops, threads or os.cpu_count() or 1)
    return [_grade(text, *row) for text, row in zip(texts, cells.tolist(), strict=True)]


def _bytes(text: str | bytes) -> bytes:
    # a lone surrogate, which a broken decoder can leave behind, must not stop a batch
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


def _grade(text: bytes, reason: int, begin: int, end: int) -> Grade:
    name = REASONS[reason]
    found = begin >= 0
    return Grade(
        correct=None if name == "gold_empty" else name == "correct",
        answer=text[begin:end].decode("utf-8", "replace") if found else None,
        reason=name,
        span=(begin, end) if found else None,
    )


@dataclass
class FileSummary:
    """What `grade_file` did."""

    reasons: Counter[str] = field(default_factory=Counter)
    bad_lines: list[str] = field(default_factory=list)  # a sentence each

    def __str__(self) -> str:
        graded = sum(self.reasons.values())
        share = f", {100 * self.reasons['correct'] / graded:.1f} % correct" if graded else ""
        counts = ", ".join(f"{name} {n}" for name, n in self.reasons.most_common())
        return f"{graded} graded{share}" + (f" ({counts})" if counts else "")


def grade_file(source: str, target: str, *, batch: int = 4096) -> FileSummary:
    """Grade the objects of a JSONL file and write them with `correct`, `answer` and `reason`.

    An object holds `prediction` and `gold`, and may hold `mode`. "-" is standard input or output; a
    reader of standard output that goes away ends the work. A line that cannot be read is left out
    of the result, named in `bad_lines` and on stderr. Raises UsageError for a file that cannot be
    opened, and where both are the same file.
    """
    if os.path.exists(target) and os.path.exists(source) and os.path.samefile(source, target):
        raise UsageError(f"{target} is the file to be read; give another --out")
    summary = FileSummary()
    with _reading(source) as lines, _writing(target) as out:
        try:
            _grade_lines(source, lines, out, batch, summary)
            out.flush()
        except BrokenPipeError:
            if target != "-":
                raise
            # what is left in the buffer would fail once more when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return summary


def _grade_lines(
    source: str, lines: BinaryIO, out: BinaryIO, batch: int, summary: FileSummary
) -> None:
    rows: list[dict] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(_row(line))
        except ValueError as error:
            sentence = f"line {number} of {source} was left out: {error}"
            summary.bad_lines.append(sentence)
            print(f"fastrl: {sentence}", file=sys.stderr)
        if len(rows) == batch:
            _grade_rows(rows, out, summary)
            rows = []
    _grade_rows(rows, out, summary)


def _row(line: bytes) -> dict:
    try:
        row = json.loads(line.rstrip().decode("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("its lists are nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError("it is not an object; give {prediction, gold}")
    for key in ("prediction", "gold"):
        if not isinstance(row.get(key), str):
            raise ValueError(f"its {key!r} is missing or no string")
    if row.get("mode", "box") not in MODES:
        raise ValueError(f"its mode {row['mode']!r} is not known; allowed: {', '.join(MODES)}")
    return row


def _grade_rows(rows: list[dict], out: BinaryIO, summary: FileSummary) -> None:
    grades = grade([r["prediction"] for r in rows], [r["gold"] for r in rows])
    for row, verdict in zip(rows, grades, strict=True):
        row |= {"correct": verdict.correct, "answer": verdict.answer, "reason": verdict.reason}
        # a lone surrogate has no UTF-8; "backslashreplace" writes it as JSON's own escape
        text = json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace")
        out.write(text + b"\n")
        summary.reasons[verdict.reason] += 1


def _reading(source: str) -> AbstractContextManager[BinaryIO]:
    if source == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(source).open("rb")
    except OSError as error:
        raise UsageError(
            f"cannot read {source}: {error.strerror}; give a JSONL file or -"
        ) from None


def _writing(target: str) -> AbstractContextManager[BinaryIO]:
    if target == "-":
        return nullcontext(sys.stdout.buffer)
    try:
        return Path(target).open("wb")
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}; give another --out") from None
