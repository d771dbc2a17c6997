"""A run's files: configuration, metrics, evaluations, completions, checkpoints."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from fastrl import durable, strict_json
from fastrl.config import Config, write_toml
from fastrl.errors import Failure, UsageError, reason
from fastrl.step import StepResult
from fastrl.types import Scored

CAPSULE = "capsule.json"


class RunDirectory:
    """The directory of one run.

    Records are on the disk once `take_unsynced` has named their files and those were synced, which
    a checkpoint does; after a crash what is younger may be missing, or half there.
    Without `writes`, as on all processes but the first, all is left as it is. `on_record`, where
    there is one, is given each line of metrics.jsonl and eval.jsonl once it is written.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self.config = path / "config.toml"
        self.metrics = path / "metrics.jsonl"
        self.evaluations = path / "eval.jsonl"
        self.completions = path / "completions"
        self.checkpoints = path / "checkpoints"
        self.anomalies = path / "anomalies"
        self.environment = path / "environment.jsonl"
        self.roll_backs = path / "roll_backs.jsonl"
        self.curves = path / "curves.png"
        self.on_record: Callable[[Mapping[str, Any]], None] | None = None
        self._unsynced: set[Path] = set()

    @classmethod
    def create(cls, config: Config) -> RunDirectory:
        """A new run directory; raises UsageError when it holds a run already or cannot be made."""
        name = f"{config.objective.name}-{datetime.now():%Y%m%d-%H%M%S}"
        run = cls(Path(config.train.output_dir or Path("runs") / name))
        if run.config.exists():
            raise UsageError(
                f"{run.path} already holds a run; continue it with `{command('resume', run.path)}`,"
                " or give another --output-dir"
            )
        try:
            durable.make_directories([run.completions, run.checkpoints])
            run.hold()
            durable.replace(run.config, lambda path: write_toml(config, path))
        except OSError as error:
            raise UsageError(
                f"the run directory {run.path} cannot be made: {error.strerror}; give another"
                " --output-dir"
            ) from None
        return run

    @classmethod
    def open(cls, path: str | Path, *, writes: bool = True) -> RunDirectory:
        """The directory of an existing run."""
        run = cls(Path(path), writes=writes)
        if not run.config.is_file():
            raise UsageError(f"{path} holds no run (no config.toml); give the directory of a run")
        return run

    def hold(self) -> None:
        """Keep other processes from going on with this run, until `release` or this one's end.

        Raises UsageError where one has it.
        """
        path = self.path.resolve()
        if not self.writes or path in _held:
            return
        with self._written(path / "lock"):
            file = (path / "lock").open("ab")
        if not durable.lock(file):
            file.close()
            raise UsageError(
                f"another process is at work on the run in {self.path}; wait for its end, or end it"
            )
        _held[path] = file

    def cut_back(self, step: int) -> list[str]:
        """Drop every record of a step after `step`, and every line that is not whole; -1: all.

        Gives a sentence for each file that lacks records of the steps up to `step` afterwards.
        Raises Failure where something cannot be written.
        """
        if not self.writes:
            return []
        for path in (self.metrics, self.evaluations, self.roll_backs):
            # a roll back to the initial model is no record of a step
            last = max(step, 0) if path == self.roll_backs else step
            if path.exists():
                kept = [line for line, record in _records(path) if record["step"] <= last]
                with self._written(path):
                    durable.replace_bytes(path, b"".join(kept))
        for path in self.completions.glob("step_*.parquet*"):
            number = path.name.removeprefix("step_").split(".")[0]
            if number.isdecimal() and int(number) > step:
                with self._written(path.parent):
                    path.unlink()
        lost = step - len({line["step"] for line in self.read_metrics()})
        return [f"{self.metrics} lacks {lost} steps: their lines were damaged"] if lost > 0 else []

    def add_metrics(self, line: Mapping[str, Any]) -> None:
        """Append one step to metrics.jsonl."""
        self._append(self.metrics, line)
        self._tell(line)

    def add_evaluation(self, line: Mapping[str, Any]) -> None:
        """Append one evaluation to eval.jsonl."""
        self._append(self.evaluations, line)
        self._tell(line)

    def has_evaluation(self, step: int, split: str) -> bool:
        """Whether eval.jsonl has the line of this step and split."""
        return any((e["step"], e["split"]) == (step, split) for e in self.read_evaluations())

    def add_environment(self, line: Mapping[str, Any]) -> None:
        """Append what the run is made with, at its start and at each resumption."""
        self._append(self.environment, line)

    def add_roll_back(self, step: int, attempt: int) -> None:
        """Note, on the disk, that the run begins an attempt at what comes after `step`."""
        self._append(self.roll_backs, {"step": step, "attempt": attempt})
        if self.writes:
            durable.sync(self.roll_backs, self.path)

    def attempt(self, step: int) -> int:
        """The attempt that the step after `step` is of."""
        made = [line for line in _read(self.roll_backs) if line["step"] <= step]
        attempts = [line.get("attempt") for line in made]
        return max((attempt for attempt in attempts if type(attempt) is int), default=0)

    def read_environment(self) -> dict[str, Any]:
        """What the run was started with; empty where nobody wrote it down."""
        found = [line for line in _read(self.environment) if isinstance(line.get("data"), dict)]
        return found[0] if found else {}

    def capsules(self, attempt: int) -> dict[str, int]:
        """The rules of the anomalies of an attempt that have a capsule, with the first step."""
        found: dict[str, int] = {}
        for path in sorted(self.anomalies.glob(f"{capsule_name('*', attempt, '*')}/{CAPSULE}")):
            number, _, rule = path.parent.name.removeprefix("step_").partition("_")
            rule = rule.removeprefix(f"attempt_{attempt}_")
            if "attempt_" not in rule and number.isdecimal() and _is_object(path):
                found.setdefault(rule, int(number))
        return found

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every step so far."""
        return _read(self.metrics)

    def read_evaluations(self) -> list[dict[str, Any]]:
        """Every evaluation so far."""
        return [e for e in _read(self.evaluations) if {"split", "accuracy"} <= set(e)]

    def add_completions(
        self, step: int, groups: Sequence[Sequence[Scored]], result: StepResult
    ) -> None:
        """Write completions/step_N.parquet: a row a response, with its tokens and verdict."""
        if not self.writes:
            return
        rows = []
        for r, s in enumerate(s for group in groups for s in group):
            rows.append(
                {
                    "step": step,
                    "prompt_id": s.prompt.id,
                    "draw": s.prompt.draw,
                    "response": r % len(groups[0]),
                    "prompt": s.prompt.messages[-1]["content"],
                    "completion": s.text,
                    "token_ids": list(s.completion.token_ids),
                    "logprobs": list(s.completion.logprobs),
                    "finish_reason": s.completion.finish_reason,
                    "gold": s.prompt.answer,
                    "answer": s.grade.answer if s.grade else None,
                    "correct": s.grade.correct if s.grade else None,
                    "reason": s.grade.reason if s.grade else None,
                    "task_reward": s.task_reward,
                    "reward": float(result.reward_R[r]),
                    "advantage": float(result.advantage_R[r]),
                    "ref_logprob_sum": float(result.scores.ref_logprob_R[r]),
                    "policy_logprob_sum": float(result.scores.policy_logprob_R[r]),
                    "role": result.roles_R[r],
                }
            )
        target = self.completions / f"step_{step:06d}.parquet"
        partial = target.with_suffix(".parquet.partial")
        with self._written(target):
            pq.write_table(pa.Table.from_pylist(rows, schema=COMPLETIONS), partial)
            partial.replace(target)

    def take_unsynced(self) -> list[Path]:
        """The files and directories that may not be on the disk as they are, each told of once."""
        found, self._unsynced = self._unsynced, set()
        return sorted(found)

    def accuracies(self) -> dict[int, float]:
        """The accuracy on the validation split at every step at which it was evaluated."""
        lines = self.read_evaluations()
        return {e["step"]: e["accuracy"] for e in lines if e["split"] == "validation"}

    def _append(self, path: Path, line: Mapping[str, Any]) -> None:
        if self.writes:
            with self._written(path), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")

    def _tell(self, line: Mapping[str, Any]) -> None:
        if self.writes and self.on_record is not None:
            self.on_record(line)

    @contextmanager
    def _written(self, path: Path) -> Iterator[None]:
        """While a file is written; Failure where it cannot be."""
        try:
            yield
        except OSError as error:
            raise Failure(
                f"{path} cannot be written: {reason(error)}; make room, then continue"
                f" with: {command('resume', self.path)}"
            ) from None
        self._unsynced |= {path, path.parent}


_held: dict[Path, IO[bytes]] = {}


def release() -> None:
    """Let other processes go on with the runs that this one holds."""
    while _held:
        _held.popitem()[1].close()


def command(name: str, path: Path) -> str:
    """A command of fastrl on a directory, as a shell takes it."""
    return f"fastrl {name} {shlex.quote(str(path))}"


def capsule_name(step: int | str, attempt: int, rule: str) -> str:
    """The directory of a capsule under anomalies/."""
    number = step if isinstance(step, str) else f"{step:06d}"
    return f"step_{number}{f'_attempt_{attempt}' if attempt else ''}_{rule}"


COMPLETIONS = pa.schema(
    {
        "step": pa.int64(),
        "prompt_id": pa.int64(),
        "draw": pa.int64(),
        "response": pa.int64(),
        "prompt": pa.string(),
        "completion": pa.string(),
        "token_ids": pa.list_(pa.int32()),
        "logprobs": pa.list_(pa.float32()),
        "finish_reason": pa.string(),
        "gold": pa.string(),
        "answer": pa.string(),
        "correct": pa.bool_(),
        "reason": pa.string(),
        "task_reward": pa.float64(),
        "reward": pa.float64(),
        "advantage": pa.float64(),
        "ref_logprob_sum": pa.float64(),
        "policy_logprob_sum": pa.float64(),
        "role": pa.string(),
    }
)


def _records(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines of a log that are whole: a JSON object with a step, and an end."""
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            record = strict_json.parse(line)
        except ValueError:
            continue
        if line.endswith(b"\n") and isinstance(record, dict) and type(record.get("step")) is int:
            yield line, record


def _is_object(path: Path) -> bool:
    """Whether a file is whole JSON."""
    try:
        return isinstance(strict_json.parse(path.read_bytes()), dict)
    except (OSError, ValueError):
        return False


def _read(path: Path) -> list[dict[str, Any]]:
    return [record for _, record in _records(path)]
