"""The measurements of a study's cells as one object of figures with intervals: study.json.

Legend: S: seeds, P: prompts. Every figure is a mean over seeds and prompts; differences are of the
same prompts and seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastrl import __version__
from fastrl.config import to_dict
from fastrl.datasources import Example
from fastrl.environment import describe
from fastrl.objectives import Objective, check_contradictions
from fastrl.run_directory import RunDirectory
from fastrl.statistics import figure
from fastrl.study.cell import BEST, LAST, cell_command, files_of, is_done
from fastrl.study.claims import claims
from fastrl.study.measure import Questions, Values, difficulty
from fastrl.study.plan import BASE, BASELINES, Arm, Cell, Plan
from fastrl.study.wording import rewordings

FORMAT = "fastrl-study-1"
CURVES = ("task_accuracy", "kl", "length_mean", "entropy", "reward_group_std", "reward_mean")
Figure = dict[str, float]


@dataclass(frozen=True)
class Measurements:
    """The measured cells of an arm and a model, a seed each."""

    cells: list[Cell]
    values: list[Values]
    about: list[dict[str, Any]]

    def stacked(self, name: str) -> np.ndarray:
        """A figure of every prompt, [S, P], of the seeds that have it."""
        return np.stack([v[name] for v in self.values if name in v])

    def less(self, other: Measurements, name: str) -> np.ndarray | None:
        """A figure less another's, [S, P], of the seeds that both have; None for no such seed."""
        own, others = self._by_seed(name), other._by_seed(name)
        both = [own[seed] - others[seed] for seed in own if seed in others]
        return np.stack(both) if both else None

    def _by_seed(self, name: str) -> dict[int, np.ndarray]:
        pairs = zip(self.cells, self.values, strict=True)
        return {cell.seed: v[name] for cell, v in pairs if name in v}

    def names(self, prefix: str) -> list[str]:
        """The figures whose name begins so, without it."""
        found = {k: None for v in self.values for k in v if k.startswith(prefix)}
        return [k.removeprefix(prefix) for k in found]


def analyse(plan: Plan, directory: Path) -> dict[str, Any]:
    """Everything that the measured cells of a study say. Raises UsageError for damaged files."""
    cells = [c for c in plan.cells if c.samples and is_done(plan, directory, c)]
    base = {c.shown_model: _read(directory, [c], LAST) for c in cells if c.arm == BASE}
    asked = {m: Questions.of(plan.settings, found.cells[0].config) for m, found in base.items()}
    models = {m: _model(base[m], asked[m]) for m in base}
    arms = []
    for model, questions in asked.items():
        measured = {}
        for arm in plan.arms:
            if own := [c for c in cells if (c.shown_model, c.arm) == (model, arm.name)]:
                both = {which: _read(directory, own, which) for which in (LAST, BEST)}
                measured[arm.name] = both
                arms.append(_arm(directory, arm, both, base[model], questions))
        for row in arms:
            if row["model"] == model and row["arm"] != "task" and "task" in measured:
                less = _less(measured[row["arm"]], measured["task"], questions)
                row |= {"less_task": less} if less else {}
    study: dict[str, Any] = {
        "format": FORMAT,
        "fastrl": __version__,
        "environment": describe(),
        "settings": asdict(plan.settings),
        "config": to_dict(plan.config),
        "cells": {"planned": len(plan.cells), "measured": len(cells)},
        "models": models,
        "arms": arms,
        "baselines": [
            row
            for c in cells
            if c.arm == BASELINES and c.shown_model in base
            for row in _baselines(directory, c, base[c.shown_model])
        ],
        "tuning": _tuning(plan, directory),
        "texts": _texts(directory, cells),
        "commands": {c.name: cell_command(directory, c) for c in plan.cells},
    }
    return study | {"claims": claims(study)}


def _read(directory: Path, cells: Sequence[Cell], which: str) -> Measurements:
    found = [files_of(directory, c).read(which) for c in cells]
    return Measurements(list(cells), [v for v, _ in found], [about for _, about in found])


