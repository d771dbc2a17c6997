"""Advantages of a group, against their definitions."""

import pytest
import torch

from fastrl.advantages import ESTIMATORS, GRPO_EPS, dr_grpo, grpo, reinforce, rloo

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 5.0], [2.0, 2.0, 2.0, 2.0]], dtype=torch.float64)
ALL = torch.ones_like(REWARDS, dtype=torch.bool)


def test_rloo_leaves_one_out():
    expected = torch.tensor([[1 - 5 / 3, -2.0, -2.0, 5 - 1 / 3], [0, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(rloo(REWARDS, ALL), expected)


def test_group_mean_and_standard_deviation():
    centred = REWARDS - REWARDS.mean(1, keepdim=True)
    torch.testing.assert_close(dr_grpo(REWARDS, ALL), centred)
    std = REWARDS.std(1, keepdim=True)
    torch.testing.assert_close(grpo(REWARDS, ALL), centred / (std + GRPO_EPS))


def test_batch_baseline():
    torch.testing.assert_close(reinforce(REWARDS, ALL), REWARDS - REWARDS.mean())


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_a_failed_response_takes_no_part(estimator):
    valid = ALL.clone()
    valid[0, 3] = False
    poisoned = REWARDS.clone()
    poisoned[0, 3] = float("nan")
    values = estimator(poisoned, valid)
    assert torch.isfinite(values).all() and values[0, 3] == 0
    if estimator is not reinforce:
        alone = estimator(REWARDS[:1, :3], ALL[:1, :3])
        torch.testing.assert_close(values[:1, :3], alone)


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_one_response_has_no_baseline(estimator):
    assert estimator(torch.tensor([[3.0]]).double(), torch.tensor([[True]])).item() == 0


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_equal_rewards_give_zero(estimator):
    values = estimator(torch.full((3, 8), -17.3, dtype=torch.float64), torch.ones(3, 8).bool())
    assert values.abs().max() <= 1e-14 * 17.3 / (GRPO_EPS if estimator is grpo else 1)
