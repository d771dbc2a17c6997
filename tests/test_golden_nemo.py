"""The study's estimator against what its own code computed, from log-probs to the gradient.

`golden/make_nemo.py` wrote the numbers down: the reward with k1 in it, leave-one-out, and NeMo-RL's
ClippedPGLossFn as the study's recipes set it. P: prompts, G: responses a prompt, B: responses,
L: tokens of the longest.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastrl import advantages, ops
from fastrl.config import ObjectiveConfig
from fastrl.losses import loss_denominator
from fastrl.objectives import make_objective
from fastrl.ops import library

GOLDEN = json.loads((Path(__file__).parent / "golden" / "nemo.json").read_text())
X = {
    name: torch.tensor(values, dtype=torch.bool if name == "mask" else torch.float64)
    for name, values in GOLDEN["inputs"].items()
}
OBJECTIVES = {
    "task": ObjectiveConfig("task"),
    "task, beta_inv 100": ObjectiveConfig("task", beta_inv=100.0),
    "sharpen, alpha 4": ObjectiveConfig("sharpen", alpha=4.0),
    "sharpen, alpha 1": ObjectiveConfig("sharpen", alpha=1.0),
    "sharpen, alpha 4, mean": ObjectiveConfig("sharpen", alpha=4.0, length_norm="mean"),
    "sharpen, alpha 4, power 0.5": ObjectiveConfig("sharpen", alpha=4.0, length_norm="power 0.5"),
    "sharpen, alpha 4, likelihood": ObjectiveConfig("sharpen", alpha=4.0, mode="likelihood"),
    "tilted, alpha 4, beta_inv 100": ObjectiveConfig("tilted", alpha=4.0, beta_inv=100.0),
    "tilted, alpha 0.5, beta_inv 10000": ObjectiveConfig("tilted", alpha=0.5, beta_inv=10000.0),
}
PAPER = ops.LossSpec.preset("paper")
ADDED = 1e-8  # to every count that their means divide by


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def sums(values):
    return torch.where(X["mask"], values, 0.0).sum(1)


def rewards(name):
    lengths = X["mask"].sum(1).double() + ADDED
    return make_objective(OBJECTIVES[name]).reward(
        sums(X["ref"]), sums(X["before"]), X["task_rewards"], lengths
    )


def leave_one_out(rewards_B):
    rewards_PG = rewards_B.view(-1, GOLDEN["responses"])
    return advantages.rloo(rewards_PG, torch.ones_like(rewards_PG, dtype=torch.bool)).flatten()


def loss_and_gradient(advantages_B, backend, dtype, spec=PAPER):
    """(loss, its gradient by the log-probs [B, L]) through the public operation."""
    logprobs, mask = X["logprobs"], X["mask"]
    rows, longest = logprobs.shape
    # two logits whose first log-prob is the given one: d log-prob / d logit is the other's p
    others = -torch.expm1(logprobs)
    first = logprobs - others.log()
    logits = torch.stack([first, torch.zeros_like(first)], -1).to(dtype).requires_grad_()
    tokens = loss_denominator(
        spec, num_tokens=int(mask.sum()), num_sequences=rows, max_tokens=longest
    )
    output = ops.policy_loss(
        logits, torch.zeros_like(mask, dtype=torch.int64),
        advantages_B[:, None].expand(rows, longest), old_logprobs=X["before"],
        sampler_logprobs=X["sampler"], mask=mask, grad_scale=1 / (tokens + ADDED), spec=spec,
        backend=backend,
    )  # fmt: skip
    output.loss_sum.backward()
    return output.loss_sum.detach().double(), logits.grad[..., 0].double() / others


def error(found, right):
    return float((found - right).abs().max() / right.abs().max())


def test_every_estimate_is_compared():
    assert OBJECTIVES.keys() == GOLDEN["estimates"].keys()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_rewards_and_advantages_are_the_studys(name):
    right = GOLDEN["estimates"][name]
    assert error(rewards(name), tensor(right["rewards"])) <= 1e-14
    assert error(leave_one_out(rewards(name)), tensor(right["advantages"])) <= 1e-14


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"),
    [("torch", torch.float64, 1e-13), ("torch", torch.float32, 2e-5), ("cpu", torch.float32, 2e-5)],
    ids=["torch-fp64", "torch-fp32", "cpu-fp32"],
)
def test_the_loss_and_its_gradient_are_the_studys(name, backend, dtype, tolerance):
    if backend == "cpu" and not library.HAS_EXTENSION:
        pytest.skip("the extension fastrl._C is not built")
    right = GOLDEN["estimates"][name]
    loss, gradient = loss_and_gradient(leave_one_out(rewards(name)), backend, dtype)
    assert abs(float(loss) - right["loss"]) <= tolerance * max(1.0, abs(right["loss"]))
    assert error(gradient, tensor(right["gradient"])) <= tolerance


@pytest.mark.parametrize(
    "change",
    [
        {"sampler_correction": None},
        {"sampler_correction": "token_mask"},
        {"sampler_correction_cap": 25.0},
        {"loss": "clip"},
        {"loss_agg_mode": "seq-mean-token-sum-norm"},
    ],
    ids=str,
)
def test_the_numbers_tell_other_settings_apart(change):
    right = GOLDEN["estimates"]["task"]
    spec = replace(PAPER, **change)
    _, gradient = loss_and_gradient(tensor(right["advantages"]), "torch", torch.float64, spec)
    assert error(gradient, tensor(right["gradient"])) > 1e-3
