"""Rewards of a group to advantages; pure functions of fp64 tensors.

Legend: P: prompts, G: responses a prompt. `valid_PG` is False for failed responses, which take no
part in any mean and get advantage 0. A group with fewer than two valid responses has no baseline:
its advantages are 0.
"""

from __future__ import annotations

import torch

GRPO_EPS = 1e-6  # added to the standard deviation, as in TRL


def _group_mean(
    rewards_PG: torch.Tensor, valid_PG: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    count_P1 = valid_PG.sum(1, keepdim=True)
    total_P1 = torch.where(valid_PG, rewards_PG, 0.0).sum(1, keepdim=True)
    return total_P1 / count_P1.clamp(min=1), count_P1


def rloo(rewards_PG: torch.Tensor, valid_PG: torch.Tensor) -> torch.Tensor:
    """Leave-one-out, A_i = R_i - mean of the others (arXiv:2402.14740), [P, G].

    Written as (R_i - mean) n / (n - 1).
    """
    mean_P1, count_P1 = _group_mean(rewards_PG, valid_PG)
    # a quotient of integers would be in fp32
    scale_P1 = count_P1.to(rewards_PG.dtype) / (count_P1 - 1).clamp(min=1)
    return torch.where(valid_PG & (count_P1 > 1), (rewards_PG - mean_P1) * scale_P1, 0.0)


def dr_grpo(rewards_PG: torch.Tensor, valid_PG: torch.Tensor) -> torch.Tensor:
    """Group mean as baseline, no division (Dr. GRPO, arXiv:2503.20783), [P, G]."""
    mean_P1, count_P1 = _group_mean(rewards_PG, valid_PG)
    return torch.where(valid_PG & (count_P1 > 1), rewards_PG - mean_P1, 0.0)


def grpo(rewards_PG: torch.Tensor, valid_PG: torch.Tensor) -> torch.Tensor:
    """Group mean as baseline, over the sample standard deviation (arXiv:2402.03300), [P, G]."""
    centred_PG = dr_grpo(rewards_PG, valid_PG)
    count_P1 = valid_PG.sum(1, keepdim=True)
    std_P1 = (centred_PG.square().sum(1, keepdim=True) / (count_P1 - 1).clamp(min=1)).sqrt()
    return centred_PG / (std_P1 + GRPO_EPS)


def reinforce(rewards_PG: torch.Tensor, valid_PG: torch.Tensor) -> torch.Tensor:
    """The mean over the whole batch as baseline (Williams 1992), [P, G]."""
    mean_11, count_11 = _group_mean(rewards_PG.reshape(1, -1), valid_PG.reshape(1, -1))
    return torch.where(valid_PG & (count_11 > 1), rewards_PG - mean_11, 0.0)


ESTIMATORS = {"rloo": rloo, "grpo": grpo, "dr_grpo": dr_grpo, "reinforce": reinforce}
