"""Groups scored while others are sampled: the same training, whatever the thread's pace."""

import json
import random
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_gradient_sameness import GROUP, PROMPTS, assert_alike, responses_of
from test_train import (
    assert_a_null_run_changes_no_bit,
    assert_resumes_to_the_same_bits,
    fingerprint,
    lines,
    train,
)

from fastrl import early
from fastrl.cli import main
from fastrl.config import Config, parse_overrides
from fastrl.early import EarlyScorer
from fastrl.fit import Fit
from fastrl.losses import LossSpec
from fastrl.memory_plan import plan_memory
from fastrl.model import load_model
from fastrl.objectives import check_contradictions
from fastrl.optim import Optimizer
from fastrl.sampler import Event
from fastrl.scoring import score_batch
from fastrl.shapes import SHAPES
from fastrl.step import FAILED, Learner, train_step

ON = ["--train.score_while_sampling", "on", "--train.max_tokens_per_batch", "200"]
TASK = replace(Config(), objective=replace(Config().objective, name="task"))
CLIP = LossSpec(loss="clip", on_policy=True)


def learner_of(model, config=TASK, budget=150, **settings):
    optim = replace(Config().optim, lr=1e-3, schedule="constant", warmup_steps=0, grad_clip=0.0)
    settings = {"score_while_sampling": True, **settings}
    objective, optimizer = check_contradictions(config), Optimizer(model, optim)
    reference = load_model("embedded").requires_grad_(False)
    spec = CLIP if config is TASK else LossSpec(on_policy=True)
    return Learner(model, reference, objective, spec, "rloo", optimizer, budget, 40, **settings)


def grouped(responses):
    return [responses[i : i + GROUP] for i in range(0, len(responses), GROUP)]


