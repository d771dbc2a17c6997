"""A phase of a run that takes longer than its limit is named, with the line that it is at."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import FrameType, TracebackType

from fastrl.config import WatchdogConfig

PERIOD_S = 1.0  # between two looks, at most
FAILED = 1  # exit code
HERE = str(Path(__file__).parent)


class Watchdog:
    """A context in which a thread watches how long each phase of this one takes."""

    def __init__(
        self, config: WatchdogConfig, say: Callable[[str], None], way_out: str = ""
    ) -> None:
        """`way_out`: what to say where the run is ended for it."""
        self._config, self._say, self._way_out = config, say, way_out
        self._phase, self._since, self._told = "", time.monotonic(), 0
        limits = [getattr(config, f.name) for f in fields(config) if f.name != "action"]
        self._period = min([PERIOD_S, *(limit / 4 for limit in limits if limit > 0)])
        self._watched = threading.get_ident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def phase(self, text: str) -> None:
        """A phase, the first word of the text, is under way."""
        name = text.partition(" ")[0].rstrip(",")
        if name != self._phase:
            self._phase, self._since, self._told = name, time.monotonic(), 0

    def _limit(self) -> float:
        limit = getattr(self._config, self._phase, 0)
        return limit if isinstance(limit, (int, float)) else 0

    def _look(self) -> None:
        while not self._over.wait(self._period):
            limit, phase = self._limit(), self._phase
            seconds = time.monotonic() - self._since
            # again after twice the limit, four times it, ...
            if not limit or seconds < limit * 2**self._told:
                continue
            self._told += 1
            text = (
                f"the phase {phase!r} has taken {seconds:,.0f} s, its limit is {limit:g} s"
                f" (watchdog.{phase}); it is at {self._place()}"
            )
            if self._config.action == "say":
                self._say(text)
                continue
            faulthandler.dump_traceback(sys.__stderr__ or 2)
            print(f"fastrl: {text}; {self._way_out}", file=sys.__stderr__, flush=True)
            os._exit(FAILED)

    def _place(self) -> str:
        """Where the watched thread is, in the package if it can be."""
        frame: FrameType | None = sys._current_frames().get(self._watched)
        innermost = frame
        while frame is not None and not frame.f_code.co_filename.startswith(HERE):
            frame = frame.f_back
        found = frame or innermost
        if found is None:
            return "no place that is known"
        name = found.f_code.co_filename
        return f"{Path(name).name}:{found.f_lineno}, in {found.f_code.co_name}"
