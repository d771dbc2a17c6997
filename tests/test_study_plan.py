"""The cells of a study: names, order, settings, refusals."""

from dataclasses import replace
from pathlib import Path

import pytest

from fastrl.config import Config, split_list, with_values
from fastrl.errors import UsageError
from fastrl.study.plan import (
    ARMS,
    BASE,
    BASELINES,
    GRID_ARMS,
    StudySettings,
    arms_of,
    make_plan,
    parse_numbers,
    perturbed_path,
    read_plan,
    write_plan,
)

HERE = Path("somewhere")


def plan(**settings):
    return make_plan(StudySettings(**settings), Config(), HERE)


def test_the_default_study():
    found = plan()
    assert [a.name for a in found.arms] == ["sharpen-a4", "task", "tilted-a4-b0.01", "null"]
    assert len(found.cells) == 1 + 3 * 4
    assert {c.model for c in found.cells} == {"embedded"}
    by_name = {c.name: c for c in found.cells}
    first, other = by_name["embedded/sharpen-a4/seed-0"], by_name["embedded/sharpen-a4/seed-2"]
    assert {first.samples, other.samples} == {16} and by_name["embedded/base"].samples == 256
    assert (first.config.train.seed, other.config.train.seed) == (0, 2)
    assert first.config.objective.alpha == 4 and first.config.objective.name == "sharpen"
    assert by_name["embedded/null/seed-0"].config.objective.alpha == 1
    assert by_name["embedded/tilted-a4-b0.01/seed-0"].config.objective.beta == 0.01
    assert found.cell("embedded/base").arm == BASE and not found.cell("embedded/base").trains
    with pytest.raises(UsageError, match="no cell 'embedded/bass'; it has embedded/base, embedded"):
        found.cell("embedded/bass")


def test_models_come_before_every_run_and_seeds_one_after_another():
    found = plan(models=("embedded:0", "embedded:0.5"), perturbed=(0.02,), baselines=True, seeds=2)
    trains = [c.trains for c in found.cells]
    assert trains == sorted(trains)
    assert [c.name for c in found.cells if not c.trains] == [
        "embedded-0/base",
        "embedded-0/baselines",
        "embedded-0.5/base",
        "embedded-0.5/baselines",
        "embedded-0~0.02/base",
        "embedded-0.5~0.02/base",
    ]
    seeds = [c.seed for c in found.cells if c.trains]
    assert seeds == sorted(seeds)
    kinds = {c.kind for c in found.cells if "~" in c.model}
    assert kinds == {BASE, "sharpen", "task"}  # and no other starts from a perturbed model
    noisy = found.cell("embedded-0~0.02/task/seed-1")
    assert noisy.config.model.name == str(perturbed_path(HERE, "embedded:0", 0.02))
    assert Path(noisy.config.model.name).is_absolute()
    assert {c.arm for c in found.cells if c.kind == BASELINES} == {BASELINES}


def test_the_grid():
    settings = StudySettings(
        arms=(*GRID_ARMS, "task-kl"), alphas=(0.5, 1, 1.25, 2, 4), betas=(0.01, 0.0001)
    )
    names = [a.name for a in arms_of(settings)]
    alphas = ["0.5", "1.25", "2", "4"]  # 1 is the null run
    assert names == [
        *(f"sharpen-a{a}" for a in alphas),
        "likelihood",
        "task",
        "task-b0.01",
        "task-b0.0001",
        *(f"tilted-a{a}-b{b}" for a in alphas for b in ("0.01", "0.0001")),
        "null",
        "random",
    ]
    of = {a.name: a for a in arms_of(settings)}
    assert of["likelihood"].values["objective.mode"] == "likelihood"
    assert of["random"].values["reward.functions"] == ["random"]
    assert of["task-b0.01"].values == {"objective.name": "task", "objective.beta": 0.01}
    assert {a.kind for a in of.values()} == set(ARMS)


