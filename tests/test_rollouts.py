"""Rounds of sampling until enough groups have signal: what is trained, kept, counted, resumed."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_estimators import learner_of
from test_gradient_sameness import GROUP, responses_of
from test_train import assert_resumes_to_the_same_bits, lines, train

from fastrl.checkpoint import read_state
from fastrl.cli import main
from fastrl.config import Config, parse_overrides
from fastrl.dry_run import Assumed, dry_run
from fastrl.model import load_model
from fastrl.rollouts import has_signal
from fastrl.step import FAILED, FILTERED, TRAINED, assign_roles, train_step

DYNAMIC = ["--objective", "task", "--loss.drop_groups_without_signal", "true"]
ROUNDS = [*DYNAMIC, "--sampling.max_rounds", "3", "--sampling.responses_per_prompt", "3"]
PROMPTS = 4  # of a round, in test_train's small run


def groups_of(path):
    """Of each step, the groups of rows in the order in which they were sampled."""
    for file in sorted((path / "completions").glob("*.parquet")):
        rows = pq.read_table(file).to_pylist()
        yield [rows[i : i + 3] for i in range(0, len(rows), 3)]


def mixed(group):
    return len({row["task_reward"] for row in group}) > 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("rounds") / "run"
    assert train(path, *ROUNDS) == 0
    return path


def test_rounds_go_on_until_enough_groups_have_signal(run):
    counts = []
    for metrics, groups in zip(lines(run / "metrics.jsonl"), groups_of(run), strict=True):
        rounds = metrics["sampling_rounds"]
        signals = [sum(map(mixed, groups[: PROMPTS * r])) for r in range(1, rounds + 1)]
        assert all(n < PROMPTS for n in signals[:-1])
        assert signals[-1] >= PROMPTS or rounds == 3
        assert metrics["prompts_drawn"] == len(groups) == PROMPTS * rounds
        assert metrics["groups_trained"] == min(PROMPTS, signals[-1])
        counts.append((rounds, signals[-1] > PROMPTS))
    assert max(counts)[0] > 1 and any(surplus for _, surplus in counts)


def test_a_step_trains_on_the_first_that_have_signal_and_keeps_the_rest(run):
    filtered = 0
    for metrics, groups in zip(lines(run / "metrics.jsonl"), groups_of(run), strict=True):
        roles = [{row["role"] for row in group} for group in groups]
        trained = [i for i, role in enumerate(roles) if role == {TRAINED}]
        assert trained == [i for i, group in enumerate(groups) if mixed(group)][:PROMPTS]
        assert all(role == {FILTERED} for i, role in enumerate(roles) if i not in trained)
        tokens = {
            name: sum(len(r["token_ids"]) for g in groups for r in g if r["role"] == name)
            for name in (TRAINED, FILTERED)
        }
        assert metrics["tokens_trained"] == tokens[TRAINED]
        assert metrics["tokens_filtered"] == tokens[FILTERED]
        filtered += tokens[FILTERED]
        assert metrics["tokens_sampled"] == sum(tokens.values())
        for row in (row for group in groups for row in group):
            left_out = row["role"] == FILTERED
            assert np.isnan(row["ref_logprob_sum"]) == np.isnan(row["policy_logprob_sum"])
            assert np.isnan(row["ref_logprob_sum"]) == left_out
            assert row["advantage"] == 0 or not left_out
        assert np.isfinite(metrics["kl"])
    assert filtered > 0


def test_the_prompts_of_all_rounds_are_drawn_once(run):
    drawn = [(group[0]["prompt_id"], group[0]["draw"]) for g in groups_of(run) for group in g]
    assert (
        len({*drawn}) == len(drawn) == sum(m["prompts_drawn"] for m in lines(run / "metrics.jsonl"))
    )
    assert read_state(run / "checkpoints" / "step_4").prompts_drawn == len(drawn)


def test_resume_goes_on_to_the_same_bits(run, tmp_path):
    assert_resumes_to_the_same_bits(run, tmp_path / "cut")


def test_one_round_is_the_default(tmp_path):
    assert train(tmp_path / "run", *DYNAMIC) == 0
    for metrics in lines(tmp_path / "run" / "metrics.jsonl"):
        assert (metrics["sampling_rounds"], metrics["prompts_drawn"]) == (1, PROMPTS)
        assert metrics["groups_trained"] <= PROMPTS


def test_a_step_without_any_signal_changes_nothing_and_the_run_goes_on(tmp_path, capsys):
    code = "def f(completions, **_):\n    return [1.0] * len(completions)\n"
    (tmp_path / "same_reward.py").write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        words = [*ROUNDS, "--reward", "same_reward:f", "--eval.prompts", "0"]
        words += ["--eval.test_prompts", "0", "--checkpoint.every", "1"]
        assert train(tmp_path / "run", *words) == 0
    assert "step 1: no response is in the loss" in capsys.readouterr().out
    for metrics in lines(tmp_path / "run" / "metrics.jsonl"):
        assert (metrics["sampling_rounds"], metrics["groups_trained"]) == (3, 0)
        assert metrics["tokens_filtered"] == metrics["tokens_sampled"] > 0
        assert metrics["kl"] is None and metrics["grad_norm"] == 0 == metrics["rows_trained"]
    weights = [p.read_bytes() for p in (tmp_path / "run").rglob("model.safetensors")]
    assert len(weights) == 4 and len({*weights}) == 1


def rewarded(responses, *rewards):
    """Groups whose responses have these task rewards, a tuple a group."""
    flat = [r for group in rewards for r in group]
    found = [replace(s, task_reward=r) for s, r in zip(responses, flat, strict=False)]
    return [found[i : i + GROUP] for i in range(0, len(found), GROUP)]


def test_roles():
    learner = replace(
        learner_of(load_model("embedded")), drop_groups_without_signal=True, max_groups=2
    )
    groups = rewarded(
        responses_of(learner.policy),
        (1.0, 1.0, 1.0, 1.0), (0.0, 1.0, 1.0, None), (None, 1.0, 1.0, 1.0),
        (0.5, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0),
    )  # fmt: skip
    assert [has_signal(group) for group in groups] == [False, True, False, True, True]
    broken = replace(
        groups[1][0], completion=replace(groups[1][0].completion, finish_reason="error")
    )
    assert not has_signal([broken, *groups[1][1:]])
    roles = assign_roles(learner, groups)
    assert roles[:4] == [FILTERED] * 4
    assert roles[4:8] == [TRAINED] * 3 + [FAILED]
    assert roles[8:12] == [FAILED] + [FILTERED] * 3
    assert roles[12:16] == [TRAINED] * 4  # whoever comes first
    assert roles[16:] == [FILTERED] * 4
    assert {*assign_roles(replace(learner, drop_groups_without_signal=False), groups)} == {
        TRAINED,
        FAILED,
    }


@pytest.mark.parametrize("minibatches", [1, 2])
def test_what_is_filtered_does_not_touch_the_update(minibatches):
    """To the bit: the same batches as without it, in the same optimiser steps."""
    mixed, same = (0.0, 1.0, 1.0, 0.0), (1.0, 1.0, 1.0, 1.0)
    groups = rewarded(responses_of(load_model("embedded")), same, mixed, mixed, same, mixed)
    found = []
    for some in (groups, [groups[1], groups[2]]):
        model = load_model("embedded")
        learner = learner_of(model, lr=1e-3, minibatches=minibatches)
        learner = replace(learner, drop_groups_without_signal=True, max_groups=2)
        result = train_step(learner, some, 0)
        assert result.roles_R.count(TRAINED) == 2 * GROUP
        found.append((result, [p.detach().clone() for p in model.parameters()]))
    (one, weights), (other, again) = found
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
    assert (one.loss, one.rows, one.grad_norm) == (other.loss, other.rows, other.grad_norm)
    assert [len(b.lengths) for b in one.scores.batches] == [2 * GROUP // minibatches] * minibatches


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sampling.max_rounds", "2"], "set loss.drop_groups_without_signal to true"),
        ([*DYNAMIC, "--sampling.max_rounds", "0"], "must be at least 1"),
        ([*DYNAMIC[2:], "--sampling.max_rounds", "2"], "looks at the task reward alone"),
    ],
)
def test_refusals(capsys, tmp_path, words, said):
    assert main(["train", "--output-dir", str(tmp_path / "never"), *words]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "never").exists()


def test_a_dry_run_counts_all_rounds():
    one, three = (
        dry_run(parse_overrides(Config(), [*DYNAMIC, "--sampling.max_rounds", n]), Assumed())
        for n in ("1", "3")
    )
    for name, times in (("prompts", 3), ("responses", 3), ("sampled", 3), ("rows", 1)):
        assert three.tokens[name] == times * one.tokens[name]
