"""A JSONL file of predictions to the same objects with their verdicts."""

from __future__ import annotations

import io
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from fastrl import strict_json
from fastrl.errors import UsageError
from fastrl.grading import CONTENTS, MODES, Grade, GradingPolicy, grade

BLOCK_BYTES = 1 << 20


@dataclass
class FileSummary:
    """What `grade_file` did."""

    reasons: Counter[str] = field(default_factory=Counter)
    bad_lines: list[str] = field(default_factory=list)  # a sentence each
    reader_left: bool = False  # nobody wants the rest of the result

    @property
    def graded(self) -> int:
        """Objects that were given a verdict."""
        return sum(self.reasons.values())

    def rows(self) -> list[tuple[str, str, str]]:
        """(reason, count, share) as text, the most frequent reason first."""
        return [
            (name, f"{n:,}", f"{100 * n / self.graded:.1f} %")
            for name, n in self.reasons.most_common()
        ]

    def __str__(self) -> str:
        if not self.graded:
            return "0 graded"
        counts = ", ".join(f"{name} {n}" for name, n in self.reasons.most_common())
        share = 100 * self.reasons["correct"] / self.graded
        return f"{self.graded} graded, {share:.1f} % correct ({counts})"


def grade_file(
    source: str,
    target: str,
    *,
    batch: int = 4096,
    mode: str = "box",
    policy: GradingPolicy = GradingPolicy(),  # noqa: B008 (frozen)
    on_read: Callable[[int], object] = lambda _: None,
) -> FileSummary:
    """Grade the objects of a JSONL file and write them with `correct`, `answer` and `reason`.

    An object holds `prediction` and `gold` (a string, or a list of which any is right), and may
    hold `mode` (else the argument's) and `content`, as `grade` takes them; at most `batch` are
    graded at once. "-" is standard input or output. What can be read without waiting is graded and
    written before more is waited for, so that a live pipe gets its answers; a reader that goes
    away ends the work. A line that cannot be read is left out of the result, named in `bad_lines`
    and on stderr. `on_read` is told of every block of bytes that was graded. Raises UsageError for
    a file that cannot be opened, where both are the same file, and as `grade` does.
    """
    grade([], [], mode=mode, policy=policy)  # before a file is touched
    paths = source, target
    if "-" not in paths and all(map(os.path.exists, paths)) and os.path.samefile(*paths):
        raise UsageError(f"{target} is the file to be read; give another --out")
    summary = FileSummary()
    try:
        with reading(source) as lines, _writing(target) as out:
            for number, block in _blocks(lines):
                rows = list(_rows(source, number, block, summary))
                for first in range(0, len(rows), batch):
                    out.write(_graded(rows[first : first + batch], mode, policy, summary))
                out.flush()
                on_read(sum(map(len, block)) + len(block))
    except BrokenPipeError:
        summary.reader_left = True
        if target == "-":
            # what is left in the buffer would fail once more when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return summary


def reading(source: str) -> AbstractContextManager[io.BufferedIOBase]:
    """A file's bytes, or standard input's for "-". Raises UsageError where it cannot be opened."""
    if source == "-":
        return nullcontext(cast(io.BufferedIOBase, sys.stdin.buffer))
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


def _blocks(file: io.BufferedIOBase) -> Iterator[tuple[int, list[bytes]]]:
    """Whole lines with the number of the first, as many as can be read without waiting."""
    number, parts = 1, [b""]  # parts of a line that is not whole yet
    while block := file.read1(BLOCK_BYTES):
        whole, end, rest = block.rpartition(b"\n")
        if end:
            lines = b"".join([*parts, whole]).split(b"\n")
            yield number, lines
            number, parts = number + len(lines), []
        parts.append(rest)
    if last := b"".join(parts):
        yield number, [last]


def _rows(
    source: str, number: int, lines: Sequence[bytes], summary: FileSummary
) -> Iterator[dict[str, Any]]:
    for place, line in enumerate(lines, number):
        if line.strip():
            try:
                yield _row(line)
            except ValueError as error:
                summary.bad_lines.append(report_line(source, place, error))


def report_line(source: str, number: int, error: ValueError) -> str:
    """The sentence that a bad line is left out with, said on stderr."""
    sentence = f"line {number} of {source} was left out: {error}"
    print(f"fastrl: {sentence}", file=sys.stderr)
    return sentence


def json_object(line: bytes, **options: Any) -> dict[str, Any]:
    """The JSON object on a line; `options` are those of `json.loads`. Raises ValueError."""
    try:
        row = strict_json.parse(line.strip().decode("utf-8-sig"), **options)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(row, dict):
        raise ValueError("it is not an object; write one such as {...}")
    return row


def golds_of(row: dict[str, Any], key: str = "gold") -> list[str]:
    """The golds under `key`, one or several. Raises ValueError where they are no strings."""
    value = row.get(key)
    golds: list[Any] = value if isinstance(value, list) else [value]
    if not golds or not all(isinstance(gold, str) for gold in golds):
        raise ValueError(f"its {key!r} is missing or no string; give a string or a list of them")
    return golds


def _row(line: bytes) -> dict[str, Any]:
    row = json_object(line)
    if not isinstance(row.get("prediction"), str):
        raise ValueError("its 'prediction' is missing or no string")
    golds_of(row)
    for key, allowed in (("mode", MODES), ("content", CONTENTS)):
        if row.get(key, allowed[0]) not in allowed:
            raise ValueError(f"its {key} {row[key]!r} is not known; allowed: {', '.join(allowed)}")
    return row


def _graded(
    rows: Sequence[dict[str, Any]], mode: str, policy: GradingPolicy, summary: FileSummary
) -> bytes:
    """The rows with their verdicts, as lines."""
    lines = []
    for row, verdict in zip(rows, _grades(rows, mode, policy), strict=True):
        row |= {"correct": verdict.correct, "answer": verdict.answer, "reason": verdict.reason}
        summary.reasons[verdict.reason] += 1
        # a lone surrogate has no UTF-8; "backslashreplace" writes it as JSON's own escape
        lines.append(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace"))
    return b"\n".join([*lines, b""])


def _grades(rows: Sequence[dict[str, Any]], mode: str, policy: GradingPolicy) -> list[Grade]:
    """The verdicts in the order of the rows; those of one mode and content are found together."""
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        places[row.get("mode", mode), row.get("content", "completion")].append(i)
    verdicts: dict[int, Grade] = {}
    for (each, content), chosen in places.items():
        found = grade(
            [rows[i]["prediction"] for i in chosen],
            [rows[i]["gold"] for i in chosen],
            mode=each,
            content=content,
            policy=policy,
        )
        verdicts.update(zip(chosen, found, strict=True))
    return [verdicts[i] for i in range(len(rows))]
