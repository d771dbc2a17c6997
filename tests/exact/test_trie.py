"""The trained policy is the distribution that was named: by enumeration on a small trie."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastrl.config import ObjectiveConfig
from fastrl.losses import LossSpec
from fastrl.scoring import score_responses
from fastrl.step import advantage, backward, pack_responses, reward
from fastrl.study.trie import END, TablePolicy, Trainer, scored, total_variation

STAGES = ((0.1, 120), (0.03, 100), (0.01, 80))
TARGETS = [
    ObjectiveConfig(name="sharpen", alpha=0.5),
    ObjectiveConfig(name="sharpen", alpha=1.25),
    ObjectiveConfig(name="sharpen", alpha=2.0),
    ObjectiveConfig(name="tilted", alpha=1.25, beta=0.5),
    ObjectiveConfig(name="tilted", alpha=2.0, beta=1.0),
    ObjectiveConfig(name="task", beta=0.5),
]


def name(objective: ObjectiveConfig) -> str:
    return f"{objective.name}-{objective.alpha}-{objective.beta}"


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("objective", TARGETS, ids=name)
def test_reaches_the_stated_optimum(objective, seed):
    trainer = Trainer.make(objective, seed=seed)
    start = total_variation(trainer.policy.distribution(), trainer.target())
    assert start > 0.04  # the test would be empty if the base were the target
    trainer.run(STAGES)
    assert total_variation(trainer.policy.distribution(), trainer.target()) <= 0.01


@pytest.mark.parametrize("wrong", ["reference", "policy", "task"])
def test_a_flipped_sign_misses_the_optimum(wrong, monkeypatch):
    """The test above can fail: any sign of the reward, flipped, ends somewhere else."""
    trainer = Trainer.make(ObjectiveConfig(name="tilted", alpha=2.0, beta=1.0), seed=0)
    true_reward = type(trainer.objective).reward

    def flipped(self, lp, lpi, r, lengths):
        signs = {"reference": (-1, 1, 1), "policy": (1, -1, 1), "task": (1, 1, -1)}[wrong]
        return true_reward(self, signs[0] * lp, signs[1] * lpi, signs[2] * r, lengths)

    monkeypatch.setattr(type(trainer.objective), "reward", flipped)
    target = trainer.target()
    trainer.run(((0.1, 60), (0.03, 40)))
    assert total_variation(trainer.policy.distribution(), target) > 0.05


def test_pure_likelihood_ends_at_the_likeliest_response():
    objective = ObjectiveConfig(name="sharpen", mode="likelihood", alpha=1.0)
    trainer = Trainer.make(objective, seed=3)
    with torch.no_grad():  # one response that leads by 1.5 or more
        for policy in (trainer.policy, trainer.learner.reference):
            policy.logits[0, END] += 2.0
    base = trainer.learner.reference.distribution()
    best, second = sorted(base, key=base.get, reverse=True)[:2]
    assert base[best] >= 1.5 * base[second]
    trainer.run(((0.1, 150),))
    assert trainer.policy.distribution()[best] >= 0.99


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pure_task_reward_reaches_the_right_responses(seed):
    trainer = Trainer.make(ObjectiveConfig(name="task"), seed=seed)

    def accuracy() -> float:
        distribution = trainer.policy.distribution()
        return sum(p * trainer.task_reward[y] for y, p in distribution.items())

    assert accuracy() < 0.7
    trainer.run(((0.1, 120),))
    assert accuracy() >= 0.99


def test_rewards_and_advantages_vanish_at_the_optimum():
    """A policy set to the optimum by hand: the step sees no advantage and takes no gradient."""
    trainer = Trainer.make(ObjectiveConfig(name="tilted", alpha=2.0, beta=0.5), seed=1)
    target = trainer.target()
    symbols, depth = trainer.policy.symbols, trainer.policy.max_tokens

    def mass(prefix: tuple[int, ...]) -> float:
        return sum(p for y, p in target.items() if y[: len(prefix)] == prefix)

    with torch.no_grad():
        for length in range(depth):
            for prefix in itertools.product(range(1, symbols + 1), repeat=length):
                node = 0
                for token in prefix:
                    node = node * symbols + token
                masses = [mass((*prefix, token)) for token in range(symbols + 1)]
                trainer.policy.logits[node] = torch.tensor(masses).log()
    assert total_variation(trainer.policy.distribution(), target) < 1e-9
    result = trainer.step(0)
    assert np.abs(result.advantage_R).max() <= 1e-5 * max(1.0, np.abs(result.reward_R).max())
    assert result.grad_norm <= 1e-5


def test_null_run_changes_no_bit():
    trainer = Trainer.make(ObjectiveConfig(name="sharpen", alpha=1.0), seed=4)
    before = trainer.policy.logits.detach().clone()
    for step in range(20):
        result = trainer.step(step)
        assert (result.reward_R == 0).all()
    assert torch.equal(trainer.policy.logits.detach(), before)


def test_rloo_is_unbiased():
    """All pairs of responses, weighted by their probability: the mean gradient is that of J."""
    objective = ObjectiveConfig(name="tilted", alpha=1.5, beta=0.7)
    trainer = Trainer.make(objective, symbols=2, max_tokens=2, seed=5, group_size=2)
    learner, policy = trainer.learner, trainer.policy
    with torch.no_grad():
        policy.logits += 0.3 * torch.randn(
            policy.logits.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
    distribution = policy.distribution()
    logprobs = torch.log_softmax(policy.logits.detach(), -1).numpy()

    def sampled(response):
        node, chosen = 0, []
        for token in response:
            chosen.append(float(logprobs[node, token]))
            node = node * policy.symbols + token
        return scored(policy, response, chosen, trainer.task_reward[response])

    mean = torch.zeros_like(policy.logits)
    for first, second in itertools.product(distribution, repeat=2):
        pair = [sampled(first), sampled(second)]
        roles = ["trained", "trained"]
        (batches,) = pack_responses(learner, pair, roles, 2)
        completions = [s.completion for s in pair]
        scores = score_responses(policy, learner.reference, batches, completions, 1.0)
        weights = advantage(learner, reward(learner, pair, scores), roles, 1)
        backward(learner, batches, scores.batches, weights, roles)
        mean += distribution[first] * distribution[second] * policy.logits.grad
        policy.logits.grad = None

    base, denominator = learner.reference.distribution(), 2 * policy.max_tokens

    def value() -> float:
        now = policy.distribution()
        return sum(
            p
            * (trainer.task_reward[y] + 0.7 * (0.5 * np.log(base[y]) + np.log(base[y]) - np.log(p)))
            for y, p in now.items()
        )

    numeric = torch.zeros_like(mean)
    for index in np.ndindex(*policy.logits.shape):
        with torch.no_grad():
            keep = policy.logits[index].item()
            policy.logits[index] = keep + 1e-5
            up = value()
            policy.logits[index] = keep - 1e-5
            down = value()
            policy.logits[index] = keep
        numeric[index] = (up - down) / 2e-5
    # the loss sums both responses of the group and divides by sequences x max_tokens
    torch.testing.assert_close(-mean * denominator / 2, numeric, atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize("advantage_name", ["rloo", "dr_grpo", "reinforce"])
def test_every_baseline_finds_the_optimum(advantage_name):
    trainer = Trainer.make(ObjectiveConfig(name="sharpen", alpha=2.0), seed=0)
    trainer.learner = replace(trainer.learner, advantage=advantage_name)
    trainer.run(STAGES)
    assert total_variation(trainer.policy.distribution(), trainer.target()) <= 0.01


@pytest.mark.parametrize("loss", ["clip", "cispo", "gspo"])
def test_other_losses_find_the_right_responses(loss):
    spec = LossSpec(loss=loss, on_policy=True)
    trainer = Trainer.make(ObjectiveConfig(name="task"), seed=0, spec=spec)
    trainer.run(((0.1, 120),))
    distribution = trainer.policy.distribution()
    assert sum(p * trainer.task_reward[y] for y, p in distribution.items()) >= 0.99


def test_the_trie_is_a_distribution_and_its_sampler_follows_it():
    policy = TablePolicy(3, 3, seed=7)
    distribution = policy.distribution()
    assert sum(distribution.values()) == pytest.approx(1.0)
    assert any(y[-1] != END for y in distribution)
    rng = np.random.default_rng(0)
    count = dict.fromkeys(distribution, 0)
    for _ in range(20_000):
        count[policy.sample(rng)[0]] += 1
    assert total_variation({y: c / 20_000 for y, c in count.items()}, distribution) < 0.03
