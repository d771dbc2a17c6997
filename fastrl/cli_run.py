"""A run from its start or its newest checkpoint to its final table, on the command line."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from fastrl.distributed import World
from fastrl.errors import reason
from fastrl.exit_codes import FAILED, OK, STOPPED

if TYPE_CHECKING:
    from fastrl.display import Display
    from fastrl.run import Run
    from fastrl.signals import StopOnSignal


def warn(line: str) -> None:
    """A line for the user on stderr."""
    print(line, file=sys.stderr, flush=True)


def run_to_end(make: Callable[[Callable[[str], None]], Run], world: World) -> int:
    """Train what `make` gives to its last step, and show what came of it; the exit code."""
    from fastrl.run import resume
    from fastrl.run_directory import release
    from fastrl.signals import StopOnSignal

    started = time.perf_counter()
    try:
        run = make(warn)
        path = run.directory.path
        with StopOnSignal(at_once=_end_at_once) as stop:
            while (outcome := _attempt(run, stop)) is None:
                attempt = run.attempt + 1
                del run  # its memory before the next's
                _free_memory()
                run = resume(path, warn, world, attempt)
            if outcome and world.is_first:
                _report(run, time.perf_counter() - started)
            return OK if outcome else STOPPED
    finally:
        release()


def _attempt(run: Run, stop: StopOnSignal) -> bool | None:
    """Train to the last step; False where the run was stopped on request before, None where it is
    to be rolled back.
    """
    from fastrl.display import Display
    from fastrl.guard import RollBack
    from fastrl.run_directory import command
    from fastrl.tracking import tracked

    title = f"{run.objective.name} ({run.objective.study_name}): converges to"
    print(f"{title} {run.objective.target}", flush=True)
    display = Display(
        run.step,
        run.config.train.max_steps,
        memory=run.memory,
        watchdog=run.config.watchdog,
        way_out=f"continue with: {command('resume', run.directory.path)}",
        stop=stop,
    )
    try:
        with display, tracked(run, display.say):
            return _train(run, display)
    except RollBack:
        return None


def _free_memory() -> None:
    """Of what nobody holds any more."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _end_at_once() -> NoReturn:
    """Without what would be tidied or waited for; what is on the disk is whole."""
    if sys.__stdout__ and sys.__stdout__.isatty():
        print("\033[?25h", end="", file=sys.__stdout__, flush=True)  # the cursor
    print("fastrl: interrupted", file=sys.__stderr__, flush=True)
    os._exit(FAILED)


def _train(run: Run, display: Display) -> bool:
    """Train to the last step; False where the run was stopped on request before."""
    from fastrl.run_directory import command
    from fastrl.train import Stopped, train

    files = run.directory
    display.say(
        f"model {run.config.model.name}, data {run.config.data.source}, run in {files.path}"
    )
    for line in (*run.notes, str(run.memory)):
        display.say(line)
    if run.step == 0:
        for split in ("validation", "test"):
            run.evaluate(split, display)
    try:
        train(run, display)
    except Stopped as stop:
        display.say(f"stopped after step {stop}; continue with: {command('resume', files.path)}")
        return False
    run.evaluate("test", display)
    return True


def _report(run: Run, seconds: float) -> None:
    """The picture, the table of base against trained, and where everything is."""
    from rich.console import Console

    from fastrl.alerts import LAST_STEPS, alerts
    from fastrl.curves import draw_curves
    from fastrl.display import final_table

    objective, files = run.objective, run.directory
    title = f"{objective.name} ({objective.study_name}): converges to {objective.target}"
    try:
        draw_curves(files.read_metrics(), files.read_evaluations(), title, files.curves)
    except OSError as error:
        warn(f"the picture {files.curves} cannot be written: {reason(error)}")
    tests = [e for e in files.read_evaluations() if e["split"] == "test"]
    if len(tests) >= 2:
        Console().print(final_table(tests[0], tests[-1]))
    places = [
        ("model", str(files.checkpoints / f"step_{run.step}")),
        ("metrics", str(files.metrics)),
        ("completions", str(files.completions)),
        ("picture", str(files.curves)),
    ]
    for text in alerts(files.read_metrics()[-LAST_STEPS:]):
        print(f"warning: in the last {LAST_STEPS} steps, {text}")
    for name, path in places:  # plain: a table would break a long path in two
        print(f"{name:<12} {path}", flush=True)
    print(f"{run.config.train.max_steps} steps, {seconds:.0f} s")
