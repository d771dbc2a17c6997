"""A call of the sampler: its state, and what its caller is told."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from fastrl.sampler.runner import Runner
from fastrl.sampler.scheduler import Scheduler
from fastrl.sampler.sequence import Group, Sequence
from fastrl.types import Completion


@dataclass(frozen=True)
class Event:
    """A response that is finished."""

    prompt: int  # index in the call
    response: int  # index in its group
    completion: Completion


@dataclass(frozen=True)
class Progress:
    """How far a call is after a forward."""

    new_tokens: tuple[tuple[int, int, int], ...]  # (prompt, response, token id) of this forward
    finished: int  # responses so far
    responses: int  # of the whole call
    generated_tokens: int  # so far
    seconds: float  # so far

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens a second so far."""
        return self.generated_tokens / self.seconds


@dataclass
class SamplerStats:
    """What the last call did."""

    # prompt tokens + generated tokens less one a response + recomputed + discarded ones
    rows_computed: int = 0
    recomputed_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    forwards: int = 0
    discarded_rows: int = 0  # begun on a GPU before it was known that nobody asks for them
    seconds_capture: float = 0.0  # of CUDA graphs
    seconds: float = 0.0


@dataclass(eq=False)
class Call:
    """The state of a call; what the last forward brought is in `sampled` and `events`."""

    groups: list[Group]
    scheduler: Scheduler
    runner: Runner
    key: tuple[int, int]
    step: int
    started: float
    stats: SamplerStats
    sampled: list[Sequence] = field(default_factory=list)  # have a token more
    events: list[Event] = field(default_factory=list)
    finished: int = 0  # responses

    def progress(self) -> Progress:
        """What `on_progress` is told."""
        return Progress(
            tuple((s.group.index, s.response, s.token_ids[-1]) for s in self.sampled),
            self.finished,
            sum(g.params.n for g in self.groups),
            self.stats.generated_tokens,
            time.perf_counter() - self.started,
        )
