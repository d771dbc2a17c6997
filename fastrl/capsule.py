"""A step kept on disk with all that it was computed from, and computed again.

A capsule is a directory:

    capsule.json        what was found, its numbers, the counters before the step, the versions
    config.toml         of the run
    responses.parquet   the step's responses as they were sampled
    weights/step_N/     a checkpoint before the step, by hard links where the run has it already

Without weights/ the step is one of those after the initial model. A step that had updated already
is computed again from the newest checkpoint before it, with the steps between.
"""

from __future__ import annotations

import json
import operator
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from fastrl import durable, strict_json
from fastrl.checkpoint import TrainerState, newest_valid, steps, write_checkpoint
from fastrl.config import read_toml, write_toml
from fastrl.distributed import ALONE, World
from fastrl.environment import describe
from fastrl.errors import UsageError
from fastrl.run_directory import CAPSULE, RunDirectory, capsule_name
from fastrl.types import Completion, Prompt, Scored

if TYPE_CHECKING:
    from fastrl.guard import Finding, Vitals
    from fastrl.rollouts import Rollouts
    from fastrl.run import Run

RESPONSES, WEIGHTS, CONFIG = "responses.parquet", "weights", "config.toml"


def write(
    run: Run, before: TrainerState, rollouts: Rollouts, finding: Finding, pristine: bool
) -> Path:
    """Write the capsule of a step that began at `before`; `pristine`: it has updated nothing yet.

    Every process calls it; the first one writes. Raises OSError where that is not possible.
    """
    name = capsule_name(before.step + 1, before.attempt, finding.rule)
    path = run.directory.anomalies / name
    is_first = run.learner.world.is_first
    there = list(steps(run.directory.checkpoints)) if is_first else []
    there = run.learner.world.from_first([step for step in there if step <= before.step])
    if is_first:
        path.mkdir(parents=True, exist_ok=True)
    if pristine and before.step not in there:
        with run.tensors() as (weights, moments):
            if is_first:

                def write_model(files: Path) -> None:
                    run.write_model(files, weights)

                write_checkpoint(path / WEIGHTS, write_model, moments, before)
    elif is_first and there:
        name = f"step_{there[0]}"
        shutil.rmtree(path / WEIGHTS, ignore_errors=True)
        _link(run.directory.checkpoints / name, path / WEIGHTS / name)
    if not is_first:
        return path
    write_toml(run.config, path / CONFIG)
    rows = [_row(s) for group in rollouts.groups for s in group]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path / RESPONSES)
    values = {
        "kind": finding.kind,
        "rule": finding.rule,
        "reason": finding.reason,
        "numbers": _plain(finding.numbers),
        "before": asdict(before),
        "history": _plain([list(v) for v in run.history]),
        "told": sorted(run.told - {finding.rule}),
        "processes": run.learner.world.size,
        "environment": describe(),
    }
    text = json.dumps(values, indent=1) + "\n"
    durable.sync(path / CONFIG, path / RESPONSES)
    durable.replace_bytes(path / CAPSULE, text.encode())
    return path


@dataclass(frozen=True)
class Kept:
    """What a capsule holds beside its weights."""

    before: TrainerState
    history: list[Vitals]
    told: set[str]
    processes: int
    rule: str
    reason: str
    numbers: dict[str, Any]
    responses: list[dict[str, Any]]


def read(path: Path) -> Kept:
    """The capsule in a directory; UsageError for what is none, or damaged."""
    from fastrl.guard import Vitals

    try:
        values = strict_json.parse((path / CAPSULE).read_bytes())
        table = pq.read_table(path / RESPONSES)
        if table.schema.names != SCHEMA.names:
            raise ValueError(f"{RESPONSES} has other columns")
        return Kept(
            before=TrainerState.of(values["before"]),
            history=[Vitals(*map(float, v)) for v in values["history"]],
            told=set(map(str, values["told"])),
            processes=operator.index(values["processes"]),
            rule=str(values["rule"]),
            reason=str(values["reason"]),
            numbers=dict(values["numbers"]),
            responses=table.cast(SCHEMA).to_pylist(),
        )
    except (OSError, ValueError, LookupError, TypeError, OverflowError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{path} holds no capsule that can be read ({type(error).__name__}: {reason}); give a"
            " directory under anomalies/ of a run"
        ) from None


