"""A study from the command line to its end, of few steps and prompts."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from fastrl.cli import main
from fastrl.exit_codes import FAILED, OK, STOPPED, USAGE

SMALL = [
    *("--seeds", "1", "--prompts", "12", "--samples", "4", "--samples-of-trained", "4"),
    *("--long-prompts", "4", "--template-prompts", "4", "--jobs", "2"),
]
SHORT = [
    *("--train.max-steps", "2", "--eval.every", "1", "--checkpoint.every", "1"),
    *("--eval.prompts", "8", "--sampling.prompts-per-step", "4"),
]
SHARPEN, TASK = "embedded/sharpen-a4/seed-0", "embedded/task/seed-0"


def study(*words):
    return main(["study", *map(str, words)])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A study of one arm, given by a path from the folder that it began in."""
    folder = tmp_path_factory.mktemp("a folder")
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert study("--output-dir", "a study", "--arms", "sharpen", *SMALL, *SHORT) == OK
    finally:
        os.chdir(before)
    return folder / "a study"


def times(directory):
    measured = directory.glob("cells/**/*.safetensors")
    return {p.relative_to(directory): p.stat().st_mtime_ns for p in measured}


def read(directory, name, which="last"):
    return load_file(directory / "cells" / name / f"{which}.safetensors")


def figures(directory):
    return json.loads((directory / "study.json").read_text())


def test_what_a_study_leaves(done):
    found = figures(done)
    assert found["cells"] == {"planned": 2, "measured": 2}
    (row,) = found["arms"]
    assert row["arm"] == "sharpen-a4" and row["curves"]["step"] == [1, 2]
    assert row["last"]["steps"] == [2] and [v["step"] for v in row["validation"]] == [0, 1, 2]
    assert {"predicted", "last", "best"} <= set(row) and "less_task" not in row
    assert list(row["last"]["pass"]) == ["1", "2", "4"]
    assert "low" in row["last"]["to_optimum"]
    assert (done / "report.html").is_file()
    # what was predicted is older than the run's first file
    predicted = (done / "cells/embedded/base/last.json").stat().st_mtime_ns
    assert predicted < (done / "cells" / SHARPEN / "run/config.toml").stat().st_mtime_ns
    base, trained = read(done, "embedded/base"), read(done, SHARPEN)
    assert len(base["test.accuracy"]) == len(trained["test.accuracy"]) == 12
    assert base["test.kl"].max() == 0 and "predicted.sharpen-a4" in base
    assert {"long.first", "long.second"} <= set(base) and "long.first" not in trained
    assert (base["test.lp"] < 0).all() and len(base["test.flipped@please"]) == 4
    # two steps of warm-up move next to nothing: paired draws are nearly all the same
    assert np.abs(base["test.accuracy"] - trained["test.accuracy"]).mean() < 0.2
    assert np.abs(base["long.second"] - trained["long.second"]).mean() <= 1


def test_what_is_done_is_not_done_again(done, capsys, monkeypatch, tmp_path):
    before = times(done)
    monkeypatch.chdir(tmp_path)  # and by another path than it began with
    assert study("--output-dir", done) == OK
    assert times(done) == before != {}
    assert "2 of 2 cells" in capsys.readouterr().out


def test_a_dry_run_does_nothing(done, capsys):
    before = times(done)
    assert study("--output-dir", done, "--arms", "sharpen,task", "--seeds", 2, "--dry-run") == OK
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 4 + 1
    assert lines[0].split()[:4] == ["embedded/base", "fastrl", "study", "--output-dir"]
    assert lines[0].endswith(f"'{done}' --cell embedded/base")
    assert lines[-1] == "4 runs of 2 steps, 1 measurements without training"
    assert times(done) == before
    assert json.loads((done / "plan.json").read_text())["settings"]["arms"] == ["sharpen"]


def test_a_model_at_home(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models" / "mine").mkdir(parents=True)
    for flag in ("--model", "--models"):
        assert study(flag, "~/models/mine", "--arms", "task", "--seeds", 1, "--dry-run") == OK
        assert capsys.readouterr().out.split()[0] == "mine/base"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompts", 13], "was begun with other settings: --prompts; leave them out"),
        (["--long-prompts", 0], "other settings: --long-prompts"),
        ([*SHORT, "--optim.lr", "0.1"], "other settings: [optim]; leave"),
        (["--cell", "embedded/none"], "the study has no cell 'embedded/none'"),
        (["--cell", "embedded/base", "--seeds", 2], "--seeds does not go with --cell"),
        (["--cell", "embedded/base", *SHORT], "--train.max-steps does not go with --cell"),
        (["--verify", "nothing.json"], "cannot read nothing.json"),
        (["--jobs", 0], "--jobs is 0; it must be at least 1"),
        (["--worlds", 3], "--worlds is of --exact"),
        (["--exact", "--worlds", 1], "--worlds is 1; it must be at least 2"),
        (["--exact", "--seeds", 1], "--seeds does not go with --exact"),
        (["--models", "nowhere"], "there is no model 'nowhere'"),
    ],
)
def test_what_a_study_that_has_begun_refuses(done, capsys, words, said):
    plan, before = (done / "plan.json").read_bytes(), times(done)
    assert study("--output-dir", done, *words) == USAGE
    error = capsys.readouterr().err
    assert said in error and error.startswith("fastrl: ") and error.count("\n") == 1
    assert (done / "plan.json").read_bytes() == plan and times(done) == before


