"""One step on a batch of groups: roles, scores, rewards, advantages, loss, update.

Legend: P: prompts of a step, G: responses a prompt, R: all P x G responses, M: response rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from fastrl import ops
from fastrl.advantages import ESTIMATORS
from fastrl.distributed import ALONE, World
from fastrl.early import EarlyScorer, EarlyScores
from fastrl.errors import Failure
from fastrl.losses import LossSpec, loss_denominator
from fastrl.objectives import Objective
from fastrl.offload import Resting
from fastrl.optim import Optimizer
from fastrl.out_of_memory import halving, is_out_of_memory, longest_rows, within_budget
from fastrl.rollouts import has_signal
from fastrl.scoring import BatchScores, Scores, add_policy, response_rows
from fastrl.sharding import gather, reduce_gradients, scatter
from fastrl.shares import gather_scores, idle_batches, pack_share, score_share, shares_prompts
from fastrl.types import Batch, Policy, Scored

if TYPE_CHECKING:
    pass

Seen = list[tuple[torch.Tensor, torch.Tensor]]  # log-probs and entropies of each batch
Descent = tuple[list[Batch], list[BatchScores], tuple[float, float, Seen, int]]

TRAINED, MASKED, FILTERED, FAILED = "trained", "masked", "filtered", "failed"


@dataclass(frozen=True)
class Learner:
    """What a step reads and changes."""

    policy: Policy
    reference: Policy  # frozen
    objective: Objective
    spec: LossSpec
    advantage: str  # a name in advantages.ESTIMATORS
    optimizer: Optimizer
    max_tokens_per_batch: int  # packed rows of a micro-batch
    max_response_tokens: int  # the constant of seq-mean-token-sum-norm
    drop_groups_without_signal: bool = False
    max_groups: int | None = None  # with signal, in a step, where those without are dropped
    mask_truncated: bool = False  # keep responses that hit the limit out of the loss
    minibatches: int = 1  # optimiser steps a pass: the groups of a step in as many parts
    epochs: int = 1  # passes over the groups of a step
    share_prompts: str = "auto"  # "auto", "on" or "off"
    world: World = ALONE  # that shares out a step's responses
    resting: Resting | None = None  # the reference, where it lies in host memory between its uses
    keep_gathered: bool = True  # of a sharded policy, between sampling and the optimiser's step
    score_while_sampling: bool = False  # groups that are whole; of one process

    @property
    def policy_scored_by_loss(self) -> bool:
        """Whether the policy needs no scoring pass: the loss computes the log-probs of every row,
        and nothing before it depends on them.
        """
        once = self.epochs * self.minibatches == 1 and self.spec.on_policy
        return once and not self.mask_truncated and not self.objective.uses_likelihood

    def part_of(self, group: int, num_groups: int) -> int:
        """Which optimiser step of a pass trains on a group, numbered among those that it has."""
        return group * self.minibatches // num_groups


@dataclass(frozen=True)
class StepResult:
    """What a step computed: the same on every process, but for the rows of `scores`."""

    roles_R: list[str]  # the ledger: "trained", "masked", "filtered" or "failed"
    scores: Scores  # its batches are this process's
    reward_R: np.ndarray  # nan where failed
    advantage_R: np.ndarray
    loss: float  # mean over the optimiser's steps
    clipped_tokens: float  # of a pass, mean over passes
    tokens_in_loss: float  # the same, counted where the loss is computed
    rows: int  # packed rows of a pass
    rows_saved: int  # prompt rows that the responses of a group shared
    grad_norm: float  # before clipping; the largest of several, or one that is not finite
    lr: float
    max_tokens_per_batch: int  # less than asked for where memory ran out
    seconds_reference: float
    seconds_train: float
    seconds_optimizer: float  # of seconds_train


class Hooks:
    """What a step tells while it is under way; what is raised here ends it."""

    def phase(self, name: str) -> None:
        """A phase begins."""

    def say(self, text: str) -> None:
        """A line for the user."""

    def before_update(
        self, scores: Scores, roles_R: Sequence[str], reward_R: np.ndarray, loss: float
    ) -> bool:
        """Whether to take an optimiser step, for which the gradient is there."""
        return True

    def after_update(self, grad_norm: float) -> None:
        """An optimiser step was taken, unless the norm of its gradient is not finite."""


def train_step(
    learner: Learner,
    groups: Sequence[Sequence[Scored]],
    step: int,
    scorer: EarlyScorer | None = None,
    hooks: Hooks = Hooks(),  # noqa: B008  (it has no state)
) -> StepResult:
    """Train on P groups of G scored responses; `step` counts from 0.

    One optimiser step, or `epochs` times `minibatches` of them with ratios to the policy before.
    `scorer`: what packed and scored some of the responses while they were sampled.
    Every process of a world calls it with all groups, and computes its share of them.
    Raises Failure where memory does not suffice for micro-batches of one response.
    """
    started = time.perf_counter()
    if learner.keep_gathered:
        gather(learner.policy)
    responses = [s for group in groups for s in group]
    roles_R = assign_roles(learner, groups)
    late, asked = learner.policy_scored_by_loss, learner

    def score(learner: Learner) -> tuple[list[list[Batch]], Scores]:
        early = scorer.finish() if scorer and learner is asked else ()
        parts = pack_responses(learner, responses, roles_R, len(groups[0]), early)
        batches = [batch for part in parts for batch in part]
        completions = [s.completion for s in responses]
        return parts, score_share(learner, batches, completions, not late, early)

    longest = longest_rows((s.prompt.token_ids, s.completion.token_ids) for s in responses)
    hooks.phase("reference")
    learner, (parts, scores) = halving(learner, longest, score, hooks.say)
    scored_at = time.perf_counter()
    hooks.phase("train")
    reward_R = reward(learner, responses, scores)
    advantage_R = advantage(learner, reward_R, roles_R, len(groups))
    rows_of = iter(scores.batches)
    scored = [[next(rows_of) for _ in part] for part in parts]
    losses, clipped, norms, optimizing, tokens = [], 0.0, [], 0.0, 0
    for part in [*range(len(parts))] * learner.epochs:
        if learner.keep_gathered:
            gather(learner.policy)

        def descend(learner: Learner, part: int = part) -> Descent:
            learner.optimizer.zero_grad()  # what was left when memory ran out
            batches, rows = within_budget(learner, responses, parts[part], scored[part])
            return batches, rows, backward(learner, batches, rows, advantage_R, roles_R)

        learner, found = halving(learner, longest, descend, hooks.say)
        parts[part], scored[part], (loss, count, seen, in_loss) = found
        tokens += in_loss
        scores = replace(scores, batches=[rows for part in scored for rows in part])
        if late:
            scores = gather_scores(learner, add_policy(scores, seen))
        begin = time.perf_counter()
        if hooks.before_update(scores, roles_R, reward_R, loss):
            norms.append(updated(learner, step))
            optimizing += time.perf_counter() - begin
            hooks.after_update(norms[-1])
        else:
            learner.optimizer.zero_grad()
            norms.append(math.nan)
        scatter(learner.policy)
        losses.append(loss)
        clipped += count
    ended = time.perf_counter()
    batches = [batch for part in parts for batch in part]
    packed = sum(len(b.token_ids_N) for b in batches)
    unshared = sum(b.unshared_rows for b in batches)
    packed, saved = map(int, learner.world.sum(packed, unshared - packed))
    return StepResult(
        roles_R=roles_R,
        scores=scores,
        reward_R=reward_R,
        advantage_R=advantage_R,
        loss=float(np.mean(losses)),
        clipped_tokens=clipped / learner.epochs,
        tokens_in_loss=tokens / learner.epochs,
        rows=packed,
        rows_saved=saved,
        grad_norm=max(norms, key=lambda norm: math.inf if math.isnan(norm) else norm),
        lr=learner.optimizer.lr_at(step),
        max_tokens_per_batch=learner.max_tokens_per_batch,
        seconds_reference=scored_at - started,
        seconds_train=ended - scored_at,
        seconds_optimizer=optimizing,
    )


def updated(learner: Learner, step: int) -> float:
    """Take the optimiser's step; the norm of the gradient before clipping.

    Raises Failure where its state finds no memory: half of a step cannot be taken again.
    """
    try:
        return learner.optimizer.step(step)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise Failure(
            "out of memory in the optimiser's step; set optim.state to 'host', or model.dtype to"
            " 'bfloat16', and resume"
        ) from None


def assign_roles(learner: Learner, groups: Sequence[Sequence[Scored]]) -> list[str]:
    """What becomes of each response.

    trained; masked: cut at the limit, where that is asked for; filtered: of a group without
    signal, or beyond `max_groups` with signal; failed.
    """
    roles: list[str] = []
    kept = 0
    for group in groups:
        dropped = not has_signal(group) or kept == learner.max_groups
        role = FILTERED if learner.drop_groups_without_signal and dropped else TRAINED
        kept += role == TRAINED
        for s in group:
            unread = learner.objective.uses_task_reward and s.task_reward is None
            cut = learner.mask_truncated and s.completion.finish_reason == "length"
            rest = MASKED if cut and role == TRAINED else role
            roles.append(rest if s.completion.is_complete and not unread else FAILED)
    return roles


def pack_responses(
    learner: Learner,
    responses: Sequence[Scored],
    roles_R: Sequence[str],
    group_size: int,
    early: EarlyScores = (),
) -> list[list[Batch]]:
    """This process's share of what is trained or masked, packed, a list an optimiser step.

    `Batch.sequences` are indices into `responses`. Batches of `early` stay as they are, but for
    those with a response that failed since.
    """
    kept = [i for i, role in enumerate(roles_R) if role in (TRAINED, MASKED)]
    groups = {i: i // group_size for i in kept}
    order = list(dict.fromkeys(groups.values()))
    part_of = {group: learner.part_of(n, len(order)) for n, group in enumerate(order)}
    whole = [b for b, _ in early if all(i in groups for i in b.sequences)]
    packed = {i for b in whole for i in b.sequences}
    parts = []
    for part in range(learner.minibatches):
        sequences = {
            i: (responses[i].prompt.token_ids, responses[i].completion.token_ids)
            for i in kept
            if i not in packed and part_of[groups[i]] == part
        }
        share_prompts = shares_prompts(learner.share_prompts, sequences, groups)
        rest = pack_share(learner, sequences, groups, share_prompts=share_prompts)
        parts.append([*(b for b in whole if part_of[b.groups[0]] == part), *rest])
    return parts


def reward(learner: Learner, responses: Sequence[Scored], scores: Scores) -> np.ndarray:
    """The objective's reward R of each response, fp64; nan where it was not scored."""
    task = [np.nan if s.task_reward is None else s.task_reward for s in responses]
    lengths = [len(s.completion.token_ids) for s in responses]
    return learner.objective.reward(
        torch.from_numpy(scores.ref_logprob_R),
        torch.from_numpy(scores.policy_logprob_R),
        torch.tensor(task, dtype=torch.float64),
        torch.tensor(lengths, dtype=torch.float64),
    ).numpy()


