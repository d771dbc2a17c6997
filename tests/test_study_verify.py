"""A study held against expected figures and curves."""

import json

import pytest

from fastrl.errors import UsageError
from fastrl.study.verify import LEAST, POINTS, expectations, smoothed, verify

STEPS = list(range(1, 31))


def curve(of):
    return {name: [of(s) + d for s in STEPS] for name, d in
            (("mean", 0.0), ("low", -0.05), ("high", 0.05))}  # fmt: skip


@pytest.fixture
def study():
    def figure(mean, error=0.001):
        return {"mean": mean, "low": mean, "high": mean, "error": error}

    last = {"accuracy": figure(0.5), "gain": figure(0.1, 0.02), "greedy": figure(0.6),
            "kl": figure(2.0), "length": figure(20.0)}  # fmt: skip
    curves = {"step": STEPS, "task_accuracy": curve(lambda s: s / 100), "kl": curve(lambda s: s),
              "length_mean": curve(lambda s: 20.0), "entropy": curve(lambda s: 0.5)}  # fmt: skip
    arm = {"model": "m", "arm": "task", "last": last, "curves": curves}
    base = {"accuracy": figure(0.4)}
    return {"fastrl": "1", "arms": [arm], "models": {"m": base}}


def write(tmp_path, *rows):
    path = tmp_path / "expected.json"
    path.write_text(json.dumps({"command": "", "expected": list(rows)}))
    return path


def test_a_study_is_what_it_is_itself(study, tmp_path):
    made = expectations(study, "fastrl study")
    assert made["command"] == "fastrl study"
    path = tmp_path / "expected.json"
    path.write_text(json.dumps(made))
    found = verify(study, path)
    assert len(found) == 5 + 4 * POINTS
    assert all(c.holds for c in found)
    tolerances = {c.what: c.tolerance for c in found}
    assert tolerances["m task last.accuracy"] == 0.02  # the least
    assert tolerances["m task last.gain"] == pytest.approx(0.08)  # four standard errors
    assert tolerances["m task last.kl"] == LEAST["kl"]
    study["arms"][0]["curves"]["task_accuracy"]["mean"] = [s / 100 + 0.2 for s in STEPS]
    wrong = {c.what for c in verify(study, path) if not c.holds}
    assert wrong == {f"m task task_accuracy at {s}" for s in (10, 14, 18, 22, 26, 30)}


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_short_runs_have_expectations_too(study, tmp_path, steps):
    curves = study["arms"][0]["curves"]
    curves["step"] = STEPS[:steps]
    for key in set(curves) - {"step"}:
        curves[key] = {name: values[:steps] for name, values in curves[key].items()}
    path = tmp_path / "expected.json"
    path.write_text(json.dumps(expectations(study, "")))
    assert all(c.holds for c in verify(study, path))


def test_figures(study, tmp_path):
    where = {"model": "m", "arm": "task", "tolerance": 0.03}
    rows = [
        {**where, "figure": "last.accuracy", "mean": 0.52},
        {**where, "figure": "last.accuracy", "mean": 0.46},
        {**where, "arm": "base", "figure": "last.accuracy", "mean": 0.4},
        {**where, "arm": "tilted", "figure": "last.accuracy", "mean": 0.5},
        {**where, "model": "n", "arm": "base", "figure": "last.accuracy", "mean": 0.5},
        {**where, "figure": "last.nothing", "mean": 0.5},
        {**where, "arm": "base", "curve": "kl", "steps": [1], "mean": [0.0]},
        {**where, "curve": "kl", "steps": [30, 300], "mean": [25.5, 1.0]},
    ]
    found = verify(study, write(tmp_path, *rows))
    assert [c.found for c in found] == [0.5, 0.5, 0.4, None, None, None, None, 25.5, None]
    assert [c.holds for c in found] == [True, False, True, *[False] * 4, True, False]
    assert not any(c.holds for c in verify({}, write(tmp_path, *rows)))


def test_a_curve_is_a_mean_of_ten_steps(study):
    curves = study["arms"][0]["curves"]
    assert smoothed(curves, "kl", 30) == pytest.approx(sum(range(21, 31)) / 10)
    assert smoothed(curves, "kl", 3) == 2
    curves["kl"]["mean"][1] = None
    assert smoothed(curves, "kl", 3) == 2  # of 1 and 3
    assert smoothed(curves, "kl", 99) is None


ROW = {"model": "m", "arm": "task", "figure": "last.accuracy", "mean": 0.5, "tolerance": 0.1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot read"),
        ("{", "is no file of expectations"),
        ("[]", "is no file of expectations"),
        ("{}", "KeyError: 'expected'"),
        ('{"expected": []}', "expects nothing"),
        (json.dumps({"expected": [{**ROW, "mean": None}]}), "TypeError"),
        (json.dumps({"expected": [{"model": "m"}]}), "KeyError: 'arm'"),
        (json.dumps({"expected": [{**ROW, "figure": 3}]}), "AttributeError"),
        (
            json.dumps({"expected": [{"model": "m", "arm": "task", "curve": "k", "steps": [1],
                                      "mean": [1], "tolerance": 1}]}),
            "no curve 'k'; allowed: task_accuracy",
        ),
    ],
)  # fmt: skip
def test_what_is_no_file_of_expectations(study, tmp_path, text, words):
    path = tmp_path / "expected.json"
    if text is not None:
        path.write_text(text)
    for one in (study, {}):  # it is known before there is a study
        with pytest.raises(UsageError, match=words):
            verify(one, path)
