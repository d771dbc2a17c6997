"""What a run shows while it works, and the table at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fastrl.alerts import alerts
from fastrl.config import WatchdogConfig
from fastrl.memory_plan import MemoryPlan
from fastrl.signals import StopOnSignal
from fastrl.watchdog import Watchdog

PLAIN_LINES = 20  # about as many lines as a run prints where there is no terminal


class _TwoLines(Progress):
    """How far the run is, and below it the figures of the last step: 80 columns hold both."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(task.fields["figures"]) for task in self.tasks if task.fields["figures"])


class Display:
    """Live lines on a terminal: step, accuracy, KL, length, tokens/s, time left; else plain."""

    def __init__(
        self,
        start: int,
        total: int,
        console: Console | None = None,
        memory: MemoryPlan | None = None,
        watchdog: WatchdogConfig | None = None,
        way_out: str = "",
        stop: StopOnSignal | None = None,
    ) -> None:
        """`memory`: the plan that the peak of the first step is compared with; `watchdog`: limits
        of the phases, and `way_out` what to say where one ends the run; `stop`, which is entered
        already, knows of signals.
        """
        self.console = console or Console()
        self.start, self.total, self.memory = start, total, memory
        self._stop = stop or StopOnSignal()
        self._watchdog = Watchdog(watchdog or WatchdogConfig(), self.say, way_out)
        self.every = max(1, total // PLAIN_LINES)
        self.progress = _TwoLines(
            TextColumn("{task.fields[phase]:<17}"),
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task(
            "", total=total, completed=start, phase="starting", figures=""
        )

    def __enter__(self) -> Display:
        self._stop.on_request = self._say_stopping
        self._watchdog.__enter__()
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()
        self._watchdog.__exit__(kind, error, trace)
        self._stop.on_request = None

    def _say_stopping(self) -> None:
        self.say("stopping after this step; once more stops at once")

    @property
    def stop_requested(self) -> bool:
        """Whether a signal asked for the end after this step."""
        return self._stop.requested

    def phase(self, name: str) -> None:
        """Say which phase is under way, in words of which the first names it."""
        self._watchdog.phase(name)
        self.progress.update(self.task, phase=name)

    def count(self, name: str, total: int) -> Callable[[object], None]:
        """Say which phase is under way; each call of the result counts one of `total` responses."""
        done = 0

        def advance(_: object) -> None:
            nonlocal done
            done += 1
            self.phase(f"{name} {done}/{total}")

        self.phase(name)
        return advance

    def say(self, text: str) -> None:
        """Print a line above the live one."""
        self.progress.console.print(text, highlight=False, soft_wrap=True)

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Show a finished step."""
        figures = step_figures(metrics)
        self.progress.update(self.task, completed=metrics["step"], figures=figures)
        if self.memory is not None and metrics["step"] == self.start + 1:
            peak = metrics["peak_memory_bytes"]
            self.say(self.memory.compared(peak, with_moments=self.start > 0))
        if metrics["step"] == 1:
            for text in alerts([metrics]):
                self.say(f"warning: {text}")
        last = metrics["step"] == self.total
        if not self.console.is_terminal and (metrics["step"] % self.every == 0 or last):
            self.say(f"step {metrics['step']}/{self.total}  {figures}")


def step_figures(metrics: Mapping[str, Any]) -> str:
    """The figures of a step in one short line."""
    seconds = sum(v for k, v in metrics.items() if k.startswith("seconds_"))
    return (
        f"accuracy {share(metrics['task_accuracy'])}  KL {nats(metrics['kl'])}  "
        f"length {metrics['length_mean']:.1f}  "
        f"{metrics['tokens_sampled'] / seconds:,.0f} tokens/s  {seconds:.2f} s/step"
    )


def share(value: float | None) -> str:
    """A share as a percentage; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.1f} %"


def nats(value: float | None) -> str:
    """A divergence in two decimals; a dash where there is none."""
    return "-" if value is None else f"{value:.2f}"


def interval(summary: Mapping[str, Any]) -> str:
    """An accuracy with its 95 % interval."""
    low, high = summary["ci95"]
    return f"{share(summary['accuracy'])} [{100 * low:.1f}, {100 * high:.1f}]"


def final_table(base: Mapping[str, Any], trained: Mapping[str, Any]) -> Table:
    """Base against trained on the test split."""
    table = Table(title=f"test split: {trained['num_prompts']} prompts x {trained['num_samples']}")
    table.add_column("")
    for name in ("base", "trained"):
        table.add_column(name, justify="right")
    table.add_row("accuracy, 95 % interval", interval(base), interval(trained))
    samples = trained["num_samples"]
    for key in (f"pass@{samples}", f"maj@{samples}"):
        if samples > 1 and key in trained:
            table.add_row(key, share(base[key]), share(trained[key]))
    table.add_row("KL to the base, nats a response", "0", nats(trained["kl"]))
    table.add_row(
        "mean length, tokens", f"{base['length_mean']:.1f}", f"{trained['length_mean']:.1f}"
    )
    return table
