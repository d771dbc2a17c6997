"""The timing protocol: contenders in turns in one process, caches cold, validated before timed.

A case names the operation and its contenders, the first of them ours. Every contender is run once
before it is timed; then all of them take turns. Times are medians of a turn each, with the 20th and
80th percentile, in milliseconds; memory is the peak above what was there before, in bytes.
"""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from fastrl.device_memory import peak_resident_bytes, resident_bytes

T = TypeVar("T")
Run = Callable[[], Any]
FLUSH_BYTES = 128 << 20  # more than the last-level cache of what this runs on


@dataclass(frozen=True)
class Case:
    """One operation at one shape."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    run: Run
    baselines: dict[str, Run] = field(default_factory=dict)
    validate: Callable[[], float] = lambda: 0.0  # the largest error; raises where it is too large
    errors: dict[str, Callable[[], float]] = field(default_factory=dict)  # of baselines
    read_bytes: int = 0
    write_bytes: int = 0
    flops: int = 0


@dataclass(frozen=True)
class Bandwidth:
    """What the machine moves at a case's footprint, in bytes a second."""

    read: float
    copy: float


def measure(runs: dict[str, Run], device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every turn of every contender."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    times: dict[str, list[float]] = {name: [] for name in runs}
    gc.disable()
    try:
        for _ in range(repeats):
            for name, run in runs.items():
                flush.fill_(1)
                times[name].append(_once(run, device))
    finally:
        gc.enable()
    return times


def _once(run: Run, device: torch.device) -> float:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))
    begin = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - begin)


def peak_bytes(run: Run, device: torch.device) -> int:
    """The most memory that torch's allocator held during `run`, above what it held before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        torch.cuda.synchronize()
        del result
        return torch.cuda.max_memory_allocated() - before
    # or torch's profiler writes two lines to the standard error for each case
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = run()
    del result
    events = recorded.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def resident_rise(run: Callable[[], T]) -> tuple[T, int | None]:
    """What `run` returns and the most resident memory above what there was; None beyond Linux."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the mark falls to what is resident
    except OSError:
        return run(), None
    before = resident_bytes()
    result = run()
    return result, max(0, peak_resident_bytes() - before)


def process_peak_bytes(run: Run, device: torch.device) -> int | None:
    """The most memory during a run above what there was: torch's on a GPU, else the process's."""
    if device.type == "cuda":
        return peak_bytes(run, device)
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)  # what was freed before would be used again, and no rise be seen
    return resident_rise(run)[1]


def say(text: str) -> None:
    """What is being done, on the standard error: a line that changes on a terminal, else lines."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


def bandwidth(data: torch.Tensor, repeats: int) -> Bandwidth:
    """Reading `data` once (the largest of its bits as fp32), and copying it to memory in use."""
    flat = data.detach().reshape(-1).view(torch.float32)
    target = torch.zeros_like(flat)
    runs = {"read": lambda: flat.amax(), "copy": lambda: target.copy_(flat)}
    times = measure(runs, data.device, repeats)
    size = flat.numel() * 4
    read, copy = (size / (1e-3 * statistics.median(times[name])) for name in runs)
    return Bandwidth(read, 2 * copy)


def rows(
    case: Case, device: torch.device, repeats: int, machine: Bandwidth | None
) -> Iterator[dict[str, Any]]:
    """A row of results for each baseline of a validated case, or one without a baseline."""
    error = case.validate()
    runs = {"": case.run, **case.baselines}
    errors: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name, run in list(runs.items()):
        try:
            run()
            if name in case.errors:
                errors[name] = case.errors[name]()
        except Exception as problem:
            if not name:
                raise
            # a rival that this machine or version cannot run: said in its row, with no time
            failed[name] = f"{type(problem).__name__}: {problem}".splitlines()[0]
            del runs[name]
    times = measure(runs, device, repeats)
    ours = times.pop("")
    ms = statistics.median(ours)
    row: dict[str, Any] = {
        "name": case.name,
        "shape": list(case.shape),
        "dtype": case.dtype,
        "device": device.type,
        "ms": ms,
        "ms_p20": percentile(ours, 20),
        "ms_p80": percentile(ours, 80),
        "peak_bytes": peak_bytes(case.run, device),
        "max_error": error,
    }
    moved = case.read_bytes + case.write_bytes
    if moved and machine is not None:
        row["gb_per_s"] = moved / ms / 1e6
        row["copy_gb_per_s"] = machine.copy / 1e9
        row["read_gb_per_s"] = machine.read / 1e9
        row["fraction_of_copy"] = row["gb_per_s"] / row["copy_gb_per_s"]
    if case.flops:
        row["tflops"] = case.flops / ms / 1e9
    if not times and not failed:
        yield row | {"baseline": None, "baseline_ms": None, "speedup": None}
    for name, problem in failed.items():
        nothing = {"baseline_ms": None, "speedup": None, "baseline_failed": problem}
        yield row | {"baseline": name, **nothing}
    for name, found in times.items():
        theirs = statistics.median(found)
        memory = peak_bytes(case.baselines[name], device)
        yield row | {
            "baseline": name,
            "baseline_ms": theirs,
            "speedup": theirs / ms,
            "baseline_peak_bytes": memory,
            "baseline_max_error": errors.get(name),
        }


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that `percent` of the others do not pass."""
    ordered = sorted(values)
    return ordered[round((len(ordered) - 1) * percent / 100)]


def largest_error(got: Sequence[torch.Tensor], truth: Sequence[torch.Tensor]) -> float:
    """The largest error of those results that there are against fp64."""
    pairs = zip(got, truth, strict=False)
    return max(float((ours.double() - true).abs().max()) for ours, true in pairs)


def worst_error(
    got: Sequence[torch.Tensor], plain: Sequence[torch.Tensor], truth: Sequence[torch.Tensor]
) -> float:
    """The largest error against fp64; raises where it passes twice torch's and a rounding."""
    worst = 0.0
    for ours, theirs, true in zip(got, plain, truth, strict=True):
        error, torch_error = (float((x.double() - true).abs().max()) for x in (ours, theirs))
        limit = 2 * torch_error + torch.finfo(ours.dtype).eps * float(true.abs().max())
        if not error <= limit:
            raise AssertionError(f"error {error:.2g} against fp64, torch's is {torch_error:.2g}")
        worst = max(worst, error)
    return worst