def finished(learner, responses, seed=0, told=None):
    """A scorer told of the responses in some order, and what it passed on."""
    events = [Event(i // GROUP, i % GROUP, s.completion) for i, s in enumerate(responses)]
    random.Random(seed).shuffle(events)
    scorer, seen = EarlyScorer(learner, GROUP), []
    add = scorer.watch([s.prompt for s in responses[::GROUP]], lambda e: seen.append(e))
    for event in events[:told]:
        add(event)
    assert seen == events[:told]
    return scorer


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("score")]


@pytest.mark.parametrize(
    ("config", "settings"),
    [(TASK, {}), (TASK, {"minibatches": 2}), (Config(), {}), (Config(), {"share_prompts": "on"})],
    ids=["task", "minibatches", "sharpen", "shared prompts"],
)
def test_the_step_is_that_of_scoring_at_the_end(config, settings):
    """To rounding: other batches; with some groups told of, and with none."""
    responses = responses_of(load_model("embedded"))
    found = []
    for told in (None, PROMPTS * GROUP // 2, 0):
        model = load_model("embedded")
        learner = learner_of(model, config, **settings)
        with finished(learner, responses, told=told) as scorer:
            result = train_step(learner, grouped(responses), 0, scorer)
        packed = np.concatenate([b.responses for b in result.scores.batches])
        assert sorted(packed) == list(range(PROMPTS * GROUP))
        found.append((result, torch.cat([p.detach().flatten() for p in model.parameters()])))
    *early_, (plain, weights) = found
    for result, changed in early_:
        assert_alike(changed, weights)
        for name in ("ref_logprob_R", "policy_logprob_R"):
            np.testing.assert_allclose(
                getattr(result.scores, name), getattr(plain.scores, name), atol=1e-4
            )
        np.testing.assert_allclose(result.advantage_R, plain.advantage_R, atol=1e-4)
        assert result.loss == pytest.approx(plain.loss, rel=1e-4, abs=1e-6)
        assert result.grad_norm == pytest.approx(plain.grad_norm, rel=1e-4)
    assert [len(b.responses) for b in found[0][0].scores.batches] != [
        len(b.responses) for b in plain.scores.batches
    ]


@pytest.mark.parametrize("budget", [1, 150, 400, 1 << 20])
def test_batches_are_of_whole_groups_under_the_budget(budget):
    learner = learner_of(load_model("embedded"), budget=budget)
    with finished(learner, responses_of(learner.policy)) as scorer:
        found = scorer.finish()
    sequences = [i for batch, _ in found for i in batch.sequences]
    assert sorted(sequences) == list(range(PROMPTS * GROUP))
    for batch, rows in found:
        assert list(rows.responses) == list(batch.sequences)
        assert len(batch.token_ids_N) <= budget or len({*batch.groups}) == 1
    assert len(found) == 1 or budget < 1 << 20
    groups = [{*batch.groups} for batch, _ in found]
    split = sum(map(len, groups)) > PROMPTS
    assert split == (budget == 1)  # where a group alone is over the budget


def test_a_batch_is_scored_while_others_are_awaited():
    learner = learner_of(load_model("embedded"), budget=1)
    responses = responses_of(learner.policy)
    with finished(learner, responses, told=-1) as scorer:
        deadline = time.monotonic() + 30
        while not scorer._jobs or not scorer._jobs[0].done():
            assert time.monotonic() < deadline
            time.sleep(1e-3)


def test_the_pace_of_the_thread_changes_no_bit(monkeypatch):
    draw = random.Random(0)

    def late(*arguments):
        time.sleep(0.01 * draw.random())
        return score_batch(*arguments)

    found = []
    for score in (score_batch, late, late):
        monkeypatch.setattr(early, "score_batch", score)
        model = load_model("embedded")
        learner = learner_of(model)
        responses = responses_of(model)
        with finished(learner, responses) as scorer:
            result = train_step(learner, grouped(responses), 0, scorer)
        batches = [tuple(b.responses) for b in result.scores.batches]
        found.append((batches, [p.detach().clone() for p in model.parameters()]))
    (batches, weights), *others = found
    assert len(batches) > 2
    for again, changed in others:
        assert again == batches
        assert all(torch.equal(a, b) for a, b in zip(weights, changed, strict=True))


def test_a_batch_with_a_response_that_failed_since_is_scored_again_without_it():
    model = load_model("embedded")
    learner = learner_of(model)
    responses = responses_of(model)
    with finished(learner, responses) as scorer:
        (first, _), *rest = scorer.finish()
        lost = first.sequences[0]
        responses[lost] = replace(responses[lost], task_reward=None)
        result = train_step(learner, grouped(responses), 0, scorer)
    assert result.roles_R.count(FAILED) == 1 and np.isnan(result.scores.ref_logprob_R[lost])
    assert np.isfinite(result.scores.ref_logprob_R).sum() == len(responses) - 1
    batches = [tuple(b.responses) for b in result.scores.batches]
    assert first.sequences not in batches
    assert all(batch.sequences in batches for batch, _ in rest)


def test_a_response_that_broke_is_not_packed():
    learner = learner_of(load_model("embedded"), budget=1 << 20)
    responses = responses_of(learner.policy)
    responses[3] = replace(
        responses[3], completion=replace(responses[3].completion, finish_reason="error")
    )
    with finished(learner, responses) as scorer:
        ((batch, _),) = scorer.finish()
        assert 3 not in batch.sequences and len(batch.sequences) == len(responses) - 1
        assert train_step(learner, grouped(responses), 0, scorer).roles_R[3] == FAILED


def test_an_error_of_the_thread_is_raised_before_the_update(monkeypatch):
    def broken(*_):
        raise RuntimeError("no memory for it")

    monkeypatch.setattr(early, "score_batch", broken)
    model = load_model("embedded")
    before = [p.detach().clone() for p in model.parameters()]
    learner, responses = learner_of(model), responses_of(model)
    with (
        pytest.raises(RuntimeError, match="no memory for it"),
        finished(learner, responses) as scorer,
    ):
        train_step(learner, grouped(responses), 0, scorer)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not threads()


def test_the_thread_ends_with_what_it_is_at_when_sampling_fails(monkeypatch):
    calls = []

    def slow(*arguments):
        calls.append(1)
        time.sleep(0.2)
        return score_batch(*arguments)

    monkeypatch.setattr(early, "score_batch", slow)
    learner = learner_of(load_model("embedded"), budget=100)
    with (
        pytest.raises(KeyboardInterrupt),
        finished(learner, responses_of(learner.policy)) as scorer,
    ):
        assert len(scorer._jobs) > 2
        raise KeyboardInterrupt
    assert len(calls) <= 2 and not threads()


def test_without_the_setting_there_is_no_thread():
    learner = learner_of(load_model("embedded"), score_while_sampling=False)
    scorer = EarlyScorer(learner, GROUP)
    with scorer:
        assert scorer.watch([], print) is print
        assert scorer.finish() == [] and not threads()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("early") / "run"
    assert train(path, "--objective", "tilted", *ON) == 0
    return path


def test_a_run_is_one_of_scoring_at_the_end(run, tmp_path):
    other = tmp_path / "off"
    off = [word if word != "on" else "off" for word in ON]
    assert train(other, "--objective", "tilted", *off) == 0
    for ours, theirs in zip(lines(run / "metrics.jsonl"), lines(other / "metrics.jsonl"), strict=1):
        for name in ("tokens_sampled", "tokens_trained", "task_accuracy", "length_p95"):
            assert ours[name] == theirs[name]
        for name in ("grad_norm", "reward_mean", "kl", "kl_k3", "entropy", "loss", "mismatch_kl"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6), name
    assert fingerprint(run)["files"] != fingerprint(other)["files"]  # other batches
    assert not threads()


def test_resume_goes_on_to_the_same_bits(run, tmp_path):
    assert_resumes_to_the_same_bits(run, tmp_path / "cut")


def test_the_null_run_changes_no_bit(tmp_path):
    assert_a_null_run_changes_no_bit(tmp_path / "null", 6, *ON)


def test_every_whole_group_is_scored_before_the_step_trains(tmp_path, monkeypatch):
    known = []

    def watched(learner, groups, step, scorer, hooks):
        known.append(sum(len(batch.sequences) for batch, _ in scorer.finish()))
        return train_step(learner, groups, step, scorer, hooks)

    monkeypatch.setattr("fastrl.train.train_step", watched)
    assert train(tmp_path / "run", "--objective", "task", *ON) == 0
    assert known == [16] * 4


def config_of(*words):
    return parse_overrides(Config(), ["--model.dtype", "bfloat16", *words])


def test_auto_is_on_where_a_gpu_has_room_for_it():
    def early_of(*words, available=80 * 10**9, **changes):
        fit = Fit(SHAPES["Qwen3-4B"], 151936, 500, on_gpu=True, available=available)
        return replace(fit, **changes).plan(config_of(*words)).workload.scores_early

    on, off = (("--train.score_while_sampling", word) for word in ("on", "off"))
    assert early_of() and not early_of(*off)
    assert not early_of("--train.reference", "host")
    assert not early_of("--objective", "task", "--loss.drop_groups_without_signal")
    assert not early_of(on_gpu=False) and early_of(*on, on_gpu=False)
    assert not early_of(processes=2) and not early_of(*on, processes=2)
    assert not early_of(available=10**9)


def test_the_plan_of_sampling_has_the_scoring_beside_it():
    fit = Fit(SHAPES["Qwen3-4B"], 151936, 500, on_gpu=True, available=80 * 10**9)
    plan = fit.plan(config_of())
    assert plan.phases["sampling"]["scoring"] == plan.phases["scoring"]["forward"] > 0
    without = plan_memory(replace(plan.workload, scores_early=False), available=80 * 10**9)
    assert "scoring" not in without.phases["sampling"]
    assert without.phases["backward pass"] == plan.phases["backward pass"]
    short = plan.totals["sampling"] - 10**9
    tight = plan_memory(plan.workload, available=short)
    assert tight.totals["sampling"] == short
    assert tight.phases["sampling"]["cache"] == plan.phases["sampling"]["cache"] - 10**9


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--loss.drop_groups_without_signal"], "set one of the two to its default"),
        (["--train.reference", "host"], "set it to 'device'"),
    ],
)
def test_refusals(capsys, tmp_path, words, said):
    run = tmp_path / "never"
    command = ["train", "--output-dir", str(run), "--objective", "task", *ON, *words]
    assert main(command) == 2
    err = capsys.readouterr().err
    assert "train.score_while_sampling is 'on'" in err and said in err and not run.exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_graphs_are_captured_beside_it(tmp_path):
    """The default there; a step with it and one without agree."""
    found = []
    for word in ("on", "off"):
        run = tmp_path / word
        words = ["--objective", "tilted", "--model.dtype", "float32", "--train.max_steps", "3"]
        words += [*ON, "--train.score_while_sampling", word]
        words += ["--sampling.prompts_per_step", "64", "--train.max_tokens_per_batch", "2048"]
        assert train(run, *words) == 0
        found.append(json.loads((run / "metrics.jsonl").read_text().splitlines()[0]))
    for name in ("kl", "reward_mean", "grad_norm", "entropy", "loss"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-3, abs=1e-5), name
