"""How much memory a device has for this process, and how much it has taken."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from fastrl.errors import UsageError

RUSAGE_UNIT = 1 if sys.platform == "darwin" else 1024
GPU_SHARE = 0.95  # of what is free: the allocator's rounding, libraries' workspaces
UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(text: str) -> int:
    """A size such as 80GB (1e9 bytes each) or 79GiB (2^30); UsageError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].upper() not in UNITS or not float(found[1]):
        raise UsageError(f"{text!r} is no size of a memory; write it as 80GB or 79GiB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def resident_bytes(root: Path = Path("/")) -> int:
    """The resident memory of this process; 0 where the system does not say."""
    return _line(root / "proc/self/status", "VmRSS:")


def peak_memory_bytes() -> int:
    """Peak device memory with a GPU in use, else the peak resident memory of the process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """The peak resident memory of this process."""
    # first the system's own figure: getrusage's begins with what the process was started from
    peak = _line(Path("/proc/self/status"), "VmHWM:")
    return peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RUSAGE_UNIT


def available_bytes(
    device: torch.device, root: Path = Path("/"), *, sharers: int = 1
) -> int | None:
    """All that this process may come to have on a device; None where the system does not say.

    On a CPU: what it has, and of what the machine and the control groups around it have left its
    part, where `sharers` processes take the same. `root`: where /proc and /sys/fs/cgroup are.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(GPU_SHARE * (free + torch.cuda.memory_reserved(device)))
    left = [_line(root / "proc/meminfo", "MemAvailable:"), *_left_in_groups(root)]
    left = [size for size in left if size]
    return min(left) // sharers + resident_bytes(root) if left else None


def _line(path: Path, name: str) -> int:
    """The bytes in the line of a file of /proc; 0 where it has none."""
    if not path.is_file():
        return 0
    found = re.search(rf"^{name}\s+(\d+) kB", path.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _left_in_groups(root: Path) -> Iterator[int]:
    """What each control group with a limit leaves, of both versions; its page cache can go."""
    for folder, limit, used in (
        ("sys/fs/cgroup", "memory.max", "memory.current"),
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        top = root / folder
        for group in _groups(root, top):
            try:
                most, now = int((group / limit).read_text()), int((group / used).read_text())
                stat = (group / "memory.stat").read_text()
            except (OSError, ValueError):  # no such file, or no limit ("max")
                continue
            cached = re.findall(r"^(?:in)?active_file (\d+)", stat, re.MULTILINE)
            yield max(1, most - now + sum(map(int, cached)))


def _groups(root: Path, top: Path) -> Iterator[Path]:
    """This process's control group and those around it, as far as they can be seen from here."""
    yield top
    listed = root / "proc/self/cgroup"
    for line in listed.read_text().splitlines() if listed.is_file() else ():
        own = top / line.rpartition(":")[2].lstrip("/")
        while own != top and top in own.parents:
            yield own
            own = own.parent
