"""The gradient of given batches by as many processes as torchrun starts: `... OUT.safetensors`.

Cases differ in what must not matter: order, budget, how parameters lie. "few" has fewer responses
than there are processes.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import torch
from random_groups import random_groups
from safetensors.torch import load_file, save_file

from fastrl.config import Config, OptimConfig
from fastrl.distributed import ALONE, World, joined
from fastrl.model import load_model
from fastrl.objectives import check_contradictions
from fastrl.optim import Optimizer
from fastrl.run import loss_spec
from fastrl.sharding import assemble, gathered, piece, scatter, shard
from fastrl.shares import score_share
from fastrl.step import TRAINED, Learner, advantage, assign_roles, backward, pack_responses, reward

CASES = {
    "one micro-batch": {"budget": 8192},
    "many micro-batches": {"budget": 60},
    "another order": {"budget": 200, "order": 1},
    "shared prompts": {"budget": 200, "share": "on"},
    "a layer at a time": {"budget": 120, "keep": False},
    "computed again": {"budget": 120, "again": True},
    "a layer at a time, computed again": {"budget": 200, "keep": False, "again": True},
    "few": {"few": True, "budget": 1},
    "few, a layer at a time": {"few": True, "budget": 1, "keep": False},
}


def gradients(world: World) -> dict[str, torch.Tensor]:
    """Of every case and parameter, whole, with rewards, and the norm after a step."""
    found: dict[str, torch.Tensor] = {}
    for keep in (True, False):
        config = Config()
        policy, reference = load_model("embedded"), load_model("embedded").requires_grad_(False)
        torch.manual_seed(1)
        with torch.no_grad():
            for p in policy.parameters():
                p.add_(0.01 * torch.randn_like(p))
        if world.size > 1:
            for model in (policy,) if keep else (policy, reference):
                shard(model, keep_gathered=keep)
        spec, estimator = loss_spec(config)
        objective = check_contradictions(config)
        optimizer = Optimizer(policy, config.optim, 10, world)
        for name, case in CASES.items():
            if case.get("keep", True) != keep:
                continue
            learner = Learner(
                policy, reference, objective, spec, estimator, optimizer, case["budget"], 64,
                share_prompts=case.get("share", "off"), world=world, keep_gathered=keep,
            )  # fmt: skip
            policy.checkpoint_activations = case.get("again", False)
            few = case.get("few", False)
            groups = random_groups(policy, prompts=1 if few else 6, size=2 if few else 4)
            if not few:
                failed = groups[2][1]
                end = replace(failed.completion, finish_reason="error")
                groups[2][1] = replace(failed, completion=end)
            if case.get("order"):
                groups = groups[::-1]
            responses = [s for group in groups for s in group]
            roles = assign_roles(learner, groups)
            with gathered(policy, keep=keep):
                whole = [p.data_ptr() for p in policy.parameters()]
                assert all(type(p) is torch.nn.Parameter for p in policy.parameters())
            (batches,) = pack_responses(learner, responses, roles, len(groups[0]))
            scores = score_share(learner, batches, [s.completion for s in responses])
            rewards = reward(learner, responses, scores)
            weights = advantage(learner, rewards, roles, len(groups))
            if keep:  # what trains is what sampled
                assert whole == [p.data_ptr() for p in policy.parameters()]
            loss, *_ = backward(learner, batches, scores.batches, weights, roles)
            for key, p in zip(optimizer.names, optimizer.params, strict=True):
                assert p.grad is not None
                found[f"{name}/{key}"] = assemble(piece(p.grad).clone(), p)
            rows = [np.flatnonzero(np.array(roles) == TRAINED).size, loss, *np.nan_to_num(rewards)]
            found[f"{name}/values"] = torch.tensor(rows, dtype=torch.float64)
            norm = optimizer._norm([piece(p.grad) for p in optimizer.params])
            found[f"{name}/norm"] = torch.tensor([norm], dtype=torch.float64)
            optimizer.zero_grad()
            scatter(policy)
    return found


def check_masters(world: World, path: str) -> None:
    """The state of narrow parameters, put together and taken apart again."""
    policy = load_model("embedded", dtype=torch.bfloat16)
    shard(policy, keep_gathered=True)
    states = []
    for _ in range(2):
        optimizer = Optimizer(policy, OptimConfig(schedule="constant"), world=world)
        if states:
            optimizer.load_state_tensors(load_file(path))
        else:
            for p in optimizer.params:
                p.grad = torch.full_like(p, 0.25)
            optimizer.step(0)
        states.append(optimizer.state_tensors())
        if world.is_first:
            save_file(states[-1], path)
        world.gather(None)
    if world.is_first:
        assert any(name.startswith("master.") for name in states[0])
        assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined() as world:
        assert world != ALONE
        check_masters(world, sys.argv[1])
        found = gradients(world)
        if world.is_first:
            save_file(found, sys.argv[1])
