"""Verdicts on the responses of a step, made while other responses are still being sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType

from fastrl.grading import Gold, Grade, grade
from fastrl.sampler import Event
from fastrl.tokenizer import Tokenizer
from fastrl.types import Completion

Verdict = tuple[str, Grade]  # the text of a response, and what it is worth


class BackgroundGrader:
    """A thread that decodes and grades each response as it finishes.

    The verifier runs outside of the interpreter's lock, so that the sampler does not wait for it;
    a verdict depends on neither the order nor the company in which it is made. To be used as a
    context, which ends the thread whatever happens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        golds: Sequence[str],
        mode: str = "box",
        on_event: Callable[[Event], bool | None] | None = None,
    ) -> None:
        """`golds`: the right answer of each prompt of the call; `mode`: of grading.MODES.

        `on_event` is called with each response as well.
        """
        self._on_event = on_event
        self._tokenizer = tokenizer
        self._mode = mode
        self._golds = [Gold(g) for g in golds]
        self._inbox: SimpleQueue[Event | None] = SimpleQueue()
        self._verdicts: dict[tuple[int, int], Verdict] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="grade")
        self._work = self._pool.submit(self._grade_what_comes)

    def __enter__(self) -> BackgroundGrader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._inbox.put(None)
        self._pool.shutdown()

    @property
    def num_graded(self) -> int:
        """Responses with a verdict so far."""
        return len(self._verdicts)

    def add(self, event: Event) -> bool | None:
        """Take a finished response; for `Sampler.generate(on_event=...)`."""
        self._inbox.put(event)
        return self._on_event(event) if self._on_event else None

    def finish(self, groups: Sequence[Sequence[Completion]]) -> list[list[Verdict]]:
        """Text and verdict of every response of the call, grouped as sampled.

        Those that no event told of, as after a cancelled call, are graded now. Raises what the
        thread raised.
        """
        self._inbox.put(None)
        self._work.result()
        rest = [
            Event(p, r, completion)
            for p, group in enumerate(groups)
            for r, completion in enumerate(group)
            if (p, r) not in self._verdicts
        ]
        self._grade(rest)
        return [[self._verdicts[p, r] for r in range(len(group))] for p, group in enumerate(groups)]

    def _grade_what_comes(self) -> None:
        open_ = True
        while open_:
            events = [self._inbox.get()]
            while not self._inbox.empty():
                events.append(self._inbox.get())
            open_ = None not in events
            self._grade([e for e in events if e is not None])

    def _grade(self, events: Sequence[Event]) -> None:
        texts = [self._tokenizer.decode(e.completion.token_ids) for e in events]
        golds = [self._golds[e.prompt] for e in events]
        grades = grade(texts, golds, mode=self._mode, threads=1)
        for event, text, verdict in zip(events, texts, grades, strict=True):
            self._verdicts[event.prompt, event.response] = (text, verdict)