@dataclass(frozen=True)
class Replay:
    """What came of a step's being computed again."""

    responses: int
    same_responses: int  # sampled to the same tokens; others are taken from the capsule
    kept: Sequence[tuple[str, Any]]  # rule, reason and numbers of the capsule
    found: Sequence[tuple[str, Any]]  # of this time

    @property
    def is_same(self) -> bool:
        """Whether everything is as it was, to the last bit."""
        return self.same_responses == self.responses and self.kept == self.found

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, kept and found of what was compared."""
        found = dict(self.found)
        rows = [("responses", f"{self.responses:,}", f"{self.same_responses:,} the same")]
        return rows + [(k, _short(v), _short(found.get(k, "-"))) for k, v in self.kept]


def replay(path: Path, say: Callable[[str], None], world: World = ALONE) -> Replay:
    """Compute the step of a capsule again; `say` takes what the user should know before.

    Raises UsageError for what is no capsule, and where the model is not the run's.
    """
    from fastrl.display import Display
    from fastrl.early import EarlyScorer
    from fastrl.guard import Guard
    from fastrl.rollouts import roll_out
    from fastrl.run import restored
    from fastrl.step import train_step
    from fastrl.train import take_step

    kept = read(path)
    before, stored = kept.before, kept.responses
    if kept.processes != world.size:
        say(f"the run had {kept.processes} processes and this has {world.size}: sums may differ")
    config = read_toml(path / CONFIG)
    checkpoint, damaged = newest_valid(path / WEIGHTS)
    for line in damaged:
        say(line)
    run = restored(config, checkpoint, world)
    run.directory = RunDirectory(path, writes=False)
    run.attempt, run.told = before.attempt, kept.told
    run.history = kept.history[: run.step]  # the steps between add theirs

    class Found(Exception):
        """A finding, in place of what the run would do about it."""

    class Watcher(Guard):
        def found(self, finding: Finding) -> bool:
            if finding.rule in kept.told:
                return super().found(finding)
            raise Found(finding)

    with Display(run.step, before.step + 1) as display:
        while run.step < before.step:
            take_step(run, display)
        if run.state != before:
            raise UsageError(f"the counters of {path} are not those of its weights")
        run.history = kept.history
        guard = Watcher(run, display)
        finding = None
        with EarlyScorer(run.learner, run.sampling.n) as scorer:
            rollouts = roll_out(run, display, scorer)
            if len(_flat(rollouts.groups)) != len(stored):
                raise UsageError(f"{path / RESPONSES} has too few or too many responses")
            same = [_row(s) == row for s, row in zip(_flat(rollouts.groups), stored, strict=True)]
            if not all(same):
                say("other tokens were sampled: the step is computed on those of the capsule")
                rollouts = replace(rollouts, groups=_as_stored(run, rollouts.groups, stored))
            try:
                guard.sampled(rollouts)
                early = scorer if all(same) else None
                train_step(run.learner, rollouts.groups, run.step, early, guard)
            except Found as found:
                (finding,) = found.args
    return Replay(
        responses=len(stored),
        same_responses=sum(same),
        kept=[("rule", kept.rule), ("reason", kept.reason), *kept.numbers.items()],
        found=[]
        if finding is None
        else [("rule", finding.rule), ("reason", finding.reason), *_plain(finding.numbers).items()],
    )


def _link(source: Path, target: Path) -> None:
    """The files of a checkpoint, which nobody changes, under another name."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        try:
            os.link(file, target / file.name)
        except OSError:  # a file system without links
            shutil.copyfile(file, target / file.name)


SCHEMA = pa.schema(
    {
        "prompt_id": pa.int64(),
        "draw": pa.int64(),
        "prompt": pa.string(),
        "completion": pa.string(),
        "token_ids": pa.list_(pa.int32()),
        "logprobs": pa.list_(pa.float64()),
        "log_kept_mass": pa.list_(pa.float64()),
        "finish_reason": pa.string(),
        "stop_reason": pa.string(),  # as JSON
        "task_reward": pa.float64(),
    }
)


def _row(s: Scored) -> dict[str, Any]:
    completion = s.completion
    return {
        "prompt_id": s.prompt.id,
        "draw": s.prompt.draw,
        "prompt": s.prompt.messages[-1]["content"],
        "completion": s.text,
        "token_ids": list(completion.token_ids),
        "logprobs": list(completion.logprobs),
        "log_kept_mass": list(completion.log_kept_mass),
        "finish_reason": completion.finish_reason,
        "stop_reason": json.dumps(completion.stop_reason),
        "task_reward": s.task_reward,
    }


def _as_stored(
    run: Run, groups: Sequence[Sequence[Scored]], stored: Sequence[dict[str, Any]]
) -> list[list[Scored]]:
    """The groups with the completions of a capsule in place of their own, graded again."""
    from fastrl.grading import grade

    prompts: list[Prompt] = [s.prompt for s in _flat(groups)]
    completions = [
        Completion(
            tuple(row["token_ids"]),
            tuple(row["logprobs"]),
            tuple(row["log_kept_mass"]),
            row["finish_reason"],
            json.loads(row["stop_reason"]),
        )
        for row in stored
    ]
    texts = [row["completion"] for row in stored]
    grades = grade(texts, [p.answer for p in prompts], mode=run.config.reward.mode)
    scored = iter(run.rewarder.score(prompts, completions, texts, grades))
    return [[next(scored) for _ in group] for group in groups]


def _flat(groups: Sequence[Sequence[Scored]]) -> list[Scored]:
    return [s for group in groups for s in group]


def _plain(value: Any) -> Any:
    """As strict JSON has it, each number as the text that gives the same bits again."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _short(value: Any) -> str:
    """What fits a table."""
    many = f"{len(value):,} numbers, the first {value[0]}" if isinstance(value, list) else ""
    text = many or str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
