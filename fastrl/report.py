"""Runs and studies as one self-contained HTML file: `fastrl report`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastrl import __version__, durable, strict_json
from fastrl.config import Config, read_toml
from fastrl.curves import PANELS
from fastrl.errors import UsageError, reason
from fastrl.objectives import check_contradictions
from fastrl.page import (
    Block,
    Code,
    Figures,
    Page,
    Plot,
    SamplePrompt,
    SampleResponse,
    Samples,
    Section,
    Series,
    Table,
    Text,
    render,
)
from fastrl.row_files import file_rows
from fastrl.run_directory import RunDirectory, command
from fastrl.study.analysis import FORMAT
from fastrl.study.exact_page import exact_section
from fastrl.study.page import groups, sections
from fastrl.study.tables import share

SHOWN = 60  # prompts whose responses are shown
MORE_PANELS = (
    ("mismatch_kl", "Sampler against trainer", "KL, nats a token"),
    ("grad_norm", "Norm of the gradient", "before clipping"),
    ("eos_share", "Responses that end by themselves", "share"),
    ("rollout_tokens_per_s", "Tokens sampled", "a second"),
)


@dataclass(frozen=True)
class ReportedRun:
    """A run's files, read."""

    name: str
    files: RunDirectory
    config: Config
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]

    @property
    def target(self) -> str:
        """What it converges to."""
        return check_contradictions(self.config).target

    def tests(self) -> list[dict[str, Any]]:
        """Its evaluations on the test split, the base's first."""
        return [e for e in self.evaluations if e["split"] == "test"]


def write_report(paths: Sequence[str | Path], out: Path) -> None:
    """Write the report of runs, studies and exact studies, together, to `out`.

    Raises UsageError for a path that is none of them, and where `out` cannot be written.
    """
    text = render(make_page([Path(p) for p in paths]))
    try:
        durable.replace_bytes(out, text.encode())
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {reason(error)}; give another --out") from None


def make_page(paths: Sequence[Path]) -> Page:
    """The page of runs and studies, those of one kind together."""
    runs: list[ReportedRun] = []
    studies: list[tuple[Path, Mapping[str, Any]]] = []
    exact: list[tuple[Path, Mapping[str, Any]]] = []
    for path in paths:
        found = list(_files(path))
        for file, content in found:
            (studies if content.get("format") == FORMAT else exact).append((file, content))
        if (path / "config.toml").is_file():
            runs.append(_run(path))
        elif not found:
            raise UsageError(
                f"{path} is neither a run (no config.toml) nor a study that was analysed (no"
                " study.json or exact.json); give the directory of one"
            )
    named = _distinct(runs)
    parts: list[Section] = []
    switches: dict[str, str] = {}
    for file, study in studies:
        own = sections(study)
        several = len(studies) > 1
        parts += [
            replace(s, title=f"{s.title}: {file.parent.name}", anchor="") if several else s
            for s in own
        ]
        switches |= groups(study)
    parts += [exact_section(e, command("study --exact --output-dir", f.parent)) for f, e in exact]
    if named:
        parts += _run_sections(named)
        switches |= {run.name: run.name for run in named}
    title = "A study of objectives" if studies or exact else "Reinforcement learning, run by run"
    subtitle = ", ".join(str(p) for p in paths)
    return Page(title, subtitle, parts, switches, footer=f"fastrl {__version__}")


