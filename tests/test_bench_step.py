"""`fastrl bench step` on the embedded model: its rows, what it refuses, its operations by hand."""

import json

import pytest
import torch
from bench_table import table

from fastrl.bench import step
from fastrl.cli import main
from fastrl.model import load_model
from fastrl.model_config import DecoderConfig

CONTRACT = {
    "name", "shape", "dtype", "device", "ms", "ms_p20", "ms_p80", "peak_bytes", "max_error",
    "baseline", "baseline_ms", "speedup", "machine", "versions",
}  # fmt: skip


def bench(tmp_path, *words: str) -> list[dict]:
    out = tmp_path / "rows.json"
    command = ["bench", "step", "--repeats", "1", "--model", "embedded", "--out", str(out)]
    assert main([*command, *words]) == 0
    return json.loads(out.read_text())


def test_a_whole_step_by_phase(tmp_path, monkeypatch):
    turns = []

    def three_steps(prompts, source, size, kind, repeats, between):
        turns.append((source, size, kind, repeats, len(prompts.read_text().splitlines())))
        for _ in range(repeats):
            between()
        return [2.0] * repeats

    monkeypatch.setattr(step.rivals, "trl_steps", three_steps)
    (row,) = bench(tmp_path, "--only", "step", "--shape", "3,4,5", "--dtype", "bfloat16")
    assert turns == [("embedded", (3, 4, 5), "bfloat16", 1, 24)]
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
    right = step.policy_loss

    def wrong(model, batch):
        return right(model, batch) * (1 if model.embed.dtype == torch.float64 else 1.5)

    assert step.gradient_error("embedded", "float32") < 1e-4
    monkeypatch.setattr(step, "policy_loss", wrong)
    with pytest.raises(AssertionError):
        step.gradient_error("embedded", "float32")
    assert load_model("embedded").embed.grad is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "stepp"], "there is no step benchmark 'stepp'; allowed: 'step'"),
        (["--shape", "4,1,48"], "2 at least"),
        (["--shape", "4,8"], "as 4,8,48"),
        (["--dtype", "int8"], "dtype is 'int8'; allowed: float32"),
    ],
)
def test_mistakes(capsys, words, said):
    assert main(["bench", "step", *words]) == 2
    assert said in capsys.readouterr().err
