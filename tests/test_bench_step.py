"""`fastrl bench step` on the embedded model: its rows, what it refuses, its operations by hand."""

import json
import runpy
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from bench_table import table

from fastrl.bench import step, step_costs, step_ours
from fastrl.bench.step_costs import Sweeps, llama
from fastrl.cli import main
from fastrl.errors import UsageError
from fastrl.model import load_model
from fastrl.model_config import DecoderConfig

CONTRACT = {
    "name", "shape", "dtype", "device", "ms", "ms_p20", "ms_p80", "peak_bytes", "max_error",
    "baseline", "baseline_ms", "speedup", "machine", "versions",
}  # fmt: skip
TINY = Sweeps(
    shape=(2, 4, 4),
    base=llama(64, 1, 96),
    models=(llama(64, 1, 96), llama(64, 3, 96)),
    vocabularies=(96, 384),
)


def bench(tmp_path, *words: str, model: str = "embedded") -> list[dict]:
    out = tmp_path / "rows.json"
    command = ["bench", "step", "--repeats", "1", "--out", str(out)]
    assert main([*command, *words, *(["--model", model] if model else [])]) == 0
    return json.loads(out.read_text())


def test_a_whole_step_by_phase(tmp_path, monkeypatch):
    turns = []

    def three_steps(prompts, source, size, kind, repeats, after):
        turns.append((source, size, kind, repeats, len(prompts.read_text().splitlines())))
        for number in range(repeats):
            after(number)
        return [step.rivals.Step(9.0)] + [step.rivals.Step(2.0)] * (repeats - 1)

    monkeypatch.setattr(step.rivals, "trl_steps", three_steps)
    (row,) = bench(tmp_path, "--only", "step", "--shape", "3,4,5", "--dtype", "bfloat16")
    assert turns == [("embedded", (3, 4, 5), "bfloat16", 2, 24)]
    assert row.keys() >= CONTRACT
    assert (row["name"], row["shape"], row["dtype"]) == ("step", [3, 4, 5], "bfloat16")
    assert row["tokens_sampled"] == 3 * 4 * 5  # no end token ends a response
    assert row["baseline_ms"] == 2000 and row["speedup"] == pytest.approx(2000 / row["ms"])
    phases = sum(row[f"{phase}_ms"] for phase in ("sample", "grade", "reference", "train"))
    assert phases == pytest.approx(row["ms"]) and 0 < row["optimizer_ms"] < row["train_ms"]
    assert 0 < row["max_error"] < 0.1


def test_without_the_rival_its_absence_is_in_the_row(tmp_path, monkeypatch, capsys):
    def absent(*_, **__):
        raise ImportError("No module named 'trl'")

    monkeypatch.setattr(step.rivals, "trl_steps", absent)
    (row,) = bench(tmp_path, "--only", "embedded", "--shape", "2,2,3", "--dtype", "float32")
    assert row["baseline_ms"] is None and "trl" in row["baseline_failed"]
    assert "TRL" in capsys.readouterr().out


def test_the_training_pass_as_a_share_of_the_matmul_rate(tmp_path):
    rows = bench(tmp_path, "--only", "training", "--shape", "3,6,5", "--dtype", "float32")
    (row,) = rows
    assert row.keys() >= CONTRACT and 0 < row["max_error"] < 1e-4
    assert row["rows"] == 3 * 10 and row["baseline"] is None
    assert 0 < row["share_of_matmul_rate"] < 1
    assert row["share_of_matmul_rate"] == pytest.approx(row["tflops"] / row["matmul_tflops"])
    assert "| training | embedded | 3 x 6 x 5 | float32 | 30 |" in table(rows, "step")


def test_the_operations_of_a_pass_by_hand():
    config = DecoderConfig("llama", 11, 6, 10, 2, 4, 2, 4, 64)
    matrices = 6 * (4 + 2 + 2) * 4 + 16 * 6 + 6 * 20 + 10 * 6
    # scores and sums, 2 operations each, three times for forward and backward, half of a square
    attention = 2 * 4 * 4 * 2 * 2 * 3 * 7 / 2
    expected = 6 * (2 * matrices * 14 + 6 * 11 * 5) + attention * 14
    assert step.training_flops(config, 11, 14, 5, 7) == expected


