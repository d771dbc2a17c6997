"""One process's share of a step's responses: packed, scored, and as many batches as the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fastrl.balance import share_out
from fastrl.batch import Sequences, pack, pays
from fastrl.scoring import BatchScores, Scores, score, score_responses
from fastrl.types import Batch, Completion

if TYPE_CHECKING:
    from fastrl.step import Learner


def pack_share(
    learner: Learner,
    sequences: Sequences,
    groups: Mapping[int, int],
    *,
    share_prompts: bool = False,
) -> list[Batch]:
    """This process's share of sequences (as for `batch.pack`), packed."""
    names = list(sequences)
    sizes = Counter(groups[i] for i in names)
    rows = [
        len(response) + (len(prompt) - 1) // (sizes[groups[i]] if share_prompts else 1)
        for i, (prompt, response) in sequences.items()
    ]
    owners = share_out(np.array(rows), np.array([groups[i] for i in names]), learner.world.size)
    mine = [i for i, owner in zip(names, owners, strict=True) if owner == learner.world.rank]
    return pack(
        {i: sequences[i] for i in mine},
        {i: groups[i] for i in mine},
        max_tokens=learner.max_tokens_per_batch,
        share_prompts=share_prompts,
        device=next(learner.policy.parameters()).device,
    )


def shares_prompts(asked: str, sequences: Sequences, groups: Mapping[int, int]) -> bool:
    """Whether the sequences of a group share its prompt; `asked`: "on", "off" or "auto"."""
    return pays(sequences, groups) if asked == "auto" else asked == "on"


def score_share(
    learner: Learner,
    batches: Sequence[Batch],
    completions: Sequence[Completion],
    with_policy: bool = True,
    early: Sequence[tuple[Batch, BatchScores]] = (),
) -> Scores:
    """The scores of every process's batches; rows of this one's.

    `early`: batches that were scored already.
    """
    policy = learner.policy if with_policy else None
    temperature = learner.objective.temperature
    idle = [] if learner.keep_gathered else idle_batches(learner, batches)
    with learner.resting.awake() if learner.resting else nullcontext():
        scores = score_responses(
            policy, learner.reference, batches, completions, temperature, early
        )
        for batch in idle:
            score(learner.reference, batch, temperature)
            if policy is not None:
                score(policy, batch, temperature)
    return gather_scores(learner, scores)


def gather_scores(learner: Learner, scores: Scores) -> Scores:
    """The sums of every process's responses. Every process."""
    if learner.world.size == 1:
        return scores
    both = np.stack([scores.ref_logprob_R, scores.policy_logprob_R])
    for part in learner.world.gather_arrays(both):
        both = np.where(np.isnan(both), part, both)
    return replace(scores, ref_logprob_R=both[0], policy_logprob_R=both[1])


def idle_batches(learner: Learner, batches: Sequence[Batch]) -> list[Batch]:
    """What a process computes, for nothing, after `batches` while others have more of them.

    A forward or backward pass of a sharded model is a call to every process, and so is this: to be
    asked before the first of `batches`.
    """
    count = learner.world.most(len(batches)) - len(batches)
    if count == 0:
        return []
    device = next(learner.policy.parameters()).device
    return pack({0: ([0], [0])}, {0: 0}, max_tokens=1, device=device) * count
