"""The whole path on the embedded model: train, kill, resume, evaluate, load elsewhere."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from fastrl.background import BackgroundGrader
from fastrl.checkpoint import sha256
from fastrl.cli import main
from fastrl.metrics import METRICS

SMALL = [
    "--train.max_steps", "4",
    "--sampling.prompts_per_step", "4", "--sampling.responses_per_prompt", "4",
    "--eval.prompts", "4", "--eval.test_prompts", "6", "--eval.samples", "2", "--eval.every", "2",
    "--checkpoint.every", "2", "--optim.warmup_steps", "0",
]  # fmt: skip
TIMES = {name for name in METRICS if name.startswith("seconds_") or name.endswith("_per_s")}
TIMES.add("peak_memory_bytes")


def train(directory: Path, *words: str) -> int:
    return main(["train", "--output-dir", str(directory), *SMALL, *words])


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def fingerprint(run: Path) -> dict:
    """Everything of a run that must not depend on when it was killed."""
    files = {
        str(p.relative_to(run)): sha256(p)
        for p in sorted(run.rglob("*"))
        if p.suffix in (".safetensors", ".parquet")
    }
    metrics = [
        {k: v for k, v in line.items() if k not in TIMES} for line in lines(run / "metrics.jsonl")
    ]
    return {"files": files, "metrics": metrics, "eval": lines(run / "eval.jsonl")}


def assert_resumes_to_the_same_bits(run: Path, cut: Path) -> None:
    """A finished small run, in a copy without its last checkpoint, comes to the same end."""
    shutil.copytree(run, cut)
    shutil.rmtree(cut / "checkpoints" / "step_4")
    assert main(["resume", str(cut)]) == 0
    assert fingerprint(cut) == fingerprint(run)


def assert_a_null_run_changes_no_bit(run: Path, steps: int, *words: str) -> None:
    from safetensors.torch import load_file

    null = ["--objective.alpha", "1", "--optim.weight_decay", "0", "--train.max_steps", str(steps)]
    null += ["--eval.prompts", "0", "--eval.test_prompts", "0", "--checkpoint.every", "1"]
    assert train(run, *null, *words) == 0
    for m in lines(run / "metrics.jsonl"):
        assert m["reward_mean"] == 0 and m["reward_group_std"] == 0 and m["grad_norm"] == 0
    first, last = (
        load_file(run / "checkpoints" / f"step_{n}" / "model.safetensors") for n in (1, steps)
    )
    assert all(torch.equal(first[k], last[k]) for k in first)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "sharpen"
    assert train(run, "--objective", "sharpen") == 0
    return run


def test_every_response_is_handed_to_the_grader_as_it_finishes(tmp_path, monkeypatch):
    added = []

    class Watched(BackgroundGrader):
        def add(self, event):
            added.append(event)
            return super().add(event)

        def finish(self, groups):
            steps.append(len(added))
            return super().finish(groups)

    steps = []
    monkeypatch.setattr("fastrl.rollouts.BackgroundGrader", Watched)
    assert train(tmp_path / "run") == 0
    assert steps == [16, 32, 48, 64]  # all of a step's, before the sampler has returned


def test_a_run_leaves_its_files(finished):
    assert {p.name for p in finished.iterdir()} >= {
        "config.toml", "metrics.jsonl", "eval.jsonl", "completions", "checkpoints", "curves.png",
    }  # fmt: skip
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == ["step_2", "step_4"]
    assert (finished / "curves.png").stat().st_size > 10_000
    assert not list(finished.rglob("*.bin")) + list(finished.rglob("*.pt"))


def test_every_step_logs_every_metric(finished):
    metrics = lines(finished / "metrics.jsonl")
    assert [m["step"] for m in metrics] == [1, 2, 3, 4]
    for m in metrics:
        assert m.keys() == METRICS.keys()
        assert m["tokens_sampled"] == sum(
            m[f"tokens_{k}"] for k in ("trained", "masked", "filtered", "failed")
        )
        assert m["length_mean"] == m["tokens_sampled"] / 16
        assert m["mismatch_max_ratio"] == pytest.approx(1, abs=1e-4)
    first = metrics[0]  # policy and reference are the same model before the first step
    assert first["kl"] == 0 and first["ref_logprob_sum"] == first["policy_logprob_sum"]
    assert first["reward_mean"] == pytest.approx(3 * first["ref_logprob_sum"])
    assert metrics[-1]["kl"] != 0


def test_completions_are_kept(finished):
    rows = [
        row
        for path in sorted((finished / "completions").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    assert len(rows) == 4 * 16
    for row in rows:
        assert len(row["token_ids"]) == len(row["logprobs"])
        assert math.isclose(sum(row["logprobs"]), row["policy_logprob_sum"], abs_tol=1e-3)
        assert row["correct"] == (row["answer"] == row["gold"])
    prompts = {(r["step"], r["prompt_id"]) for r in rows}
    assert len(prompts) == 16


def test_two_runs_of_a_seed_are_one(finished, tmp_path):
    assert train(tmp_path / "again", "--objective", "sharpen") == 0
    assert fingerprint(tmp_path / "again") == fingerprint(finished)
    assert train(tmp_path / "other", "--objective", "sharpen", "--seed", "1") == 0
    assert fingerprint(tmp_path / "other")["metrics"] != fingerprint(finished)["metrics"]


@pytest.mark.parametrize("keep", ["step_2", None])
def test_resume_goes_on_to_the_same_bits(finished, tmp_path, keep):
    """A run cut after step 2 (or before any checkpoint), with later records lying about."""
    import shutil

    run = tmp_path / "cut"
    shutil.copytree(finished, run)
    for path in (run / "checkpoints").iterdir():
        if path.name != keep:
            shutil.rmtree(path)
    (run / "curves.png").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "half a li')
    assert main(["resume", str(run)]) == 0
    assert fingerprint(run) == fingerprint(finished)
    assert (run / "curves.png").exists()


def test_sigterm_stops_after_the_step_and_says_how_to_go_on(finished, tmp_path):
    run = tmp_path / "stopped"
    words = [*SMALL, "--train.max_steps", "400", "--output-dir", str(run)]
    words[words.index("--checkpoint.every") + 1] = "0"
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "fastrl"), "train", *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 3
    assert f"fastrl resume {run}" in out
    step = lines(run / "metrics.jsonl")[-1]["step"]
    assert step < 400 and (run / "checkpoints" / f"step_{step}").is_dir()


def test_a_checkpoint_is_the_policy_for_transformers(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fastrl.model import PackedAttention, load_model

    directory = finished / "checkpoints" / "step_4"
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    AutoTokenizer.from_pretrained(directory)
    ours = load_model(directory)
    ids = torch.arange(3, 23) % ours.valid_vocab
    hidden = ours(ids, torch.arange(20), PackedAttention(torch.tensor([0, 20]).int(), 20))
    torch.testing.assert_close(
        ours.logits(hidden), theirs(ids[None]).logits[0], atol=1e-4, rtol=1e-4
    )
    base = load_model("embedded")
    assert not torch.equal(base.head_weight, ours.head_weight)


def test_the_null_run_changes_no_bit(tmp_path):
    assert_a_null_run_changes_no_bit(tmp_path / "null", 20)


def test_the_first_line_names_the_regime_and_its_target(tmp_path, capsys):
    words = ["--objective", "tilted", "--objective.beta_inv", "100", "--train.max_steps", "1"]
    assert train(tmp_path / "t", *words) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "tilted (tilted sampling): converges to p^4 exp(r / 0.01) / Z"


@pytest.mark.parametrize(
    "words, said",
    [
        (["--objective", "shrpen"], "did you mean 'sharpen'"),
        (["--model", "no-such-model"], "there is no model"),
        (["--data", "no-such-file.jsonl"], "no-such-file.jsonl"),
        (["--sampling.top_p", "0.9"], "support"),
        (["--sampling.max_tokens", "100000"], "context"),
        (["--sampling.num_blocks", "2"], "do not fit the cache"),
        (["--sampling.responses_per_prompt", "1"], "no baseline"),
        (["--reward", "nonsense"], "PACKAGE.MODULE:FUNCTION"),
        (["--loss.preset", "no-such"], "paper"),
        (["no-such.toml"], "cannot read"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_no_work(tmp_path, capsys, words, said):
    run = tmp_path / "never"
    assert main(["train", *words, "--output-dir", str(run)]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1
    assert "Traceback" not in captured.err and not run.exists()


def test_a_run_directory_is_used_once(finished, capsys):
    assert train(finished) == 2
    assert "fastrl resume" in capsys.readouterr().err


def test_an_error_in_a_reward_function_stops_before_the_update(tmp_path, capsys, monkeypatch):
    (tmp_path / "bad_reward.py").write_text(
        "def f(completions, **columns):\n    raise KeyError('no such thing')\n"
    )
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "bad"
    assert train(run, "--objective", "task", "--reward", "bad_reward:f") == 2
    assert "row 0" in capsys.readouterr().err
    assert not (run / "metrics.jsonl").exists()


def test_help_metrics(capsys):
    assert main(["train", "--help-metrics"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in METRICS)


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "torch" in out and "loss" in out


def test_the_sampler_reads_the_trainers_tensors():
    from fastrl.config import Config, parse_overrides
    from fastrl.run import assemble

    run = assemble(parse_overrides(Config(), SMALL))
    trained = {p.data_ptr() for p in run.learner.policy.parameters()}
    sampled = {p.data_ptr() for p in run.sampler.model.parameters()}
    optimised = {p.data_ptr() for p in run.learner.optimizer.params}
    assert trained == sampled == optimised
    assert trained.isdisjoint(p.data_ptr() for p in run.learner.reference.parameters())


def test_the_table_at_the_end_compares_base_and_trained(finished, capsys):
    run = finished.parent / "table"
    assert train(run, "--objective", "task") == 0
    out = capsys.readouterr().out
    for words in ("accuracy, 95 % interval", "KL to the base", "mean length", "base", "trained"):
        assert words in out
    for path in ("checkpoints/step_4", "metrics.jsonl", "completions", "curves.png"):
        assert str(run / path) in out.replace("\n", "")
    tests = [e for e in lines(run / "eval.jsonl") if e["split"] == "test"]
    assert [e["step"] for e in tests] == [0, 4]
    assert tests[0]["kl"] == 0 and tests[1]["kl"] != 0


def test_the_kl_of_an_evaluation_is_that_of_its_samples(finished):
    """k1 on the same samples: sampler and trainer agree on the policy, the reference by hand."""
    from fastrl.config import read_toml
    from fastrl.display import Display
    from fastrl.run import assemble
    from fastrl.run_directory import RunDirectory

    run = assemble(read_toml(finished / "config.toml"), finished / "checkpoints" / "step_4")
    run.step, run.directory = 4, RunDirectory(finished.parent / "kl")
    run.directory.path.mkdir()
    run.evaluate("test", Display(0, 1))
    (line,) = run.directory.read_evaluations()
    (kept,) = [e for e in lines(finished / "eval.jsonl") if (e["split"], e["step"]) == ("test", 4)]
    assert line == kept
    assert abs(line["kl"]) < 1
    run.evaluate("test", Display(0, 1))  # a line that is there already is not written again
    assert len(run.directory.read_evaluations()) == 1


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(finished):
    before = fingerprint(finished)
    assert main(["resume", str(finished)]) == 0
    assert fingerprint(finished) == before


def test_long_prompts_are_named_before_the_first_step(tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": "1+" * n + "1", "answer": str(n + 1)} for n in range(1, 61)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--data", str(data), "--data.template", "Compute {prompt}", "--train.max_steps", "1"]
    words += ["--data.max_prompt_tokens", "60", "--eval.test_prompts", "0"]
    assert train(tmp_path / "run", *words) == 0
    out = capsys.readouterr().out
    assert re.search(r"train: \d+ of \d+ prompts are longer than 60 tokens and left out: rows", out)


def test_nothing_reads_or_writes_a_pickle():
    package = Path(__file__).parents[1] / "fastrl"
    for path in package.rglob("*.py"):
        text = path.read_text()
        for word in ("import pickle", "torch.load(", "torch.save(", "allow_pickle"):
            assert word not in text, path


def test_the_loop_does_not_know_the_embedded_model():
    """The word stands where models, data and defaults are looked up, and nowhere else."""
    package = Path(__file__).parents[1] / "fastrl"
    found = {p.name for p in package.glob("*.py") if "embedded" in p.read_text()}
    assert found == {"config.py", "datasources.py", "model.py", "tokenizer.py"}
    assert not any("embedded" in p.read_text() for p in (package / "sampler").glob("*.py"))


@pytest.mark.parametrize("at", [0, 2])
def test_a_stop_during_an_evaluation_trains_no_further(tmp_path, monkeypatch, capsys, at):
    from fastrl.run import Run

    original = Run.evaluate

    def evaluate(self, split, display):
        if self.step == at and split == "validation":
            signal.raise_signal(signal.SIGTERM)
        original(self, split, display)

    monkeypatch.setattr(Run, "evaluate", evaluate)
    run = tmp_path / "run"
    assert train(run) == 3
    assert f"stopped after step {at}; continue with" in capsys.readouterr().out
    assert (len(lines(run / "metrics.jsonl")) if at else at) == at
    monkeypatch.undo()
    assert main(["resume", str(run)]) == 0


def test_a_second_signal_ends_a_run_at_once(tmp_path):
    """In the middle of a step that takes ten minutes."""
    (tmp_path / "slow.py").write_text(
        "import time\ndef reward(completions, **columns):\n"
        "    print('slow', flush=True)\n    time.sleep(600)\n"
    )
    words = ["--objective", "task", "--reward", "slow:reward", "--train.check", "false"]
    words += ["--eval.prompts", "0", "--eval.test_prompts", "0"]
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "fastrl"), "train", *words,
         "--output-dir", str(tmp_path / "run")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line == "slow\n":
            break
    process.send_signal(signal.SIGINT)
    assert "stopping after this step; once more stops at once" in process.stdout.readline()
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - started < 30
    assert process.returncode == 1 and "interrupted" in err and "Traceback" not in err
