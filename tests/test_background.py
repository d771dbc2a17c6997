"""Grading while others decode: the same verdicts, made in time, and no error lost."""

import threading
import time

import pytest

from fastrl.background import BackgroundGrader
from fastrl.grading import grade
from fastrl.sampler import Event
from fastrl.types import Completion

TEXTS = [[r"\boxed{7}", "none"], [r"\boxed{8}", r"\boxed{9}"]]
GOLDS = ["7", "9"]


class Letters:
    """A tokenizer whose tokens are characters."""

    def decode(self, token_ids):
        return "".join(map(chr, token_ids))


def completion(text, reason="stop"):
    return Completion(tuple(map(ord, text)), (0.0,) * len(text), (0.0,) * len(text), reason)


GROUPS = [[completion(t) for t in row] for row in TEXTS]
EVENTS = [Event(p, r, c) for p, row in enumerate(GROUPS) for r, c in enumerate(row)]


def plain():
    flat = iter(grade([t for row in TEXTS for t in row], ["7", "7", "9", "9"]))
    return [[(text, next(flat)) for text in row] for row in TEXTS]


@pytest.mark.parametrize("told", range(len(EVENTS) + 1))
def test_verdicts_are_those_of_grading_at_the_end(told):
    """In any order, and whether an event told of the response or not."""
    for events in (EVENTS[:told], EVENTS[::-1][:told]):
        with BackgroundGrader(Letters(), GOLDS) as grader:
            for event in events:
                grader.add(event)
            assert grader.finish(GROUPS) == plain()


def test_the_mode_is_that_of_the_run_and_events_are_passed_on():
    seen = []

    def stop(event):
        seen.append(event)
        return False

    groups = [[completion("The answer is 7")]]
    with BackgroundGrader(Letters(), ["7"], "box_or_anchor", on_event=stop) as grader:
        assert grader.add(Event(0, 0, groups[0][0])) is False
        (((text, verdict),),) = grader.finish(groups)
    assert (text, verdict.correct, len(seen)) == ("The answer is 7", True, 1)


def test_a_verdict_is_there_before_the_next_response_is():
    with BackgroundGrader(Letters(), GOLDS) as grader:
        for count, event in enumerate(EVENTS, 1):
            grader.add(event)
            deadline = time.monotonic() + 10
            while grader.num_graded < count:
                assert time.monotonic() < deadline
                time.sleep(1e-3)


def test_an_error_of_the_thread_is_raised_and_the_thread_ends():
    class Broken(Letters):
        def decode(self, token_ids):
            raise RuntimeError("no such token")

    with (
        pytest.raises(RuntimeError, match="no such token"),
        BackgroundGrader(Broken(), GOLDS) as grader,
    ):
        grader.add(EVENTS[0])
        grader.finish(GROUPS)
    assert not [t for t in threading.enumerate() if t.name.startswith("grade")]


def test_the_thread_ends_when_sampling_fails():
    with pytest.raises(KeyboardInterrupt), BackgroundGrader(Letters(), GOLDS) as grader:
        grader.add(EVENTS[0])
        raise KeyboardInterrupt
    assert not [t for t in threading.enumerate() if t.name.startswith("grade")]
