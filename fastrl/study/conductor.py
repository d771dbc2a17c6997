"""A study's cells done one after another, several at once, each in a process of its own.

A cell is `fastrl study --output-dir DIR --cell NAME`, which may be started by hand as well, on
another GPU say. What is done is not done again, and a run that was cut off is resumed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastrl import strict_json
from fastrl.exit_codes import STOPPED
from fastrl.signals import StopOnSignal
from fastrl.study.cell import CellFiles, files_of, is_done, is_predicted
from fastrl.study.plan import BASE, Cell, Plan

PROGRESS = "progress.json"  # of a cell: {"phase", "done", "total"}
POLL_S = 0.5
LAST_LINES = 6  # of a cell's log, where it failed
ON_REQUEST = (STOPPED, -signal.SIGTERM)  # the second while it starts or measures


@dataclass(frozen=True)
class Outcome:
    """What became of the cells."""

    done: list[Cell]
    failed: dict[str, str]  # the last lines of each one's log
    stopped: bool  # on request


@dataclass
class _Child:
    cell: Cell
    process: subprocess.Popen
    device: int


def devices() -> int:
    """How many GPUs there are to give to cells."""
    return torch.cuda.device_count()


def usual_jobs() -> int:
    """Cells at once: one a GPU, else one a core."""
    return devices() or os.cpu_count() or 1


def conduct(
    plan: Plan,
    directory: Path,
    jobs: int,
    stop: StopOnSignal,
    show: Callable[[Sequence[Cell], Sequence[tuple[Cell, str]]], None],
) -> Outcome:
    """Do every cell that is not done; models first, and no run before all predictions are written.

    `show(done, running)` is told of what is done, and of what runs with how far it is. A cell that
    fails keeps no other from being done, but for a base: what is of its model is not begun.
    """
    done = [c for c in plan.cells if is_done(plan, directory, c)]
    waiting = [c for c in plan.cells if c not in done]
    jobs = max(1, min(jobs, len(waiting)))
    failed: dict[str, str] = {}
    running: list[_Child] = []
    told = False
    try:
        while waiting or running:
            for child in [c for c in running if c.process.poll() is not None]:
                running.remove(child)
                if is_done(plan, directory, child.cell):
                    done.append(child.cell)
                elif not (told and child.process.returncode in ON_REQUEST):
                    failed[child.cell.name] = _why(directory, child)
                    waiting = _without(waiting, child.cell)
            if stop.requested and not told:
                told, waiting = True, []
                for child in running:
                    child.process.send_signal(signal.SIGTERM)
            while waiting and len(running) < jobs:
                if waiting[0].trains and not _all_predicted(plan, directory, running):
                    break
                cell = waiting.pop(0)
                if is_done(plan, directory, cell):  # by hand, meanwhile
                    done.append(cell)
                    continue
                free = set(range(jobs)) - {c.device for c in running}
                # a base that is measured alone, while all runs wait for it, has every core
                beside = [c for c in (*waiting, *(r.cell for r in running)) if not c.trains]
                at_once = jobs if cell.trains else min(jobs, 1 + len(beside))
                try:
                    running.append(_started(directory, cell, at_once, min(free)))
                except OSError as error:
                    failed[cell.name] = f"it cannot be started: {error}"
                    waiting = _without(waiting, cell)
            show(done, [(c.cell, how_far(files_of(directory, c.cell), c.cell)) for c in running])
            if running:
                time.sleep(POLL_S)
    except BaseException:
        for child in running:
            child.process.kill()
            child.process.wait()
        raise
    return Outcome(done, failed, told)


def _all_predicted(plan: Plan, directory: Path, running: Sequence[_Child]) -> bool:
    """Whether no base is at work of which all runs wait for what it says of training."""
    bases = [c.cell for c in running if c.cell.arm == BASE]
    return all(is_predicted(plan, directory, base) for base in bases)


def _without(waiting: Sequence[Cell], failed: Cell) -> list[Cell]:
    """What is still to be done: of a base that failed, nothing of its model."""
    return [c for c in waiting if failed.arm != BASE or c.model != failed.model]


def _started(directory: Path, cell: Cell, at_once: int, device: int) -> _Child:
    files = files_of(directory, cell)
    files.path.mkdir(parents=True, exist_ok=True)
    (files.path / PROGRESS).unlink(missing_ok=True)
    environment = dict(os.environ)
    if devices():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = visible.split(",") if visible else [str(i) for i in range(devices())]
        environment["CUDA_VISIBLE_DEVICES"] = names[device % len(names)]
    else:
        threads = max(1, (os.cpu_count() or 1) // at_once)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    command = [sys.executable, "-m", "fastrl.cli", "study"]
    command += ["--output-dir", str(directory), "--cell", cell.name]
    with files.log.open("ab") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which tells each once
        )
    return _Child(cell, process, device)


def how_far(files: CellFiles, cell: Cell) -> str:
    """What a cell is at, in words."""
    try:
        found: dict[str, Any] = strict_json.parse((files.path / PROGRESS).read_bytes())
        return f"{found['phase']} {found['done']:,}/{found['total']:,}"
    except (OSError, ValueError, KeyError, TypeError):
        pass
    metrics = files.run / "metrics.jsonl"
    if cell.trains and metrics.is_file():
        steps = metrics.read_bytes().count(b"\n")
        return f"step {steps}/{cell.config.train.max_steps}"
    return "starting"


def _why(directory: Path, child: _Child) -> str:
    """What a cell that failed said last, and how it ended."""
    log, code = files_of(directory, child.cell).log, child.process.returncode
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    ended = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return "\n".join([*lines[-LAST_LINES:], f"{ended}; its log is {log}"])
