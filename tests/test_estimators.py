"""Several optimiser steps a batch, and responses that are kept out of the loss."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_gradient_sameness import GROUP, PROMPTS, assert_alike, responses_of

from fastrl.cli import main
from fastrl.config import Config
from fastrl.losses import LossSpec
from fastrl.model import load_model
from fastrl.objectives import check_contradictions
from fastrl.optim import Optimizer
from fastrl.scoring import response_rows
from fastrl.step import FILTERED, MASKED, TRAINED, Learner, assign_roles, train_step

CLIP = LossSpec(loss="clip", clip_low=0.01, clip_high=0.01, on_policy=True)
TASK = replace(Config(), objective=replace(Config().objective, name="task"))


def learner_of(model, lr=0.0, **settings):
    optim = replace(Config().optim, lr=lr, schedule="constant", warmup_steps=0, grad_clip=0.0)
    objective = check_contradictions(TASK)
    optimizer = Optimizer(model, replace(optim, weight_decay=0.0), 1)
    return Learner(
        model, load_model("embedded"), objective, CLIP, "rloo", optimizer, 1 << 20, 40, **settings
    )


def grouped(responses):
    return [responses[i : i + GROUP] for i in range(0, len(responses), GROUP)]


def watch(learner, monkeypatch):
    """The gradient of every optimiser step."""
    seen, step = [], learner.optimizer.step

    def watched(number):
        seen.append(torch.cat([p.grad.flatten() for p in learner.policy.parameters()]))
        return step(number)

    monkeypatch.setattr(learner.optimizer, "step", watched)
    return seen


def test_a_minibatch_is_a_batch_of_its_groups(monkeypatch):
    model = load_model("embedded")
    learner = learner_of(model, minibatches=2, epochs=3)
    groups = grouped(responses_of(model))
    seen = watch(learner, monkeypatch)
    whole = train_step(learner, groups, 0)
    assert len(seen) == 6
    halves = groups[: -(-PROMPTS // 2)], groups[-(-PROMPTS // 2) :]
    norms, losses = [], []
    for half, found in zip(halves, seen, strict=False):
        alone = learner_of(load_model("embedded"))
        expected = watch(alone, monkeypatch)
        result = train_step(alone, half, 0)
        assert_alike(found, expected[0])
        norms.append(result.grad_norm)
        losses.append(result.loss)
    for epoch in (1, 2):  # the learning rate is 0
        assert torch.equal(seen[0], seen[2 * epoch]) and torch.equal(seen[1], seen[2 * epoch + 1])
    assert whole.grad_norm == pytest.approx(max(norms), rel=1e-5)
    assert whole.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert whole.clipped_tokens == 0  # every ratio is 1


def test_a_second_pass_has_ratios_to_the_policy_that_sampled():
    """Clipped where they leave the bounds; the first pass has none."""
    results = []
    for epochs in (1, 2):
        model = load_model("embedded")
        learner = learner_of(model, lr=1e-2, epochs=epochs)
        results.append(train_step(learner, grouped(responses_of(model)), 0))
    assert results[0].clipped_tokens == 0 < results[1].clipped_tokens
    tokens = sum(len(s.completion.token_ids) for s in responses_of(load_model("embedded")))
    assert results[1].clipped_tokens < tokens


def cut(responses, which):
    return [
        replace(
            s, completion=replace(s.completion, finish_reason="length" if i in which else "stop")
        )
        for i, s in enumerate(responses)
    ]


def test_a_truncated_response_is_masked_and_stays_in_the_baseline():
    model = load_model("embedded")
    groups = grouped(cut(responses_of(model), {1, 6}))
    learner = learner_of(model, mask_truncated=True)
    roles = assign_roles(learner, groups)
    assert [i for i, role in enumerate(roles) if role == MASKED] == [1, 6]
    assert set(roles) == {MASKED, TRAINED}
    masked, plain = (
        train_step(learner_of(load_model("embedded"), mask_truncated=on), groups, 0)
        for on in (True, False)
    )
    assert (masked.advantage_R == plain.advantage_R).all() and (masked.advantage_R != 0).all()
    assert masked.grad_norm != plain.grad_norm
    none = train_step(
        learner_of(load_model("embedded"), mask_truncated=True),
        grouped(cut(responses_of(model), range(PROMPTS * GROUP))),
        0,
    )
    assert none.grad_norm == 0 and none.loss == 0


def test_a_group_without_signal_is_filtered_before_it_is_masked():
    model = load_model("embedded")
    equal = [replace(s, task_reward=1.0) for s in cut(responses_of(model), {0})]
    learner = learner_of(model, mask_truncated=True, drop_groups_without_signal=True)
    assert set(assign_roles(learner, grouped(equal))) == {FILTERED}


def test_a_run_with_all_of_it(tmp_path):
    run = tmp_path / "run"
    words = [
        "train", "--objective", "task", "--loss.loss", "clip", "--train.minibatches", "2",
        "--train.epochs", "2", "--loss.mask_truncated", "--loss.clip_high", "0.001",
        "--sampling.max_tokens", "24", "--max-steps", "2", "--eval.prompts", "0",
        "--eval.test_prompts", "0", "--sampling.prompts_per_step", "6", "--output-dir", str(run),
        "--optim.lr", "1e-3", "--loss.kl", "k3", "--loss.kl_coef", "0.01",
        "--loss.entropy_coef", "0.01", "--loss.sampler_correction", "sequence_mask",
    ]  # fmt: skip
    assert main(words) == 0
    for line in (run / "metrics.jsonl").read_text().splitlines():
        metrics = json.loads(line)
        assert metrics["tokens_masked"] > 0 < metrics["clip_share"] < 1
        kinds = ("trained", "masked", "filtered", "failed")
        assert metrics["tokens_sampled"] == sum(metrics[f"tokens_{kind}"] for kind in kinds)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--train.epochs", "2"], "no ratio to the policy that sampled; set loss.loss to 'clip'"),
        (["--train.minibatches", "65"], "a step has 64 prompts; lower it"),
        (["--train.minibatches", "0"], "must be at least 1"),
        (["--loss.mask_truncated"], "leaves responses out of the loss, but sharpen claims"),
    ],
)
def test_refusals(capsys, tmp_path, words, said):
    assert main(["train", "--output-dir", str(tmp_path / "never"), *words]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "never").exists()


def test_a_verifiers_reward_needs_no_scoring_pass_of_the_policy(monkeypatch):
    """The loss has the same log-probs: results and weights to the bit, with a forward less."""
    found = []
    for skipped in (True, False):
        model = load_model("embedded")
        learner = learner_of(model, lr=1e-3)
        calls = []
        monkeypatch.setattr(
            "fastrl.scoring.response_rows",
            lambda m, batch, calls=calls: calls.append(m) or response_rows(m, batch),
        )
        if not skipped:
            monkeypatch.setattr(Learner, "policy_scored_by_loss", False)
        result = train_step(learner, grouped(responses_of(model)), 0)
        assert calls == ([learner.reference] if skipped else [learner.reference, model])
        found.append((result, [p.detach().clone() for p in model.parameters()]))
    (one, weights), (other, again) = found
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
    assert (one.scores.policy_logprob_R == other.scores.policy_logprob_R).all()
    assert np.isfinite(one.scores.policy_logprob_R).all()
    for a, b in zip(one.scores.batches, other.scores.batches, strict=True):
        assert torch.equal(a.of_policy[0], b.of_policy[0])
        assert torch.equal(a.of_policy[1], b.of_policy[1])
    assert (one.loss, one.grad_norm) == (other.loss, other.grad_norm)


def test_where_something_depends_on_the_policys_score_it_comes_first():
    model = load_model("embedded")
    learner = learner_of(model)
    assert learner.policy_scored_by_loss
    assert not replace(learner, mask_truncated=True).policy_scored_by_loss
    assert not replace(learner, epochs=2).policy_scored_by_loss
    sharpen = check_contradictions(Config())
    assert not replace(learner, objective=sharpen).policy_scored_by_loss
    off_policy = replace(CLIP, on_policy=False)
    assert not replace(learner, spec=off_policy).policy_scored_by_loss
