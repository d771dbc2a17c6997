"""Anomalies: what is found, what is done, and the step computed again from its capsule."""

import json
import math
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import SafetensorError
from test_train import fingerprint, lines, train

from fastrl import guard, metrics
from fastrl.cli import main
from fastrl.config import AnomalyConfig, Config
from fastrl.guard import PATIENCE, WINDOW, Guard, Vitals, collapses
from fastrl.run_directory import RunDirectory, capsule_name

GOOD = Vitals(groups=64, truncated=0.1, empty=0.2, accuracy=0.5, entropy=0.4, reward=-3.0)
BROKEN = ["--optim.lr", "1e30", "--optim.grad_clip", "0", "--train.check", "false"]


def rules(*vitals, **config):
    *history, now = vitals
    return [rule for rule, _ in collapses(history, now, AnomalyConfig(**config))]


@pytest.mark.parametrize(
    "rule, change",
    [("truncated", {"truncated": 1.0}), ("empty", {"empty": 1.0}), ("entropy", {"entropy": 1e-4})],
)
def test_a_collapse_lasts_and_was_not_there_from_the_start(rule, change):
    bad = GOOD._replace(**change)
    assert rules(GOOD, *[bad] * PATIENCE) == [rule]
    assert rules(GOOD, *[bad] * (PATIENCE - 1)) == []
    assert rules(GOOD, bad, GOOD, *[bad] * (PATIENCE - 1)) == []
    assert rules(bad, *[bad] * PATIENCE) == []
    assert rules(GOOD) == []


def test_the_entropy_floor_is_the_configured_one():
    low = GOOD._replace(entropy=0.05)
    assert rules(GOOD, low, low, low) == []
    assert rules(GOOD, low, low, low, entropy_floor=0.1) == ["entropy"]
    assert rules(GOOD, *[GOOD._replace(entropy=0.0)] * 3, entropy_floor=0.0) == []
    assert rules(GOOD, *[GOOD._replace(entropy=math.nan)] * 3) == []


@pytest.mark.parametrize(
    "before, after, groups, found",
    [(0.5, 0.2, 64, True), (0.5, 0.3, 64, False), (0.02, 0.005, 4, False), (0.02, 0.0, 640, True)],
)
def test_an_accuracy_that_fell_by_half_and_not_by_chance(before, after, groups, found):
    old, new = (GOOD._replace(accuracy=a, groups=groups) for a in (before, after))
    assert (rules(*[old] * WINDOW, *[new] * WINDOW) == ["accuracy"]) is found
    assert rules(*[old] * WINDOW, *[new] * (WINDOW - 1)) == []
    unknown = GOOD._replace(accuracy=math.nan)
    assert rules(*[unknown] * 2 * WINDOW) == []


