"""The audit before the first step: what passes, what is warned of, and what stops a run."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
from test_train import SMALL, train

from fastrl import check
from fastrl.check import corrupted
from fastrl.cli import main
from fastrl.embedded import model_dir
from fastrl.grading import grade


def audited(capsys, *words) -> tuple[int, dict[str, dict]]:
    """The exit code, and the findings by name."""
    code = main(["check", "--json", *SMALL, *words])
    return code, {c["name"]: c for c in json.loads(capsys.readouterr().out)}


def rows_in(path, rows):
    path.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in rows))
    return ["--data", str(path), "--data.template", "{prompt}"]


SUMS = [(f"{a}+{b}=", str(a + b)) for a in range(8) for b in range(8)]


def test_the_default_run_passes(capsys):
    assert main(["check"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("14 passed\n") and out.count("\npass\t") == 13
    code, found = audited(capsys)
    assert code == 0
    assert found["sampler and trainer"]["found"].startswith("largest difference of 64 log-probs")
    assert "accuracy" in found["step 0"]["found"] and "without signal" in found["step 0"]["found"]


@pytest.mark.parametrize(
    "gold",
    ["7", "1", "-0.5", "\\frac{1}{2}", "0", "x^2+1", "(B)", "A", "Paris", "1,2,3", "[0, 1)", "9"],
)
def test_a_corrupted_gold_is_another_answer(gold):
    (verdict,) = grade([corrupted(gold)], [gold], content="answer")
    assert corrupted(gold) != gold and verdict.correct is False


def test_golds_that_cannot_be_read(tmp_path, capsys):
    data = rows_in(tmp_path / "bad.jsonl", [(q, "1/0") for q, _ in SUMS])
    code, found = audited(capsys, *data, "--objective", "task")
    assert code == 2 and found["golds"]["status"] == "fail"
    assert re.search(r"row \d+: .*1/0", found["golds"]["found"])
    data = rows_in(
        tmp_path / "some.jsonl", [(q, "1/0" if i % 3 == 0 else a) for i, (q, a) in enumerate(SUMS)]
    )
    code, found = audited(capsys, *data, "--objective", "task")
    assert code == 0 and found["golds"]["status"] == "warn"
    code, found = audited(capsys, "--reward", "repetition", "--objective", "task")
    assert "not looked at" in found["golds"]["found"] and "wrong answers" not in found


def test_a_verifier_that_does_not_suit_the_golds(tmp_path, capsys):
    """Sentences in place of options."""
    data = rows_in(tmp_path / "words.jsonl", [(q, f"the sum is {a}") for q, a in SUMS])
    code, found = audited(capsys, *data, "--reward.mode", "choice")
    assert found["golds as answers"]["status"] == "fail" and code == 2


def test_a_verifier_that_can_be_talked_into_anything(monkeypatch, capsys):
    monkeypatch.setattr(
        check, "grade", lambda texts, golds, **_: [SimpleNamespace(correct=True) for _ in texts]
    )
    code, found = audited(capsys)
    assert code == 2 and found["wrong answers"]["status"] == "fail"
    assert "0 of" in found["wrong answers"]["found"]


def test_a_prompt_on_both_sides(tmp_path, capsys):
    rows_in(tmp_path / "test.jsonl", SUMS)
    data = rows_in(tmp_path / "train.jsonl", SUMS)
    words = ["--data.eval_source", str(tmp_path / "test.jsonl"), "--eval.test_prompts", "40"]
    code, found = audited(capsys, *data, *words)
    assert code == 2 and found["training and test"]["status"] == "fail"
    assert found["training and validation"]["status"] == "pass"
    rows_in(tmp_path / "test.jsonl", [*[(f"10{q}", a) for q, a in SUMS], *SUMS[:8]])
    words[-1] = "0"
    words = ["--data.eval_source", str(tmp_path / "test.jsonl"), "--eval.test_prompts", "72"]
    code, found = audited(capsys, *data, *words)
    assert code == 0 and found["training and test"]["status"] == "warn"


def test_long_prompts_and_short_responses(tmp_path, capsys):
    long = [("1+" * n + "1=", "1") for n in range(20, 40)]
    data = rows_in(tmp_path / "rows.jsonl", [*SUMS, *long])
    code, found = audited(
        capsys, *data, "--data.max_prompt_tokens", "30", "--sampling.max_tokens", "3"
    )
    assert code == 0 and found["length of prompts"]["status"] == "warn"
    assert "30 tokens" in found["length of prompts"]["found"]
    assert found["step 0"]["status"] == "warn"


@pytest.fixture
def changed(tmp_path):
    """Copies the embedded model and changes one of its files."""

    def change(name, old, new):
        target = tmp_path / "model"
        shutil.copytree(model_dir("embedded"), target)
        text = (target / name).read_text()
        assert old in text, text
        (target / name).write_text(text.replace(old, new))
        return ["--model", str(target)]

    return change


def test_a_template_without_a_generation_prompt(changed, capsys):
    words = changed("chat_template.jinja", "add_generation_prompt", "false")
    code, found = audited(capsys, *words)
    assert code == 0 and found["generation prompt"]["status"] == "warn"


def test_a_template_without_a_beginning(changed, capsys):
    words = changed("chat_template.jinja", "{{ bos_token }}", "")
    code, found = audited(capsys, *words)
    assert found["beginning of sequence"]["status"] == "warn"


def test_a_turn_that_ends_with_a_token_that_ends_nothing(changed, capsys):
    words = changed("chat_template.jinja", "+ eos_token", "+ '<|user|>'")
    code, found = audited(capsys, *words)
    assert code == 2 and "'<|user|>', which is none of '<|eos|>'" in found["end tokens"]["found"]


@pytest.mark.parametrize("off, status", [(5e-4, "warn"), (0.1, "fail")])
def test_a_sampler_that_is_not_the_trainer(monkeypatch, capsys, off, status):
    original = check.score

    def other(*arguments):
        logprobs, entropy = original(*arguments)
        return logprobs + off, entropy

    monkeypatch.setattr(check, "score", other)
    code, found = audited(capsys)
    assert found["sampler and trainer"]["status"] == status and code == (
        2 if status == "fail" else 0
    )


@pytest.mark.parametrize("free, status", [(10**6, "fail"), (10**7, "warn"), (10**12, "pass")])
def test_a_disk_that_is_too_small(monkeypatch, capsys, free, status):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    code, found = audited(capsys, "--train.max_steps", "100")
    assert found["disk"]["status"] == status and code == (2 if status == "fail" else 0)


@pytest.mark.parametrize(
    "keep_last, keep_best, kept", [(0, 0, 100), (0, 1, 100), (1, 0, 1), (2, 3, 5), (99, 9, 100)]
)
def test_checkpoints_that_are_kept_are_counted(capsys, keep_last, keep_best, kept):
    words = ["--train.max_steps", "100", "--checkpoint.every", "1"]
    words += ["--checkpoint.keep_last", str(keep_last), "--checkpoint.keep_best", str(keep_best)]
    _, found = audited(capsys, *words)
    assert f"for {kept} checkpoints" in found["disk"]["found"]


def test_a_tokenizer_that_is_larger_than_the_model(monkeypatch, capsys):
    from fastrl.tokenizer import Tokenizer

    original = Tokenizer.__init__

    def larger(self, *rest):
        original(self, *rest)
        self.valid_vocab += 9

    monkeypatch.setattr(Tokenizer, "__init__", larger)
    code, found = audited(capsys)
    assert code == 2 and found["vocabulary"]["status"] == "fail"


def test_an_audit_that_runs_out_of_memory_samples_less_at_once(small_pool, capsys):
    small_pool()
    code, found = audited(capsys)
    assert code == 0 and found["step 0"]["status"] == "pass"


def test_a_checkpoint_takes_what_is_said(tmp_path):
    from fastrl.config import Config, parse_overrides
    from fastrl.run import assemble

    assert train(tmp_path / "run") == 0
    directory = tmp_path / "run/checkpoints/step_4"
    measured = sum(p.stat().st_size for p in directory.glob("*.safetensors"))
    said = check.checkpoint_bytes(assemble(parse_overrides(Config(), SMALL)))
    assert said == pytest.approx(measured, rel=0.05)


def test_a_run_that_fails_its_audit_leaves_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**5))
    run = tmp_path / "run"
    assert train(run) == 2
    err = capsys.readouterr().err
    assert "the audit failed (13 passed, 1 failed), disk:" in err and err.count("\n") == 1
    assert not run.exists()
    assert train(run, "--train.check", "false") == 0


def test_a_run_says_what_its_audit_found(tmp_path, capsys):
    assert train(tmp_path / "run", "--sampling.max_tokens", "3", "--train.max_steps", "1") == 0
    out = capsys.readouterr().out
    assert "step 0: accuracy" in out and "audit: 13 passed, 2 to be looked at" in out
    assert re.search(r"^warning: \d+% of the responses were cut at the length limit", out, re.M)
    assert re.search(r"^warning: in the last 10 steps, \d+% of the responses were cut", out, re.M)
    assert "warning: " in out and "cut at the length limit; raise sampling.max_tokens" in out


def test_mistakes(capsys):
    assert main(["check", "--objektive", "task"]) == 2
    assert "unknown setting" in capsys.readouterr().err
