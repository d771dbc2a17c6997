"""The pool and the scheduler: every block has an owner or is free, whatever happens."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from audited_sampler import tiny_decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrl.sampler.blocks import BlockPool
from fastrl.sampler.cache import PagedCache
from fastrl.sampler.philox import PromptKey
from fastrl.sampler.runner import Runner, make_steps
from fastrl.sampler.scheduler import Chunk, Scheduler
from fastrl.sampler.sequence import Group, SamplingParams, Sequence

bounded = settings(max_examples=150, deadline=None, derandomize=True, database=None)


@bounded
@given(st.integers(1, 9), st.data())
def test_the_pool_counts_references(num_blocks, data):
    freed = []
    pool = BlockPool(num_blocks, freed.extend)
    held = []
    for _ in range(data.draw(st.integers(0, 30))):
        before = Counter(block for blocks in held for block in blocks)
        action = data.draw(st.sampled_from(["allocate", "share", "release"]))
        freed.clear()
        if action == "allocate":
            count = data.draw(st.integers(0, num_blocks + 1))
            assert pool.can_allocate(count) == (count <= num_blocks - len(before))
            if pool.can_allocate(count):
                blocks = pool.allocate(count)
                assert len(set(blocks)) == count and not before.keys() & set(blocks)
                held.append(blocks)
        elif held:
            index = data.draw(st.integers(0, len(held) - 1))
            if action == "share":
                shared = held[index][: data.draw(st.integers(0, len(held[index])))]
                pool.share(shared)
                held.append(shared)
            else:
                pool.release(held.pop(index))
        owners = Counter(block for blocks in held for block in blocks)
        assert pool.references == [owners[block] for block in range(num_blocks + 1)]
        assert sorted([*pool.free, *owners]) == list(range(1, num_blocks + 1))
        assert sorted(freed) == sorted(before.keys() - owners.keys())
    for blocks in held:
        pool.release(blocks)
    assert sorted(pool.free) == list(range(1, num_blocks + 1))


def test_the_pool_hands_out_low_blocks_first_and_freed_ones_again():
    pool = BlockPool(5)
    first = pool.allocate(3)
    assert first == [1, 2, 3]
    pool.release(first)
    assert pool.allocate(3) == first
    assert pool.allocate(2) == [4, 5]


@pytest.mark.parametrize("misuse", ["allocate too many", "share a free one", "release twice"])
def test_the_pool_refuses_misuse(misuse):
    pool = BlockPool(2)
    with pytest.raises(AssertionError):
        if misuse == "allocate too many":
            pool.allocate(3)
        elif misuse == "share a free one":
            pool.share([1])
        else:
            blocks = pool.allocate(1)
            pool.release(blocks)
            pool.release(blocks)


def groups_of(shapes):
    """Groups of (prompt tokens, n, max_tokens)."""
    return [
        Group(index, [0] * tokens, SamplingParams(n=n, max_tokens=max_tokens), PromptKey(index))
        for index, (tokens, n, max_tokens) in enumerate(shapes)
    ]


class Driver:
    """What the engine does with a scheduler, with checks in place of a model.

    `ends` says of each new token whether it ends its response.
    """

    def __init__(self, scheduler, ends):
        self.scheduler, self.ends = scheduler, ends
        self.written = {}  # (block, offset) -> (group, response, position), of blocks with an owner
        self.finished = []

    def check_blocks(self):
        scheduler, pool = self.scheduler, self.scheduler.pool
        owners = Counter(block for s in scheduler.running for block in s.blocks)
        assert pool.references == [owners[block] for block in range(pool.num_blocks + 1)]
        assert sorted([*pool.free, *owners]) == list(range(1, pool.num_blocks + 1))
        slots = [s.slot for s in scheduler.running] + scheduler.slots
        assert sorted(slots) == list(range(scheduler.max_running))
        for queue in (scheduler.running, scheduler.preempted, scheduler.waiting):
            ages = [s.age for s in queue]
            assert ages == sorted(ages), "the oldest comes first"
        for sequence in (*scheduler.preempted, *scheduler.waiting):
            assert (sequence.blocks, sequence.cached, sequence.slot) == ([], 0, -1)

    def compute(self, chunks: list[Chunk]):
        """Write each chunk's tokens, and read all that its rows see."""
        scheduler, size = self.scheduler, self.scheduler.block_size
        assert 0 < sum(c.end - c.start for c in chunks) <= scheduler.max_batch_tokens
        assert len({id(c.sequence) for c in chunks}) == len(chunks)
        for chunk in chunks:
            s = chunk.sequence
            assert chunk.start == s.cached < chunk.end <= min(s.total, len(s.blocks) * size)
            for position in range(chunk.start, chunk.end):
                block = s.blocks[position // size]
                assert scheduler.pool.references[block] == 1, "written while another reads it"
                self.written[block, position % size] = self.token(s, position)
            for position in range(chunk.end):
                place = s.blocks[position // size], position % size
                assert self.written[place] == self.token(s, position)
            s.cached = chunk.end
            s.computed = max(s.computed, chunk.end)

    def token(self, sequence, position):
        """A name for what is at a position: the prompt's tokens are the same for all responses."""
        prompt = position < len(sequence.group.prompt)
        return sequence.group.index, -1 if prompt else sequence.response, position

    def fork(self, parent):
        n, scheduler = parent.group.params.n, self.scheduler
        children = [Sequence(parent.group, response) for response in range(n)]
        going = [child for child in children if not self.grow(child)]
        if not going:
            scheduler.leave(parent)
        for child in going[1:]:
            if not scheduler.can_fork(parent):
                scheduler.suspend(child)
            elif (pair := scheduler.fork(parent, child)) is not None:
                assert child.blocks[:-1] == parent.blocks[:-1] and pair[0] != pair[1]
                for offset in range(parent.cached % scheduler.block_size):
                    self.written[pair[1], offset] = self.written[pair[0], offset]
            else:
                assert child.blocks == parent.blocks
        if going:
            scheduler.take_over(parent, going[0])
            assert (parent.blocks, parent.slot) == ([], -1)

    def grow(self, sequence):
        """One more token; whether it is the last."""
        sequence.token_ids.append(0)
        last = len(sequence.token_ids) == sequence.group.params.max_tokens or self.ends()
        if last:
            self.finished.append((sequence.group.index, sequence.response))
        return last

    def step(self):
        chunks = self.scheduler.schedule()
        self.check_blocks()
        self.compute(chunks)
        for chunk in chunks:
            if chunk.end < chunk.sequence.total:
                continue
            if chunk.sequence.response < 0:
                self.fork(chunk.sequence)
            elif self.grow(chunk.sequence):
                self.scheduler.leave(chunk.sequence)
        free = set(self.scheduler.pool.free)
        self.written = {place: t for place, t in self.written.items() if place[0] not in free}
        self.check_blocks()


@bounded
@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=5
    ),
    st.data(),
)
def test_blocks_are_conserved(shapes, data):
    groups = groups_of(shapes)
    block_size = data.draw(st.integers(1, 6))
    least = max(-(-(tokens + max_tokens) // block_size) for tokens, _, max_tokens in shapes)
    pool = BlockPool(data.draw(st.integers(least, 3 * least)))
    scheduler = Scheduler(
        pool,
        groups,
        block_size=block_size,
        max_batch_tokens=data.draw(st.integers(1, 20)),
        max_running=data.draw(st.integers(1, 10)),
    )
    random = data.draw(st.randoms(use_true_random=False))
    driver = Driver(scheduler, lambda: random.random() < 0.1)
    cancel_after = data.draw(st.none() | st.integers(1, 20))
    responses = sorted((g.index, r) for g in groups for r in range(g.params.n))
    # as if every response were computed again for each of its tokens, one row a step
    most = sum(n * (tokens + max_tokens) * max_tokens for tokens, n, max_tokens in shapes)
    steps = 0
    while not scheduler.done and steps != cancel_after:
        driver.step()
        steps += 1
        assert steps <= most
    if scheduler.done:
        assert sorted(driver.finished) == responses
    for sequence in list(scheduler.running):
        scheduler.leave(sequence)
    assert sorted(pool.free) == list(range(1, pool.num_blocks + 1))


def test_a_fork_shares_full_blocks_and_copies_the_partly_filled_one():
    for tokens, copies in ((7, [(2, 3), (2, 4)]), (8, [])):
        (group,) = groups_of([(tokens, 3, 5)])
        scheduler = Scheduler(
            BlockPool(9), [group], block_size=4, max_batch_tokens=99, max_running=9
        )
        ((parent, start, end),) = [(c.sequence, c.start, c.end) for c in scheduler.schedule()]
        assert (parent.response, start, end) == (-1, 0, tokens)
        parent.cached = end
        children = [Sequence(group, response) for response in range(3)]
        pairs = [scheduler.fork(parent, child) for child in children[1:]]
        scheduler.take_over(parent, children[0])
        assert [pair for pair in pairs if pair] == copies
        assert children[0].blocks == [1, 2]
        assert [c.blocks for c in children[1:]] == ([[1, 3], [1, 4]] if copies else [[1, 2]] * 2)
        assert scheduler.pool.references[1:5] == ([3, 1, 1, 1] if copies else [3, 3, 0, 0])


def test_the_youngest_is_preempted_and_the_oldest_goes_on():
    scheduler = Scheduler(
        BlockPool(4), groups_of([(4, 1, 9)] * 4), block_size=4, max_batch_tokens=99, max_running=9
    )
    driver = Driver(scheduler, lambda: False)
    driver.step()
    assert [s.age for s in scheduler.running] == [(0, 0), (1, 0), (2, 0), (3, 0)]
    chunks = scheduler.schedule()
    assert [c.sequence.age for c in chunks] == [(0, 0), (1, 0)]
    assert [s.age for s in scheduler.preempted] == [(2, 0), (3, 0)]
    assert scheduler.preemptions == 2
    assert all((s.cached, s.computed, len(s.token_ids)) == (0, 4, 1) for s in scheduler.preempted)


def test_a_prompt_preempted_between_its_chunks_is_the_next_to_be_admitted():
    groups = groups_of([(4, 1, 9), (12, 1, 1), (4, 1, 1)])
    scheduler = Scheduler(BlockPool(4), groups, block_size=4, max_batch_tokens=5, max_running=9)
    driver = Driver(scheduler, lambda: False)
    for _ in range(2):
        driver.step()
    prompt = scheduler.running[-1]
    assert (prompt.age, prompt.cached) == ((1, -1), 5)
    assert [c.sequence.age for c in scheduler.schedule()] == [(0, 0)]
    assert [s.age for s in scheduler.waiting] == [(1, -1), (2, -1)]
    assert (prompt.cached, prompt.computed, prompt.blocks) == (0, 5, [])


def test_a_sequence_that_returns_to_its_slot_reads_its_new_blocks():
    model = tiny_decoder()
    cache = PagedCache(model, 4, 4, True)
    runner = Runner(model, make_steps(model, cache, 1, 16), max_running=1, longest=16)
    (group,) = groups_of([(7, 1, 2)])
    sequence = Sequence(group, 0, slot=0)
    logits = []
    for blocks in ([1, 2], [4, 3]):
        cache.forget([1, 2, 3, 4])
        sequence.blocks, sequence.cached = blocks, 0
        with torch.no_grad():
            logits.append(runner.forward([Chunk(sequence, 0, 7)]))
        assert all(tensor[blocks[0]].isfinite().all() for tensor in (*cache.k, *cache.v))
    assert torch.equal(*logits)
    assert (runner.rows, runner.recomputed) == (14, 7)
