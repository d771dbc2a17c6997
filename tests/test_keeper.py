"""Checkpoints of a run: which are kept, in the background, and where they cannot be written."""

import resource
import shutil
import subprocess
import sys

import pytest
from test_train import fingerprint, lines, train

from fastrl.checkpoint import damage, newest_valid
from fastrl.cli import main
from fastrl.keeper import Keeper, superfluous


@pytest.mark.parametrize(
    "keep_last, keep_best, gone",
    [
        (0, 0, []), (0, 1, []), (1, 0, [20, 10, 5]), (2, 0, [10, 5]), (9, 0, []),
        (1, 1, [20, 10]), (1, 2, [20]), (2, 1, [10]), (1, 9, [20]),
    ],
)  # fmt: skip
def test_what_is_kept(keep_last, keep_best, gone):
    """10 and 5 are equally good, but 5 is better still; 20 was not evaluated."""
    accuracies = {5: 0.6, 10: 0.5, 30: 0.1}
    assert superfluous([5, 10, 20, 30], accuracies, keep_last, keep_best) == gone


def test_of_equal_ones_the_newer_is_better():
    assert superfluous([1, 2, 3], {1: 0.5, 2: 0.5}, 1, 1) == [1]


def test_a_run_keeps_what_it_is_told_to(tmp_path):
    run = tmp_path / "run"
    words = ["--train.max_steps", "5", "--checkpoint.every", "1", "--eval.every", "1"]
    assert train(run, *words, "--checkpoint.keep_last", "2", "--checkpoint.keep_best", "1") == 0
    kept = sorted(p.name for p in (run / "checkpoints").iterdir())
    evaluations = [e for e in lines(run / "eval.jsonl") if e["split"] == "validation"]
    older = {e["step"]: e["accuracy"] for e in evaluations if 0 < e["step"] < 4}
    best = max(older, key=lambda step: (older[step], step))
    assert kept == [f"step_{best}", "step_4", "step_5"]


def test_a_run_that_writes_in_the_background_is_the_same(tmp_path):
    assert train(tmp_path / "front", "--checkpoint.background", "off") == 0
    assert train(tmp_path / "back", "--checkpoint.background", "on") == 0
    assert fingerprint(tmp_path / "back") == fingerprint(tmp_path / "front")


@pytest.fixture
def full_disk(monkeypatch):
    """From the second checkpoint on no file may grow beyond 100 kB, which the system refuses."""
    saved, limits = [], resource.getrlimit(resource.RLIMIT_FSIZE)
    write = Keeper._write

    def limited(self, *rest):
        saved.append(rest)
        if len(saved) < 2:
            return write(self, *rest)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            return write(self, *rest)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(Keeper, "_write", limited)


@pytest.mark.parametrize("background", ["on", "off"])
def test_a_full_disk_stops_the_run_and_leaves_the_older_checkpoint(
    tmp_path, full_disk, capsys, background, monkeypatch
):
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert train(run, "--checkpoint.background", background) == 1
    err = capsys.readouterr().err
    assert "the checkpoint of step 4 cannot be written" in err and "step_2 is as it was" in err
    assert f"fastrl resume {run}" in err and "Traceback" not in err
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step_2"]
    assert damage(run / "checkpoints/step_2") is None
    monkeypatch.undo()
    assert main(["resume", str(run)]) == 0
    assert train(whole, "--checkpoint.background", background) == 0
    assert fingerprint(run) == fingerprint(whole)


def test_a_run_can_go_on_without_a_checkpoint(tmp_path, full_disk, capsys):
    run = tmp_path / "run"
    assert train(run, "--checkpoint.every", "1", "--checkpoint.on_error", "go_on") == 1
    said = capsys.readouterr()
    assert said.out.count("cannot be written") == 2 == said.out.count("the run goes on")
    assert "the checkpoint of step 4 cannot be written" in said.err  # the run's result
    assert len(lines(run / "metrics.jsonl")) == 4
    newest, damaged = newest_valid(run / "checkpoints")
    assert newest.name == "step_1" and not damaged


def test_a_folder_that_nobody_may_write_to(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").symlink_to("/sys/kernel")  # refused to the superuser too
    assert train(run) == 1
    err = capsys.readouterr().err
    assert "cannot be written" in err and "there is no older one" in err
    assert "Permission denied" in err or "not permitted" in err or "Read-only" in err


def test_records_that_cannot_be_written_stop_the_run(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").symlink_to("/dev/full")
    assert train(run) == 1
    err = capsys.readouterr().err
    assert "metrics.jsonl cannot be written: No space left on device" in err
    assert err.count("\n") == 1


def test_lines_after_a_broken_one_are_dropped(tmp_path):
    """As a power cut may leave them; what a checkpoint needs is on the disk before it."""
    assert train(tmp_path / "run") == 0
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "run", cut)
    shutil.rmtree(cut / "checkpoints/step_4")
    text = (cut / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (cut / "metrics.jsonl").write_bytes(b"".join([*text[:2], b"\0" * 40 + b"\n", text[3]]))
    assert main(["resume", str(cut)]) == 0
    assert fingerprint(cut) == fingerprint(tmp_path / "run")


def test_a_damaged_checkpoint_is_set_aside_and_no_good_one_goes_for_it(tmp_path, capsys):
    run = tmp_path / "run"
    words = ["--checkpoint.every", "1", "--checkpoint.keep_last", "1", "--train.max_steps", "5"]
    assert train(run, *words, "--checkpoint.keep_last", "2") == 0
    found = fingerprint(run)
    newest = run / "checkpoints/step_5"
    (newest / "model.safetensors").write_bytes(b"damaged")
    (run / "checkpoints/.partial_step_3").mkdir()
    (run / "checkpoints/.partial_removed_step_1").mkdir()
    capsys.readouterr()
    assert main(["resume", str(run)]) == 0
    err = capsys.readouterr().err
    assert "step_5 is damaged" in err and "is kept as damaged_step_5" in err
    kept = {p.name for p in (run / "checkpoints").iterdir()}
    assert kept == {"damaged_step_5", "step_4", "step_5"}
    shutil.rmtree(run / "checkpoints/damaged_step_5")
    assert fingerprint(run) == found


def test_a_full_disk_at_a_resumption_is_said_in_a_sentence(tmp_path, capsys):
    run = tmp_path / "a run"
    assert train(run) == 0
    shutil.rmtree(run / "checkpoints/step_4")
    (run / "metrics.jsonl.partial").symlink_to("/dev/full")
    capsys.readouterr()
    assert main(["resume", str(run)]) == 1
    err = capsys.readouterr().err
    assert "cannot be written: No space left" in err and "Traceback" not in err
    assert f"fastrl resume '{run}'" in err  # as a shell takes it


def test_a_picture_that_cannot_be_written_costs_nothing(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "curves.png").symlink_to("/dev/full")
    assert train(run) == 0
    assert "the picture" in capsys.readouterr().err


def test_two_processes_do_not_go_on_with_one_run(tmp_path, capsys):
    run = tmp_path / "run"
    assert train(run) == 0
    before = (run / "metrics.jsonl").read_bytes()
    code = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.flock(f, fcntl.LOCK_EX); print()"
    code += "; sys.stdout.flush(); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(run / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    other.stdout.readline()
    assert main(["resume", str(run)]) == 2
    assert "another process is at work on the run" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_bytes() == before
    other.kill()
    other.wait()
    assert main(["resume", str(run)]) == 0
