"""`fastrl bench kernels`: every kernel case that is asked for, validated and timed."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fastrl.bench import head, rows, sample
from fastrl.bench.timing import Bandwidth, bandwidth
from fastrl.bench.timing import rows as results
from fastrl.errors import UsageError

NAMES = (
    "logprobs_and_entropy", "logprobs_and_entropy, backward", "policy_loss", *sample.SETTINGS,
    "linear_policy_loss", "linear_policy_loss, any loss of rows", "linear_logprobs_and_entropy",
)  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def where(device: torch.device) -> dict[str, str]:
    """The machine and the versions, in words."""
    if device.type == "cuda":
        machine = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        found = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
        machine = found[1] if found else platform.processor() or platform.machine()
        machine += f", {torch.get_num_threads()} threads"
    versions = [f"torch {torch.__version__}"]
    for name in ("triton", "trl", "liger-kernel"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return {"machine": machine, "versions": ", ".join(versions)}


def check_asked(kind: str, names: Sequence[str], only: str | None, dtype: str | None) -> None:
    """Raise UsageError for a benchmark or a dtype that is none of the known ones."""
    if only is not None and only not in names:
        allowed = ", ".join(map(repr, names))
        raise UsageError(f"there is no {kind} benchmark {only!r}; allowed: {allowed}")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}")


def run(
    only: str | None = None,
    shape: tuple[int, ...] | None = None,
    dtype: str | None = None,
    repeats: int = 7,
    once: bool = False,
) -> Iterator[dict[str, Any]]:
    """Rows of results, one at a time. `once` runs each case a single time, for a profiler."""
    check_asked("kernel", NAMES, only, dtype)
    if shape is not None and len(shape) not in (2, 3):
        raise UsageError(f"shape has {len(shape)} numbers; allowed: T,V or T,V,D")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    words = where(device)
    both = ("float32", "bfloat16")
    for module, axes, default in ((rows, 2, both), (sample, 2, both), (head, 3, ("float32",))):
        shapes = module.GPU_SHAPES if device.type == "cuda" else module.SHAPES
        if shape is not None:
            shapes = (shape,) if len(shape) == axes else ()
        names = ("bfloat16",) if device.type == "cuda" else default
        for one in shapes:
            for name in (dtype,) if dtype else names:
                machine: Bandwidth | None = None
                for case, data in module.cases(one, DTYPES[name], device):
                    if only not in (None, case.name):
                        continue
                    if once:
                        case.run()
                        continue
                    if case.read_bytes and machine is None:
                        machine = bandwidth(data, repeats)
                    for row in results(case, device, repeats, machine):
                        yield row | words