def _model(base: Measurements, questions: Questions) -> dict[str, Any]:
    """What was found of a model before any training."""
    values = base.values[0]
    found = {
        **_figures(base, base, questions.test),
        "covariance": _figure_of_finite(values["base.covariance"]),
        "correlation": _figure_of_finite(values["base.correlation"]),
        "best": {k: figure(values[f"base.best@{k}"]) for k in base.names("base.best@")},
        "log_z": base.about[0]["log_z"],
        "samples": base.cells[0].samples,
        "prompts": len(questions.test),
        "never_solved": int((values["test.accuracy"] == 0).sum()),
        "wording": _wording(base, base, questions.source),
    }
    if "long.first" in values:
        found["long"] = {
            "prompts": len(values["long.first"]),
            "accuracy": figure(values["long.first"] / values["long.n"]),
            "never_solved": int((values["long.first"] == 0).sum()),
        }
    return found


def _figure_of_finite(values_P: np.ndarray) -> Figure | None:
    """Of the prompts where it is defined; None where it is of none."""
    kept = values_P[np.isfinite(values_P)]
    return figure(kept) if len(kept) else None


def _less(
    both: Mapping[str, Measurements], others: Mapping[str, Measurements], questions: Questions
) -> dict[str, Any]:
    """An arm's figures less another's, of the same prompts and seeds; empty for no common seed."""

    def less(which: str, name: str) -> np.ndarray | None:
        return both[which].less(others[which], name)

    last, best = less(LAST, "test.accuracy"), less(BEST, "test.accuracy")
    greedy = less(LAST, "test.greedy")
    if last is None or best is None or greedy is None:
        return {}
    found = {
        "accuracy": figure(last),
        "accuracy_of_best": figure(best),
        "lost_from_best": figure(best - last),
        "greedy": figure(greedy),
    }
    flipped = [less(LAST, f"test.flipped@{n}") for n in rewordings(questions.source)]
    if known := [f for f in flipped if f is not None]:
        found["flipped"] = figure(np.mean(known, axis=0))
    return found


def _arm(
    directory: Path,
    arm: Arm,
    both: Mapping[str, Measurements],
    base: Measurements,
    questions: Questions,
) -> dict[str, Any]:
    cells = both[LAST].cells
    objective = check_contradictions(cells[0].config)
    runs = [RunDirectory(files_of(directory, c).run, writes=False) for c in cells]
    found: dict[str, Any] = {
        "model": cells[0].shown_model,
        "arm": arm.name,
        "kind": arm.kind,
        "target": "chance" if arm.kind == "random" else objective.target,
        "values": dict(arm.values),
        "seeds": [c.seed for c in cells],
        "curves": _curves(runs),
        "validation": _validation(runs),
    }
    for which, measured in both.items():
        found[which] = _figures(measured, base, questions.test)
        found[which]["steps"] = [about["step"] for about in measured.about]
        if which == LAST:
            found[which]["wording"] = _wording(measured, base, questions.source)
            found[which]["skills"] = _skills(measured, base)
        if objective.is_power and arm.name in base.about[0]["log_z"]:
            found[which]["to_optimum"] = _to_optimum(
                measured, base.about[0]["log_z"][arm.name], objective
            )
    name = f"predicted.{arm.name}"
    if name in base.values[0]:
        found["predicted"] = _prediction(base, name, questions.test)
    return found


