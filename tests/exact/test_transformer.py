"""A transformer, through the real sampler and train_step, becomes the distribution that was named.

Every response that it can give is enumerated: at most 6 tokens of 8 symbols and an end token.
"""

from functools import partial

import numpy as np
import pytest
import torch
from enumerable import (
    END,
    MAX_TOKENS,
    PREFIXES,
    PROMPTS,
    SYMBOLS,
    Training,
    all_responses,
    all_task_rewards,
    bigrams,
    log_distribution,
    random_decoder,
    total_variation,
)

from fastrl.config import ObjectiveConfig

HALF = ObjectiveConfig(name="sharpen", alpha=0.5)
QUARTER = ObjectiveConfig(name="sharpen", alpha=1.25)
SQUARE = ObjectiveConfig(name="sharpen", alpha=2.0)
TILTED = ObjectiveConfig(name="tilted", alpha=1.25, beta=0.5)
TILTED_SQUARE = ObjectiveConfig(name="tilted", alpha=2.0, beta=1.0)
TASK = ObjectiveConfig(name="task", beta=0.5)


def name(objective: ObjectiveConfig) -> str:
    numbers = (objective.alpha, objective.beta)
    return "-".join([objective.name, *(str(x) for x in numbers if x is not None)])


def case(objective: ObjectiveConfig, steps: int, seed: int, *, slow: bool = True, **options):
    """What `trained` trains."""
    words = [name(objective), *(str(v) for v in options.values()), f"seed{seed}"]
    make = partial(Training, objective, seed, steps, **options)
    return pytest.param(make, id="-".join(words), marks=pytest.mark.slow if slow else ())


CASES = [
    case(HALF, 450, 1, slow=False),
    case(QUARTER, 300, 1, slow=False),
    case(SQUARE, 300, 1, slow=False),
    case(TILTED, 400, 1, slow=False),
    *(
        case(objective, 500, seed)
        for objective in (HALF, QUARTER, SQUARE, TILTED, TILTED_SQUARE, TASK)
        for seed in (2, 3)
    ),
    case(TILTED, 1000, 1, task="contains"),
    case(TASK, 1000, 2, task="contains"),
    case(QUARTER, 500, 1, prompts=PROMPTS),
]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=CASES)
def trained(request) -> Training:
    training = request.param()
    training.run()
    return training


def test_reaches_the_stated_optimum(trained):
    # the test would be empty if the base were the target
    assert min(trained.distances(trained.learner.reference)) > 0.05
    assert max(trained.distances(trained.policy)) <= 0.01


def test_ends_with_the_same_reward_for_every_response(trained):
    """Which is log Z, or beta log Z for an objective with beta."""
    objective = trained.learner.objective
    first, last = trained.rewards[0], np.stack(trained.rewards[-20:])
    for i, prompt in enumerate(trained.prompts):
        constant = (objective.beta or 1.0) * trained.target(prompt)[1]
        assert first[i].mean() < constant - 0.1
        assert abs(last[:, i].mean() - constant) <= 0.01
        assert last[:, i].std() <= first[i].std() / 20


@pytest.mark.parametrize("wrong", [None, "reference", "policy", "task"])
def test_a_flipped_sign_misses_the_optimum(wrong, monkeypatch):
    """A quarter of the steps ends near the optimum, and far from it with any one sign flipped."""
    training = Training(TILTED, seed=1, steps=100)
    true_reward = type(training.learner.objective).reward
    signs = [-1 if wrong == part else 1 for part in ("reference", "policy", "task")]

    def flipped(self, lp, lpi, r, lengths):
        return true_reward(self, signs[0] * lp, signs[1] * lpi, signs[2] * r, lengths)

    monkeypatch.setattr(type(training.learner.objective), "reward", flipped)
    training.run()
    [distance] = training.distances(training.policy)
    assert distance > 0.2 if wrong else distance < 0.03


@pytest.mark.parametrize("objective", [HALF, QUARTER, SQUARE, TILTED, TASK], ids=name)
def test_mean_reward_is_log_z_less_the_distance_to_the_optimum(objective):
    training = Training(objective, seed=3)
    log_p = log_distribution(training.learner.reference, PROMPTS[0])
    log_pi = log_distribution(random_decoder(4), PROMPTS[0])
    optimum, log_z = training.target(PROMPTS[0])
    lengths = torch.tensor([len(y) for y in all_responses()])
    r = all_task_rewards(training.task)
    reward = training.learner.objective.reward(log_p, log_pi, r, lengths)
    distance = float((log_pi.exp() * (log_pi - optimum)).sum())
    scale = objective.beta or 1.0
    mean = float((log_pi.exp() * reward).sum())
    assert mean == pytest.approx(scale * (log_z - distance), abs=1e-9)
    assert distance > 0.1


def test_the_sampler_follows_the_enumeration():
    training = Training(HALF, seed=1, group_size=4096)
    log_p = log_distribution(training.policy, PROMPTS[0])
    assert PREFIXES == 37_449 and len(log_p) == PREFIXES + SYMBOLS**MAX_TOKENS
    assert float(log_p.logsumexp(0)) == pytest.approx(0.0, abs=1e-12)
    index = {response: i for i, response in enumerate(all_responses())}
    [group] = training.sample(step=0)
    sampled = np.array([index[c.token_ids] for c in group])
    logprobs = [sum(c.logprobs) for c in group]
    np.testing.assert_allclose(log_p[sampled], logprobs, atol=1e-5)
    assert all((c.finish_reason == "stop") == (c.token_ids[-1] == END) for c in group)
    likely = log_p.topk(50).indices.numpy()
    expected = len(group) * log_p[likely].exp().numpy()
    counts = np.bincount(sampled, minlength=len(log_p))[likely]
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected)).all()


def test_the_base_is_not_uniform_and_the_targets_are_not_bigrams():
    """So a policy that sees no more than the last token, or sets lengths alone, would fail."""
    uniform = random_decoder(1)
    with torch.no_grad():
        uniform.head_weight.zero_()
    for objective in (HALF, QUARTER):
        training = Training(objective, seed=1)
        base = log_distribution(training.policy, PROMPTS[0])
        target, _ = training.target(PROMPTS[0])
        assert total_variation(base, log_distribution(uniform, PROMPTS[0])) > 0.3
        assert total_variation(target, bigrams(target)) > 0.01
