"""An enumerable policy: a table of logits over a small trie, trained by the very train_step.

Token ids: 0 ends a response, 1..K are symbols, K + 1 is the prompt. A response is a path of the
trie that ends with token 0, or is cut at the length limit: a truncated response is a leaf.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import nn

from fastrl.config import ObjectiveConfig, OptimConfig
from fastrl.losses import LossSpec
from fastrl.objectives import Objective, make_objective
from fastrl.optim import Optimizer
from fastrl.step import Learner, StepResult, train_step
from fastrl.types import Completion, Policy, Prompt, Scored

END = 0
OPTIM = OptimConfig(schedule="constant", lr=0.1, weight_decay=0.0, warmup_steps=0)


class TablePolicy(nn.Module):
    """Next-token logits of every prefix as free parameters; hidden states are the logits."""

    def __init__(self, symbols: int, max_tokens: int, seed: int, spread: float = 1.0) -> None:
        super().__init__()
        self.symbols, self.max_tokens = symbols, max_tokens
        self.valid_vocab = symbols + 1
        nodes = sum(symbols**d for d in range(max_tokens))
        rng = torch.Generator().manual_seed(seed)
        self.logits = nn.Parameter(
            spread * torch.randn(nodes, self.valid_vocab, generator=rng, dtype=torch.float64)
        )
        self.register_buffer("head_weight", torch.eye(self.valid_vocab, dtype=torch.float64))

    def forward(self, token_ids_N, positions_N, attention) -> torch.Tensor:
        node_N = torch.zeros_like(token_ids_N)
        for depth in range(1, self.max_tokens):
            rows = (positions_N == depth).nonzero().squeeze(1)
            node_N[rows] = node_N[rows - 1] * self.symbols + token_ids_N[rows]
        return self.logits[node_N]

    def responses(self) -> list[tuple[int, ...]]:
        """Every response."""
        open_: list[tuple[int, ...]] = [()]
        done: list[tuple[int, ...]] = []
        for _ in range(self.max_tokens):
            done += [(*prefix, END) for prefix in open_]
            open_ = [(*prefix, s) for prefix in open_ for s in range(1, self.symbols + 1)]
        return done + open_

    def distribution(self) -> dict[tuple[int, ...], float]:
        """The probability of every response, by enumeration."""
        logprobs = torch.log_softmax(self.logits.detach(), -1).numpy()
        result = {}
        for response in self.responses():
            node, total = 0, 0.0
            for token in response:
                total += logprobs[node, token]
                node = node * self.symbols + token
            result[response] = float(np.exp(total))
        return result

    def sample(self, rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """One response and its log-probs, token by token."""
        logprobs = torch.log_softmax(self.logits.detach(), -1).numpy()
        node, chosen = 0, []
        tokens: list[int] = []
        while len(tokens) < self.max_tokens and (not tokens or tokens[-1] != END):
            token = int((logprobs[node] + rng.gumbel(size=self.valid_vocab)).argmax())
            tokens.append(token)
            chosen.append(float(logprobs[node, token]))
            node = node * self.symbols + token
        return tuple(tokens), tuple(chosen)


def scored(policy: TablePolicy, tokens, logprobs, task_reward: float) -> Scored:
    """A sampled path as the loop hands it to train_step."""
    prompt = Prompt(0, 0, ({"role": "user", "content": ""},), (policy.symbols + 1,), "")
    reason = "stop" if tokens[-1] == END else "length"
    completion = Completion(tuple(tokens), tuple(logprobs), (0.0,) * len(tokens), reason)
    return Scored(prompt, completion, "", None, task_reward)


@dataclass
class Trainer:
    """The trie, its frozen copy, and the project's own step."""

    policy: TablePolicy
    learner: Learner
    task_reward: dict[tuple[int, ...], float]
    rng: np.random.Generator
    group_size: int

    @classmethod
    def make(
        cls,
        objective: ObjectiveConfig,
        *,
        symbols: int = 3,
        max_tokens: int = 3,
        seed: int = 0,
        group_size: int = 64,
        optim: OptimConfig = OPTIM,
        spec: LossSpec | None = None,
        right: float = 0.3,
    ) -> Trainer:
        policy = TablePolicy(symbols, max_tokens, seed)
        reference = TablePolicy(symbols, max_tokens, seed).requires_grad_(False)
        rng = np.random.default_rng(seed)
        responses = policy.responses()
        task = {
            y: float(v) for y, v in zip(responses, rng.random(len(responses)) < right, strict=True)
        }
        learner = Learner(
            policy=cast(Policy, policy),
            reference=cast(Policy, reference),
            objective=make_objective(objective),
            spec=spec or LossSpec(on_policy=True),
            advantage="rloo",
            optimizer=Optimizer(policy, optim),
            max_tokens_per_batch=1024,
            max_response_tokens=max_tokens,
        )
        return cls(policy, learner, task, rng, group_size)

    @classmethod
    def of(
        cls,
        logits: torch.Tensor,
        task_reward: dict[tuple[int, ...], float],
        max_tokens: int,
        objective: ObjectiveConfig,
        *,
        seed: int = 0,
        group_size: int = 64,
    ) -> Trainer:
        """From given logits, [prefixes, symbols + 1], and task rewards of all responses."""
        symbols = logits.shape[1] - 1
        made = cls.make(
            objective, symbols=symbols, max_tokens=max_tokens, seed=seed, group_size=group_size
        )
        with torch.no_grad():
            for policy in (made.policy, made.reference):
                policy.logits.copy_(logits)
        made.task_reward = task_reward
        return made

    @property
    def objective(self) -> Objective:
        return self.learner.objective

    @property
    def reference(self) -> TablePolicy:
        """The frozen copy."""
        return cast(TablePolicy, self.learner.reference)

    def step(self, index: int, groups: int = 4) -> StepResult:
        sampled = [[self._sample() for _ in range(self.group_size)] for _ in range(groups)]
        return train_step(self.learner, sampled, index)

    def _sample(self) -> Scored:
        tokens, logprobs = self.policy.sample(self.rng)
        return scored(self.policy, tokens, logprobs, self.task_reward[tokens])

    def run(self, stages: tuple[tuple[float, int], ...], groups: int = 4) -> StepResult:
        """Train in stages of (learning rate, steps)."""
        index = 0
        for lr, steps in stages:
            optimizer = self.learner.optimizer
            optimizer.config = replace(optimizer.config, lr=lr)
            for _ in range(steps):
                result = self.step(index, groups)
                index += 1
        return result

    def target(self) -> dict[tuple[int, ...], float]:
        """The stated optimum, from its formula: p^alpha exp(r / beta) / Z."""
        alpha = self.objective.alpha or 1.0
        beta = self.objective.beta
        base = self.reference.distribution()
        weight = {
            y: p**alpha * (np.exp(self.task_reward[y] / beta) if beta else 1.0)
            for y, p in base.items()
        }
        total = sum(weight.values())
        return {y: w / total for y, w in weight.items()}


def total_variation(p: dict, q: dict) -> float:
    """Half the L1 distance."""
    return 0.5 * sum(abs(p[y] - q[y]) for y in p)
