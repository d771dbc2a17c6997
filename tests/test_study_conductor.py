"""The cells of a study as processes: order, failures, stops. The processes are stand-ins."""

import json
import os
import signal
import stat
import sys
import threading
import time
from pathlib import Path

import pytest

from fastrl.config import Config
from fastrl.errors import UsageError
from fastrl.exit_codes import STOPPED
from fastrl.signals import StopOnSignal
from fastrl.study import conductor
from fastrl.study.cell import alone, files_of, is_done
from fastrl.study.conductor import conduct, how_far
from fastrl.study.plan import StudySettings, make_plan

# what a cell does, by a file "act" beside its study: NAME -> words of a shell
STAND_IN = """#!/bin/sh
while [ $# -gt 1 ]; do [ "$1" = --output-dir ] && D="$2"; shift; done
C="$D/cells/$1"
echo "$1 begins" >> "$D/order"
# as a cell writes it: the values, then what says that they are there, as a whole
says() { cp "$D/empty" "$C/$1.safetensors"; echo "$2" > "$C/new"; mv "$C/new" "$C/$1.json"; }
TWO='{"arms": ["sharpen-a4", "task"]}'
done_() { says best "${1:-$TWO}"; says last "${1:-$TWO}"; }
if [ -f "$C/act" ]; then . "$C/act"; else done_; fi
echo "$1 ends" >> "$D/order"
"""
BASE, SHARPEN, TASK = "embedded/base", "embedded/sharpen-a4/seed-0", "embedded/task/seed-0"


class Study:
    def __init__(self, path: Path, **settings):
        self.path = path
        self.plan = make_plan(
            StudySettings(arms=("sharpen", "task"), seeds=1, **settings), Config(), path
        )
        self.at_once: list[tuple[int, int]] = []  # whenever shown: processes, those that train

    def act(self, name: str, words: str) -> None:
        cell = self.path / "cells" / name
        cell.mkdir(parents=True, exist_ok=True)
        (cell / "act").write_text(words)

    def conduct(self, jobs=1, stop=None, show=None):
        def told(done, running):
            self.at_once.append((len(running), sum(c.trains for c, _ in running)))
            if show:
                show(done, running)

        return conduct(self.plan, self.path, jobs, stop or StopOnSignal(), told)

    @property
    def order(self) -> list[str]:
        file = self.path / "order"
        return file.read_text().splitlines() if file.exists() else []

    def names(self, cells) -> list[str]:
        return [c.name for c in cells]


@pytest.fixture
def study(tmp_path, monkeypatch):
    import numpy as np
    from safetensors.numpy import save_file

    program = tmp_path / "python"
    program.write_text(STAND_IN)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(conductor, "POLL_S", 0.02)
    monkeypatch.setattr(conductor, "devices", lambda: 0)
    path = tmp_path / "a study"
    path.mkdir()
    save_file({"x": np.zeros(1)}, path / "empty")
    return Study(path)


def test_the_base_is_done_before_what_trains(study):
    study.act(BASE, 'echo $$ > "$D/base"; sleep 0.3; echo "$1 ends" >> "$D/order"; done_; exit')
    for run in (SHARPEN, TASK):  # neither ends before the base's process is known to be gone
        study.act(run, 'while kill -0 "$(cat "$D/base")" 2>/dev/null; do sleep 0.02; done; done_')
    outcome = study.conduct(jobs=8)
    assert study.names(outcome.done)[0] == BASE and len(outcome.done) == 3
    assert not outcome.failed and not outcome.stopped
    assert study.order[:2] == [f"{BASE} begins", f"{BASE} ends"]
    assert max(trains for _, trains in study.at_once) == 2  # the two runs at once
    before = len(study.order)
    assert len(study.conduct().done) == 3
    assert len(study.order) == before  # nothing is done again


