"""A process that ends while gloo's threads are slow to let go, and keeps Python's lock till then.

The group outlives `joined`, as it does where a sharded model was: caches of torch's hold its mesh.
"""

import sys
import time
from pathlib import Path

import torch.distributed as dist

from fastrl.distributed import joined

if __name__ == "__main__":
    with joined() as world:
        kept = dist.group.WORLD
        names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
        assert "pt_gloo_runloop\n" in names  # which slow_gloo.c looks for
        assert world.sum(1) == [world.size]
    sys.setswitchinterval(10)
    end = time.perf_counter() + 0.05
    while time.perf_counter() < end:
        pass
