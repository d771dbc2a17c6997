"""A data specification to examples: the embedded task, reasoning-gym, local files, Hugging Face."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

from fastrl.errors import Unavailable, UsageError, shown
from fastrl.row_files import Row, file_rows
from fastrl.strict_json import has_lone_surrogates

TEMPLATE = "{prompt}\n\nThink step by step, then give the final answer inside \\boxed{}."
SPLITS = ("train", "validation", "test")
EVERY_ROW = "all"  # the split of a source without splits that holds all its rows
HELD_OUT = 10  # a row in HELD_OUT of a file without splits is kept for validation, one for testing
GENERATED = 20_000  # rows of a reasoning-gym source without a limit
EMBEDDED = ("embedded", "embedded-long")
EMBEDDED_ROWS = 8_500  # the default run sees no prompt twice

# reasoning-gym makes row i from seed + i, and some of its tasks seed numpy, with 32 bits: a run's
# seed has a million of them to itself, which the splits share
SEED_SPAN = 1_000_000
SEEDS = 2**32 // SEED_SPAN
SPLIT_SEEDS = {
    "train": range(0, 500_000),
    "validation": range(500_000, 700_000),
    "test": range(700_000, SEED_SPAN),
}


@dataclass(frozen=True)
class Example:
    """A question with its gold answer."""

    id: int  # stable in its source and split
    messages: tuple[Mapping[str, str], ...]
    answer: str
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Preset:
    """A data set of the hub: where its rows are, and what they mean."""

    repo: str
    train: str | None  # split names; None: the data set has no such split
    test: str | None
    question: str
    answer: str
    config: str | None = None
    extract: str = "plain"  # "boxed": the last box of a solution; "hash4": what follows ####


PRESETS = {
    "math": Preset(
        "DigitalLearningGmbH/MATH-lighteval",
        "train",
        "test",
        "problem",
        "solution",
        extract="boxed",
    ),
    "math500": Preset("HuggingFaceH4/MATH-500", None, "test", "problem", "answer"),
    "minerva": Preset("math-ai/minervamath", None, "test", "question", "answer"),
    "deepscaler": Preset(
        "agentica-org/DeepScaleR-Preview-Dataset", "train", None, "problem", "answer"
    ),
    "aime24": Preset("HuggingFaceH4/aime_2024", None, "train", "problem", "answer"),
    "aime25": Preset("math-ai/aime25", None, "test", "problem", "answer"),
    "hmmt24": Preset("MathArena/hmmt_feb_2024", None, "train", "problem", "answer"),
    "hmmt25": Preset("MathArena/hmmt_feb_2025", None, "train", "problem", "answer"),
    "gsm8k": Preset(
        "openai/gsm8k", "train", "test", "question", "answer", config="main", extract="hash4"
    ),
}


def load_examples(
    source: str,
    *,
    split: str = "train",
    seed: int = 0,
    limit: int | None = None,
    template: str | None = None,
    shots: Sequence[str] = (),
    task_args: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Example]:
    """The examples of a `--data` specification.

    `source`: "embedded", "embedded-long", "reasoning-gym:NAME[+NAME...]", a .jsonl or .parquet
    file, "hf:REPO:SPLIT" or a name in PRESETS. `seed` makes the rows of generated tasks. `template`
    is the user turn with {prompt} in it; None asks to think step by step and to box the answer,
    except for the embedded task and for rows that come as messages, which stay as they are. `shots`
    are turns that go before every prompt, user and assistant alternating. Raises UsageError with
    the way out; a bad row is named by its file, its line and what is wrong. The split "all" is for
    sources without splits: local files and hf:REPO:SPLIT.
    """
    if split not in (*SPLITS, EVERY_ROW):
        raise UsageError(f"there is no split {split!r}; allowed: {', '.join(SPLITS)}, {EVERY_ROW}")
    if split == EVERY_ROW and not is_undivided(source):
        raise UsageError(
            f"{source} has splits of its own; name one of {', '.join(SPLITS)} instead of 'all'"
        )
    if task_args and not source.startswith("reasoning-gym:"):
        raise UsageError(
            f"[data.task_args] belongs to reasoning-gym, but the data is {source}; leave it out"
        )
    if template is not None and "{prompt}" not in template:
        raise UsageError(
            f"the template {template!r} has no {{prompt}}; write it where the question goes"
        )
    if len(shots) % 2:
        raise UsageError(
            f"data.shots has {len(shots)} turns; give pairs, a user's turn and the assistant's"
        )
    turns = [{"role": ("user", "assistant")[i % 2], "content": s} for i, s in enumerate(shots)]
    rows = _rows(source, split, seed, limit, task_args or {})
    if template is None and source in EMBEDDED:
        template = "{prompt}"
    examples = [
        _example(i, where, row, template or TEMPLATE) for i, where, row in islice(rows, limit)
    ]
    if turns:
        examples = [replace(e, messages=(*turns, *e.messages)) for e in examples]
    if not examples:
        raise UsageError(
            f"{source} has no rows in its {split} split (without splits of its own, one row in"
            f" {HELD_OUT} is for validation and one for testing); give more rows, or another --data"
        )
    return examples


def is_undivided(source: str) -> bool:
    """Whether a source has no splits of its own, so that rows are held out by hash."""
    return source.startswith("hf:") or source.endswith((".jsonl", ".parquet"))


def test_split(source: str, trained_on: str) -> str:
    """The split to test on: every row of an undivided source that is not the one trained on."""
    return EVERY_ROW if is_undivided(source) and source != trained_on else "test"


def _rows(
    source: str, split: str, seed: int, limit: int | None, task_args: Mapping[str, Any]
) -> Iterator[Row]:
    kind, _, rest = source.partition(":")
    if source in EMBEDDED:
        return _embedded(source, split, seed, limit)
    if kind == "reasoning-gym":
        return _reasoning_gym(rest, split, seed, limit, task_args)
    if source in PRESETS:
        return _preset(source, split)
    if kind == "hf":
        repo, _, hub_split = rest.partition(":")
        if not repo or not hub_split:
            raise UsageError(
                f"{source!r} names no split; give hf:REPO:SPLIT, such as"
                " hf:HuggingFaceH4/MATH-500:test"
            )
        return _held_out(_hub(repo, None, hub_split), split)
    if source.endswith((".jsonl", ".parquet")):
        return _held_out(file_rows(Path(source)), split)
    raise UsageError(
        f"there is no data {source!r}; give embedded, embedded-long, reasoning-gym:NAME, a .jsonl"
        f" or .parquet file, hf:REPO:SPLIT, or one of {', '.join(PRESETS)}"
    )


def _example(index: int, where: str, row: Mapping[str, Any], template: str) -> Example:
    """A row with `prompt` (or `question`, or `messages`) and `answer` as an example."""
    answer = _text(row.get("answer"))
    if answer is None:
        raise UsageError(
            f"{where}: 'answer' is {shown(row.get('answer'))}; give a string that is not empty"
        )
    messages = row.get("messages")
    if messages is not None:
        turns = _turns(where, messages)
    else:
        name = "question" if row.get("prompt") is None and "question" in row else "prompt"
        question = row.get(name)
        if not isinstance(question, str) or not question.strip():
            raise UsageError(
                f"{where}: {name!r} is {shown(question)}; give 'prompt', 'question' or 'messages'"
            )
        turns = ({"role": "user", "content": template.replace("{prompt}", question)},)
    if any(map(has_lone_surrogates, (answer, *(text for turn in turns for text in turn.values())))):
        raise UsageError(f"{where} holds half of a character, a lone surrogate; write it whole")
    used = ("prompt", "question", "messages", "answer")
    return Example(index, turns, answer, {k: v for k, v in row.items() if k not in used})


def _text(value: Any) -> str | None:
    """A string that is not blank, or a number as the decimal that the grader reads; else None."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{Decimal(repr(value)):f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value.strip() else None


