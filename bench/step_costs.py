"""What a training step costs over the work: four sweeps from one point, each in one quantity.

Models have random weights. Memory is that of a run's first two steps, AdamW's moments included,
above what the process had before the model was made, beside the plan of `memory_plan` without that.
"""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fastrl.bench.step_ours import Ours, Shape, gradient_error
from fastrl.bench.timing import process_peak_bytes, say
from fastrl.errors import UsageError
from fastrl.memory_plan import num_parameters
from fastrl.model import DecoderConfig
from fastrl.shapes import SHAPES
from fastrl.weights import write_json

DOUBLINGS = (-2, -1, 0, 1, 2)  # of a base point's response length and group size
VALIDATED_LAYERS = 2
WARM_STEPS = 2  # before a step is timed; in the second AdamW's moments are there


def llama(width: int, layers: int, vocab: int) -> DecoderConfig:
    """A small Llama of the proportions of large ones."""
    heads = width // 32
    return DecoderConfig(
        "llama", vocab, width, 3 * width, layers, heads, heads // 2, 32, 8192, tie_embeddings=True
    )


@dataclass(frozen=True)
class Sweeps:
    """What a device runs: the base model is one of `models`, with one of `vocabularies`."""

    shape: Shape  # of the base point
    base: DecoderConfig
    models: tuple[DecoderConfig, ...]
    vocabularies: tuple[int, ...]


@dataclass(frozen=True)
class Point:
    """What the costs of a step depend on."""

    config: DecoderConfig
    shape: Shape


V = 8192
CPU = Sweeps(
    shape=(4, 8, 64),
    base=llama(256, 4, V),
    models=tuple(
        llama(width, layers, V)
        for width, layers in ((128, 4), (192, 4), (256, 4), (320, 6), (448, 7), (576, 9))
    ),
    vocabularies=tuple(2**n for n in range(11, 18)),
)
QWEN = SHAPES["Qwen3-0.6B"]
GPU = Sweeps(
    shape=(8, 8, 512),
    base=QWEN,
    models=(
        replace(SHAPES["SmolLM2-135M"], vocab_size=QWEN.vocab_size),
        QWEN,
        replace(QWEN, hidden_size=2048, intermediate_size=6144),  # Qwen3-1.7B
        SHAPES["Qwen3-4B"],
    ),
    vocabularies=tuple(QWEN.vocab_size >> n for n in (3, 2, 1, 0)),
)


def points(sweeps: Sweeps, shape: Shape | None) -> Iterator[tuple[str, int, Point]]:
    """Each sweep's points with its name and the value of its quantity, the base point in all."""
    base = Point(sweeps.base, shape or sweeps.shape)
    prompts, group, new = base.shape
    for config in sweeps.models:
        yield "model size", num_parameters(config), replace(base, config=config)
    for length in doublings(new, least=1):
        yield "response length", length, replace(base, shape=(prompts, group, length))
    for size in doublings(group, least=2):
        yield "group size", size, replace(base, shape=(prompts, size, new))
    for vocab in sweeps.vocabularies:
        yield "vocabulary", vocab, replace(base, config=replace(base.config, vocab_size=vocab))


def doublings(base: int, least: int) -> list[int]:
    """A base value between its halves and doubles, without those below the least."""
    return [value for n in DOUBLINGS if (value := int(base * 2.0**n)) >= least]


def rows(
    shape: Shape | None, kind: str, repeats: int, once: bool, device: torch.device
) -> Iterator[dict[str, Any]]:
    """A row of results for every point of every sweep. `once` takes a step of each, untimed."""
    sweeps = GPU if device.type == "cuda" else CPU
    every = list(points(sweeps, shape))
    base = Point(sweeps.base, shape or sweeps.shape)
    found: dict[Point, dict[str, Any]] = {}
    warm_up(kind)
    for done, (sweep, value, point) in enumerate(every, 1):
        if point not in found:
            say(f"costs, {kind}, {done} of {len(every)}: {sweep} {value:,}")
            try:
                found[point] = measured(point, kind, repeats, once, device)
            except UsageError as problem:  # a large point for which there is no memory
                if point == base:
                    raise
                say("")
                print(f"{sweep} {value:,} is left out: {problem}", file=sys.stderr, flush=True)
                continue
            say("")
        if not once:
            head = {"name": f"costs over {sweep}", "sweep": sweep, "value": value}
            yield head | {"base": point == base} | found[point]


def warm_up(kind: str) -> None:
    """A step of the smallest model: what a process loads in its first is of no point's memory."""
    with tempfile.TemporaryDirectory() as directory:
        Ours("embedded", (2, 2, 4), kind, Path(directory))()


@cache
def validated(config: DecoderConfig, kind: str) -> float:
    """The error of the gradient of some shapes with few layers: the others run the same code."""
    layers = min(config.num_layers, VALIDATED_LAYERS)
    return gradient_error(replace(config, num_layers=layers), kind)


def measured(
    point: Point, kind: str, repeats: int, once: bool, device: torch.device
) -> dict[str, Any]:
    """The row of a point, without its place in a sweep."""
    config, runs = point.config, []
    words = f"{config.num_layers} x {config.hidden_size}, vocabulary {config.vocab_size:,}"
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        write_json(path / "config.json", config.to_hf())

        def first_steps() -> None:
            runs.append(Ours(str(path), point.shape, kind, path, random_init=True))
            for _ in range(1 if once else WARM_STEPS):
                runs[0]()

        if once:
            first_steps()
            return {}
        error = validated(config, kind)
        gc.collect()  # the point before
        if device.type == "cuda":
            torch.cuda.empty_cache()
        peak = process_peak_bytes(first_steps, device)
        (ours,) = runs
        ours.steps.clear()
        for _ in range(repeats):
            ours()
        plan = ours.run.memory
        return {
            "shape": list(point.shape),
            "dtype": kind,
            "device": device.type,
            "model": words,
            "parameters": num_parameters(config),
            "vocabulary": config.vocab_size,
            **ours.figures(),
            "peak_bytes": peak,
            "planned_bytes": plan.peak - plan.baseline,
            "planned_peak_in": plan.highest,
            "max_error": error,
            "baseline": None,
            "baseline_ms": None,
            "speedup": None,
        }