def _files(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """study.json and exact.json of a directory, or the file itself."""
    candidates = [path] if path.is_file() else [path / "study.json", path / "exact.json"]
    for file in candidates:
        if not file.is_file():
            continue
        try:
            content = strict_json.parse(file.read_bytes())
            if content.get("format") == FORMAT or "crowd" in content:
                yield file, content
                continue
        except (OSError, ValueError, AttributeError):
            pass
        raise UsageError(f"{file} is not what fastrl study writes; run the study again")


def _run(path: Path) -> ReportedRun:
    files = RunDirectory.open(path, writes=False)
    metrics = files.read_metrics()
    if not metrics:
        raise UsageError(f"the run in {path} has no step yet; report it after its first")
    name = path.resolve().name
    return ReportedRun(name, files, read_toml(files.config), metrics, files.read_evaluations())


def _distinct(runs: Sequence[ReportedRun]) -> list[ReportedRun]:
    """The runs under names of which no two are alike."""
    names = [run.name for run in runs]
    return [
        replace(run, name=str(run.files.path)) if names.count(run.name) > 1 else run for run in runs
    ]


def _run_sections(runs: Sequence[ReportedRun]) -> list[Section]:
    found = [
        Section("Runs", list(_results(runs)), "runs"),
        Section("Over the steps", list(_curves(runs)), "curves"),
        Section("Responses of the last step", list(_responses(runs)), "last-responses"),
        Section("To repeat the runs", list(_repeat(runs)), "repeat-runs"),
    ]
    return [section for section in found if section.blocks]


def _results(runs: Sequence[ReportedRun]) -> Iterator[Block]:
    items = []
    for run in runs:
        tests = run.tests()
        if len(tests) > 1:
            base, last = tests[0], tests[-1]
            items.append(
                (
                    run.name,
                    f"{100 * last['accuracy']:.1f} %",
                    f"base {100 * base['accuracy']:.1f} %",
                )
            )
        else:
            last_steps = [m["task_accuracy"] or 0.0 for m in run.metrics[-10:]]
            mean = sum(last_steps) / len(last_steps)
            items.append((run.name, f"{100 * mean:.1f} %", "of the last rollouts"))
    yield Figures(items)
    rows: list[list[str | float]] = []
    kept = []
    for run in runs:
        for e in run.evaluations:
            low, high = e["ci95"]
            rows.append(
                [
                    run.name, run.target, e["step"], e["split"],
                    share({"mean": e["accuracy"], "low": low, "high": high}),
                    round(e["kl"] or 0.0, 3), round(e["length_mean"], 1),
                ]
            )  # fmt: skip
            kept.append(run.name)
    if rows:
        yield Table(
            "Evaluations",
            ("run", "converges to", "step", "split", "accuracy, %", "KL, nats", "tokens"),
            rows,
            note="One sample a prompt, with 95 % bootstrap intervals over prompts.",
            row_groups=kept,
        )


def _curves(runs: Sequence[ReportedRun]) -> Iterator[Block]:
    for key, title, unit in (*PANELS, *MORE_PANELS):
        series = [
            Series(
                run.name,
                [float(m["step"]) for m in run.metrics],
                [m.get(key) for m in run.metrics],
                group=run.name,
            )
            for run in runs
        ]
        if key == "task_accuracy":
            series += [_held_out(run) for run in runs if _validated(run)]
        percent = key in ("task_accuracy", "eos_share")
        yield Plot(title[0].upper() + title[1:], "step", unit, series, y_percent=percent)


def _validated(run: ReportedRun) -> list[dict[str, Any]]:
    return [e for e in run.evaluations if e["split"] == "validation"]


def _held_out(run: ReportedRun) -> Series:
    points = _validated(run)
    return Series(
        f"{run.name}, validation",
        [float(e["step"]) for e in points],
        [e["accuracy"] for e in points],
        [e["ci95"][0] for e in points],
        [e["ci95"][1] for e in points],
        mark="points",
        group=run.name,
    )


def _responses(runs: Sequence[ReportedRun]) -> Iterator[Block]:
    """The first response to each prompt of the last step that a run wrote down."""
    prompts: dict[str, SamplePrompt] = {}
    for run in runs:
        files = sorted(run.files.completions.glob("step_*.parquet"))
        if not files:
            continue
        try:
            rows = [row for _, _, row in file_rows(files[-1])]
        except UsageError as error:
            yield Text(f"{run.name}: {error}")
            continue
        first = {row["prompt_id"]: row for row in reversed(rows)}
        for row in list(first.values())[:SHOWN]:
            known = prompts.setdefault(
                row["prompt"], SamplePrompt(row["prompt"], row["gold"], (), [])
            )
            said = SampleResponse(
                run.name, row["completion"], row["answer"], row["correct"], row["reason"] or "",
                f"step {row['step']}, reward {row['reward']:.3g}", run.name,
            )  # fmt: skip
            prompts[row["prompt"]] = replace(known, responses=[*known.responses, said])
    if prompts:
        shared = sorted(prompts.values(), key=lambda p: -len(p.responses))
        yield Samples("One response a prompt", shared[:SHOWN])


def _repeat(runs: Sequence[ReportedRun]) -> Iterator[Block]:
    for run in runs:
        path = run.files.config
        yield Code(run.name, f"fastrl train {path} --output-dir ANOTHER_DIRECTORY", "sh")
        yield Code(f"{run.name}: config.toml", path.read_text(encoding="utf-8"), "toml")
        if environment := run.files.read_environment():
            yield Code(f"{run.name}: made with", json.dumps(environment, indent=1), "json")
