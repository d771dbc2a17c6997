"""Which rows of which sequences the next forward computes."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from operator import attrgetter

from fastrl.sampler.blocks import BlockPool
from fastrl.sampler.sequence import Group, Sequence


@dataclass(frozen=True)
class Chunk:
    """Rows [start, end) of a sequence's prompt and response."""

    sequence: Sequence
    start: int
    end: int

    @property
    def is_next_token(self) -> bool:
        """Whether it is the one row that a response's next token is sampled from."""
        return self.sequence.response >= 0 and self.start + 1 == self.end == self.sequence.total


class Scheduler:
    """Continuous batching over a pool of blocks.

    Sequences in the pool decode one row a step, the oldest first; what is left of the row budget
    goes to prompts and to preempted sequences, in chunks. When blocks run out the youngest sequence
    in the pool is preempted: it keeps its tokens and their log-probs, and computes its keys and
    values again later. The oldest is never preempted for another, so there is always progress.
    """

    def __init__(
        self,
        pool: BlockPool,
        groups: Seq[Group],
        *,
        block_size: int,
        max_batch_tokens: int,
        max_running: int,
    ) -> None:
        self.pool, self.block_size = pool, block_size
        self.max_batch_tokens, self.max_running = max_batch_tokens, max_running
        self.waiting = deque(Sequence(group, -1) for group in groups)
        self.preempted: list[Sequence] = []  # oldest first
        self.running: list[Sequence] = []  # in the pool, oldest first
        self.slots = list(range(max_running - 1, -1, -1))
        self.preemptions = 0

    @property
    def done(self) -> bool:
        """Whether nothing is left to compute."""
        return not (self.running or self.preempted or self.waiting)

    def schedule(self) -> list[Chunk]:
        """The chunks of the next forward; their blocks are allocated."""
        budget = self.max_batch_tokens
        chunks: list[Chunk] = []
        for sequence in list(self.running):
            if sequence.slot < 0:  # preempted by an older one in this very loop
                continue
            end = min(sequence.total, sequence.cached + budget)
            if end == sequence.cached or not self._grow(sequence, end):
                continue
            chunks.append(Chunk(sequence, sequence.cached, end))
            budget -= end - sequence.cached
        while budget > 0 and (newcomer := self._next()) and self.can_admit(newcomer):
            self.admit(newcomer)
            end = min(newcomer.total, budget)
            self._extend(newcomer, end)
            chunks.append(Chunk(newcomer, 0, end))
            budget -= end
        assert chunks or self.done, "a pool that fits every sequence alone always has work"
        return chunks

    def can_admit(self, sequence: Sequence) -> bool:
        """Whether the pool has blocks for all tokens the sequence has, and slots for its forks."""
        promised = sum(self._forks(s) - 1 for s in self.running if s.response < 0)
        return len(self.slots) - promised >= self._forks(sequence) and self.pool.can_allocate(
            self._blocks(sequence.total)
        )

    def admit(self, sequence: Sequence) -> None:
        """Take the next sequence into the pool."""
        if self.preempted and self.preempted[0] is sequence:
            self.preempted.pop(0)
        else:
            assert self.waiting[0] is sequence
            self.waiting.popleft()
        self._enter(sequence)

    def can_fork(self, parent: Sequence) -> bool:
        """Whether there is a slot, and a block for a copy of the parent's tail."""
        return bool(self.slots) and self.pool.can_allocate(self._tail(parent))

    def fork(self, parent: Sequence, child: Sequence) -> tuple[int, int] | None:
        """Share the parent's full blocks; the copy (from, to) that its tail needs, or None."""
        full = len(parent.blocks) - self._tail(parent)
        self.pool.share(parent.blocks[:full])
        child.blocks = parent.blocks[:full] + self.pool.allocate(self._tail(parent))
        child.cached = child.computed = parent.cached
        self._enter(child)
        return (parent.blocks[-1], child.blocks[-1]) if self._tail(parent) else None

    def take_over(self, parent: Sequence, child: Sequence) -> None:
        """Put `child` in the place of `parent`, whose blocks and slot become its own."""
        child.blocks, parent.blocks = parent.blocks, []
        child.slot, parent.slot = parent.slot, -1
        child.cached = child.computed = parent.cached
        self.running[self.running.index(parent)] = child

    def suspend(self, sequence: Sequence) -> None:
        """Queue a response that has tokens and no blocks, to be computed when there is room."""
        insort(self.preempted, sequence, key=attrgetter("age"))

    def leave(self, sequence: Sequence) -> None:
        """Take a sequence out of the pool and free what it alone owned."""
        self.pool.release(sequence.blocks)
        sequence.blocks, sequence.cached = [], 0
        self.slots.append(sequence.slot)
        sequence.slot = -1
        self.running.remove(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Take a sequence out of the pool, to be computed again."""
        self.preemptions += 1
        self.leave(sequence)
        if sequence.response < 0:
            self.waiting.appendleft(sequence)
        else:
            self.suspend(sequence)

    def abandon(self) -> None:
        """Leave undone what is left; every block is free, whatever state the call broke off in."""
        self.running.clear()
        self.preempted.clear()
        self.waiting.clear()
        self.pool.reset()

    def reserve(self, sequences: Seq[Sequence], steps: int) -> int:
        """Blocks for up to `steps` rows more of each sequence; how many rows that is, at least 1.

        Of sequences that `schedule` gave one row each, which has its block already.
        """
        while steps > 1 and not self.pool.can_allocate(self._missing(sequences, steps)):
            steps //= 2
        for sequence in sequences:
            self._extend(sequence, sequence.cached + steps)
        return steps

    def trim(self, sequences: Seq[Sequence]) -> None:
        """Give back the blocks of `reserve` that were not used."""
        for sequence in sequences:
            used = self._blocks(sequence.cached)
            self.pool.release(sequence.blocks[used:])
            del sequence.blocks[used:]

    def _missing(self, sequences: Seq[Sequence], steps: int) -> int:
        return sum(self._blocks(s.cached + steps) - len(s.blocks) for s in sequences)

    def _next(self) -> Sequence | None:
        return self.preempted[0] if self.preempted else self.waiting[0] if self.waiting else None

    def _enter(self, sequence: Sequence) -> None:
        sequence.slot = self.slots.pop()
        insort(self.running, sequence, key=attrgetter("age"))

    def _forks(self, sequence: Sequence) -> int:
        """Slots that a sequence will need: a prompt's responses compute it again without one."""
        return min(sequence.group.params.n, self.max_running) if sequence.response < 0 else 1

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def _tail(self, sequence: Sequence) -> int:
        """1 if the last block is partly filled, so that a fork has to copy it, else 0."""
        return int(sequence.cached % self.block_size != 0)

    def _grow(self, sequence: Sequence, end: int) -> bool:
        """Blocks for the first `end` tokens; False if the sequence itself had to be preempted."""
        missing = self._blocks(end) - len(sequence.blocks)
        while not self.pool.can_allocate(missing):
            youngest = self.running[-1]
            self.preempt(youngest)
            if youngest is sequence:
                return False
        self._extend(sequence, end)
        return True

    def _extend(self, sequence: Sequence, end: int) -> None:
        sequence.blocks += self.pool.allocate(self._blocks(end) - len(sequence.blocks))
