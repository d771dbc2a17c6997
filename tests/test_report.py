"""fastrl report: what stands in it, of runs and of studies, and what it refuses."""

import json
import re
import shlex

import pytest
from synthetic_study import STEPS, make_study

from fastrl import cli_study
from fastrl.cli import main
from fastrl.errors import UsageError
from fastrl.page import Code, Plot, Samples, Table, Text, Verdict
from fastrl.report import make_page, write_report
from fastrl.study.analysis import analyse
from fastrl.study.plan import StudySettings, read_plan

SETTINGS = StudySettings(
    models=("embedded:0", "embedded"), seeds=2, prompts=8, samples=4, samples_of_trained=2,
    long_prompts=4, template_prompts=4, baselines=True, perturbed=(0.05,),
)  # fmt: skip
HOSTILE = "</script><img src=x onerror=alert(1)>\u2028 \x00 \ud83d\ude00"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    directory = tmp_path_factory.mktemp("a study")
    plan = make_study(directory, SETTINGS, HOSTILE)
    found = analyse(plan, directory)
    (directory / "study.json").write_text(json.dumps(found, allow_nan=False))
    return directory, found


def blocks(page, kind):
    return [b for s in page.sections for b in s.blocks if isinstance(b, kind)]


def test_every_question_of_a_study_has_its_section(study):
    directory, found = study
    page = make_page([directory])
    assert [s.anchor for s in page.sections] == [
        "summary", "claims", "predictions", "training", "samples-a-prompt", "baselines",
        "frontier", "difficulty", "skills", "wording", "perturbed", "responses", "repeat",
    ]  # fmt: skip
    assert [v.claim[:3] for v in blocks(page, Verdict)] == ["(1)", "(2)", "(3)", "(4)"]
    arms = {row["arm"] for row in found["arms"]}
    assert arms < set(page.groups)
    assert {"base", "greedy", "power sampling", "majority of k"} < set(page.groups)
    # every arm of every model is in the table, and in a plot of its training
    table = blocks(page, Table)[0]
    assert len(table.rows) == sum(1 for _ in found["models"]) + len(found["arms"])
    curves = [p for p in blocks(page, Plot) if p.title.startswith("Accuracy of the rollouts")]
    assert len(curves) == len(found["models"])
    assert all(len(s.x) == STEPS for p in curves for s in p.series)


def test_the_figures_are_those_of_the_study(study):
    directory, found = study
    page = make_page([directory])
    row = next(r for r in found["arms"] if (r["model"], r["arm"]) == ("embedded", "task"))
    mean = f"{100 * row['last']['accuracy']['mean']:.1f}"
    cells = [r for r in blocks(page, Table)[0].rows if r[:2] == ["embedded", "task"]][0]
    assert cells[3].startswith(mean)
    plot = next(p for p in blocks(page, Plot) if p.title.startswith("The gain of the optimum"))
    of_task = next(s for s in plot.series if s.name == "task")
    at = list(of_task.labels).index("embedded")
    assert of_task.x[at] == row["predicted"]["gain"]["mean"]
    assert of_task.y[at] == row["last"]["gain"]["mean"]
    assert (of_task.low[at], of_task.high[at]) == (
        row["last"]["gain"]["low"], row["last"]["gain"]["high"],
    )  # fmt: skip


def test_the_command_of_a_report_makes_the_same_study(study, tmp_path, monkeypatch):
    directory, _ = study
    codes = {code.title: code.text for code in blocks(make_page([directory]), Code)}
    (tmp_path / "common.toml").write_text(codes["What the arms have in common: common.toml"])
    words = shlex.split(codes["The study"])[1:]

    def stop(plan, directory, known):
        raise UsageError("it would begin here")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli_study, "_conducted", stop)
    assert main([*words, "--output-dir", "again"]) == 2
    again, before = read_plan(tmp_path / "again" / "plan.json"), read_plan(directory / "plan.json")
    assert again.settings == before.settings == SETTINGS
    assert [c.name for c in again.cells] == [c.name for c in before.cells]


def test_a_report_is_one_file_that_holds_no_markup_of_a_model(study, tmp_path):
    directory, _ = study
    out = tmp_path / "report.html"
    assert main(["report", str(directory), "--out", str(out)]) == 0
    text = out.read_text(encoding="ascii")
    assert "<img" not in text and "onerror" in text
    assert not re.search(r'(?:src|href)="?https?:', text)
    again = tmp_path / "again.html"
    write_report([directory], again)
    assert again.read_bytes() == out.read_bytes()


def test_runs_beside_each_other(study, tmp_path):
    directory, _ = study
    runs = [directory / "cells" / "embedded" / arm / "seed-0" / "run" for arm in ("task", "null")]
    page = make_page(runs)
    assert [s.anchor for s in page.sections] == ["runs", "curves", "repeat-runs"]
    assert list(page.groups) == [str(run) for run in runs]  # both are called run
    accuracy = blocks(page, Plot)[0]
    assert {s.mark for s in accuracy.series} == {"line", "points"}


def test_a_run_shows_what_it_said(tmp_path):
    out = tmp_path / "run"
    small = ["--train.max-steps", "1", "--sampling.prompts-per-step", "2", "--eval.prompts", "0"]
    small += ["--eval.test-prompts", "4", "--sampling.max-tokens", "8", "--train.check", "false"]
    assert main(["train", "--output-dir", str(out), *small]) == 0
    page = make_page([out])
    (samples,) = blocks(page, Samples)
    assert len(samples.prompts) == 2
    assert samples.prompts[0].responses[0].policy == "run"
    (table,) = blocks(page, Table)
    assert [row[3] for row in table.rows] == ["test", "test"]
    assert main(["report", str(out), "--out", str(tmp_path / "r.html")]) == 0
    (written,) = (out / "completions").glob("*.parquet")
    written.write_bytes(written.read_bytes()[:-20])
    (text,) = blocks(make_page([out]), Text)
    assert text.paragraphs.startswith(f"run: {written} is no readable parquet file")


@pytest.mark.parametrize(
    "files, said",
    [
        ({}, "is neither a run (no config.toml) nor a study"),
        ({"study.json": "{"}, "is not what fastrl study writes"),
        ({"study.json": "[]"}, "is not what fastrl study writes"),
        ({"study.json": "{}"}, "is not what fastrl study writes"),
        ({"config.toml": ""}, "has no step yet"),
    ],
)
def test_what_is_no_run_and_no_study(files, said, tmp_path, capsys):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_a_folder_that_is_not_there(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "no" / "r.html")]) == 2
    assert "its folder is not there" in capsys.readouterr().err
