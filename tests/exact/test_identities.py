"""The identities of the objectives, by enumeration, through the project's own reward functions."""

import math

import numpy as np
import pytest
import torch

from fastrl.advantages import rloo
from fastrl.config import ObjectiveConfig
from fastrl.objectives import make_objective
from fastrl.study.trie import TablePolicy

ALPHAS = [0.5, 1.0, 1.25, 2.0, 4.0]


def enumerated(seed: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and lengths of all responses of a random trie."""
    distribution = TablePolicy(3, 3, seed, spread).distribution()
    return np.array(list(distribution.values())), np.array([len(y) for y in distribution])


def rewards(objective: ObjectiveConfig, p, pi, r, lengths) -> np.ndarray:
    """R of every response, by the project's own formula."""
    vectors = (torch.as_tensor(v) for v in (np.log(p), np.log(pi), r, lengths))
    return make_objective(objective).reward(*vectors).numpy()


def power(p: np.ndarray, alpha: float) -> tuple[np.ndarray, float]:
    """p^alpha / Z and log Z."""
    weight = p**alpha
    return weight / weight.sum(), math.log(weight.sum())


@pytest.mark.parametrize("alpha", ALPHAS)
def test_mean_reward_is_log_z_less_the_distance_to_the_optimum(alpha):
    p, lengths = enumerated(0)
    pi, _ = enumerated(1)
    optimum, log_z = power(p, alpha)
    R = rewards(ObjectiveConfig(name="sharpen", alpha=alpha), p, pi, 0 * p, lengths)
    distance = float((pi * np.log(pi / optimum)).sum())
    assert float((pi * R).sum()) == pytest.approx(log_z - distance, abs=1e-12)
    assert distance > 0.1


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("beta", [None, 0.01, 0.5])
def test_at_the_optimum_the_reward_is_constant_and_every_advantage_is_zero(alpha, beta):
    p, lengths = enumerated(2)
    r = (np.arange(len(p)) % 3 == 0).astype(float)
    weight = p**alpha * (np.exp(r / beta) if beta else 1.0)
    pi = weight / weight.sum()
    name = "tilted" if beta else "sharpen"
    R = rewards(ObjectiveConfig(name=name, alpha=alpha, beta=beta), p, pi, r, lengths)
    constant = (beta or 1.0) * math.log(weight.sum())
    # in fp32, as a log-prob comes out of the trainer: rounding of the log-probs is what is left
    tolerance = 1e-5 * max(1.0, abs(constant))
    assert np.abs(R - constant).max() <= tolerance
    groups = torch.as_tensor(R[: len(R) // 4 * 4].reshape(-1, 4))
    assert float(rloo(groups, torch.ones_like(groups, dtype=torch.bool)).abs().max()) <= tolerance


def test_k3_as_a_loss_has_another_fixed_point():
    p, lengths = enumerated(3)
    r = (np.arange(len(p)) % 2).astype(float)
    beta = 2.0
    tilted = p * np.exp(r / beta)
    tilted /= tilted.sum()
    low, high = 0.0, 1.0  # rbar so that beta p / (beta - (r - rbar)) sums to 1
    for _ in range(200):
        rbar = (low + high) / 2
        total = (beta * p / (beta - (r - rbar))).sum()
        low, high = (rbar, high) if total > 1 else (low, rbar)
    forward = beta * p / (beta - (r - rbar))
    assert forward.sum() == pytest.approx(1.0, abs=1e-9)

    def gradient(pi: np.ndarray) -> np.ndarray:
        """Of E[r] - beta KL(p || pi), by the logits of pi, which is what k3's loss descends."""
        return pi * (r - (pi * r).sum()) - beta * (pi - p)

    assert np.abs(gradient(forward)).max() < 1e-9
    assert np.abs(gradient(tilted)).max() > 1e-3


def test_k1_as_a_loss_has_no_gradient_in_expectation_and_k2_has_the_reverse_kls():
    logits = torch.randn(7, dtype=torch.float64, requires_grad=True)
    log_p = torch.log_softmax(torch.randn(7, dtype=torch.float64), 0)

    def expectation(loss) -> torch.Tensor:
        log_pi = torch.log_softmax(logits, 0)
        return torch.autograd.grad((log_pi.exp().detach() * loss(log_pi)).sum(), logits)[0]

    log_pi = torch.log_softmax(logits, 0)
    reverse = torch.autograd.grad((log_pi.exp() * (log_pi - log_p)).sum(), logits)[0]
    k1 = expectation(lambda lpi: lpi - log_p)
    k2 = expectation(lambda lpi: (lpi - log_p) ** 2 / 2)
    k3 = expectation(lambda lpi: (log_p - lpi).exp() - 1 - (log_p - lpi))
    forward = torch.softmax(logits, 0).detach() - log_p.exp()
    assert k1.abs().max() < 1e-12
    torch.testing.assert_close(k2, reverse)
    torch.testing.assert_close(k3, forward)


def test_token_temperature_is_not_the_power_distribution():
    # P(ab) = .4, P(ba) = P(bb) = .3: the first token decides
    joint = np.array([0.4, 0.3, 0.3])
    assert power(joint, 4.0)[0][0] == pytest.approx(0.6124, abs=5e-5)
    first = np.array([0.4, 0.6]) ** 4
    assert (first / first.sum())[0] == pytest.approx(0.1649, abs=5e-5)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_soft_values_give_the_exact_token_level_target(alpha):
    policy = TablePolicy(2, 3, seed=5)
    logp = torch.log_softmax(policy.logits.detach(), -1).numpy()

    def value(node: int, depth: int) -> float:
        if depth == policy.max_tokens:
            return 0.0
        later = [0.0] + [
            value(node * policy.symbols + s, depth + 1) for s in range(1, policy.symbols + 1)
        ]
        return float(np.logaddexp.reduce(alpha * logp[node] + np.array(later)))

    distribution = policy.distribution()
    optimum, log_z = power(np.array(list(distribution.values())), alpha)
    assert value(0, 0) == pytest.approx(log_z, abs=1e-12)
    for response, probability in zip(distribution, optimum, strict=True):
        node, total = 0, 0.0
        for depth, token in enumerate(response):
            child = node * policy.symbols + token
            after = 0.0 if token == 0 else value(child, depth + 1)
            total += alpha * logp[node, token] + after - value(node, depth)
            node = child
        assert math.exp(total) == pytest.approx(probability, rel=1e-9)


def test_the_gain_of_sharpening_is_the_covariance_of_reward_and_likelihood():
    p, _ = enumerated(6)
    r = (np.arange(len(p)) % 5 == 0).astype(float)
    for alpha in ALPHAS:
        pa, _ = power(p, alpha)
        covariance = (pa * r * np.log(p)).sum() - (pa * r).sum() * (pa * np.log(p)).sum()
        step = 1e-5
        slope = ((power(p, alpha + step)[0] - power(p, alpha - step)[0]) * r).sum() / (2 * step)
        assert slope == pytest.approx(covariance, rel=1e-6, abs=1e-9)


def test_length_collapse():
    q, b, length = 0.02, 3, 6
    p = np.array([q] + [(1 - q) / b**length] * b**length)
    for alpha in ALPHAS:
        formula = q**alpha / (q**alpha + (1 - q) ** alpha * b ** (length * (1 - alpha)))
        assert power(p, alpha)[0][0] == pytest.approx(formula, rel=1e-9)
    assert power(p, 4.0)[0][0] > 0.98 > 0.05 > power(p, 1.0)[0][0]


def test_unfavourable_optimum():
    p = np.array([0.008] * 100 + [0.2])
    r = np.array([1.0] * 100 + [0.0])
    for alpha, accuracy in ((1, 0.8), (1.25, 0.641), (2, 0.138), (4, 2.56e-4)):
        assert (power(p, alpha)[0] * r).sum() == pytest.approx(accuracy, rel=0.01)
    tilted = p * np.exp(r * 100)
    assert (tilted * r).sum() / tilted.sum() == pytest.approx(1.0)


def test_instability_grows_with_the_square_of_alpha():
    p, _ = enumerated(8, spread=0.3)
    noise = np.random.default_rng(0).normal(size=len(p))
    for alpha in (1.25, 2.0, 4.0):
        pa, _ = power(p, alpha)
        delta = 1e-3 * noise
        perturbed, _ = power(p * np.exp(delta), alpha)
        variance = (pa * delta**2).sum() - (pa * delta).sum() ** 2
        divergence = (pa * np.log(pa / perturbed)).sum()
        assert divergence == pytest.approx(alpha**2 / 2 * variance, rel=0.02)


def test_the_null_run_rewards_nothing_at_the_start():
    p, lengths = enumerated(9)
    R = rewards(ObjectiveConfig(name="sharpen", alpha=1.0), p, p, 0 * p, lengths)
    assert (R == 0).all()
