"""Launch settings of the Triton kernels, timed on a GPU beside those of now.

    python bench/tune.py OUT.json [--tokens N] [--vocabularies N,N] [--rows N] [--context N]

A candidate whose results are not those of the settings of now is no candidate; one that the GPU
has no room for is said. Times are medians in microseconds of a launch, over turns of many. Nothing
is changed: whoever changes `launch_settings` names this file's output as the source.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastrl.bench.kernels import where
from fastrl.bench.timing import measure, say
from fastrl.kernels import online, paged_attention, rms_norm, rotary, swiglu
from fastrl.losses import LossSpec, Rows
from fastrl.ops import fused
from fastrl.ops.rows import Filters, LogitRows, Noise

TURNS, LAUNCHES = 5, 10
Settings = dict[str, int]
# width, query heads, key/value heads, head dimension, width of the feed-forward layer
MODELS = {"SmolLM2-135M": (576, 9, 3, 64, 1536), "Qwen2.5-3B": (2048, 16, 2, 128, 11008)}


@dataclass(frozen=True)
class Kernel:
    """A call of a kernel, where its settings come from, and what they might be."""

    name: str
    run: Callable[[], Any]
    module: ModuleType
    now: Settings
    candidates: list[Settings]


def grid(**choices: tuple[int, ...]) -> list[Settings]:
    """Every combination."""
    return [dict(zip(choices, x, strict=True)) for x in itertools.product(*choices.values())]


@contextmanager
def launched_with(kernel: Kernel, settings: Settings) -> Iterator[None]:
    """Have the module's launches take some settings."""
    name = "launch_settings" if hasattr(kernel.module, "launch_settings") else "BLOCK"
    before = getattr(kernel.module, name)
    changed = kernel.now | settings
    setattr(kernel.module, name, (lambda *_: dict(changed)) if callable(before) else changed[name])
    try:
        yield
    finally:
        setattr(kernel.module, name, before)


def of_rows(tokens: int, vocabulary: int, device: torch.device) -> Iterator[Kernel]:
    """The kernels of rows of logits, whose settings are one."""
    generator = torch.Generator(device).manual_seed(0)
    made: dict[str, Any] = {"generator": generator, "device": device}
    logits = torch.randn(tokens, vocabulary, dtype=torch.bfloat16, **made)
    targets = torch.randint(vocabulary, (tokens,), **made)
    ones = torch.ones(tokens, device=device)
    x = LogitRows(logits, targets, None, 1.0, vocabulary, None, 1.0)
    rows, out = Rows(ones, None), torch.empty_like(logits)
    first = slice(0, 256)  # of a decode step
    at = LogitRows(logits[first], targets[first], None, ones[first], vocabulary, None, 1.0)
    top_k = torch.full_like(targets[first], 50, dtype=torch.int32)
    few = Filters(top_k, 0.95 * ones[first], 0 * ones[first], False)
    counters = torch.arange(4 * len(top_k), device=device).view(-1, 4)
    noise = Noise(counters, (1, 2))

    def gradient() -> Tensor:
        fused.gradient(x, ones, 0.1 * ones, out)
        return out

    calls: dict[str, Callable[[], Any]] = {
        "statistics": lambda: fused.statistics(x),
        "gradient": gradient,
        "policy_loss": lambda: (*fused.policy_loss(x, rows, LossSpec(), ones[0], out), out),
        "sample, top-k and top-p": lambda: fused.sample(at, few, noise),
    }
    now = online.launch_settings(vocabulary)
    # a wider block has fewer passes over its ends; 16384 bf16 are 32 KiB, in registers of 16 warps
    choices = grid(BLOCK=(2048, 4096, 8192, 16384), num_warps=(4, 8, 16))
    for name, run in calls.items():
        shape = f"{len(top_k) if 'sample' in name else tokens} x {vocabulary}"
        yield Kernel(f"{name}, {shape}", run, online, now, choices)


