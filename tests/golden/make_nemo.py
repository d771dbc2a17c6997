"""Writes nemo.json: the study's estimator as its own code computes it, from rewards to gradient.

`python tests/golden/make_nemo.py CHECKOUT`, a checkout of github.com/sarthmit/dist_sharpening, the
study's copy of NeMo-RL, at COMMIT; it needs torch only. Of CHECKOUT/nemo_rl/algorithms the
definitions named below are run as they stand: the reward that holds k1, the leave-one-out
advantage, ClippedPGLossFn. What surrounds them (Ray, vLLM, Megatron) is never imported.
B: responses, L: tokens of the longest; every number is fp64, where the code itself allows it by
torch's default dtype, and by taking log-probs where a vocabulary is split over processes.
"""

import __future__

import ast
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

COMMIT = "af09722a79404dad958d99fee88e7513998052d3"
DEFINITIONS = {
    "utils.py": (
        "calculate_kl", "calculate_baseline_and_std_per_prompt", "masked_mean", "masked_sum",
        "masked_weighted_mean",
    ),
    "advantage_estimator.py": ("LeaveOneOutAdvantageEstimator",),
    "rloo.py": ("DistSharpeningReward",),
    "loss_functions.py": ("ClippedPGLossFn",),
}  # fmt: skip
# loss_fn of examples/configs/dist_sharpening/rloo_math_lighteval.yaml, and of the other recipes
LOSS = {
    "reference_policy_kl_penalty": 0.0, "reference_policy_kl_type": "k1",
    "kl_input_clamp_value": 20.0, "kl_output_clamp_value": 10.0, "disable_ppo_ratio": True,
    "ratio_clip_min": 0.2, "ratio_clip_max": 0.2, "ratio_clip_c": None,
    "use_on_policy_kl_approximation": False, "use_importance_sampling_correction": True,
    "truncated_importance_sampling_ratio": 20.0, "truncated_importance_sampling_ratio_min": None,
    "truncated_importance_sampling_type": "tis", "sequence_level_importance_ratios": False,
    "token_level_loss": True, "force_on_policy_ratio": False, "use_kl_in_reward": False,
}  # fmt: skip
# alpha, beta_inv, mode, normalization, weight
REWARDS = {
    "task": (0.0, 0.0, "none", "none", 1.0),
    "task, beta_inv 100": (1.0, 100.0, "sampling", "sum", 1.0),
    "sharpen, alpha 4": (4.0, 0.0, "sampling", "sum", 1.0),
    "sharpen, alpha 1": (1.0, 0.0, "sampling", "sum", 1.0),
    "sharpen, alpha 4, mean": (4.0, 0.0, "sampling", "mean", 1.0),
    "sharpen, alpha 4, power 0.5": (4.0, 0.0, "sampling", "weighted_mean", 0.5),
    "sharpen, alpha 4, likelihood": (4.0, 0.0, "optimization", "sum", 1.0),
    "tilted, alpha 4, beta_inv 100": (4.0, 100.0, "sampling", "sum", 1.0),
    "tilted, alpha 0.5, beta_inv 10000": (0.5, 10000.0, "sampling", "sum", 1.0),
}
PROMPTS, RESPONSES, L = 3, 4, 8
LENGTHS = (8, 3, 5, 1, 2, 8, 4, 6, 7, 7, 1, 2)
TASK_REWARDS = (1, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 0)