def _figures(
    measured: Measurements, base: Measurements, examples: Sequence[Example]
) -> dict[str, Any]:
    """The figures of a policy, and its gains over the base on the same prompts."""
    before = base.values[0]
    accuracy = measured.stacked("test.accuracy")
    greedy = measured.stacked("test.greedy")
    return {
        "accuracy": figure(accuracy),
        "gain": figure(accuracy - before["test.accuracy"]),
        "gain_of_seeds": (accuracy - before["test.accuracy"]).mean(1).tolist(),
        "greedy": figure(greedy),
        "greedy_gain": figure(greedy - before["test.greedy"]),
        **{
            name: figure(measured.stacked(f"test.{name}"))
            for name in ("length", "lp", "kl", "unique")
        },
        "pass": _by_k(measured, "pass"),
        "maj": _by_k(measured, "maj"),
        "by_difficulty": {
            kind: {
                "prompts": len(index),
                "accuracy": figure(accuracy[:, index]),
                "gain": figure((accuracy - before["test.accuracy"])[:, index]),
            }
            for kind, index in _kinds(examples).items()
        },
    }


def _kinds(examples: Sequence[Example]) -> dict[str, list[int]]:
    kinds: dict[str, list[int]] = {}
    for i, example in enumerate(examples):
        if kind := difficulty(example):
            kinds.setdefault(kind, []).append(i)
    return kinds


def _by_k(measured: Measurements, name: str) -> dict[str, Figure]:
    ks = sorted(measured.names(f"test.{name}@"), key=int)
    found = {k: measured.stacked(f"test.{name}@{k}") for k in ks}
    return {k: {**figure(values), "seeds": len(values)} for k, values in found.items()}


def _prediction(base: Measurements, name: str, examples: Sequence[Example]) -> dict[str, Any]:
    """The accuracy of an arm's optimum and the gain to it, as the base's samples say."""
    predicted, before = base.values[0][name], base.values[0]["test.accuracy"]
    return {
        "accuracy": figure(predicted),
        "gain": figure(predicted - before),
        "by_difficulty": {
            kind: figure((predicted - before)[index]) for kind, index in _kinds(examples).items()
        },
    }


def _wording(measured: Measurements, base: Measurements, source: str) -> dict[str, Any]:
    """How far the greedy answers depend on the words of the question."""
    names = [n for n in rewordings(source) if n in measured.names("test.greedy@")]
    if not names:
        return {}
    flipped = np.mean([measured.stacked(f"test.flipped@{n}") for n in names], axis=0)
    greedy = {n: measured.stacked(f"test.greedy@{n}") for n in names}
    count = flipped.shape[1]
    before = {n: base.values[0][f"test.greedy@{n}"] for n in names}
    means = [float(g.mean()) for g in greedy.values()]
    means.append(float(measured.stacked("test.greedy")[:, :count].mean()))
    gain = np.mean([greedy[n] - before[n] for n in names], axis=0)
    return {
        "prompts": count,
        "flipped": figure(flipped),
        "flipped_of_seeds": flipped.mean(1).tolist(),
        "spread": max(means) - min(means),
        "gain": figure(gain),
        "accuracy": {n: figure(g) for n, g in greedy.items()},
        "flipped_by": {n: figure(measured.stacked(f"test.flipped@{n}")) for n in names},
    }


def _skills(measured: Measurements, base: Measurements) -> dict[str, Any]:
    """What the policy solves of the prompts that no sample of the base solved.

    `again`: what the base solves of them by chance alone, in another draw of as many samples, on
    the random numbers that the policy has too. Empty without a seed of as many samples.
    """
    before = base.values[0]
    if "long.first" not in before:
        return {}
    firsts = [
        v for v in measured.values if "long.n" in v and (v["long.n"] == before["long.n"]).all()
    ]
    if not firsts:
        return {}
    never = before["long.first"] == 0
    if not never.any():
        return {"prompts": 0}
    first = firsts[0]
    n = first["long.n"][never]
    now, again = first["long.second"][never], before["long.second"][never]
    return {
        "prompts": int(never.sum()),
        "samples": int(n[0]),
        "solved": figure(now > 0),
        "solved_again": figure(again > 0),
        "more_than_again": figure((now > 0).astype(float) - (again > 0)),
        "mostly_solved": figure(now >= n / 2),
        "accuracy": figure(now / n),
        "accuracy_again": figure(again / n),
    }