def test_what_a_new_study_refuses(tmp_path, capsys):
    (tmp_path / "file").touch()
    for words, said in [
        (["--seeds", 0], "--seeds is 0"),
        (["--samples", 0], "--samples is 0"),
        (["--data.source", "none.jsonl"], "there is no file none.jsonl"),
        (["--objective.alpha", 2], "[objective] is what the study varies"),
        (["--train.seed", 1], "train.seed is 1, but the study sets it; use --seeds"),
        (["--cell", "embedded/base"], "is no plan of a study"),
    ]:
        assert study("--output-dir", tmp_path / "new", *words) == USAGE
        assert said in capsys.readouterr().err
        assert not (tmp_path / "new").exists()
    assert study("--output-dir", tmp_path / "file" / "x", "--arms", "task") == USAGE
    assert "cannot be written: Not a directory" in capsys.readouterr().err
    assert study("--cell", "embedded/base") == USAGE
    assert "name its --output-dir" in capsys.readouterr().err


def test_a_cell_by_hand_is_what_the_study_measured(done):
    """After its files were lost the same figures come again, to the bit, without training."""
    before = {which: read(done, SHARPEN, which) for which in ("last", "best")}
    metrics = (done / "cells" / SHARPEN / "run/metrics.jsonl").stat().st_mtime_ns
    for path in (done / "cells" / SHARPEN).glob("*.json"):
        path.unlink()
    assert study("--output-dir", done, "--cell", SHARPEN) == OK
    measured = times(done)
    assert study("--output-dir", done, "--cell", SHARPEN) == OK
    assert times(done) == measured  # and a second time nothing is left to do
    for which, values in before.items():
        again = read(done, SHARPEN, which)
        assert values.keys() == again.keys()
        for name in values:
            np.testing.assert_array_equal(values[name], again[name], err_msg=name)
    assert (done / "cells" / SHARPEN / "run/metrics.jsonl").stat().st_mtime_ns == metrics


def test_an_arm_is_added_and_stopped_and_gone_on_with(done, capsys):
    """The base says of the new arm what it will do before that trains; what was there stays."""
    sharpen = {p: t for p, t in times(done).items() if "sharpen" in str(p)}
    words = ["study", "--output-dir", str(done), "--arms", "sharpen,task"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastrl.cli", *words], stdout=subprocess.PIPE, text=True
    )
    begun = done / "cells" / TASK / "log.txt"
    deadline = time.monotonic() + 300
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == STOPPED
    # the base may have had more to measure yet than what it says of training
    assert re.search("stopped with [12] of 3 cells done; go on: fastrl study --output-dir '", out)
    assert "failed" not in out
    base = done / "cells/embedded/base/beforehand.json"
    assert json.loads(base.read_text())["arms"] == ["sharpen-a4", "task"]
    assert study("--output-dir", done, "--cell", TASK) == OK
    expected = done.parent / "expected.json"
    row = {"model": "embedded", "arm": "task", "figure": "last.kl", "mean": 0, "tolerance": 1}
    expected.write_text(json.dumps({"expected": [row]}))
    assert study("--output-dir", done, "--verify", expected) == OK
    out = capsys.readouterr().out
    assert "3 of 3 cells" in out and "1 of 1 expectations" in out
    found = figures(done)
    assert [a["arm"] for a in found["arms"]] == ["sharpen-a4", "task"]
    assert "less_task" in found["arms"][0] and "predicted" in found["arms"][1]
    assert found["arms"][1]["curves"]["step"] == [1, 2]
    assert {p: t for p, t in times(done).items() if "sharpen" in str(p)} == sharpen
    row["mean"] = 5
    expected.write_text(json.dumps({"expected": [row]}))
    assert study("--output-dir", done, "--verify", expected) == FAILED
    assert "embedded task last.kl: " in capsys.readouterr().out


def test_what_trains_waits_for_what_its_base_says(done, capsys):
    plan = json.loads((done / "plan.json").read_text())
    plan["settings"]["models"] = ["embedded:0"]
    other = done.parent / "other"
    other.mkdir()
    (other / "plan.json").write_text(json.dumps(plan))
    assert study("--output-dir", other, "--cell", "embedded-0/sharpen-a4/seed-0") == USAGE
    assert "do the cell embedded-0/base first" in capsys.readouterr().err
    assert not (other / "cells").exists()
