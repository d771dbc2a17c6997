"""Steps that run out of memory are taken all the same, in smaller pieces, and say so."""

import json
import shutil

import numpy as np
import pytest
import torch
from test_estimators import grouped, learner_of, watch
from test_gradient_sameness import assert_alike, responses_of
from test_train import fingerprint, train

from fastrl import step
from fastrl.cli import main
from fastrl.model import load_model
from fastrl.out_of_memory import is_out_of_memory
from fastrl.sampler import engine
from fastrl.step import Hooks, train_step


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**50), lambda: np.empty(2**50)])
def test_what_the_libraries_raise(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 cannot be multiplied"))


class Heard(Hooks):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture
def small_memory(monkeypatch):
    """Makes passes over more than so many rows fail, some of them half done."""

    def set_up(rows, part="backward"):
        original = getattr(step, part)

        def limited(learner, batches, *rest):
            for i, batch in enumerate(batches):
                if len(batch.token_ids_N) > rows:
                    if part == "backward" and i:
                        original(learner, batches[:i], rest[0][:i], *rest[1:])
                    raise torch.OutOfMemoryError("CUDA out of memory")
            return original(learner, batches, *rest)

        monkeypatch.setattr(step, part, limited)

    return set_up


@pytest.mark.parametrize("part", ["backward", "score_share"])
@pytest.mark.parametrize(
    "settings", [{}, {"epochs": 2, "minibatches": 2}, {"mask_truncated": True}]
)
@pytest.mark.parametrize("share_prompts", ["on", "off"])
def test_a_step_in_smaller_pieces_has_the_same_gradient(
    small_memory, monkeypatch, part, settings, share_prompts
):
    results = []
    for memory in (None, 100):
        learner = learner_of(load_model("embedded"), share_prompts=share_prompts, **settings)
        groups, heard = grouped(responses_of(learner.policy)), Heard()
        seen = watch(learner, monkeypatch)
        if memory:
            small_memory(memory, part)
        results.append((train_step(learner, groups, 0, None, heard), seen, heard.lines))
    (whole, gradients, silent), (pieces, others, said) = results
    assert not silent and said and all("out of memory" in line for line in said)
    assert pieces.max_tokens_per_batch <= 100 < whole.max_tokens_per_batch
    assert pieces.rows >= whole.rows and len(gradients) == len(others)
    for gradient, other in zip(gradients, others, strict=True):
        assert_alike(other, gradient)
    assert pieces.loss == pytest.approx(whole.loss, rel=1e-4, abs=1e-6)
    np.testing.assert_allclose(
        pieces.scores.policy_logprob_R, whole.scores.policy_logprob_R, atol=1e-4
    )


def test_a_step_that_cannot_be_made_smaller(tmp_path, small_memory, capsys):
    small_memory(5)
    assert train(tmp_path / "run") == 1
    err = capsys.readouterr().err
    assert "out of memory with micro-batches of one response" in err and "Traceback" not in err


def test_a_run_goes_on_with_the_smaller_budget_after_it_was_resumed(tmp_path, small_memory, capsys):
    run, cut = tmp_path / "run", tmp_path / "cut"
    small_memory(300)
    assert train(run) == 0
    out = capsys.readouterr().out
    assert "out of memory with micro-batches of up to 8,192 rows: again, and from now on" in out
    state = json.loads((run / "checkpoints/step_2/trainer_state.json").read_text())
    assert state["max_tokens_per_batch"] <= 300
    shutil.copytree(run, cut)
    shutil.rmtree(cut / "checkpoints/step_4")
    assert main(["resume", str(cut)]) == 0
    assert fingerprint(cut) == fingerprint(run)
    assert "out of memory" not in capsys.readouterr().out


@pytest.mark.parametrize("fails", ["pool", "forward"])
def test_a_sampler_short_of_memory_gives_the_same_responses(
    tmp_path, monkeypatch, capsys, small_pool, fails
):
    words = ["--train.check", "false", "--eval.prompts", "4", "--eval.test_prompts", "0"]
    words += ["--eval.every", "4"]
    assert train(tmp_path / "whole", *words) == 0
    if fails == "pool":
        small_pool()
    else:
        append, calls = engine.Sampler._append, []

        def limited(self, call, sequences, columns):
            calls.append(len(sequences))
            if len(calls) == 30:  # in the middle of a step
                raise torch.OutOfMemoryError("CUDA out of memory")
            return append(self, call, sequences, columns)

        monkeypatch.setattr(engine.Sampler, "_append", limited)
    assert train(tmp_path / "small", *words) == 0
    assert "out of memory while sampling: again, and from now on, with" in capsys.readouterr().out
    whole, small = fingerprint(tmp_path / "whole"), fingerprint(tmp_path / "small")
    assert small["metrics"] == whole["metrics"]
    assert small["files"] == whole["files"]


def test_a_sampler_that_cannot_be_made_smaller(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine, "PagedCache", none)
    words = ["--eval.prompts", "0", "--eval.test_prompts", "0", "--train.check", "false"]
    assert train(tmp_path / "run", *words) == 1
    assert "out of memory while sampling with the smallest pool" in capsys.readouterr().err


def test_an_evaluation_that_runs_out_of_memory_is_scored_in_smaller_pieces(
    tmp_path, monkeypatch, capsys
):
    from fastrl import run as runs

    original = runs.score_share

    def limited(learner, batches, *rest):
        if any(len(batch.token_ids_N) > 200 for batch in batches):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(learner, batches, *rest)

    assert train(tmp_path / "whole") == 0
    monkeypatch.setattr(runs, "score_share", limited)
    capsys.readouterr()
    assert train(tmp_path / "run") == 0
    assert "out of memory with micro-batches" in capsys.readouterr().out
    whole, run = fingerprint(tmp_path / "whole"), fingerprint(tmp_path / "run")
    for one, other in zip(whole["eval"], run["eval"], strict=True):
        assert other["kl"] == pytest.approx(one["kl"], abs=0.02)


def test_an_optimiser_that_finds_no_memory(tmp_path, monkeypatch, capsys):
    from fastrl.optim import Optimizer

    def none(self, step):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(Optimizer, "step", none)
    assert train(tmp_path / "run") == 1
    err = capsys.readouterr().err
    assert "set optim.state to 'host'" in err and "Traceback" not in err


def test_a_divergence_that_is_not_finite_is_written_as_null(tmp_path, monkeypatch):
    from fastrl.run import Run

    monkeypatch.setattr(Run, "_kl", lambda *_: float("nan"))
    assert train(tmp_path / "run") == 0
    assert all(e["kl"] is None for e in fingerprint(tmp_path / "run")["eval"])