def test_what_a_length_norm_does_not_touch_is_there_once():
    arms = ("sharpen", "task", "null")
    norms = ("mean", "sum", "power 0.5")
    found = list(arms_of(StudySettings(arms=arms, length_norms=norms, fixed_length=True)))
    plain = ["sharpen-a4-mean", "task", "null", "sharpen-a4", "sharpen-a4-power-0.5"]
    assert [a.name for a in found if "fixed" not in a.name] == plain
    assert sorted(a.name for a in found if "fixed" in a.name) == sorted(
        f"{name}-fixed-length" for name in plain
    )
    of = {a.name: a.values for a in found}
    assert of["sharpen-a4-power-0.5"]["objective.length_norm"] == "power 0.5"
    assert "objective.length_norm" not in of["task"]
    assert of["task-fixed-length"]["sampling.ignore_eos"] is True
    assert "sampling.ignore_eos" not in of["task"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"arms": ("sharpen", "reward")}, "no arm 'reward'; allowed: sharpen, likelihood, task"),
        ({"arms": ()}, "--arms names nothing to compare"),
        ({"seeds": 0}, "--seeds is 0; it must be at least 1"),
        ({"prompts": 1}, "--prompts is 1; it must be at least 2"),
        ({"samples": 0}, "--samples is 0"),
        ({"samples_of_trained": 0}, "--samples-of-trained is 0"),
        ({"long_prompts": -1}, "--long-prompts is -1; it must be at least 0"),
        ({"template_prompts": -1}, "--template-prompts is -1"),
        ({"perturbed": (2.0,)}, "--perturbed has 2.0; give shares"),
        ({"alphas": ()}, "the arm 'sharpen' needs --alphas"),
        ({"alphas": (1.0,)}, "needs --alphas, and one besides 1, which is the arm 'null'"),
        ({"alphas": (-1.0,)}, "objective.alpha is -1.0; it must be a positive number"),
        ({"betas": ()}, "the arm 'tilted' needs --betas"),
        ({"arms": ("task",), "alphas": (), "baselines": True}, "--baselines needs --alphas"),
        ({"length_norms": ()}, "--length-norms names none"),
        ({"length_norms": ("median",)}, "objective.length_norm is 'median'; allowed"),
        ({"alphas": (4.0, 4.0)}, "two cells would be called embedded/sharpen-a4/seed-0"),
        ({"models": ("a/x", "b/x")}, "two cells would be called x/base; .* a link of another"),
        ({"models": ("a~1",)}, "the model 'a~1' has a ~ in its name"),
    ],
)
def test_refusals(settings, words):
    with pytest.raises(UsageError, match=words):
        plan(**settings)


def test_a_model_is_shown_without_its_folders():
    for name, shown in (("/a/b/x", "x"), ("owner/x-1.5", "x-1.5"), ("embedded:0", "embedded:0")):
        found = plan(models=(name,), perturbed=(0.1,), arms=("task",))
        assert {c.shown_model for c in found.cells} == {shown, f"{shown}~0.1"}
        assert {c.model for c in found.cells} == {name, f"{name}~0.1"}  # is what is loaded


def test_another_temperature_is_refused():
    config = with_values(Config(), {"sampling.temperature": 0.5}, from_text=False)
    with pytest.raises(UsageError, match="temperature is 0.5, but a study measures and predicts"):
        make_plan(StudySettings(), config, HERE)


def test_what_is_written_is_read(tmp_path):
    values = {"train.max_steps": 7, "data.task_args": {"a": {"b": 1}}, "reward.weights": [0.5]}
    config = with_values(Config(), values, from_text=False)
    settings = StudySettings(
        models=("embedded:0",), alphas=(1.25, 1 / 3), perturbed=(0.1,), seeds=2, fixed_length=True
    )
    written = make_plan(settings, config, tmp_path)
    write_plan(written, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == written


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '{"settings": {"sides": 1}, "config": {}}'])
def test_what_is_no_plan(text, tmp_path):
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match="is no plan of a study; give the directory"):
        read_plan(path)


def test_lists_of_the_command_line():
    assert split_list(" a, b,,c ") == ["a", "b", "c"]
    assert parse_numbers("alphas", "1.25, 2") == (1.25, 2.0)
    assert parse_numbers("alphas", "") == ()
    with pytest.raises(UsageError, match=r"--alphas is '1;2'; give numbers, as in 1.25,2,4"):
        parse_numbers("alphas", "1;2")


def test_a_cell_is_a_word_of_a_path():
    found = replace(StudySettings(), models=("org name/my model:v1",))
    name = make_plan(found, Config(), HERE).cells[0].name
    assert name == "my-model-v1/base"
