"""`fastrl bench sampler`: tokens a second beside transformers' and beside what matmuls allow.

A row is one call of the sampler, prompts included; its rivals and the bare matmuls of the decode
steps take turns with it. Our first run is validated (log-probs of its responses; in fp32 also
greedy tokens against transformers'), everybody's first run gives the memory, the rest the times.
"""

from __future__ import annotations

import importlib.metadata
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import torch

from fastrl.bench import sampler_limits as limits
from fastrl.bench import timing
from fastrl.bench.kernels import DTYPES, check_asked, where
from fastrl.bench.sampler_rivals import (
    SMOLLM2,
    Rival,
    Subject,
    check_greedy,
    check_logprobs,
    subject,
)
from fastrl.bench.sampler_tasks import CASES, GPU_CASES, GPU_NAMES, Call, Case, Shape, Task
from fastrl.errors import UsageError

CHECKED_TOKENS = 200
GREEDY_PROMPTS, GREEDY_TOKENS = 2, 16


def _cases(only: str | None, shape: Shape | None, on_gpu: bool) -> list[Case]:
    if only in GPU_NAMES and not on_gpu:
        raise UsageError(f"{only!r} is measured on a GPU, and torch sees none here")
    if shape is not None and (len(shape) != 3 or min(shape) < 1):
        raise UsageError(
            f"shape is {','.join(map(str, shape))}; of the sampler it is responses, tokens of a"
            " prompt, new tokens, as 32,58,64"
        )
    if shape is not None and only is None:
        only = CASES[0].name
    return [
        replace(case, shapes=(shape,)) if shape else case
        for case in (*(GPU_CASES if on_gpu else ()), *CASES)
        if only in (None, case.name)
    ]


def run(
    only: str | None = None,
    shape: Shape | None = None,
    dtype: str | None = None,
    repeats: int = 3,
    once: bool = False,
    model: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of results, one at a time. `once` runs our call a single time, for a profiler."""
    check_asked("sampler", [*(case.name for case in CASES), *GPU_NAMES], only, dtype)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = _cases(only, shape, device.type == "cuda")
    default = str(SMOLLM2.expanduser()) if SMOLLM2.expanduser().is_dir() else "SmolLM2-135M"
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers")]
    words = {"machine": where(device)["machine"], "versions": ", ".join(versions)}
    every = ("bfloat16",) if device.type == "cuda" else ("float32", "bfloat16")
    for kind in (dtype,) if dtype else every:
        for source, group in groupby(cases, lambda case: case.source or model or default):
            for row in _of_model(source, list(group), kind, device, repeats, once):
                yield row | words


def _of_model(
    source: str, cases: list[Case], kind: str, device: torch.device, repeats: int, once: bool
) -> Iterator[dict[str, Any]]:
    one = subject(source, DTYPES[kind], device)
    machine: tuple[limits.Machine, ...] = ()
    if any(case.name in GPU_NAMES for case in cases):
        machine = (limits.measure_machine(one.model.embed),)
    for case in cases:
        for shape in case.shapes:
            task = case.make(one, shape, *(machine if case.name in GPU_NAMES else ()))
            if once:
                task.ours()
                continue
            head = {"name": case.name, "shape": list(shape), "dtype": kind}
            title = f"{case.name}, {one.name}, {'x'.join(map(str, shape))}, {kind}"
            yield from rows(task, one, head, title, repeats)


def rows(
    task: Task, one: Subject, head: dict[str, Any], title: str, repeats: int
) -> Iterator[dict[str, Any]]:
    """A row for each rival of a validated task, or one without a rival."""
    ours, device = task.ours, one.model.embed.device
    runs: dict[str, Any] = {"": ours, **task.rivals}
    if task.bare_matmuls is not None:
        runs["bare matmuls"] = task.bare_matmuls
    peaks: dict[str, int | None] = {}
    errors: dict[str, tuple[float, float]] = {}
    failed: dict[str, str] = {}
    for name, first in list(runs.items()):
        timing.say(f"{title}: first run of {name or 'fastrl'}")
        try:
            peaks[name] = timing.process_peak_bytes(first, device)
        except Exception as problem:
            if not isinstance(first, Rival):
                raise
            # a rival that this machine or version cannot run: said in its row, with no time
            failed[name] = f"{type(problem).__name__}: {problem}".splitlines()[0]
            del runs[name]
        if isinstance(first, Call):
            timing.say(f"{title}: validation")
            errors[name] = validate(first, one)
    announced = {
        name: partial(_announced, f"{title}: {name or 'fastrl'}", go) for name, go in runs.items()
    }
    times = timing.measure(announced, device, repeats)
    one.theirs.destroy_cached_continuous_batching_manager()
    timing.say("")

    ms = statistics.median(times[""])
    row = head | {
        "device": device.type,
        "ms": ms,
        "ms_p20": timing.percentile(times[""], 20),
        "ms_p80": timing.percentile(times[""], 80),
        "peak_bytes": peaks[""],
        "max_error": errors[""][0],
        "model": one.name,
        "weights": one.weights,
        "padded_rows": ours.padded_rows,
        **_speed(ours, ms),
    }
    row |= task.bounds(row["tokens_per_s"])
    if task.bare_matmuls is not None:
        bare_ms = statistics.median(times["bare matmuls"])
        row["bare_matmuls_tokens_per_s"] = 1e3 * limits.STEPS * ours.responses / bare_ms
        row["share_of_bare_matmuls"] = row["tokens_per_s"] / row["bare_matmuls_tokens_per_s"]
    if not task.rivals:
        yield row | {"baseline": None, "baseline_ms": None, "speedup": None}
    for name, rival in task.rivals.items():
        if name in failed:
            nothing = {"baseline_ms": None, "speedup": None, "baseline_failed": failed[name]}
            yield row | {"baseline": name, **nothing}
            continue
        theirs_ms = statistics.median(times[name])
        theirs = {"ms": theirs_ms, "peak_bytes": peaks[name], **_speed(rival, theirs_ms)}
        theirs["max_error"] = errors[name][0] if name in errors else errors[""][1]
        yield row | {
            "baseline": name,
            "speedup": theirs_ms / ms,
            **{f"baseline_{key}": value for key, value in theirs.items()},
        }


def _speed(run: Call | Rival, ms: float) -> dict[str, float]:
    found = {"tokens_per_s": 1e3 * run.tokens / ms}
    if isinstance(run, Call):
        found |= {"rows_computed": run.rows, "us_per_row": 1e3 * ms / run.rows}
    return found


def validate(ours: Call, one: Subject) -> tuple[float, float]:
    """The largest errors of some responses' log-probs, the last one's too: ours, transformers'."""
    several = zip(ours.prompts, (found[0] for found in ours.found), strict=True)
    pairs = [(ours.prompts[-1], ours.found[-1][-1])]
    for pair in several:
        pairs.append(pair)
        if sum(len(completion.token_ids) for _, completion in pairs) >= CHECKED_TOKENS:
            break
    errors = check_logprobs(one, pairs, ours.params[0].temperature)
    if one.model.embed.dtype == torch.float32:
        new = min(GREEDY_TOKENS, *(p.max_tokens for p in ours.params))
        check_greedy(ours.sampler, one.theirs, ours.prompts[:GREEDY_PROMPTS], new)
    return errors


def _announced(text: str, run: Callable[[], Any]) -> Any:
    timing.say(text)
    return run()
