"""Work that ran out of memory, again in smaller pieces; never that of several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch

from fastrl.batch import pack
from fastrl.distributed import World
from fastrl.errors import Failure
from fastrl.sampler import Sampler
from fastrl.scoring import BatchScores
from fastrl.types import Batch, Scored

if TYPE_CHECKING:
    from fastrl.step import Learner

T = TypeVar("T")


SAID = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory, or the machine's, did not suffice."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in SAID)
    )


def longest_rows(pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> int:
    """Rows of a micro-batch of one response, at most, of prompts and responses."""
    return max(len(prompt) + len(response) - 1 for prompt, response in pairs)


def halving(
    learner: Learner,
    longest: int,
    work: Callable[[Learner], T],
    say: Callable[[str], None],
) -> tuple[Learner, T]:
    """The result of `work`, and the learner that it had enough memory with.

    Raises Failure where micro-batches of one response, of up to `longest` rows, are too large.
    """
    while True:
        try:
            return learner, work(learner)
        except (RuntimeError, MemoryError) as error:
            # the others are in a collective call that this process will not make
            if not is_out_of_memory(error) or learner.world.size > 1:
                raise
        # outside of the handler: the error holds the frames, and they what filled the memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        budget = learner.max_tokens_per_batch
        if budget <= longest:
            raise Failure(
                f"out of memory with micro-batches of one response, of up to {longest:,} rows;"
                " lower sampling.max_tokens, or set train.checkpoint_activations to 'on'"
            )
        learner = replace(learner, max_tokens_per_batch=max(longest, budget // 2))
        say(
            f"out of memory with micro-batches of up to {budget:,} rows: again, and from now on,"
            f" with {learner.max_tokens_per_batch:,} (train.max_tokens_per_batch)"
        )


def shrinking(
    sampler: Sampler, world: World, work: Callable[[], T], say: Callable[[str], None]
) -> T:
    """The result of `work`, again with half the sampler's pool as long as memory runs out.

    Raises Failure where the pool cannot be made smaller.
    """
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or world.size > 1:
                raise
        # outside of the handler, as above
        say(f"out of memory while sampling: again, and from now on, with {sampler.shrink()}")


def within_budget(
    learner: Learner,
    responses: Sequence[Scored],
    batches: list[Batch],
    scored: list[BatchScores],
) -> tuple[list[Batch], list[BatchScores]]:
    """Batches and their scores as they are, or packed again where one is over the budget."""
    budget = learner.max_tokens_per_batch
    if all(len(b.token_ids_N) <= budget or len(b.sequences) == 1 for b in batches):
        return batches, scored
    groups = {i: group for b in batches for i, group in zip(b.sequences, b.groups, strict=True)}
    sequences = {
        i: (responses[i].prompt.token_ids, responses[i].completion.token_ids) for i in groups
    }
    share_prompts = any(b.prefixes is not None for b in batches)
    device = batches[0].token_ids_N.device
    packed = pack(sequences, groups, max_tokens=budget, share_prompts=share_prompts, device=device)
    parts = {i: part for rows in scored for i, part in rows.by_response()}
    return packed, [BatchScores.joined([parts[i] for i in b.sequences]) for b in packed]
