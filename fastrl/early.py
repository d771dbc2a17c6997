"""Log-probs of whole groups under reference and policy, made while other responses are sampled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from fastrl.batch import pack, packed_rows
from fastrl.sampler import Event
from fastrl.scoring import BatchScores, score_batch
from fastrl.shares import shares_prompts
from fastrl.types import Batch, Completion, Prompt

if TYPE_CHECKING:
    from fastrl.step import Learner

EarlyScores = Sequence[tuple[Batch, BatchScores]]


class EarlyScorer:
    """A thread that packs and scores the groups of a step as they become whole.

    Batches are handed over with their scores, for the loss to be computed on the same packing. A
    batch ends where the next whole group would not fit; groups are taken in the order in which the
    sampler finishes them, so that how fast the thread is changes nothing. The policy stays as it
    is while it samples; where the loss itself scores it, the reference alone is scored here. On a
    GPU all this is on a stream of its own. To be used as a context, which ends the thread whatever
    happens.
    """

    def __init__(self, learner: Learner, group_size: int) -> None:
        self._learner, self._size = learner, group_size
        self._groups: dict[int, dict[int, Completion]] = defaultdict(dict)  # by prompt, response
        self._completions: dict[int, Completion] = {}  # of the responses of whole groups
        # sequences of the open batch of each optimiser step of a pass
        self._open: list[dict[int, tuple[Sequence[int], Sequence[int]]]]
        self._open = [{} for _ in range(learner.minibatches)]
        self._jobs: list[Future[list[tuple[Batch, BatchScores]]]] = []
        # torch's number of threads is the calling thread's own until it is set in another
        self._pool = ThreadPoolExecutor(
            1, "score", torch.set_num_threads, (torch.get_num_threads(),)
        )
        self._device = next(learner.policy.parameters()).device
        if learner.score_while_sampling and self._device.type == "cuda":
            # the last update, and the last step's use of what lies in this stream's memory
            _stream(self._device).wait_stream(torch.cuda.current_stream(self._device))

    def __enter__(self) -> EarlyScorer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def watch(
        self, prompts: Sequence[Prompt], on_event: Callable[[Event], bool | None]
    ) -> Callable[[Event], bool | None]:
        """`on_event`, which is told of every response to the step's prompts as it finishes, and
        before it this scorer, if the learner asks for it.
        """
        if not self._learner.score_while_sampling:
            return on_event

        def add(event: Event) -> bool | None:
            self._add(prompts, event)
            return on_event(event)

        return add

    def finish(self) -> EarlyScores:
        """Every batch with its scores, once they are there. Raises what the thread raised."""
        for part in range(len(self._open)):
            self._close(part)
        found = [batch for job in self._jobs for batch in job.result()]
        if found and self._device.type == "cuda":
            torch.cuda.current_stream(self._device).wait_stream(_stream(self._device))
        return found

    def _add(self, prompts: Sequence[Prompt], event: Event) -> None:
        group = self._groups[event.prompt]
        if event.response in group:  # sampled again, to the same tokens, after memory ran out
            return
        group[event.response] = event.completion
        if len(group) < self._size:
            return
        whole = {
            event.prompt * self._size + r: c for r, c in sorted(group.items()) if c.is_complete
        }
        self._completions |= whole
        prompt, part = prompts[event.prompt], self._learner.part_of(event.prompt, len(prompts))
        more = {i: (prompt.token_ids, c.token_ids) for i, c in whole.items()}
        both = self._open[part] | more
        rows = packed_rows(both, self._groups_of(both), self._shares(both))
        if rows > self._learner.max_tokens_per_batch:
            self._close(part)
        self._open[part] |= more

    def _close(self, part: int) -> None:
        """Hand the open batch to the thread."""
        sequences, self._open[part] = self._open[part], {}
        if sequences:
            self._jobs.append(self._pool.submit(self._score, sequences))

    def _score(
        self, sequences: Mapping[int, tuple[Sequence[int], Sequence[int]]]
    ) -> list[tuple[Batch, BatchScores]]:
        learner = self._learner
        policy = None if learner.policy_scored_by_loss else learner.policy
        temperature = learner.objective.temperature
        with self._own_stream():
            batches = pack(  # one, unless a group alone is over the budget
                sequences,
                self._groups_of(sequences),
                max_tokens=learner.max_tokens_per_batch,
                share_prompts=self._shares(sequences),
                device=self._device,
            )
            return [
                (b, score_batch(policy, learner.reference, b, self._completions, temperature))
                for b in batches
            ]

    def _groups_of(self, sequences: Mapping[int, object]) -> dict[int, int]:
        return {i: i // self._size for i in sequences}

    def _shares(self, sequences: Mapping[int, tuple[Sequence[int], Sequence[int]]]) -> bool:
        return shares_prompts(self._learner.share_prompts, sequences, self._groups_of(sequences))

    def _own_stream(self) -> AbstractContextManager[object]:
        cuda = self._device.type == "cuda"
        return torch.cuda.stream(_stream(self._device)) if cuda else nullcontext()


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all steps, whose memory is used again."""
    return torch.cuda.Stream(device)