def of_layers(
    model: str, tokens: int, rows: int, context: int, device: torch.device
) -> Iterator[Kernel]:
    """What a model's layer does beside its products, and its attention of decode rows."""
    generator = torch.Generator(device).manual_seed(0)
    width, heads, kv_heads, dim, inner = MODELS[model]

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.bfloat16, device=device)

    shapes = ((tokens, width), (width,), (tokens, heads, dim), (tokens, 2 * inner))
    x, weight, q, gate_up = (made(*shape) for shape in shapes)
    y, turned, half = torch.empty_like(x), torch.empty_like(q), torch.empty_like(gate_up[:, :inner])
    scales, angles = torch.empty(tokens, device=device), made(tokens, dim // 2).float()
    blocks = -(-context // 16)
    cache = [made(rows * blocks, 16, kv_heads, dim) for _ in range(2)]
    tables = torch.arange(rows * blocks, dtype=torch.int32, device=device).view(rows, blocks)
    each = torch.arange(rows, dtype=torch.int32, device=device)
    last, seen = made(rows, heads, dim), torch.full_like(each, context)

    def norm() -> Tensor:
        rms_norm.norm(x, weight, scales, 1e-6, y)
        return y

    def rotate() -> Tensor:
        rotary.rotate(q, angles, angles, False, turned)
        return turned

    def activate() -> Tensor:
        swiglu.swiglu(gate_up, half)
        return half

    def attend() -> Tensor:
        return paged_attention.paged_attention(last, *cache, tables, each, seen)

    few = (2, 4, 8)
    yield Kernel(
        f"norm, {model}", norm, rms_norm, rms_norm.launch_settings(width),
        grid(ROWS=(1, 2, 4), num_warps=few),
    )  # fmt: skip
    yield Kernel(
        f"rotary, {model}", rotate, rotary, rotary.launch_settings(heads, dim // 2),
        grid(HEADS=(1, 4, 8, 16, 32), num_warps=few),
    )  # fmt: skip
    yield Kernel(
        f"swiglu, {model}", activate, swiglu, {"BLOCK": swiglu.BLOCK},
        grid(BLOCK=(512, 1024, 2048, 4096)),
    )  # fmt: skip
    yield Kernel(
        f"attention, {rows} rows of {context}, {model}", attend, paged_attention,
        paged_attention.launch_settings(dim, heads // kv_heads, 2),
        grid(TILE=(16, 32, 64, 128), num_warps=few, num_stages=(2, 3, 4)),
    )  # fmt: skip


def results(found: Any) -> list[Tensor]:
    """Copies of what a call gave."""
    return [x.double() for x in (found if isinstance(found, tuple) else (found,))]


def microseconds(run: Callable[[], Any], device: torch.device) -> float:
    """The median time of a launch; the cache is cold at the first of each turn."""

    def many() -> None:
        for _ in range(LAUNCHES):
            run()

    return 1e3 * statistics.median(measure({"": many}, device, TURNS)[""]) / LAUNCHES


def tune(kernel: Kernel, device: torch.device) -> dict[str, Any]:
    """The time of every candidate that gives the results of now."""
    expected = results(kernel.run())
    now = {"settings": kernel.now, "us": microseconds(kernel.run, device)}
    timed, failed = [now], {}
    for settings in (c for c in kernel.candidates if kernel.now | c != kernel.now):
        with launched_with(kernel, settings):
            label = json.dumps(settings)
            try:
                found = results(kernel.run())
            except Exception as problem:
                failed[label] = f"{type(problem).__name__}: {problem}".splitlines()[0]
                continue
            far = [
                float((a - b).norm() / b.norm().clamp(min=1e-30))
                for a, b in zip(found, expected, strict=True)
            ]
            if not all(x <= 1e-2 for x in far):
                failed[label] = f"another result: {max(far):.2g}"
                continue
            timed.append(
                {"settings": kernel.now | settings, "us": microseconds(kernel.run, device)}
            )
    best = min(timed, key=lambda t: t["us"])
    return {
        "name": kernel.name, "now": now, "best": best, "gain": now["us"] / best["us"],
        "timed": timed, "failed": failed,
    }  # fmt: skip


def main() -> int:
    """Time all candidates; write and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabularies", default="32000,151936")
    parser.add_argument("--rows", type=int, default=256, help="of a decode step")
    parser.add_argument("--context", type=int, default=1024)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("tune.py: torch finds no GPU here, and settings are tuned on one", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    rows = []
    groups = [
        *(of_rows(given.tokens, int(v), device) for v in given.vocabularies.split(",")),
        *(of_layers(m, given.tokens, given.rows, given.context, device) for m in MODELS),
    ]
    for kernels in groups:
        for kernel in kernels:
            say(kernel.name)
            rows.append(tune(kernel, device) | where(device))
            given.out.write_text(json.dumps(rows, indent=1))
    say("")
    for row in rows:
        now, best = row["now"], row["best"]
        print(
            f"{row['name']:50} {now['us']:9.1f} us now, {best['us']:9.1f} us"
            f" ({row['gain']:.2f}x) with {json.dumps(best['settings'])}"
        )
        for settings, problem in row["failed"].items():
            print(f"    not {settings}: {problem}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
