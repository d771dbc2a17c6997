"""Worlds where every response is known, against brute force."""

import itertools
import math

import numpy as np
import pytest

from fastrl.config import ObjectiveConfig
from fastrl.objectives import make_objective
from fastrl.study import exact
from fastrl.study.exact import (
    SHARPEN,
    SLOPES,
    TASK,
    TASK_KL,
    TILTED,
    World,
    crowd,
    exact_study,
    optimum,
    random_world,
)

POWER = {a: ObjectiveConfig(name="sharpen", alpha=a) for a in (0.5, 1.0, 1.25, 2.0, 4.0)}
LIKELIHOOD = ObjectiveConfig(name="sharpen", mode="likelihood")


def brute(p, right, alpha=1.0, beta=None):
    """The optimum by its formula, response by response."""
    weights = [
        q**alpha * (math.exp((r - 1) / beta) if beta else 1.0)
        for q, r in zip(p, right, strict=True)
    ]
    return [w / sum(weights) for w in weights]


@pytest.mark.parametrize("seed", range(3))
def test_optima_are_those_of_brute_force(seed):
    world = random_world(seed, 1.0)
    p, right = world.p_R, world.right_R
    for alpha, config in POWER.items():
        assert optimum(p, right, make_objective(config)) == pytest.approx(brute(p, right, alpha))
    found = optimum(p, right, make_objective(TILTED))
    assert found == pytest.approx(brute(p, right, 4.0, 0.01))
    assert optimum(p, right, make_objective(TASK_KL)) == pytest.approx(brute(p, right, 1.0, 0.2))
    task = optimum(p, right, make_objective(TASK))
    assert task @ right == pytest.approx(1) and task == pytest.approx(p * right / (p @ right))
    likeliest = optimum(p, right, make_objective(LIKELIHOOD))
    assert likeliest.argmax() == p.argmax() and likeliest.max() == 1


def test_optima_maximise_what_they_are_said_to():
    """No other distribution has a larger E[R] with the reward of the objective."""
    import torch

    world = random_world(5, 0.0)
    p, right = world.p_R, world.right_R
    rng = np.random.default_rng(0)
    for config in (POWER[1.25], POWER[4.0], TASK_KL, ObjectiveConfig(name="tilted", beta=0.3)):
        objective = make_objective(config)

        def value(q, objective=objective):
            reward = objective.reward(
                *(torch.from_numpy(x) for x in (np.log(p), np.log(q), right)), torch.ones(len(p))
            )
            return q @ reward.numpy()

        best = optimum(p, right, objective)
        for size in (0.01, 0.1, 1.0):
            other = best * np.exp(rng.normal(0, size, len(p)))
            assert value(other / other.sum()) < value(best)


def test_the_crowd_is_that_of_the_study():
    world = crowd()
    p, right = world.p_R, world.right_R
    assert p.sum() == pytest.approx(1)
    assert sorted(np.round(p, 6))[-1] == 0.2 and sum(np.isclose(p, 0.008)) == 100
    assert p @ right == pytest.approx(0.8)
    for alpha, accuracy in ((1.25, 0.641), (2.0, 0.138), (4.0, 2.6e-4)):
        found = optimum(p, right, make_objective(POWER[alpha])) @ right
        assert found == pytest.approx(accuracy, rel=0.02)
    assert optimum(p, right, make_objective(TILTED)) @ right == pytest.approx(1)


def test_a_world_is_as_it_is_described():
    for slope in SLOPES.values():
        accuracies, slopes = [], []
        for seed in range(30):
            world = random_world(seed, slope)
            p, right = world.p_R, world.right_R
            assert len(p) == sum(3**d for d in range(4)) + 3**4 and set(right) <= {0.0, 1.0}
            assert p.sum() == pytest.approx(1)
            accuracies.append(p @ right)
            slopes.append(np.corrcoef(np.log(p), right)[0, 1])
        assert min(accuracies) >= 0.2 and max(accuracies) <= 0.8
        assert abs(np.mean(accuracies) - 0.5) < 0.1
        assert np.sign(np.round(np.mean(slopes), 1)) == np.sign(slope)
    one, same = random_world(3, 2.0), random_world(3, 2.0)
    assert (one.p_R == same.p_R).all() and (one.right_R == same.right_R).all()


