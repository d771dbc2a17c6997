"""The end of long work at the user's request: SIGINT and SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType


class StopOnSignal:
    """While it is entered, SIGINT and SIGTERM set `requested`; a second one interrupts at once.

    `on_request` is called at the first, `at_once` before the interruption.
    """

    def __init__(
        self,
        on_request: Callable[[], None] | None = None,
        at_once: Callable[[], None] | None = None,
    ) -> None:
        self.requested = False
        self.on_request = on_request
        self._at_once = at_once

    def __enter__(self) -> StopOnSignal:
        self._handlers = {n: signal.signal(n, self._stop) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if self._at_once is not None:
                self._at_once()
            raise KeyboardInterrupt
        self.requested = True
        if self.on_request is not None:
            with suppress(RuntimeError):  # it came in the middle of a write to the same file
                self.on_request()
