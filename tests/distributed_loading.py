"""Every process's pieces of a loaded model beside the whole one: `... DIRECTORY`.

Raises where they differ, or where loading took more than a piece and little beside it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from fastrl.distributed import ALONE, World, joined
from fastrl.model import Decoder, load_model
from fastrl.random_init import random_model
from fastrl.shapes import outline
from fastrl.sharding import copy_weights, gathered, piece, shard

SEED = 3


def own_bytes() -> int:
    """Memory of this process that no file backs."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def peak_of(make: Callable[[], Decoder]) -> tuple[Decoder, int]:
    """What `make` returns, and the most memory that it took meanwhile."""
    before, seen, done = own_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            seen.append(own_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    model = make()
    done.set()
    thread.join()
    return model, max(seen) - before


def ways(directory: str, keep: bool) -> dict[str, tuple[Callable[[], Decoder], ...]]:
    """How a model comes to its weights: whole, and in pieces."""
    kind = {"dtype": torch.float32, "device": "cpu"}
    pieces = partial(shard, keep_gathered=keep, device="cpu")
    makers = {
        "read": partial(load_model, directory, **kind),
        "drawn": partial(random_model, outline(directory), SEED, **kind),
    }
    return {name: (make, partial(make, sharded=pieces)) for name, make in makers.items()}


def check(world: World, directory: str) -> None:
    """Raise for a piece that is not the plain load's, or a peak that is more than pieces."""
    kinds = {(n, keep): pair for keep in (True, False) for n, pair in ways(directory, keep).items()}
    # before anything whole leaves the C library memory that it need not ask for
    made = {kind: peak_of(pieces) for kind, (_, pieces) in kinds.items()}
    for kind, (make, pieces) in kinds.items():
        model, peak = made[kind]
        whole, twin = make(), pieces().requires_grad_(False)
        size = sum(p.numel() * p.itemsize for p in whole.parameters())
        held = sum(piece(p).numel() * p.itemsize for p in model.parameters())
        print(f"{kind}: {held / size:.2f} of the model, {peak / size:.2f} at the peak")
        assert held < 1.04 * size / world.size and peak < 0.75 * size, (kind, peak, size)
        assert model.valid_vocab == whole.valid_vocab
        for source in (whole, model):
            for p in twin.parameters():
                piece(p).zero_()
            copy_weights(source, twin)
            for each in (model, twin):
                assert torch.equal(each._frequencies, whole._frequencies)
                with gathered(each, keep=False):
                    columns = zip(each.named_parameters(), whole.parameters(), strict=True)
                    for (key, p), q in columns:
                        assert torch.equal(p, q), (kind, key)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined() as world:
        assert world != ALONE
        for _, make in ways("embedded", True).values():
            make()  # what is imported takes memory too
        check(world, sys.argv[1])