def inputs():
    """Log-probs of the policy now, when its rewards were computed, of the sampler and of p."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(len(LENGTHS), L, generator=generator)  # noqa: E731
    logprobs = -draw().abs() - 0.05
    before, ref = logprobs + 0.01 * draw(), logprobs + 0.5 * draw()
    sampler = before + 0.2 * draw()
    # ratios of e^4, beyond the cap of 20, at and above log 20, and of e^-30
    sampler[0, 1], sampler[1, 2], sampler[5, 7] = (
        before[i] - 4.0 for i in ((0, 1), (1, 2), (5, 7))
    )
    sampler[6, 0], sampler[8, 3] = before[6, 0] - math.log(20.5), before[8, 3] + 30.0
    mask = torch.arange(L)[None] < torch.tensor(LENGTHS)[:, None]
    return {
        "logprobs": logprobs, "before": before, "sampler": sampler, "ref": ref, "mask": mask,
        "task_rewards": torch.tensor(TASK_REWARDS).double(),
    }  # fmt: skip


def load(checkout):
    """The named definitions as one namespace, what they refer to beside torch stood in for."""
    names = {
        "torch": torch,
        "LossFunction": object,
        "LossType": SimpleNamespace(TOKEN_LEVEL="token_level", SEQUENCE_LEVEL="sequence_level"),
    }
    for file, wanted in DEFINITIONS.items():
        tree = ast.parse((checkout / "nemo_rl" / "algorithms" / file).read_text())
        tree.body = [node for node in tree.body if getattr(node, "name", None) in wanted]
        found = [node.name for node in tree.body]
        assert sorted(found) == sorted(wanted), f"{file} defines {found} of {wanted}"
        # annotations name what is not here: they stay text
        code = compile(tree, file, "exec", flags=__future__.annotations.compiler_flag)
        exec(code, names)
    return SimpleNamespace(names=names, **names)


def padded(values):
    """With the column of a prompt's one token, which the loss leaves out."""
    return torch.cat([torch.zeros(len(values), 1), values], 1)


def estimate(code, reward):
    """Rewards, advantages, loss and gradient, in the order of the study's loop."""
    x = inputs()
    leaf = x["logprobs"].clone().requires_grad_()
    token_mask = padded(x["mask"].double())
    alpha, beta_inv, mode, normalization, weight = reward
    rewards = code.DistSharpeningReward(alpha, beta_inv, mode, normalization, weight)(
        rewards=x["task_rewards"], logprobs_policy=padded(x["before"]),
        logprobs_reference=padded(x["ref"]), token_mask=token_mask,
    )  # fmt: skip
    prompts = torch.arange(PROMPTS).repeat_interleave(RESPONSES)[:, None]
    advantages = code.LeaveOneOutAdvantageEstimator({}, LOSS).compute_advantage(
        prompt_ids=prompts, rewards=rewards, mask=token_mask
    )
    code.names["from_parallel_logits_to_logprobs"] = lambda *_, **__: leaf
    loss, _ = code.ClippedPGLossFn(LOSS)(
        torch.zeros(len(LENGTHS), L + 1, 2),
        {
            "input_ids": torch.zeros(len(LENGTHS), L + 1, dtype=torch.int64),
            "token_mask": token_mask, "sample_mask": torch.ones(len(LENGTHS)),
            "advantages": advantages, "prev_logprobs": padded(x["before"]),
            "generation_logprobs": padded(x["sampler"]),
        },
        global_valid_seqs=torch.tensor(float(len(LENGTHS))),
        global_valid_toks=x["mask"].sum(), vocab_parallel_rank=0, vocab_parallel_group="here",
    )  # fmt: skip
    loss.backward()
    return {
        "rewards": rewards.tolist(), "advantages": advantages[:, 0].tolist(), "loss": loss.item(),
        "gradient": leaf.grad.tolist(),
    }  # fmt: skip


def main():
    torch.set_default_dtype(torch.float64)
    code = load(Path(sys.argv[1]))
    found = {name: estimate(code, reward) for name, reward in REWARDS.items()}
    parts = {
        "inputs": {name: values.tolist() for name, values in inputs().items()},
        "estimates": found,
    }
    lines = [f'"commit": "{COMMIT}"', f'"responses": {RESPONSES}']
    for part, values in parts.items():
        entries = ",\n  ".join(f'"{k}": {json.dumps(v)}' for k, v in values.items())
        lines.append(f'"{part}": {{\n  {entries}\n }}')
    path = Path(__file__).with_name("nemo.json")
    path.write_text("{\n " + ",\n ".join(lines) + "\n}\n")
    print(f"{path}: {len(found)} estimates")


if __name__ == "__main__":
    main()
