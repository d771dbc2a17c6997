"""The commands beside training: eval, grade, and what every command does with a mistake."""

import io
import json
from pathlib import Path

import pytest
import torch

from fastrl.cli import main
from fastrl.embedded import examples
from fastrl.run_directory import RunDirectory

FEW = ["--samples", "4", "--prompts", "12"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "run"
    words = ["--train.max_steps", "2", "--sampling.prompts_per_step", "2", "--sampling.max_tokens"]
    words += ["48", "--eval.prompts", "0", "--eval.test_prompts", "0", "--checkpoint.every", "1"]
    assert main(["train", "--output-dir", str(path), *words]) == 0
    return path


def evaluate(capsys, *words: str) -> dict:
    assert main(["eval", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_eval_writes_the_figures_it_prints(tmp_path, capsys):
    out = tmp_path / "figures.json"
    printed = evaluate(capsys, "embedded", "--data", "embedded", *FEW, "--out", str(out))
    assert json.loads(out.read_text()) == printed
    assert printed.keys() >= {
        "pass@1", "pass@2", "pass@4", "maj@1", "maj@2", "maj@4", "accuracy", "ci95", "length_mean",
        "num_prompts", "num_samples",
    }  # fmt: skip
    assert "pass@8" not in printed
    assert (printed["num_prompts"], printed["num_samples"]) == (12, 4)
    assert printed["pass@1"] == pytest.approx(printed["accuracy"])
    assert printed["ci95"][0] <= printed["accuracy"] <= printed["ci95"][1]


def test_eval_is_repeatable_and_a_seed_is_a_fresh_split(capsys):
    first = evaluate(capsys, "embedded", *FEW)
    assert evaluate(capsys, "embedded", *FEW) == first
    assert evaluate(capsys, "embedded", *FEW, "--seed", "5") != first


def test_a_run_stands_for_its_newest_checkpoint(run, capsys):
    newest = run / "checkpoints" / "step_2"
    assert evaluate(capsys, str(run), *FEW) == evaluate(capsys, str(newest), *FEW)


def test_a_checkpoint_brings_the_lengths_of_its_run(run, capsys, tmp_path):
    rows = tmp_path / "rows.jsonl"
    words = [*FEW, "--completions", str(rows)]
    evaluate(capsys, str(run / "checkpoints" / "step_1"), *words)
    assert len(rows.read_text().splitlines()) == 48
    limited = evaluate(capsys, str(run), *FEW, "--max-tokens", "5")
    assert limited["length_mean"] <= 5 and limited["truncated_share"] > 0.5


def test_kept_completions_can_be_graded_again(tmp_path, capsys):
    rows, graded = tmp_path / "rows.jsonl", tmp_path / "graded.jsonl"
    figures = evaluate(capsys, "embedded", *FEW, "--completions", str(rows))
    assert main(["grade", str(rows), "--out", str(graded)]) == 0
    before, after = (
        [json.loads(line) for line in path.read_text().splitlines()] for path in (rows, graded)
    )
    assert [r["correct"] for r in before] == [r["correct"] for r in after]
    assert sum(r["correct"] for r in after) / len(after) == pytest.approx(figures["accuracy"])


def test_grade_is_a_pipe_that_loses_no_good_line(capsys, monkeypatch):
    lines = [
        {"prediction": "so \\boxed{7}", "gold": "7", "id": 1},
        {"prediction": "\\boxed{8}", "gold": "7"},
        {"gold": "7"},
        {"prediction": "\\boxed{1/2}", "gold": "0.5"},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + "\nno json\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["grade", "-", "--out", "-"]) == 2
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert [r["correct"] for r in rows] == [True, False, True]
    assert rows[0]["id"] == 1 and rows[0]["answer"] == "7" and rows[1]["reason"] == "wrong"
    assert "line 3" in captured.err and "line 5" in captured.err


@pytest.mark.parametrize(
    "words, said",
    [
        (["eval", "no-such-model"], "there is no model"),
        (["eval", "embedded", "--data", "nonsense"], "there is no data"),
        (["eval", "embedded", "--samples", "0"], "--samples is 0"),
        (["eval", "embedded", "--max-tokens", "9999"], "no prompt"),
        (["eval", "embedded", "--out", "/no/such/folder/x.json"], "make it first"),
        (["eval", "embedded", "--temperature", "-1"], "temperature"),
        (["eval", "embedded", "--samples", "many"], "--samples"),
        (["eval", "embedded", "--surprise"], "--surprise"),
        (["eval"], "MODEL_OR_RUN_OR_CHECKPOINT"),
        (["grade", "no-such.jsonl", "--out", "-"], "cannot read"),
        (["resume", "no-such-run"], "holds no run"),
        (["fly"], "'fly'"),
    ],
)
def test_a_mistake_is_one_sentence(capsys, words, said):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.startswith("fastrl: ")
    assert "Traceback" not in captured.err


def test_a_run_without_a_whole_checkpoint_cannot_be_evaluated(run, tmp_path, capsys):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for path in RunDirectory(copy).checkpoints.iterdir():
        (path / "manifest.json").unlink()
    assert main(["eval", str(copy)]) == 2
    assert "no whole checkpoint" in capsys.readouterr().err


@torch.no_grad()
def test_transformers_and_grade_agree_with_eval(run, tmp_path, capsys):
    """A checkpoint is the same policy for anyone: generate with transformers, grade, compare."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    seed, prompts, samples = 77, 60, 4
    checkpoint = run / "checkpoints" / "step_2"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    rows = examples("test", seed, prompts)
    texts = [
        tokenizer.apply_chat_template(m, tokenize=False, add_generation_prompt=True)
        for m, _, _ in rows
    ]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    torch.manual_seed(0)
    output = model.generate(
        **inputs, do_sample=True, top_k=0, top_p=1.0, temperature=1.0, max_new_tokens=64,
        num_return_sequences=samples,
    )  # fmt: skip
    decoded = tokenizer.batch_decode(
        output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    golds = [answer for _, answer, _ in rows for _ in range(samples)]
    source, graded = tmp_path / "theirs.jsonl", tmp_path / "graded.jsonl"
    pairs = zip(decoded, golds, strict=True)
    source.write_text("".join(json.dumps({"prediction": p, "gold": g}) + "\n" for p, g in pairs))
    assert main(["grade", str(source), "--out", str(graded)]) == 0
    correct = [json.loads(line)["correct"] for line in graded.read_text().splitlines()]
    theirs = sum(correct) / len(correct)
    words = ["--samples", str(samples), "--prompts", str(prompts), "--seed", str(seed)]
    ours = evaluate(capsys, str(checkpoint), "--max-tokens", "64", *words)
    low, high = ours["ci95"]
    # both are samples of the same prompts: the difference has twice the variance of one
    assert abs(theirs - ours["accuracy"]) <= 2**0.5 * (high - low) / 2
    assert ours["num_prompts"] * samples == len(correct)


def test_help_and_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out.startswith("fastrl ")
    assert main([]) == 2
    assert "train" in capsys.readouterr().out