def test_runs_begin_when_the_base_has_said_what_it_says_of_them(study):
    """And not before; what is measured of it after that goes on beside them."""
    study.act(
        BASE,
        f"""
        sleep 0.3
        echo predicted >> "$D/order"
        says beforehand "$TWO"
        for i in $(seq 600); do grep -q "{TASK} begins" "$D/order" && break; sleep 0.05; done
        done_
        """,
    )
    assert len(study.conduct(jobs=2).done) == 3
    order = ["predicted", f"{SHARPEN} begins", f"{TASK} begins", f"{BASE} ends"]
    assert sorted(order, key=study.order.index) == order
    assert max(running for running, _ in study.at_once) == 2


def test_jobs_are_the_cells_at_once(study):
    study.act(SHARPEN, "sleep 0.2; done_")
    study.act(TASK, "sleep 0.2; done_")
    study.conduct(jobs=1)
    assert max(running for running, _ in study.at_once) == 1
    assert [line.split()[1] for line in study.order] == ["begins", "ends"] * 3


def test_of_a_base_that_fails_nothing_is_trained(study):
    study.plan = make_plan(
        StudySettings(arms=("sharpen", "task"), seeds=1, models=("embedded", "embedded:0")),
        Config(),
        study.path,
    )
    study.act(BASE, "echo no memory; exit 1")
    outcome = study.conduct(jobs=2)
    assert "no memory" in outcome.failed[BASE] and list(outcome.failed) == [BASE]
    assert "exit code 1" in outcome.failed[BASE] and "log.txt" in outcome.failed[BASE]
    of_other = [f"embedded-0/{a}" for a in ("base", "sharpen-a4/seed-0", "task/seed-0")]
    assert sorted(study.names(outcome.done)) == of_other
    study.act(BASE, "done_")
    assert len(study.conduct(jobs=2).done) == 6


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("exit 2", "exit code 2"),
        ("kill -9 $$", "signal 9"),
        ("exit 0", "exit code 0"),  # it measured nothing
        (f"exit {STOPPED}", "exit code 3"),  # nobody here asked it to stop
    ],
)
def test_a_run_that_fails_keeps_no_other_from_being_done(study, words, why):
    study.act(SHARPEN, f"echo first; echo last; {words}")
    outcome = study.conduct()
    assert list(outcome.failed) == [SHARPEN] and why in outcome.failed[SHARPEN]
    assert "first\nlast\n" in outcome.failed[SHARPEN]
    assert study.names(outcome.done) == [BASE, TASK]
    study.act(SHARPEN, "done_")
    again = study.conduct()
    assert not again.failed and len(again.done) == 3


READY = 'echo ready >> "$D/order"'


@pytest.mark.parametrize(
    "words",
    [
        f"{READY}; exec sleep 20",  # it begins, or measures: the signal ends it
        f"trap 'exit {STOPPED}' TERM; {READY}; while true; do sleep 0.05; done",  # it trains
    ],
)
def test_a_stop_on_request_is_no_failure(study, words):
    study.act(SHARPEN, words)
    stop = StopOnSignal()

    def show(done, running):
        if "ready" in study.order:
            stop.requested = True

    started = time.monotonic()
    outcome = study.conduct(stop=stop, show=show)
    assert time.monotonic() - started < 10
    assert outcome.stopped and outcome.failed == {}
    assert study.names(outcome.done) == [BASE]
    assert f"{TASK} begins" not in study.order
    study.act(SHARPEN, "done_")
    assert len(study.conduct().done) == 3


def test_a_failure_beside_a_stop_is_one(study):
    study.act(SHARPEN, f"trap 'echo oh; exit 1' TERM; {READY}; while true; do sleep 0.05; done")
    stop = StopOnSignal()

    def show(done, running):
        if "ready" in study.order:
            stop.requested = True

    outcome = study.conduct(stop=stop, show=show)
    assert outcome.stopped and "oh" in outcome.failed[SHARPEN]