def _turns(where: str, messages: Any) -> tuple[Mapping[str, str], ...]:
    good = isinstance(messages, (list, tuple)) and messages and all(
        isinstance(m, Mapping)
        and isinstance(m.get("role"), str)
        and isinstance(m.get("content"), str)
        for m in messages
    )  # fmt: skip
    if not good:
        raise UsageError(f"{where}: 'messages' must be a list of objects with role and content")
    if messages[-1]["role"] != "user":
        raise UsageError(
            f"{where}: the last of its 'messages' is of role {messages[-1]['role']!r}; end with the"
            " user's turn, which the model is to answer"
        )
    return tuple({"role": m["role"], "content": m["content"]} for m in messages)


def _embedded(source: str, split: str, seed: int, limit: int | None) -> Iterator[Row]:
    from fastrl.embedded import examples

    longer = source == "embedded-long"
    rows = examples(split, seed, limit or EMBEDDED_ROWS, longer=longer)
    for i, (messages, answer, columns) in enumerate(rows):
        question = messages[-1]["content"]
        yield i, f"{source} row {i}", {"prompt": question, "answer": answer, **columns}


def _reasoning_gym(
    names: str, split: str, seed: int, limit: int | None, task_args: Mapping[str, Any]
) -> Iterator[Row]:
    """Rows of the named tasks in turn; the splits draw from ranges of seeds that never meet."""
    try:
        import reasoning_gym
    except ImportError:
        raise UsageError(
            "reasoning-gym is not installed; run: pip install 'fastrl[tasks]'"
        ) from None
    tasks = names.split("+")
    known = reasoning_gym.factory.DATASETS
    for name in tasks:
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UsageError(f"reasoning-gym has no task {name!r}; {hint}see reasoning_gym's list")
    if unused := sorted(set(task_args) - set(tasks)):
        raise UsageError(
            f"[data.task_args.{unused[0]}] belongs to no task of {names}; name the task too"
        )
    size = limit or GENERATED
    share = -(-size // len(tasks))
    seeds = SPLIT_SEEDS[split]
    if share > len(seeds):
        raise UsageError(
            f"{size} rows of {names} were asked for; its {split} split has"
            f" {len(seeds) * len(tasks)}: lower the limit"
        )
    first = seed % SEEDS * SEED_SPAN + seeds.start
    sets = []
    for name in tasks:
        try:
            sets.append(
                reasoning_gym.create_dataset(
                    name, seed=first, size=share, **dict(task_args.get(name, {}))
                )
            )
        except (TypeError, AssertionError, ValueError) as error:
            raise UsageError(f"[data.task_args.{name}] does not fit the task: {error}") from None
    for i in range(size):
        name = tasks[i % len(tasks)]
        item = sets[i % len(tasks)][i // len(tasks)]
        yield (
            i,
            f"{name} row {i}",
            {"prompt": item["question"], "answer": item["answer"], "task": name},
        )


def _held_out(rows: Iterable[Row], split: str) -> Iterator[Row]:
    """The rows of a source without splits that belong to `split`.

    A row goes by its question: one in HELD_OUT to validation, one to the test split, the rest to
    training, and a question that stands twice never stands on both sides.
    """
    parts = {
        "validation": range(0, 1),
        "test": range(1, 2),
        "train": range(2, HELD_OUT),
        EVERY_ROW: range(HELD_OUT),
    }[split]
    return (row for row in rows if _part(row) in parts)


def _part(row: Row) -> int:
    """0 to HELD_OUT - 1 by a hash of the question, or of the whole row where it has none."""
    columns = row[2]
    asked = [columns[k] for k in ("messages", "prompt", "question") if columns.get(k) is not None]
    text = json.dumps(asked[0] if asked else columns, sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % HELD_OUT


def _hub(repo: str, config: str | None, split: str) -> Iterator[Row]:
    from datasets import load_dataset

    try:
        data = load_dataset(repo, config, split=split)
    except Exception as error:  # the library raises whatever its back ends raise
        raise Unavailable(
            f"the data set {repo} (split {split}) cannot be loaded: {type(error).__name__}:"
            f" {str(error).splitlines()[0] if str(error) else ''}; check the name and the"
            " connection, or give a local file"
        ) from None
    for i, row in enumerate(data):
        yield i, f"{repo}:{split} row {i}", row


def _preset(name: str, split: str) -> Iterator[Row]:
    """Rows of a preset; what the data set has no split for is held out of its training split."""
    preset = PRESETS[name]
    if split == "test" and preset.test:
        return convert(preset, _hub(preset.repo, preset.config, preset.test))
    if preset.train is None:
        way_out = (
            "train on another, such as math"
            if split == "train"
            else "give another data.eval_source, or eval.prompts 0"
        )
        raise UsageError(f"{name} is for testing only, it has no {split} split; {way_out}")
    rows = convert(preset, _hub(preset.repo, preset.config, preset.train))
    if preset.test is None:
        return _held_out(rows, split)
    return (row for row in rows if (_part(row) == 0) == (split == "validation"))


def convert(preset: Preset, rows: Iterable[Row]) -> Iterator[Row]:
    """Rows of a data set's own shape as rows with `prompt` and `answer`.

    Raises UsageError naming the row where a column is missing or holds no answer.
    """
    extract = EXTRACTORS[preset.extract]
    for i, where, row in rows:
        for column in (preset.question, preset.answer):
            if column not in row:
                raise UsageError(
                    f"{where} has no column {column!r}, only {', '.join(map(str, row))}; the data"
                    " set has changed: give it as hf:REPO:SPLIT or as a file"
                )
        solution = _text(row[preset.answer])
        answer = extract(solution) if solution else None
        if answer is None:
            raise UsageError(f"{where}: no answer was found in {str(row[preset.answer])[-60:]!r}")
        rest = {k: v for k, v in row.items() if k not in (preset.question, preset.answer)}
        yield i, where, {**rest, "prompt": row[preset.question], "answer": answer}


def last_boxed(text: str) -> str | None:
    """The content of the last complete box, by the grader's own reading."""
    from fastrl.grading import grade

    return grade([text], ["0"])[0].answer


def after_hashes(text: str) -> str | None:
    """What follows the last ####, thousands separators removed."""
    _, marker, answer = text.rpartition("####")
    answer = re.sub(r"(?<=\d),(?=\d{3})", "", answer.strip())
    return answer if marker and answer else None


EXTRACTORS: dict[str, Callable[[str], str | None]] = {
    "plain": lambda text: text.strip() or None,
    "boxed": last_boxed,
    "hash4": after_hashes,
}
