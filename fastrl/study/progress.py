"""What a study shows while it works."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fastrl.study.plan import Cell


class StudyProgress:
    """Cells done, and a line for each that runs; a line a cell where there is no terminal."""

    def __init__(self, total: int) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[words]}"),
            TimeElapsedColumn(),
        )
        self._plain = not self._bar.console.is_terminal
        self._bar.disable = self._plain
        self._task = self._bar.add_task("cells", total=total, words="")
        self._tasks: dict[str, Any] = {}
        self._told: set[str] = set()
        self._total = total

    def __enter__(self) -> StudyProgress:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def show(self, done: Sequence[Cell], running: Sequence[tuple[Cell, str]]) -> None:
        """Told by the conductor."""
        words = f"{len(done)}/{self._total}"
        self._bar.update(self._task, completed=len(done), words=words)
        now = {cell.name: how_far for cell, how_far in running}
        for name in set(self._tasks) - set(now):
            self._bar.remove_task(self._tasks.pop(name))
        for name, how_far in now.items():
            if name not in self._tasks:
                self._tasks[name] = self._bar.add_task(name, total=None, words=how_far)
            self._bar.update(self._tasks[name], words=how_far)
        for cell in done:
            if self._plain and cell.name not in self._told:
                print(f"{len(self._told) + 1}/{self._total} {cell.name}", flush=True)
            self._told.add(cell.name)
