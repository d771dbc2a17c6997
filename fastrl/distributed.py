"""The processes that torchrun started, and what they tell each other.

Data of the host travels as bytes (JSON or arrays, never a pickle) over gloo; `sharding.py` has the
model's tensors, `watch.py` what happens when one of the processes dies. Without torchrun there is
one process: every method here returns what it was given, and torch is not asked.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from fastrl.errors import UsageError

if TYPE_CHECKING:  # `fastrl grade` starts without it
    import numpy as np

T = TypeVar("T")

# The longest that one process waits for the others: one may sample far longer responses.
TIMEOUT = timedelta(minutes=30)
PART_S = 5.0  # at most: threads that are done want a moment of Python


@dataclass(frozen=True)
class World:
    """Which of how many processes this is. All of them must call what says "every process"."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the processes of this machine
    host: str = ""

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size} on {self.host}"

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part: every `size`-th item from number `rank` on."""
        return items if self.size == 1 else items[self.rank :: self.size]

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """What every process gives, in the order of their ranks. Every process."""
        if self.size == 1:
            return [data]
        import torch
        import torch.distributed as dist

        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(data)]))
        longest = max(int(n) for n in lengths)
        if longest == 0:
            return [b""] * self.size
        padded = torch.frombuffer(bytearray(data.ljust(longest, b"\0")), dtype=torch.uint8)
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return [p.numpy()[: int(n)].tobytes() for p, n in zip(parts, lengths, strict=True)]

    def gather(self, value: Any) -> list[Any]:
        """A JSON value of every process, in the order of their ranks. Every process."""
        if self.size == 1:
            return [value]
        return [json.loads(data) for data in self.gather_bytes(json.dumps(value).encode())]

    def gather_arrays(self, array: np.ndarray) -> list[np.ndarray]:
        """An array of every process, of one dtype and number of dimensions, alike but for the
        length of the first. Every process.
        """
        import numpy as np

        parts = self.gather_bytes(np.ascontiguousarray(array).tobytes())
        return [np.frombuffer(p, array.dtype).reshape(-1, *array.shape[1:]) for p in parts]

    def from_first(self, value: T) -> T:
        """The JSON value of the first process. Every process."""
        return self.gather(value if self.is_first else None)[0]

    def part(self) -> None:
        """Wait for all, and for gloo's threads to let go of what they were given. Every process.

        The last that the processes do together: a thread that lets go of a tensor when Python ends
        aborts its process (https://github.com/pytorch/pytorch/pull/179291).
        """
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        tensors = [torch.zeros(1) for _ in range(8)]  # more than there are threads
        for work in [dist.all_reduce(x, async_op=True) for x in tensors]:
            work.wait()
        held = [weakref.ref(x) for x in tensors]
        del tensors, work
        deadline = time.monotonic() + PART_S
        while any(x() is not None for x in held) and time.monotonic() < deadline:
            time.sleep(0.001)

    def any(self, flag: bool) -> bool:
        """Whether it is so on one of them. Every process."""
        return any(self.gather(flag))

    def most(self, value: int) -> int:
        """The largest. Every process."""
        return max(self.gather(value))

    def sum(self, *values: float) -> list[float]:
        """The sums over the processes, added in the order of their ranks. Every process."""
        return [sum(column) for column in zip(*self.gather(list(values)), strict=True)]


ALONE = World()


def merge(shares: Sequence[Sequence[T]]) -> list[T]:
    """The items that `World.share` dealt out, from every process's part."""
    size, total = len(shares), sum(len(s) for s in shares)
    return [shares[i % size][i // size] for i in range(total)]


@contextmanager
def joined() -> Iterator[World]:
    """This process among those that torchrun started, for as long as the context lasts.

    All but the first are silent on stdout. When a process fails or dies, none leaves the context:
    they end with exit code 2 for a UsageError and 1 for anything else, after one line on stderr.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    from fastrl.watch import Watch

    world = World(
        int(os.environ["RANK"]), size, int(os.environ["LOCAL_RANK"]), socket.gethostname()
    )
    backend = "gloo"
    if torch.cuda.is_available() and world.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(world.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=TIMEOUT)
    with ExitStack() as stack:
        if not world.is_first:
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        with Watch(world):
            if backend == "gloo" and torch.cuda.is_available():
                raise UsageError(
                    f"process {world.local_rank} of this machine has no GPU, there are"
                    f" {torch.cuda.device_count()}; start as many with --nproc-per-node"
                )
            yield world
    sys.stdout.flush()
    dist.destroy_process_group()