def test_an_interruption_leaves_no_process(study):
    study.act(BASE, f"echo $$ > '{study.path}/pid'; exec sleep 30")
    pid = study.path / "pid"

    def show(done, running):
        if pid.is_file() and pid.read_text().strip():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.conduct(show=show)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_cell_done_by_hand_meanwhile_is_not_done_again(study):
    by_hand = f"cp '{study.path}'/cells/{SHARPEN}/*.json '{study.path}/cells/{TASK}'"
    study.act(SHARPEN, f"done_; mkdir -p '{study.path}/cells/{TASK}'; {by_hand}")
    outcome = study.conduct()
    assert len(outcome.done) == 3 and f"{TASK} begins" not in study.order


def test_an_arm_that_is_added_has_the_base_measured_again(study):
    study.conduct()
    study.plan = make_plan(
        StudySettings(arms=("sharpen", "task", "null"), seeds=1), Config(), study.path
    )
    base = study.plan.cell(BASE)
    assert not is_done(study.plan, study.path, base)
    null = '{"arms": ["sharpen-a4", "task", "null"]}'
    study.act(BASE, f"done_ '{null}'")
    outcome = study.conduct(jobs=4)
    assert len(outcome.done) == 4
    begun = [line.split()[0] for line in study.order if line.endswith("begins")]
    assert begun[3:] == [BASE, "embedded/null/seed-0"]  # and in this order


def test_a_cell_that_cannot_be_written_is_said(study):
    (study.path / "cells").mkdir()
    (study.path / "cells" / "embedded").write_text("a file")
    outcome = study.conduct()
    assert "it cannot be started" in outcome.failed[BASE] and len(outcome.failed) == 1
    assert not outcome.done


def test_two_processes_do_not_share_a_directory(tmp_path):
    refused = pytest.raises(UsageError, match="another process is at work on")
    with alone(tmp_path), refused, alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


def test_a_cell_waits_for_another_process_at_it(tmp_path):
    """As where a study was killed, and its cell went on: it is not begun beside it, nor failed."""
    held, lines, order = threading.Event(), [], []

    def work():
        with alone(tmp_path):
            held.set()
            while not lines:
                time.sleep(0.01)
            order.append("first")

    other = threading.Thread(target=work)
    other.start()
    held.wait(10)
    with alone(tmp_path, lines.append):
        order.append("second")
    other.join()
    assert order == ["first", "second"]
    assert lines == [f"another process is at work on {tmp_path}; its end is waited for"]


def test_how_far_a_cell_is(study):
    cell = study.plan.cell(TASK)
    files = files_of(study.path, cell)
    assert how_far(files, cell) == "starting"
    files.run.mkdir(parents=True)
    (files.run / "metrics.jsonl").write_text("{}\n{}\n{")
    assert how_far(files, cell) == "step 2/130"
    (files.path / "progress.json").write_text(
        json.dumps({"phase": "test", "done": 1200, "total": 128000})
    )
    assert how_far(files, cell) == "test 1,200/128,000"


def test_a_gpu_a_cell(study, monkeypatch):
    monkeypatch.setattr(conductor, "devices", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    for name in (SHARPEN, TASK):
        study.act(name, f"echo $CUDA_VISIBLE_DEVICES >> '{study.path}/gpus'; sleep 0.2; done_")
    study.conduct(jobs=2)
    assert sorted((study.path / "gpus").read_text().split()) == ["4", "6"]
    assert conductor.usual_jobs() == 2


@pytest.mark.parametrize(("models", "of_base"), [((), "8"), (("embedded", "embedded:0"), "4")])
def test_the_cores_are_shared_by_what_runs_at_once(study, monkeypatch, models, of_base):
    monkeypatch.setattr(conductor.os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    study.plan = make_plan(
        StudySettings(arms=("sharpen", "task"), seeds=1, models=models), Config(), study.path
    )
    for cell in study.plan.cells:
        study.act(cell.name, 'echo $OMP_NUM_THREADS > "$C/threads"; done_')
    study.conduct(jobs=2)
    found = {c: (study.path / "cells" / c / "threads").read_text().strip() for c in (BASE, TASK)}
    assert found == {BASE: of_base, TASK: "4"}


def test_the_signal_is_the_one_that_runs_stop_at():
    assert conductor.ON_REQUEST == (STOPPED, -signal.SIGTERM)
