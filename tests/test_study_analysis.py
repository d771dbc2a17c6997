"""study.json of measurements that are made up, against values computed by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fastrl.config import Config
from fastrl.errors import UsageError
from fastrl.study.analysis import analyse, figure
from fastrl.study.cell import BEST, LAST, files_of, is_done
from fastrl.study.measure import Measured
from fastrl.study.plan import StudySettings, make_plan
from fastrl.study.tables import summary_table
from fastrl.study.wording import rewordings

P, LONG, TEMPLATES = 8, 4, 4
WORDINGS = list(rewordings("embedded"))
SETTINGS = StudySettings(
    arms=("sharpen", "task"),
    seeds=2,
    prompts=P,
    samples=4,
    samples_of_trained=2,
    long_prompts=LONG,
    template_prompts=TEMPLATES,
)


def values(accuracy, samples=4, *, lp=-3.0, kl=0.5, flipped=0.0, second=(0, 0, 0, 0), first=None):
    """A measurement of P prompts; `accuracy` may be one number or one a prompt."""
    accuracy = np.broadcast_to(np.asarray(accuracy, float), P).copy()
    found = {
        "test.accuracy": accuracy,
        "test.length": np.full(P, 20.0),
        "test.lp": np.full(P, lp),
        "test.kl": np.full(P, kl),
        "test.unique": np.full(P, 0.5),
        "test.greedy": (accuracy > 0.5).astype(float),
        "long.second": np.array(second, float),
        "long.n": np.full(LONG, float(samples)),
    }
    if first is not None:
        found["long.first"] = np.array(first, float)
    for k in (1, 2, 4):
        if k <= samples:
            found[f"test.pass@{k}"] = np.minimum(1, accuracy * k)
            found[f"test.maj@{k}"] = accuracy
    for i, name in enumerate(WORDINGS):
        found[f"test.greedy@{name}"] = np.full(TEMPLATES, 1.0 if i else 0.25)
        found[f"test.flipped@{name}"] = np.full(TEMPLATES, flipped)
    return found


BASE = 0.25 + 0.5 * (np.arange(P) % 2)  # 0.25 and 0.75 in turn


def base_values():
    found = values(BASE, kl=0.0, second=(0, 1, 4, 0), first=(0, 0, 2, 0))
    found |= {
        "base.covariance": np.array([0.5, np.nan, 0.1, 0.3, *[0.0] * 4]),
        "base.correlation": np.full(P, np.nan),
        **{f"base.best@{k}": np.full(P, 0.1 * k) for k in (1, 2, 4)},
        "predicted.sharpen-a4": BASE - 0.2,
        "predicted.task": np.ones(P),
    }
    return found


@pytest.fixture
def study(tmp_path):
    plan = make_plan(SETTINGS, Config(), tmp_path)
    return plan, tmp_path


def write(study, name, found, best=None, step=5, best_step=3, **about):
    plan, directory = study
    files = files_of(directory, plan.cell(name))
    files.path.mkdir(parents=True, exist_ok=True)
    files.write(BEST, Measured(best or found, []), {"step": best_step, **about})
    files.write(LAST, Measured(found, []), {"step": step, **about})


def write_base(study, log_z=None, arms=("sharpen-a4", "task")):
    plan, directory = study
    files = files_of(directory, plan.cell("embedded/base"))
    files.path.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": "p", "gold": "1", "tags": [], "responses": [{"text": "base"}]}]
    measured = Measured(base_values(), rows, log_z or {"sharpen-a4": (-8.0, -7.0)})
    for which in (BEST, LAST):
        files.write(which, measured, {"step": 0, "arms": arms})


def write_all(study):
    write_base(study)
    for seed, samples in ((0, 4), (1, 2)):
        gain = 0.1 * (1 + seed)
        write(study, f"embedded/sharpen-a4/seed-{seed}",
              values(BASE - gain, samples, flipped=0.5, second=(0, 2, 3, 4)),
              best=values(BASE + 0.05, samples), step=9)  # fmt: skip
        write(study, f"embedded/task/seed-{seed}", values(BASE + gain, samples, flipped=0.25),
              best=values(BASE + 0.2, samples))  # fmt: skip


def arms(found):
    return {row["arm"]: row for row in found["arms"]}


def test_figures_by_hand(study):
    write_all(study)
    found = analyse(*study)
    json.dumps(found, allow_nan=False)
    assert found["cells"] == {"planned": 5, "measured": 5}
    base = found["models"]["embedded"]
    assert base["accuracy"]["mean"] == pytest.approx(0.5)
    assert base["gain"]["mean"] == base["gain"]["error"] == 0
    assert base["covariance"]["mean"] == pytest.approx(0.9 / 7)  # of those that are defined
    assert base["correlation"] is None
    assert base["best"]["4"]["mean"] == pytest.approx(0.4)
    assert base["never_solved"] == 0
    assert base["long"]["never_solved"] == 3
    assert base["long"]["accuracy"]["mean"] == pytest.approx(2 / 16)
    row = arms(found)["sharpen-a4"]
    assert row["seeds"] == [0, 1] and row["target"] == "p^4 / Z"
    assert row["last"]["accuracy"]["mean"] == pytest.approx(0.35)
    assert row["last"]["gain"]["mean"] == pytest.approx(-0.15)
    assert row["last"]["gain_of_seeds"] == pytest.approx([-0.1, -0.2])
    # prompts gain alike, so that all of the error is that of two seeds: .1 / 2
    assert row["last"]["gain"]["error"] == pytest.approx(0.05, rel=0.05)
    assert row["last"]["accuracy"]["error"] > 0.08  # unpaired it would be twice as large
    assert row["best"]["gain"]["mean"] == pytest.approx(0.05)
    assert row["last"]["steps"] == [9, 9] and row["best"]["steps"] == [3, 3]
    assert row["predicted"]["gain"]["mean"] == pytest.approx(-0.2)
    assert row["predicted"]["gain"]["error"] == pytest.approx(0, abs=1e-12)
    kinds = row["last"]["by_difficulty"]
    assert sum(k["prompts"] for k in kinds.values()) == P
    assert all(k["gain"]["mean"] == pytest.approx(-0.15) for k in kinds.values())
    assert set(row["predicted"]["by_difficulty"]) == set(kinds)


def test_of_seeds_with_fewer_samples_there_is_less(study):
    write_all(study)
    passed = arms(analyse(*study))["sharpen-a4"]["last"]["pass"]
    assert list(passed) == ["1", "2", "4"]
    assert [passed[k]["seeds"] for k in passed] == [2, 2, 1]
    twice = np.minimum(1, 2 * np.array([BASE - 0.1, BASE - 0.2]))
    assert passed["2"]["mean"] == pytest.approx(twice.mean())
    assert passed["4"]["mean"] == pytest.approx(np.minimum(1, 4 * (BASE - 0.1)).mean())


def test_less_task_is_of_the_same_seeds(study):
    write_all(study)
    less = arms(analyse(*study))["sharpen-a4"]["less_task"]
    assert less["accuracy"]["mean"] == pytest.approx(-0.3)
    assert less["accuracy_of_best"]["mean"] == pytest.approx(-0.15)
    # sharpen lost .05 + .15 on average since its best, task .2 - .15
    assert less["lost_from_best"]["mean"] == pytest.approx(0.15)
    assert less["flipped"]["mean"] == pytest.approx(0.25)
    assert "less_task" not in arms(analyse(*study))["task"]


def test_seeds_that_failed_are_in_no_pair(study):
    plan, directory = study
    plan = make_plan(replace(SETTINGS, seeds=3), Config(), directory)
    study = plan, directory
    write_base(study)
    for seed, accuracy in ((1, 0.3), (2, 0.9)):
        write(study, f"embedded/sharpen-a4/seed-{seed}", values(accuracy, 2))
    for seed, accuracy in ((0, 0.0), (2, 0.6)):
        write(study, f"embedded/task/seed-{seed}", values(accuracy, 4 if seed == 0 else 2))
    found = analyse(*study)
    row = arms(found)["sharpen-a4"]
    assert row["seeds"] == [1, 2]
    assert row["less_task"]["accuracy"]["mean"] == pytest.approx(0.3)  # .9 - .6, seed 2 alone
    assert row["last"]["skills"] == {}  # no seed has the base's number of samples
    assert arms(found)["task"]["last"]["skills"]["prompts"] == 3


def test_no_common_seed_is_no_comparison(study):
    write_base(study)
    write(study, "embedded/sharpen-a4/seed-1", values(0.3, 2))
    write(study, "embedded/task/seed-0", values(0.6))
    found = analyse(*study)
    assert "less_task" not in arms(found)["sharpen-a4"]
    assert [c["verdict"] for c in found["claims"]][1:3] == ["not run", "not run"]
    summary_table(found)


def test_new_skills(study):
    write_all(study)
    skills = arms(analyse(*study))["sharpen-a4"]["last"]["skills"]
    # prompts 0, 1 and 3 were never solved; the policy's draws solve 0, 2 and 4 of 4, and the
    # base's second draw 0, 1 and 0
    assert (skills["prompts"], skills["samples"]) == (3, 4)
    assert skills["solved"]["mean"] == pytest.approx(2 / 3)
    assert skills["solved_again"]["mean"] == pytest.approx(1 / 3)
    assert skills["more_than_again"]["mean"] == pytest.approx(1 / 3)
    assert skills["mostly_solved"]["mean"] == pytest.approx(2 / 3)
    assert skills["accuracy"]["mean"] == pytest.approx(6 / 12)
    assert skills["accuracy_again"]["mean"] == pytest.approx(1 / 12)


def test_wording(study):
    write_all(study)
    words = arms(analyse(*study))["sharpen-a4"]["last"]["wording"]
    assert words["prompts"] == TEMPLATES
    assert words["flipped"]["mean"] == pytest.approx(0.5)
    # greedy answers: .25 right with the first wording, all with the others, and of the same
    # prompts none as they stand for one seed, and half for the other
    assert words["spread"] == pytest.approx(0.75)
    assert words["gain"]["mean"] == 0
    assert words["flipped_by"]["please"]["mean"] == pytest.approx(0.5)
    assert set(words["accuracy"]) == set(WORDINGS)


def test_how_far_the_optimum_is(study):
    write_all(study)
    last = arms(analyse(*study))["sharpen-a4"]["last"]
    # the reward is 3 lp - kl = -9.5, log Z between -8 and -7
    assert last["to_optimum"] == pytest.approx({"low": 1.5, "high": 2.5, "reward": -9.5})
    assert "to_optimum" not in arms(analyse(*study))["task"]["last"]
    write_base(study, log_z={"sharpen-a4": (-11.0, -10.0)})
    last = arms(analyse(*study))["sharpen-a4"]["last"]
    assert (last["to_optimum"]["low"], last["to_optimum"]["high"]) == (0, 0)


def test_a_base_that_does_not_know_an_arm_is_not_done(study):
    plan, directory = study
    write_base(study, arms=("sharpen-a4",))
    assert not is_done(plan, directory, plan.cell("embedded/base"))
    found = analyse(*study)
    assert found["models"] == {} and found["arms"] == []
    assert [c["verdict"] for c in found["claims"]] == ["not run"] * 4
    write_base(study)
    assert is_done(plan, directory, plan.cell("embedded/base"))


def test_half_a_measurement_is_none(study):
    write_all(study)
    plan, directory = study
    files = files_of(directory, plan.cell("embedded/task/seed-0"))
    files.found(BEST).unlink()
    assert not is_done(plan, directory, plan.cell("embedded/task/seed-0"))
    assert arms(analyse(*study))["task"]["seeds"] == [1]
    files.found(BEST).write_text("{")
    with pytest.raises(UsageError, match="holds no whole measurement"):
        analyse(*study)


def test_without_long_prompts_templates_and_predictions(tmp_path):
    settings = replace(SETTINGS, long_prompts=0, template_prompts=0)
    plan = make_plan(settings, Config(), tmp_path)
    for name in ("base", "task/seed-0", "sharpen-a4/seed-0"):
        found = base_values() if name == "base" else values(0.5)
        gone = ("long", "predicted", "test.greedy@", "test.flipped@")
        kept = {k: v for k, v in found.items() if not k.startswith(gone)}
        write((plan, tmp_path), f"embedded/{name}", kept, arms=["sharpen-a4", "task"])
    found = analyse(plan, tmp_path)
    row = arms(found)["sharpen-a4"]
    assert row["last"]["skills"] == row["last"]["wording"] == {}
    assert "predicted" not in row and "flipped" not in row["less_task"]
    assert "long" not in found["models"]["embedded"]
    summary_table(found)


def test_texts_side_by_side(study):
    write_all(study)
    found = analyse(*study)
    assert found["texts"] == [
        {
            "model": "embedded",
            "prompt": "p",
            "gold": "1",
            "tags": [],
            "policies": {"base": [{"text": "base"}]},
        }
    ]


def test_commands_are_what_a_shell_takes(tmp_path):
    directory = tmp_path / "a b"
    directory.mkdir()
    study = make_plan(SETTINGS, Config(), directory), directory
    write_base(study)
    command = analyse(*study)["commands"]["embedded/base"]
    assert command == f"fastrl study --output-dir '{directory}' --cell embedded/base"


def test_a_figure_has_what_could_be_detected():
    found = figure(np.random.default_rng(0).normal(0, 1, (2, 50)))
    assert found["detectable"] == pytest.approx(2.8 * found["error"])
    assert found["low"] < found["mean"] < found["high"]