def test_a_capsule_is_known_by_its_attempt(tmp_path):
    run = RunDirectory(tmp_path)
    for step, attempt, rule in (
        (3, 0, "loss"), (5, 0, "loss"), (4, 1, "ref_logprob_R"), (9, 11, "entropy"),
    ):  # fmt: skip
        path = run.anomalies / capsule_name(step, attempt, rule)
        path.mkdir(parents=True)
        (path / "capsule.json").write_text("{}")
    (run.anomalies / "step_x_loss").mkdir()
    (run.anomalies / "step_x_loss/capsule.json").write_text("{}")  # of another's making
    (run.anomalies / capsule_name(2, 0, "entropy")).mkdir()
    (run.anomalies / capsule_name(2, 0, "entropy") / "capsule.json").write_text('{"ki')  # torn
    assert run.capsules(0) == {"loss": 3}
    assert run.capsules(1) == {"ref_logprob_R": 4} and run.capsules(11) == {"entropy": 9}
    assert run.capsules(2) == {}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A run whose weights are so large after its first step that the next gives nothing finite."""
    run = tmp_path_factory.mktemp("broken") / "run"
    assert train(run, *BROKEN) == 1
    return run


def test_a_broken_run_stops_with_a_capsule_and_what_was_before_it(broken, capsys):
    (capsule,) = (broken / "anomalies").iterdir()
    assert {p.name for p in capsule.iterdir()} == {
        "capsule.json", "config.toml", "responses.parquet", "weights",
    }  # fmt: skip
    values = json.loads((capsule / "capsule.json").read_text())
    assert values["kind"] == "broken" and values["before"]["step"] == 1
    assert [m["step"] for m in lines(broken / "metrics.jsonl")] == [1]
    assert main(["resume", str(broken)]) == 1  # it is met again, and said again
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "the run stops" in err
    (capsule,) = (broken / "anomalies").iterdir()
    assert f"the first of its kind is kept in {capsule}" in err
    assert len(list((broken / "anomalies").iterdir())) == 1


def test_a_capsule_gives_the_same_numbers(broken, capsys):
    (capsule,) = (broken / "anomalies").iterdir()
    assert main(["replay", str(capsule)]) == 0
    assert "the same, to the last bit" in capsys.readouterr().out


def test_a_replay_says_what_is_not_the_same(broken, tmp_path, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (capsule,) = (broken / "anomalies").iterdir()
    other = tmp_path / "numbers"
    shutil.copytree(capsule, other)
    values = json.loads((other / "capsule.json").read_text())
    values["numbers"] = dict.fromkeys(values["numbers"], "0.5")
    (other / "capsule.json").write_text(json.dumps(values))
    assert main(["replay", str(other)]) == 1
    assert "NOT the same" in capsys.readouterr().out

    other = tmp_path / "tokens"
    shutil.copytree(capsule, other)
    rows = pq.read_table(other / "responses.parquet")
    changed = rows.to_pylist()
    changed[3]["token_ids"][0] ^= 1
    pq.write_table(pa.Table.from_pylist(changed, schema=rows.schema), other / "responses.parquet")
    assert main(["replay", str(other)]) == 1
    said = capsys.readouterr()
    assert "15 the same" in said.out and "those of the capsule" in said.err

    other = tmp_path / "weights"
    shutil.copytree(capsule, other)
    (path,) = (other / "weights").glob("step_1/model.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 64
    path.write_bytes(data)
    assert main(["replay", str(other)]) == 0  # from the initial model, with the step between
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["replay", "nowhere"], ["replay", "."]])
def test_what_is_no_capsule(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert "no capsule" in capsys.readouterr().err


def test_a_run_that_skips_goes_on_and_updates_nothing(tmp_path, capsys):
    run = tmp_path / "run"
    assert train(run, *BROKEN, "--anomaly.nonfinite", "skip", "--checkpoint.every", "1") == 0
    out = capsys.readouterr().out
    assert out.count("nothing is updated") >= 3 and out.count("fastrl replay") == 1
    assert [m["grad_norm"] is None for m in lines(run / "metrics.jsonl")] == [False, *[True] * 3]
    weights = [
        (run / "checkpoints" / f"step_{n}" / "model.safetensors").read_bytes() for n in (1, 4)
    ]
    assert weights[0] == weights[1]


@pytest.fixture
def stumbles(monkeypatch):
    """Makes the loss of step 4 not finite in the first so many attempts."""
    from fastrl import step

    original, seen = step.backward, []

    def set_up(times):
        seen.clear()

        def backward(learner, *rest):
            loss, *others = original(learner, *rest)
            seen.append(learner.optimizer.counts[0])
            if seen[-1] == 3 and seen.count(3) <= times:
                loss = math.nan
            return loss, *others

        monkeypatch.setattr(step, "backward", backward)

    return set_up


def test_a_run_that_is_rolled_back_draws_other_responses_and_resumes_to_the_same_bits(
    tmp_path, stumbles, capsys
):
    run, cut = tmp_path / "run", tmp_path / "cut"
    words = ["--anomaly.nonfinite", "roll_back", "--train.max_steps", "6"]
    assert train(tmp_path / "plain", "--train.max_steps", "6") == 0
    stumbles(1)
    assert train(run, *words) == 0
    assert "back to the newest checkpoint, attempt 1" in capsys.readouterr().out
    found, plain = fingerprint(run), fingerprint(tmp_path / "plain")
    assert [m["step"] for m in found["metrics"]] == [1, 2, 3, 4, 5, 6]
    assert found["metrics"][:2] == plain["metrics"][:2]
    assert all(a != b for a, b in zip(found["metrics"][2:], plain["metrics"][2:], strict=True))
    state = json.loads((run / "checkpoints/step_6/trainer_state.json").read_text())
    assert state["attempt"] == 1
    shutil.copytree(run, cut)
    shutil.rmtree(cut / "checkpoints/step_6")
    assert main(["resume", str(cut)]) == 0
    assert fingerprint(cut) == found
    # killed before the first checkpoint of the new attempt
    for step in (4, 6):
        shutil.rmtree(cut / f"checkpoints/step_{step}")
    assert main(["resume", str(cut)]) == 0
    assert fingerprint(cut) == found
    # and from before the one that it was rolled back to, where it stumbles again
    for step in (2, 4, 6):
        shutil.rmtree(cut / f"checkpoints/step_{step}")
    stumbles(1)
    assert main(["resume", str(cut)]) == 0
    assert fingerprint(cut) == found


def test_a_run_that_is_rolled_back_lets_go_of_its_memory(tmp_path, stumbles, monkeypatch):
    import gc

    from fastrl import run as runs

    original, alive = runs.resume, []

    def resume(*rest):
        alive.append(sum(isinstance(o, runs.Run) for o in gc.get_objects()))
        return original(*rest)

    monkeypatch.setattr(runs, "resume", resume)
    gc.collect()
    before = sum(isinstance(o, runs.Run) for o in gc.get_objects())
    stumbles(1)
    assert train(tmp_path / "run", "--anomaly.nonfinite", "roll_back") == 0
    assert alive == [before]


def test_a_stop_that_was_asked_for_outlives_a_roll_back(tmp_path, monkeypatch, capsys):
    from fastrl import step

    original = step.backward

    def backward(learner, *rest):
        loss, *others = original(learner, *rest)
        if learner.optimizer.counts[0] == 3:
            signal.raise_signal(signal.SIGTERM)
            loss = math.nan
        return loss, *others

    monkeypatch.setattr(step, "backward", backward)
    words = ["--anomaly.nonfinite", "roll_back", "--train.max_steps", "6"]
    assert train(tmp_path / "run", *words) == 3
    out = capsys.readouterr().out
    assert "back to the newest checkpoint" in out and "stopped after step 2" in out


def test_a_run_is_rolled_back_so_often_and_no_more(tmp_path, stumbles, capsys):
    stumbles(99)
    words = ["--anomaly.nonfinite", "roll_back", "--anomaly.max_attempts", "2"]
    assert train(tmp_path / "run", *words) == 1
    said = capsys.readouterr()
    assert "attempt 2" in said.out and "rolled back 2 times already" in said.err


@pytest.mark.parametrize("objective", ["sharpen", "task"])
def test_a_sharpening_run_that_collapses_is_told_apart(tmp_path, monkeypatch, capsys, objective):
    first = []

    def entropy(groups, scores, world):
        first.append(id(groups))
        return 1.0 if groups is first_groups(groups) else 1e-9

    def first_groups(groups, seen=[]):  # noqa: B006  (kept between calls)
        seen.append(groups)
        return seen[0]

    monkeypatch.setattr(metrics, "mean_entropy", entropy)
    monkeypatch.setattr(guard, "mean_entropy", entropy)
    # the reward of the first step is below all others: a run that learns what it is told to
    original = Vitals.of_metrics.__func__

    def rising(cls, line):
        return original(cls, line)._replace(reward=-1e9 if line["step"] == 1 else 0.0)

    monkeypatch.setattr(Vitals, "of_metrics", classmethod(rising))
    run = tmp_path / "run"
    words = ["--objective", objective, "--train.max_steps", "6"]
    code = train(run, *words)
    (capsule,) = (run / "anomalies").iterdir()
    kind = json.loads((capsule / "capsule.json").read_text())["kind"]
    said = capsys.readouterr()
    if objective == "sharpen":
        assert (code, kind) == (0, "sharpened")
        assert said.out.count("this is where sharpening leads, no defect; replay") == 1
        assert len(lines(run / "metrics.jsonl")) == 6
    else:
        assert (code, kind) == (1, "collapsed")
        assert "entropy" in said.err and len(lines(run / "metrics.jsonl")) == 3
        assert main(["resume", str(run)]) == 0  # the user has seen it
        assert len(lines(run / "metrics.jsonl")) == 6


def test_a_ledger_that_does_not_balance_stops_the_run(tmp_path, monkeypatch, capsys):
    from fastrl import step

    original = step.assign_roles

    def lossy(learner, groups):
        return ["lost", *original(learner, groups)[1:]]

    monkeypatch.setattr(step, "assign_roles", lossy)
    assert train(tmp_path / "run") == 1
    err = capsys.readouterr().err
    assert "neither trained, masked, filtered nor failed" in err and "Traceback" not in err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_rule_that_was_told_of_hides_no_other(monkeypatch):
    run = SimpleNamespace(state=None, told={"truncated"}, history=[], config=Config())
    run.objective = SimpleNamespace(name="task")
    watched = Guard(run, display=None)
    both = [("truncated", "cut"), ("entropy", "below")]
    monkeypatch.setattr(guard, "collapses", lambda *_: both)
    monkeypatch.setattr(Guard, "_vitals", lambda *_: Vitals(*[0.0] * len(Vitals._fields)))
    found = []
    monkeypatch.setattr(Guard, "found", lambda self, finding: found.append(finding.rule))
    scores = SimpleNamespace(ref_logprob_R=np.zeros(2), policy_logprob_R=np.zeros(2))
    watched.before_update(scores, ["trained"] * 2, np.zeros(2), 0.0)
    assert found == ["entropy"]


def test_a_skipped_step_with_errors_of_sampling_updates_nothing(tmp_path, monkeypatch):
    from fastrl import rollouts

    original, calls = rollouts.score_groups, []

    def failing(run, prompts, groups, verdicts):
        calls.append(run.step)
        if run.step == 2:
            groups[0][0] = replace(groups[0][0], finish_reason="error")
        return original(run, prompts, groups, verdicts)

    monkeypatch.setattr(rollouts, "score_groups", failing)
    run = tmp_path / "run"
    words = ["--anomaly.nonfinite", "skip", "--checkpoint.every", "1", "--train.check", "false"]
    assert train(run, *words) == 0
    assert [m["grad_norm"] is None for m in lines(run / "metrics.jsonl")] == [
        False,
        False,
        True,
        False,
    ]
    two, three = ((run / f"checkpoints/step_{n}/model.safetensors").read_bytes() for n in (2, 3))
    assert two == three


def test_each_capsule_of_a_run_is_the_same_again(tmp_path, monkeypatch, capsys):
    """Of a step whose collapse is the second, and of one with the steps before it in between."""

    def found(history, now, config):
        rules = [("truncated", "cut")] * (len(history) >= 2) + [("entropy", "low")] * (
            len(history) >= 3
        )
        return rules

    monkeypatch.setattr(guard, "collapses", found)
    run = tmp_path / "run"
    words = ["--anomaly.collapse", "go_on", "--train.max_steps", "5"]
    assert train(run, *words) == 0
    first, second = sorted((run / "anomalies").iterdir())
    assert (first.name, second.name) == ("step_000003_truncated", "step_000004_entropy")
    for path in (first, second):
        assert main(["replay", str(path)]) == 0
        shutil.rmtree(path / "weights")  # from the initial model, with the steps between
        capsys.readouterr()
        assert main(["replay", str(path)]) == 0
        assert "the same, to the last bit" in capsys.readouterr().out
        assert {p.name for p in path.iterdir()} == {
            "capsule.json",
            "config.toml",
            "responses.parquet",
        }


def test_a_torn_capsule_silences_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(guard, "collapses", lambda h, *_: [("truncated", "cut")] * (len(h) >= 2))
    run = tmp_path / "run"
    assert train(run, "--objective", "task") == 1
    (kept,) = run.glob("anomalies/*/capsule.json")
    kept.write_bytes(kept.read_bytes()[:4])
    assert main(["resume", str(run)]) == 1
    assert "cut; replay the step with" in capsys.readouterr().err
    assert main(["resume", str(run)]) == 0  # the user has seen it
    assert "was found before; the run goes on" in capsys.readouterr().err


def test_a_full_disk_does_not_hide_what_was_found(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(guard.capsule, "write", full)
    assert train(tmp_path / "run", *BROKEN) == 1
    err = capsys.readouterr().err
    assert "finite; no capsule could be written (I/O error: No space" in err
    assert "the run stops" in err


def test_tokens_that_are_not_in_the_loss_stop_the_run(tmp_path, monkeypatch, capsys):
    from fastrl import step

    original = step.backward

    def lossy(learner, batches, scored, advantages, roles):
        return original(learner, batches, scored, advantages, ["masked", *roles[1:]])

    monkeypatch.setattr(step, "backward", lossy)
    assert train(tmp_path / "run") == 1
    assert "tokens were to be trained, and" in capsys.readouterr().err
