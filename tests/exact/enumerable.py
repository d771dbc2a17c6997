"""A random decoder small enough that the probability of every response is known, in training.

Token ids: 0 ends a response, 1 to 8 are symbols, 9 and 10 are prompts, which no response can hold.
A response is 0 to 5 symbols and the end token, or is cut at 6 symbols: a truncated response is a
leaf. So 37,449 prefixes have a next token, and R, all responses, are 37,449 + 262,144.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np
import torch

from fastrl.config import Config, ObjectiveConfig, OptimConfig
from fastrl.model import Decoder, DecoderConfig, PackedAttention
from fastrl.objectives import check_contradictions
from fastrl.optim import Optimizer
from fastrl.run import loss_spec
from fastrl.sampler import PromptKey, Sampler, SamplingParams
from fastrl.step import Learner, train_step
from fastrl.types import Completion, Prompt, Scored

END, SYMBOLS, MAX_TOKENS, PROMPTS = 0, 8, 6, (9, 10)
PREFIXES = sum(SYMBOLS**depth for depth in range(MAX_TOKENS))
OPTIM = OptimConfig(lr=0.005, betas=(0.9, 0.95), weight_decay=0.0)
SHAPE = DecoderConfig(
    family="llama",
    vocab_size=SYMBOLS + 1 + len(PROMPTS),
    hidden_size=32,
    intermediate_size=64,
    num_layers=1,
    num_heads=4,
    num_kv_heads=4,
    head_dim=8,
    max_position=MAX_TOKENS + 1,
)


def random_decoder(seed: int) -> Decoder:
    """Drawn so that the last token says most about the next one, and those before it some.

    That is for speed: with 0.3 as the standard deviation of every matrix the same training from
    seed 1 ends at total variations of 0.080 (alpha 0.5) and 0.033 (1.25) instead of 0.006.
    """
    model = Decoder(SHAPE).init_weights(seed, std=0.07)
    with torch.no_grad():
        model.embed.mul_(7)
        model.head_weight.mul_(2)
    model.valid_vocab = SYMBOLS + 1
    return model


@torch.no_grad()
def log_distribution(model: Decoder, prompt: int) -> torch.Tensor:
    """The log-probability of every response to a prompt of one token, fp64 [R].

    Ordered by number of symbols, then by the symbols; the truncated responses come last.
    """
    count = SYMBOLS ** (MAX_TOKENS - 1)
    places = SYMBOLS ** torch.arange(MAX_TOKENS - 2, -1, -1)
    symbols = torch.arange(count)[:, None] // places % SYMBOLS + 1
    tokens = torch.cat([torch.full((count, 1), prompt), symbols], 1)
    parts = []
    for chunk in tokens.split(4096):
        offsets = torch.arange(len(chunk) + 1, dtype=torch.int32) * MAX_TOKENS
        positions = torch.arange(MAX_TOKENS).repeat(len(chunk))
        hidden = model(chunk.flatten(), positions, PackedAttention(offsets, MAX_TOKENS))
        logits = model.logits(hidden)[:, : model.valid_vocab].double()
        parts.append(logits.log_softmax(-1).view(len(chunk), MAX_TOKENS, -1))
    next_token = torch.cat(parts)
    ended, prefix = [], torch.zeros(1, dtype=torch.float64)
    for depth in range(MAX_TOKENS):
        logprobs = next_token[:: SYMBOLS ** (MAX_TOKENS - 1 - depth), depth]
        ended.append(prefix + logprobs[:, END])
        prefix = (prefix[:, None] + logprobs[:, END + 1 :]).flatten()
    return torch.cat([*ended, prefix])


@functools.cache
def all_responses() -> list[tuple[int, ...]]:
    """The token ids of every response, in the order of `log_distribution`."""
    ended: list[tuple[int, ...]] = []
    prefixes: list[tuple[int, ...]] = [()]
    for _ in range(MAX_TOKENS):
        ended += [(*prefix, END) for prefix in prefixes]
        prefixes = [(*prefix, s) for prefix in prefixes for s in range(1, SYMBOLS + 1)]
    return ended + prefixes


def ends_well(response: tuple[int, ...]) -> float:
    """1 for a response that ends after a symbol of the first half."""
    return float(response[-1] == END and len(response) > 1 and response[-2] <= SYMBOLS // 2)


def contains(response: tuple[int, ...]) -> float:
    """1 for a response with symbol 3, wherever it stands."""
    return float(3 in response)


TASKS = {"ends_well": ends_well, "contains": contains}


@functools.cache
def all_task_rewards(task: str) -> torch.Tensor:
    """r of every response, fp64 [R]."""
    return torch.tensor([TASKS[task](y) for y in all_responses()], dtype=torch.float64)


def total_variation(log_p: torch.Tensor, log_q: torch.Tensor) -> float:
    """Half the L1 distance."""
    return 0.5 * float((log_p.exp() - log_q.exp()).abs().sum())


def bigrams(log_p: torch.Tensor) -> torch.Tensor:
    """The q of least KL(p || q) whose next token depends on its position and the last token."""
    *ended, mass = log_p.exp().split([SYMBOLS**depth for depth in [*range(MAX_TOKENS), MAX_TOKENS]])
    next_token: list[torch.Tensor] = []
    for stop in reversed(ended):
        next_token.insert(0, torch.cat([stop[:, None], mass.view(-1, SYMBOLS)], 1))
        mass = next_token[0].sum(1)
    parts, prefix = [], torch.ones(1, dtype=torch.float64)
    for depth, table in enumerate(next_token):
        rows = table.view(-1, SYMBOLS if depth else 1, SYMBOLS + 1).sum(0)
        rows = (rows / rows.sum(1, keepdim=True)).repeat(len(prefix) // len(rows), 1)
        parts.append(prefix * rows[:, END])
        prefix = (prefix[:, None] * rows[:, END + 1 :]).flatten()
    return torch.cat([*parts, prefix]).log()


@dataclass
class Training:
    """A decoder on its way to an objective, by the command line's defaults but for OPTIM."""

    objective: ObjectiveConfig
    seed: int
    steps: int = 1
    task: str = "ends_well"
    prompts: tuple[int, ...] = PROMPTS[:1]
    group_size: int = 256
    rewards: list[np.ndarray] = field(default_factory=list)  # [prompts, group] of each step

    def __post_init__(self) -> None:
        config = Config(objective=self.objective, optim=OPTIM)
        spec, advantage = loss_spec(config)
        self.policy = random_decoder(self.seed)
        self.learner = Learner(
            policy=self.policy,
            reference=random_decoder(self.seed).requires_grad_(False),
            objective=check_contradictions(config),
            spec=spec,
            advantage=advantage,
            optimizer=Optimizer(self.policy, OPTIM, self.steps),
            max_tokens_per_batch=1024,
            max_response_tokens=MAX_TOKENS,
        )
        # blocks of 4: a response crosses from the prompt's block into one of its own
        self.sampler = Sampler(self.policy, eos_token_ids=[END], block_size=4)

    def sample(self, step: int) -> list[list[Completion]]:
        """A group of responses to each prompt."""
        return self.sampler.generate(
            [[p] for p in self.prompts],
            SamplingParams(n=self.group_size, max_tokens=MAX_TOKENS, seed=self.seed),
            prompt_keys=[PromptKey(p) for p in self.prompts],
            step=step,
        )

    def run(self) -> None:
        """All steps, each on fresh responses."""
        for step in range(self.steps):
            groups = [
                [self._scored(prompt, completion) for completion in group]
                for prompt, group in zip(self.prompts, self.sample(step), strict=True)
            ]
            result = train_step(self.learner, groups, step)
            self.rewards.append(result.reward_R.reshape(len(groups), -1))

    def _scored(self, prompt: int, completion: Completion) -> Scored:
        r = TASKS[self.task](completion.token_ids)
        return Scored(Prompt(prompt, 0, (), (prompt,), ""), completion, "", None, r)

    def target(self, prompt: int) -> tuple[torch.Tensor, float]:
        """The stated optimum p^alpha exp(r / beta) / Z as logs, [R], and log Z."""
        objective = self.learner.objective
        weight = (objective.alpha or 1.0) * log_distribution(self.learner.reference, prompt)
        if objective.beta:
            weight = weight + all_task_rewards(self.task) / objective.beta
        log_z = weight.logsumexp(0)
        return weight - log_z, float(log_z)

    def distances(self, model: Decoder) -> list[float]:
        """The total variation of `model` to the optimum, for each prompt."""
        return [
            total_variation(log_distribution(model, p), self.target(p)[0]) for p in self.prompts
        ]
