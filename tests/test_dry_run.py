"""`fastrl train --dry-run`: what it prints, what it reads, and what it leaves alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastrl.cli import main
from fastrl.config import Config, parse_overrides
from fastrl.dry_run import Assumed, dry_run

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A working directory that has to stay empty, and no weights to be read."""

    def refuse(*_, **__):
        raise AssertionError("a dry run read weights")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastrl.model.Decoder.init_weights", refuse)
    monkeypatch.setattr("fastrl.weights.load_weights", refuse)
    monkeypatch.setattr("fastrl.checkpoint.sha256", refuse)
    yield
    assert not list(tmp_path.iterdir())


def run(capsys, *words: str) -> tuple[int, str]:
    code = main(["train", "--dry-run", *words])
    return code, capsys.readouterr().out


def test_the_default_run_is_described(nowhere, capsys):
    code, out = run(capsys)
    assert code == 0
    for line in (
        "sharpen (tempered sampling): converges to p^4 / Z",
        'name = "embedded"',
        "data    train 8,500 prompts; validation 128 prompts; test 256 prompts",
        "64 prompts, 256 responses, 16,384 tokens sampled",
        "memory  fits: at most ",
        "2 operations a parameter",
    ):
        assert line in out
    assert "130 steps" in out and "G operations/s in float32" in out


def test_the_same_as_json(nowhere, capsys):
    code, out = run(capsys, "--json", "--objective", "task", "--max-steps", "3")
    found = json.loads(out)
    assert code == 0 and found["config"]["train"]["max_steps"] == 3
    assert found["target"] == "any policy supported on r = 1"
    assert found["data"] == {"train": 8500, "validation": 128, "test": 256}
    memory = found["memory"]
    assert memory["fits"] and memory["baseline"] < memory["peak"] < memory["available"]
    totals = [memory["baseline"] + sum(parts.values()) for parts in memory["phases"].values()]
    assert memory["peak"] == max(totals)
    seconds = found["seconds"]
    parts = [seconds[name] for name in ("sample", "score", "train", "update")]
    assert seconds["step"] == pytest.approx(sum(parts)) and min(parts) > 0


def test_what_does_not_fit_is_said_with_what_would(nowhere):
    """In a new process: this one holds what other tests have loaded, and the plan counts that."""

    def alone(*words):
        command = [str(Path(sys.executable).parent / "fastrl"), "train", *known, "--dry-run"]
        done = subprocess.run(
            [*command, "--memory", "4GB", *words], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout

    known = ["--model", "HuggingFaceTB/SmolLM2-135M-Instruct", "--model.random-init"]
    code, out = alone("--train.max-tokens-per-batch", "8192")
    assert code == 2 and "does not fit" in out.replace("memory  fits", "")
    last = out.splitlines()[-1]
    assert "train.max_tokens_per_batch" in last and "train.checkpoint_activations on" in last
    words = last.removeprefix("with ").partition(" it needs")[0].replace(" and ", ", ")
    settings = [f"--{pair.replace(' ', '=')}" for pair in words.split(", ")]
    code, out = alone(*settings)
    assert code == 0, out


def test_a_run_that_does_not_fit_is_refused_before_any_work(nowhere, capsys, monkeypatch):
    monkeypatch.setattr("fastrl.preparation.available_bytes", lambda device, sharers: 10**6)
    assert main(["train"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("fastrl: the run needs ") and captured.err.count("\n") == 1


def test_flags_of_a_dry_run_need_one(capsys):
    for words in (["--memory", "80GB"], ["--gpu", "h200"], ["--processes", "2"], ["--json"]):
        assert main(["train", *words]) == 2
        assert "--dry-run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        (["--memory", "80 apples"], "80GB or 79GiB"),
        (["--gpu", "abacus"], "h100-80gb"),
        (["--processes", "0"], "at least 1"),
        (["--data", "nonsense"], "there is no data"),
        (["--model", "no-such-model"], "there is no model"),
        (["--sampling.max-tokens", "0"], "at least 1"),
    ],
)
def test_mistakes(nowhere, capsys, words, said):
    assert main(["train", "--dry-run", *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1


def test_a_data_set_that_is_not_at_hand_is_said_to_be_so(nowhere, monkeypatch):
    import datasets

    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    config = parse_overrides(Config(), ["--data", "math", "--sampling.max-total-tokens", "96"])
    found = dry_run(config, Assumed())
    assert set(found.data) == {"train", "validation", "test"}
    first, *others = found.data.values()
    assert first.startswith("not at hand") and "no network" in first
    assert all(line == "not at hand (not asked for either)" for line in others)
    assert found.memory.workload.longest == 96


def test_a_gpu_is_assumed_where_there_is_none(nowhere):
    config = parse_overrides(Config(), ["--model.dtype", "bfloat16"])
    found = dry_run(config, Assumed(gpu="h200", processes=4))
    assert found.memory.workload.on_gpu and found.memory.workload.processes == 4
    assert found.available == 141 * 10**9 and found.device == "4 x h200 assumed"
    assert "989 T operations/s" in str(found)


def test_prompts_that_do_not_divide_are_planned_for_who_has_most(nowhere):
    """As training shares them: 64 prompts on 3 processes are 22, 21 and 21."""
    config = parse_overrides(Config(), ["--eval.prompts", "0", "--eval.test-prompts", "0"])
    found = dry_run(config, Assumed(processes=3))
    assert found.memory.workload.running == 22 * config.sampling.responses_per_prompt


def test_what_training_refuses_a_dry_run_refuses(capsys):
    """Settings that contradict each other, before anything is read."""
    assert main(["train", "--dry-run", "--train.epochs", "2"]) == 2
    assert "no ratio to the policy that sampled" in capsys.readouterr().err
