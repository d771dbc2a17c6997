"""A study whose cells were never run: their measurements are made up, by chance and seeded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastrl.config import Config, write_toml
from fastrl.statistics import powers_of_two
from fastrl.study.cell import BEST, LAST, files_of, make_perturbed, run_config
from fastrl.study.measure import Measured, Questions, Values
from fastrl.study.plan import BASE, BASELINES, Cell, Plan, StudySettings, make_plan, write_plan
from fastrl.study.wording import rewordings

ACCURACY = {"base": 0.5, "sharpen": 0.55, "task": 0.9, "tilted": 0.88, "null": 0.5}
LOG_Z = (-6.0, -5.5)
STEPS = 12


def make_study(directory: Path, settings: StudySettings, spoken: str = "\\boxed{1}") -> Plan:
    """Every cell of a plan with measurements; responses say `spoken`."""
    plan = make_plan(settings, Config(), directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_plan(plan, directory / "plan.json")
    questions = Questions.of(settings, plan.config)
    for i, cell in enumerate(plan.cells):
        files = files_of(directory, cell)
        files.path.mkdir(parents=True)
        make_perturbed(directory, cell)
        rng = np.random.default_rng(i)
        if cell.arm == BASELINES:
            _baselines(plan, cell, files.write, rng)
            continue
        measured = Measured(
            _values(plan, cell, questions, rng),
            _texts(questions, spoken),
            {a.name: LOG_Z for a in plan.arms if a.kind == "sharpen"} if cell.arm == BASE else {},
        )
        for which in (LAST, BEST):
            about = {"step": STEPS if cell.trains else 0, "arms": [a.name for a in plan.arms]}
            files.write(which, measured, about)
        if cell.trains:
            _run(directory, cell, rng)
    return plan


def _values(plan: Plan, cell: Cell, questions: Questions, rng: np.random.Generator) -> Values:
    prompts, longer = len(questions.test), len(questions.long)
    accuracy = ACCURACY.get(cell.kind, 0.5)
    right = rng.binomial(cell.samples, accuracy, prompts) / cell.samples
    values: Values = {
        "test.accuracy": right,
        "test.greedy": (rng.random(prompts) < accuracy).astype(float),
        "test.length": rng.uniform(20, 30, prompts),
        "test.lp": rng.uniform(-9, -5, prompts),
        "test.kl": rng.uniform(0, 1, prompts),
        "test.unique": rng.random(prompts),
    }
    for k in powers_of_two(cell.samples):
        values[f"test.pass@{k}"] = 1 - (1 - right) ** k
        values[f"test.maj@{k}"] = right
    some = min(prompts, plan.settings.template_prompts)
    for name in rewordings(questions.source) if some else ():
        values[f"test.greedy@{name}"] = (rng.random(some) < accuracy).astype(float)
        values[f"test.flipped@{name}"] = (rng.random(some) < 0.3).astype(float)
    if longer:
        values["long.second"] = rng.binomial(2, 0.3, longer).astype(float)
        values["long.n"] = np.full(longer, float(cell.samples))
    if cell.arm == BASE:
        values["base.covariance"] = rng.normal(0.3, 0.1, prompts)
        values["base.correlation"] = rng.normal(0.3, 0.1, prompts)
        for k in powers_of_two(cell.samples):
            values[f"base.best@{k}"] = right
        if longer:
            values["long.first"] = rng.binomial(2, 0.3, longer).astype(float)
        for arm in plan.arms:
            values[f"predicted.{arm.name}"] = rng.random(prompts)
    return values


def _texts(questions: Questions, spoken: str) -> list[dict]:
    said = {"text": spoken, "answer": "1", "correct": True, "reason": "correct"}
    return [
        {"prompt": e.messages[-1]["content"], "gold": e.answer, "tags": ["chain"],
         "responses": [said]}
        for e in questions.test[:4]
    ]  # fmt: skip


def _baselines(plan: Plan, cell: Cell, write: Callable, rng: np.random.Generator) -> None:
    values, rows = {}, []
    names = (("greedy", "greedy"), ("temperature-4", "temperature 1/4"),
             ("power-2", "power sampling, 2 moves"), ("best-2", "likeliest of 5"),
             ("majority-2", "majority of 5"))  # fmt: skip
    for name, label in names:
        values[f"accuracy.{name}"] = rng.random(plan.settings.prompts)
        values[f"tokens.{name}"] = rng.uniform(20, 200, plan.settings.prompts)
        rows.append({"name": name, "label": label, "acceptance": 0.9})
    for which in (LAST, BEST):
        write(which, Measured(values, []), {"baselines": rows})


def _run(directory: Path, cell: Cell, rng: np.random.Generator) -> None:
    config = run_config(directory, cell)
    path = files_of(directory, cell).run
    path.mkdir()
    write_toml(config, path / "config.toml")
    keys = ("task_accuracy", "kl", "length_mean", "entropy", "reward_group_std", "reward_mean")
    lines = [{"step": s + 1, **{k: float(rng.random()) for k in keys}} for s in range(STEPS)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    held = [
        {"step": s, "split": "validation", "accuracy": float(rng.random()), "kl": s / 10,
         "ci95": [0.1, 0.9], "length_mean": 20.0}
        for s in (0, 6, STEPS)
    ]  # fmt: skip
    (path / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in held))