def test_a_wrong_gradient_is_not_timed(monkeypatch):
    right = step_ours.policy_loss

    def wrong(model, batch):
        return right(model, batch) * (1 if model.embed.dtype == torch.float64 else 1.5)

    assert step.gradient_error("embedded", "float32") < 1e-4
    monkeypatch.setattr(step_ours, "policy_loss", wrong)
    for source in ("embedded", TINY.base):
        with pytest.raises(AssertionError):
            step.gradient_error(source, "float32")
    assert load_model("embedded").embed.grad is None


def test_costs_over_four_sweeps_and_their_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step_costs, "CPU", TINY)
    rows = bench(tmp_path, "--only", "costs", "--dtype", "float32", model="")
    found = {}
    for row in rows:
        assert row.keys() >= CONTRACT and 0 < row["max_error"] < 1e-4
        assert row["planned_bytes"] > 0 and 0 < row["sample_ms"] + row["train_ms"] < row["ms"]
        found.setdefault(row["sweep"], {})[row["value"]] = row
    assert {sweep: [*some] for sweep, some in found.items()} == {
        "model size": [55_488, 154_048],
        "response length": [1, 2, 4, 8, 16],
        "group size": [2, 4, 8, 16],
        "vocabulary": [96, 384],
    }
    base = [row for row in rows if row["base"]]
    assert [row["value"] for row in base] == [55_488, 4, 4, 96]
    assert len({row["ms"] for row in base}) == 1  # measured once
    assert found["response length"][16]["shape"] == [2, 4, 16]
    assert found["group size"][16]["tokens_sampled"] == 2 * 16 * 4
    assert found["vocabulary"][384]["parameters"] == 55_488 + (384 - 96) * 64
    said = capsys.readouterr()
    assert "at 384, memory planned 0.0" in said.out and "left out" not in said.err
    picture = tmp_path / "costs.png"
    script = Path(__file__).parents[1] / "bench" / "costs.py"
    runpy.run_path(str(script))["draw"](rows, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()
    without = [row | {"peak_bytes": None} for row in rows]  # as beyond Linux
    runpy.run_path(str(script))["draw"](without, picture)
    assert picture.exists()


def test_random_weights_are_sampled_and_trained_over_their_whole_vocabulary(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(llama(64, 1, 8192).to_hf()))
    ours = step_ours.Ours(str(tmp_path), (2, 4, 8), "float32", tmp_path, random_init=True)
    ours()
    (metrics,) = ours.steps
    assert ours.run.learner.policy.valid_vocab == 8192 > ours.run.tokenizer.valid_vocab
    assert metrics["reward_group_std"] > 0 and metrics["grad_norm"] > 0
    (record,) = (ours.run.directory.path / "completions").glob("*.parquet")
    ids = pyarrow.parquet.read_table(record)["token_ids"].to_pylist()
    assert max(i for some in ids for i in some) > 7000


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no peak of a part here")
def test_the_memory_of_a_point_is_that_of_its_run_and_not_of_the_process():
    point = step_costs.Point(llama(448, 4, 4096), (2, 2, 8))
    row = step_costs.measured(point, "float32", 1, False, torch.device("cpu"))
    state = 5 * 4 * row["parameters"]  # policy, reference, gradient, two moments
    assert state < row["peak_bytes"] < 1.5 * state
    assert row["planned_bytes"] == pytest.approx(row["peak_bytes"], rel=0.25)


def test_a_point_for_which_there_is_no_memory_is_left_out_and_said(monkeypatch, capsys):
    def measured(point, *_):
        if point.shape == refused:
            raise UsageError("the run needs 90 GB")
        return {}

    monkeypatch.setattr(step_costs, "CPU", TINY)
    monkeypatch.setattr(step_costs, "measured", measured)
    refused = (2, 4, 16)
    sweep = (None, "float32", 1, False, torch.device("cpu"))
    lengths = [r["value"] for r in step_costs.rows(*sweep) if r["sweep"] == "response length"]
    assert lengths == [1, 2, 4, 8]
    assert "response length 16 is left out: the run needs 90 GB" in capsys.readouterr().err
    refused = TINY.shape
    with pytest.raises(UsageError, match="90 GB"):
        list(step_costs.rows(*sweep))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "stepp"], "there is no step benchmark 'stepp'; allowed: 'step'"),
        (["--shape", "4,1,48"], "2 at least"),
        (["--shape", "4,8"], "as 4,8,48"),
        (["--dtype", "int8"], "dtype is 'int8'; allowed: float32"),
        (["--only", "costs", "--model", "embedded"], "random weights at shapes of its own"),
    ],
)
def test_mistakes(capsys, words, said):
    assert main(["bench", "step", *words]) == 2
    assert said in capsys.readouterr().err
