"""Writes losses.json: losses and gradients as TRL's and verl's own code computes them.

`python tests/golden/make.py` in an environment with trl and verl; `test_golden_losses.py` reads the
file. B: sequences, L: tokens of the longest; every number is fp64.
"""

import importlib.metadata
import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch

B, L = 6, 9
LENGTHS = (9, 4, 1, 7, 0, 5)  # one sequence is masked altogether
ADVANTAGES = (1.3, -0.7, 0.4, -1.1, 0.9, -0.2)

TRL = {
    "trl-dapo": {"loss_type": "dapo"},
    "trl-grpo": {"loss_type": "grpo"},
    "trl-dr_grpo": {"loss_type": "dr_grpo"},
    "trl-cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "trl-gspo": {
        "loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 3e-4,
        "epsilon_high": 4e-4,
    },
    "trl-grpo, two-sided": {"loss_type": "grpo", "delta": 1.5},
    "trl-grpo, kl": {"loss_type": "grpo", "beta": 0.04},
    "trl-grpo, corrected kl": {
        "loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": True,
    },
}  # fmt: skip
VERL = {
    "verl-ppo": ("vanilla", "token-mean", {}),
    "verl-grpo": ("vanilla", "token-mean", {"use_kl_loss": True, "kl_loss_coef": 0.001}),
    "verl-dapo": ("vanilla", "token-mean", {"clip_ratio_high": 0.28, "clip_ratio_c": 10.0}),
    "verl-dr_grpo": ("vanilla", "seq-mean-token-sum-norm", {}),
    "verl-gspo": (
        "gspo", "seq-mean-token-mean", {"clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4},
    ),
    "verl-cispo": ("cispo", "token-mean", {}),
}  # fmt: skip


def inputs(*, extremes):
    """Log-probs of three policies, advantages and mask; with `extremes`, ratios beyond e^20."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(B, L, generator=generator, dtype=torch.float64)  # noqa: E731
    logprobs = -draw().abs() - 0.05
    old, ref = logprobs + 0.3 * draw(), logprobs + 0.5 * draw()
    if extremes:
        old[0, 1], old[1, 0], old[3, 2], old[3, 3] = 25.0, -26.0, -24.0, 27.0
        old[5, :5] = logprobs[5, :5] - 12.0
        ref[0, 0], ref[1, 2], ref[3, 0] = logprobs[0, 0] + 4.0, -14.0, 24.0
    mask = torch.arange(L)[None] < torch.tensor(LENGTHS)[:, None]
    return logprobs, old, ref, torch.tensor(ADVANTAGES, dtype=torch.float64), mask


def by_trl(settings):
    """Loss and gradient of GRPOTrainer's own method, its model replaced by given log-probs."""
    from trl import GRPOTrainer

    logprobs, old, ref, advantages, mask = inputs(extremes=False)
    leaf = logprobs.clone().requires_grad_()
    settings = {
        "epsilon_low": 0.2, "epsilon_high": 0.2, "importance_sampling_level": "token", "beta": 0.0,
        "delta": None, "use_bias_correction_kl": False,
    } | settings  # fmt: skip
    trainer = SimpleNamespace(
        **settings,
        args=SimpleNamespace(steps_per_generation=1, **settings),
        _get_per_token_logps_and_entropies=lambda *_, **__: (leaf, torch.zeros_like(leaf), None),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        use_vllm=False, vllm_importance_sampling_correction=False,
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1,
        max_completion_length=L, _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, **_: x, sync_gradients=True
        ),
    )  # fmt: skip
    ids = torch.zeros(B, L, dtype=torch.int64)
    loss = GRPOTrainer._compute_loss(
        trainer, None,
        {
            "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids,
            "completion_mask": mask.double(), "advantages": advantages,
            "old_per_token_logps": old, "ref_per_token_logps": ref,
            "num_items_in_batch": mask.sum(),
        },
    )  # fmt: skip
    loss.backward()
    return loss, leaf.grad, B


def by_verl(kind, aggregation, settings):
    """Loss and gradient of verl's registered functions, put together as its actor does."""
    from verl.trainer.ppo.core_algos import agg_loss, get_policy_loss_fn, kl_penalty
    from verl.workers.config import ActorConfig

    logprobs, old, ref, advantages, mask = inputs(extremes=True)
    leaf = logprobs.clone().requires_grad_()
    config = ActorConfig(
        strategy="fsdp", rollout_n=1, use_dynamic_bsz=True, loss_agg_mode=aggregation, **settings
    )
    advantages_BL = advantages[:, None].expand(B, L)
    loss, _ = get_policy_loss_fn(kind)(
        old_log_prob=old, log_prob=leaf, advantages=advantages_BL, response_mask=mask,
        loss_agg_mode=aggregation, config=config,
    )  # fmt: skip
    if config.use_kl_loss:
        kl = kl_penalty(leaf, ref, config.kl_loss_type)
        loss = loss + config.kl_loss_coef * agg_loss(kl, mask, aggregation)
    loss.backward()
    return loss, leaf.grad, sum(length > 0 for length in LENGTHS)


def main():
    record = {
        "versions": {name: importlib.metadata.version(name) for name in ("trl", "verl")},
        "inputs": {},
        "losses": {},
    }
    for name, extremes in (("trl", False), ("verl", True)):
        values = inputs(extremes=extremes)
        names = ("logprobs", "old", "ref", "advantages", "mask")
        record["inputs"][name] = {n: v.tolist() for n, v in zip(names, values, strict=True)}
    found = {name: by_trl(settings) for name, settings in TRL.items()}
    found |= {name: by_verl(*arguments) for name, arguments in VERL.items()}
    for name, (loss, gradient, sequences) in found.items():
        record["losses"][name] = {
            "loss": loss.item(), "gradient": gradient.tolist(), "sequences": sequences,
        }  # fmt: skip
    path = Path(__file__).with_name("losses.json")
    lines = [f'"versions": {json.dumps(record["versions"])}']
    for part in ("inputs", "losses"):
        entries = ",\n  ".join(f'"{k}": {json.dumps(v)}' for k, v in record[part].items())
        lines.append(f'"{part}": {{\n  {entries}\n }}')
    path.write_text("{\n " + ",\n ".join(lines) + "\n}\n")
    print(f"{path}: {len(found)} losses")


if __name__ == "__main__":
    main()