def advantage(
    learner: Learner, reward_R: np.ndarray, roles_R: Sequence[str], num_groups: int
) -> np.ndarray:
    """The advantage of each response, fp64; masked ones take part, others get 0."""
    valid_PG = torch.tensor([role in (TRAINED, MASKED) for role in roles_R]).view(num_groups, -1)
    reward_PG = torch.from_numpy(reward_R).view(num_groups, -1)
    return ESTIMATORS[learner.advantage](reward_PG, valid_PG).flatten().numpy()


def backward(
    learner: Learner,
    batches: Sequence[Batch],
    scored: Sequence[BatchScores],
    advantage_R: np.ndarray,
    roles_R: Sequence[str],
) -> tuple[float, float, Seen, int]:
    """Accumulate the gradient of the loss; returns the loss and the number of clipped tokens,
    the log-probs and entropies of each batch, which are 0 where a row is not trained, and the
    number of tokens in the loss.

    The numbers are of all processes, as is the gradient, a sum over them, of a sharded policy.
    """
    trained_R = np.array([role == TRAINED for role in roles_R])
    lengths = [rows.lengths[trained_R[rows.responses]] for rows in scored]
    num_tokens, num_sequences = learner.world.sum(
        int(sum(part.sum() for part in lengths)), sum(len(part) for part in lengths)
    )
    denominator = loss_denominator(
        learner.spec,
        num_tokens=int(num_tokens),
        num_sequences=int(num_sequences),
        max_tokens=learner.max_response_tokens,
    )
    loss, clipped, seen = 0.0, 0.0, []
    idle = idle_batches(learner, batches)
    left = len(batches) + len(idle)
    for batch, rows in zip(batches, scored, strict=True):
        left -= 1
        reduce_gradients(learner.policy, left == 0 or not learner.keep_gathered)
        hidden_MD, targets_M = response_rows(learner.policy, batch)
        out = ops.linear_policy_loss(
            hidden_MD,
            learner.policy.head_weight,
            targets_M,
            rows.repeat(advantage_R),
            old_logprobs=rows.logprobs_M,
            ref_logprobs=rows.ref_logprobs_M,
            sampler_logprobs=rows.sampler_logprobs_M,
            mask=rows.repeat(trained_R),
            cu_seqlens=rows.cu_seqlens,
            temperature=learner.objective.temperature,
            valid_vocab=learner.policy.valid_vocab,
            grad_scale=1.0 / denominator,
            spec=learner.spec,
        )
        out.loss_sum.backward()
        loss += float(out.loss_sum.detach())
        seen.append((out.logprobs, out.entropy))
        clipped += float(out.stats.get("clipped", 0.0))
    for batch in idle:
        left -= 1
        reduce_gradients(learner.policy, left == 0 or not learner.keep_gathered)
        hidden_MD, _ = response_rows(learner.policy, batch)
        # no rows, but a gradient for every parameter: what none has is not reduced
        (hidden_MD[:0].sum() + learner.policy.head_weight[:0].sum()).backward()
    loss, clipped = learner.world.sum(loss, clipped)
    return loss, clipped, seen, int(num_tokens)