def test_noise_is_in_every_logit():
    world = random_world(0, 0.0)
    noisy = world.perturbed(np.random.default_rng(0), 0.1)
    moved = (noisy.logits - world.logits).numpy()
    assert moved.std() == pytest.approx(0.1, rel=0.2) and (moved != 0).all()
    assert (noisy.right_R == world.right_R).all()


def test_a_policy_trained_on_a_world_reaches_its_optimum():
    world = random_world(1_000, 2.0)
    made, trainer = world.trained(SHARPEN, seed=0)
    best = optimum(world.p_R, world.right_R, make_objective(SHARPEN))
    assert 0.5 * np.abs(made - best).sum() < 0.02
    assert list(trainer.target().values()) == pytest.approx(best)


@pytest.fixture(scope="module")
def small():
    """A study of few worlds that are trained on for a few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "WORLDS", 12)
        patch.setattr(exact, "PERTURBATIONS", 3)
        patch.setattr(exact, "STAGES", ((0.1, 6),))
        lines: list[str] = []
        return exact_study(2, lines.append), lines


def test_a_study_of_worlds(small):
    found, lines = small
    assert [c["number"] for c in found["claims"]] == [1, 2, 3, 4]
    assert lines[-1] == "training on world 2 of 2"
    assert {row["world"] for row in found["trained"]} == set(SLOPES)
    assert len(found["trained"]) == 2 * len(SLOPES) * 2 * 2
    assert set(found["gains"]) == set(SLOPES)
    for kind, sign in (("against", -1), ("aligned", 1)):
        assert np.sign(found["gains"][kind]["sharpen 4"]["mean"]) == sign
        assert np.sign(found["gains"][kind]["covariance"]["mean"]) == sign
    assert found["crowd"][2]["optimum"] == pytest.approx(2.6e-4, rel=0.02)
    divergence = found["instability"]["divergence"]
    # KL(p_a || ptilde_a) ~ a^2 / 2 Var(delta), the variance that of p_a
    assert 1 < divergence["sharpen 1.25"]["mean"] < divergence["sharpen 4"]["mean"] < 16


def test_the_evidence_of_worlds(small):
    claims = {c["number"]: c for c in small[0]["claims"]}
    row = small[0]["crowd"][2]
    (one,) = claims[1]["evidence"]
    assert one["mean"] == pytest.approx(row["base"] - max(row["optimum"], row["trained"]))
    assert one["low"] == one["high"] == one["mean"]
    assert len(claims[2]["evidence"]) == 2
    assert [e["model"] for e in claims[3]["evidence"]] == list(SLOPES)
    # a world that is trained on twice, from two references, is one world
    robust = claims[4]["evidence"]
    starts = ("from the reference", "from the perturbed reference")
    assert [(e["model"], e["what"].partition(", ")[2]) for e in robust] == list(
        itertools.product(SLOPES, starts)
    )
    gains = [
        row["trained"] - row["base"]
        for row in small[0]["trained"]
        if (row["world"], row["arm"], row["start"]) == ("against", "task", "reference")
    ]
    assert len(gains) == 2
    assert robust[0]["mean"] == pytest.approx(np.mean(gains))


def test_divergence_counts_no_nothing():
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.25, 0.5])
    assert exact._divergence(p, q) == pytest.approx(math.log(2))
    assert exact._divergence(p, p) == 0


def test_a_worlds_policy_is_its_own():
    world = World(crowd().logits, 1, crowd().right_R)
    world.policy.logits.data.zero_()
    assert world.p_R == pytest.approx(crowd().p_R)
