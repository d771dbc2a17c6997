"""The pool of cache blocks: who owns what, by reference counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class BlockPool:
    """Blocks 1..num_blocks; block 0 is reserved and holds zeros.

    `on_free` is told of every block that nobody owns any more.
    """

    def __init__(self, num_blocks: int, on_free: Callable[[list[int]], None] | None = None) -> None:
        self.num_blocks = num_blocks
        self.references = [0] * (num_blocks + 1)
        # taken from the end: low numbers first, and a freed block is the next to be used
        self.free = list(range(num_blocks, 0, -1))
        self.on_free = on_free

    def can_allocate(self, count: int) -> bool:
        """Whether `count` blocks are free."""
        return count <= len(self.free)

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with one reference each."""
        assert self.can_allocate(count), "ask can_allocate first"
        blocks = [self.free.pop() for _ in range(count)]
        for block in blocks:
            assert self.references[block] == 0
            self.references[block] = 1
        return blocks

    def share(self, blocks: Sequence[int]) -> None:
        """One more reference to each of `blocks`."""
        for block in blocks:
            assert self.references[block] > 0
            self.references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One reference less; a block without any is free again."""
        freed = []
        # from the tail, so that a shared prefix keeps its blocks in order
        for block in reversed(blocks):
            self.references[block] -= 1
            assert self.references[block] >= 0
            if self.references[block] == 0:
                freed.append(block)
        self.free.extend(freed)
        if freed and self.on_free:
            self.on_free(freed)

    def reset(self) -> None:
        """Every block is free, whoever owned it."""
        owned = sorted(set(range(1, self.num_blocks + 1)).difference(self.free))
        self.references = [0] * (self.num_blocks + 1)
        self.free = list(range(self.num_blocks, 0, -1))
        if owned and self.on_free:
            self.on_free(owned)