def _to_optimum(
    measured: Measurements, log_z: Sequence[float], objective: Objective
) -> dict[str, float]:
    """Between what KL(pi || p^alpha / Z) lies, in nats a response: log Z less the mean reward."""
    lp, kl = measured.stacked("test.lp"), measured.stacked("test.kl")
    assert objective.alpha is not None
    reward = float(((objective.alpha - 1) * lp - kl).mean())
    low, high = (max(0.0, bound - reward) for bound in log_z)
    return {"low": low, "high": high, "reward": reward}


def _curves(runs: Iterable[RunDirectory]) -> dict[str, Any]:
    """The metrics of CURVES over the steps: mean, least and most over seeds."""
    lines = [run.read_metrics() for run in runs]
    steps = sorted({line["step"] for run in lines for line in run})
    found: dict[str, Any] = {"step": steps}
    for key in CURVES:
        by_step: dict[int, list[float]] = {step: [] for step in steps}
        for line in (line for run in lines for line in run):
            if line.get(key) is not None:
                by_step[line["step"]].append(line[key])
        found[key] = {
            name: [None if not by_step[s] else float(of(by_step[s])) for s in steps]
            for name, of in (("mean", np.mean), ("low", np.min), ("high", np.max))
        }
    return found


def _validation(runs: Iterable[RunDirectory]) -> list[dict[str, float]]:
    """Accuracy and KL to the base on the validation split, at every evaluation, over seeds."""
    by_step: dict[int, list[Mapping[str, Any]]] = {}
    for run in runs:
        for line in run.read_evaluations():
            if line["split"] == "validation":
                by_step.setdefault(line["step"], []).append(line)
    found = []
    for step, lines in sorted(by_step.items()):
        accuracy = [line["accuracy"] for line in lines]
        kl = [line["kl"] for line in lines if line["kl"] is not None]
        found.append(
            {
                "step": step,
                "accuracy": float(np.mean(accuracy)),
                "low": float(np.min(accuracy)),
                "high": float(np.max(accuracy)),
                "kl": float(np.mean(kl)) if kl else 0.0,
            }
        )
    return found


def _baselines(directory: Path, cell: Cell, base: Measurements) -> list[dict[str, Any]]:
    before = base.values[0]["test.accuracy"]
    values, about = files_of(directory, cell).read(LAST)
    return [
        {
            "model": cell.shown_model,
            **row,
            "accuracy": figure(values[f"accuracy.{row['name']}"]),
            "gain": figure(values[f"accuracy.{row['name']}"] - before),
            "tokens": figure(values[f"tokens.{row['name']}"]),
        }
        for row in about["baselines"]
    ]


def _tuning(plan: Plan, directory: Path) -> list[dict[str, Any]]:
    """The accuracy on the validation split of every learning rate that was tried, at the end."""
    found = []
    for cell in plan.cells if plan.settings.lrs else ():
        if cell.trains and cell.seed == 0:
            run = RunDirectory(files_of(directory, cell).run, writes=False)
            found.append(
                {
                    "model": cell.shown_model,
                    "arm": cell.arm,
                    "lr": cell.config.optim.lr,
                    "accuracy": run.accuracies().get(cell.config.train.max_steps),
                    "chosen": cell.samples > 0,
                }
            )
    return found


def _texts(directory: Path, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The same prompts answered by every arm's first seed, by model."""
    prompts: dict[tuple[str, str], dict[str, Any]] = {}
    for cell in cells:
        if cell.seed or cell.arm == BASELINES or "~" in cell.model:
            continue
        _, about = files_of(directory, cell).read(LAST)
        for row in about["texts"]:
            key = (cell.shown_model, row["prompt"])
            shown = {k: row[k] for k in ("prompt", "gold", "tags")}
            own = prompts.setdefault(key, {"model": cell.shown_model, **shown, "policies": {}})
            own["policies"][cell.arm] = row["responses"]
    return list(prompts.values())
