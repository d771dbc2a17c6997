"""Each arm's learning rate, chosen by validation with equal trials."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fastrl.config import Config
from fastrl.errors import UsageError
from fastrl.study.cell import files_of, is_done
from fastrl.study.plan import StudySettings, make_plan, read_plan, write_plan

SETTINGS = StudySettings(arms=("sharpen", "task"), seeds=3, lrs=(1e-3, 2e-3, 4e-3))
STEPS = Config().train.max_steps


def try_(directory: Path, arm: str, lr: float, accuracy: float, step: int = STEPS) -> None:
    """A trial that ended with this accuracy on the validation split."""
    run = directory / "cells" / "embedded" / arm / f"lr-{lr:g}" / "seed-0" / "run"
    (run / "checkpoints" / f"step_{step}").mkdir(parents=True)
    lines = [
        {"step": 0, "split": "validation", "accuracy": 0.99, "kl": 0.0},
        {"step": step, "split": "validation", "accuracy": accuracy, "kl": 0.1},
        {"step": step, "split": "test", "accuracy": 1.0, "kl": 0.1},
    ]
    (run / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_every_rate_is_tried_before_any_seed_follows(tmp_path):
    plan = make_plan(SETTINGS, Config(), tmp_path)
    assert [c.name for c in plan.cells] == ["embedded/base"] + [
        f"embedded/{arm}/lr-{lr}/seed-0"
        for arm in ("sharpen-a4", "task")
        for lr in ("0.001", "0.002", "0.004")
    ]
    trials = plan.cells[1:]
    assert {c.samples for c in trials} == {0}
    assert [c.config.optim.lr for c in trials] == [1e-3, 2e-3, 4e-3] * 2
    assert not any(is_done(plan, tmp_path, c) for c in trials)
    # the other arm's trials decide nothing, nor do those that are not at their end
    for lr in SETTINGS.lrs:
        try_(tmp_path, "task", lr, 0.5 + 100 * lr)
    try_(tmp_path, "sharpen-a4", 1e-3, 0.5)
    try_(tmp_path, "sharpen-a4", 2e-3, 0.9, step=10)
    plan = make_plan(SETTINGS, Config(), tmp_path)
    names = [c.name for c in plan.cells if c.seed > 0]
    assert names == [f"embedded/task/lr-0.004/seed-{seed}" for seed in (1, 2)]
    measured = [c.name for c in plan.cells if c.trains and c.samples]
    assert measured == ["embedded/task/lr-0.004/seed-0", *names]


def test_the_best_on_validation_is_chosen_and_of_equals_the_smaller(tmp_path):
    for lr, accuracy in zip(SETTINGS.lrs, (0.4, 0.7, 0.7), strict=True):
        for arm in ("sharpen-a4", "task"):
            try_(tmp_path, arm, lr, accuracy)
    write_plan(make_plan(SETTINGS, Config(), tmp_path), tmp_path / "plan.json")
    plan = read_plan(tmp_path / "plan.json")
    chosen = {c.config.optim.lr for c in plan.cells if c.trains and c.samples}
    assert chosen == {2e-3}
    by_seed = [c for c in plan.cells if c.arm == "task"]
    assert [c.seed for c in by_seed] == [0, 0, 0, 1, 2]
    assert {c.samples for c in (by_seed[1], *by_seed[3:])} == {SETTINGS.samples_of_trained}
    trial = by_seed[0]
    assert is_done(plan, tmp_path, trial)
    assert not files_of(tmp_path, trial).is_measured()


@pytest.mark.parametrize("lrs", [(0.0,), (-1e-3,), (2.0,), (1e-3, float("nan"))])
def test_rates_that_cannot_be(lrs, tmp_path):
    with pytest.raises(UsageError, match="--lrs has"):
        make_plan(replace(SETTINGS, lrs=lrs), Config(), tmp_path)


def test_rates_are_chosen_on_validation(tmp_path):
    config = Config()
    with pytest.raises(UsageError, match="chosen on the validation split"):
        make_plan(SETTINGS, replace(config, eval=replace(config.eval, prompts=0)), tmp_path)
