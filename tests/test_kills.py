"""A run that is killed, or whose machine loses its power, comes to the same bits."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from test_train import SMALL, fingerprint

from fastrl.checkpoint import damage

CHILD = Path(__file__).with_name("killed_run.py")
PHASES = ("sample", "grade", "reference", "train", "save")
TRAIN = ["train", *SMALL, "--train.max_steps", "8", "--sampling.max_tokens", "48"]
TRAIN += ["--checkpoint.every", "1", "--checkpoint.keep_last", "2", "--checkpoint.keep_best", "1"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The end of the run without a kill, and the seconds that it takes."""
    folder = tmp_path_factory.mktemp("whole")
    started = time.monotonic()
    assert Attempt(folder).wait() == 0
    return fingerprint(folder / "run"), time.monotonic() - started


class Attempt:
    """A process that begins or goes on with the run in `folder`."""

    def __init__(self, folder: Path, disk: Path | None = None, hold: str = "") -> None:
        self.log = folder / "phases"
        self.log.touch()
        self.before = self.log.stat().st_size
        run = folder / "run"
        begun = (run / "config.toml").exists()
        words = ["resume", str(run)] if begun else [*TRAIN, "--output-dir", str(run)]
        self.process = subprocess.Popen(
            [sys.executable, str(CHILD), str(self.log), str(disk or ""), *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "HOLD_PHASE": hold},
        )

    @property
    def phase(self) -> str:
        """The phase under way; "start" before any."""
        with self.log.open("rb") as file:
            file.seek(self.before)
            names = file.read().decode().split("\n")[:-1]
        return names[-1].split()[0] if names else "start"

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit code, or None where the process is still there after so many seconds."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        assert self.process.returncode == 0, self.process.stderr.read().decode()
        return 0

    def wait_for(self, phase: str, times: int) -> bool:
        """True once a phase has begun so often; False where the run ended before."""
        seen, last = 0, ""
        while self.process.poll() is None:
            now = self.phase
            seen += now == phase and last != phase
            last = now
            if seen >= times:
                return True
            time.sleep(0.0005)
        self.wait()
        return False

    def kill(self) -> str:
        """Kill the process and those it started; the phase that it was in."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stderr.close()
        assert_whole(self.log.parent)
        return self.phase


def saved(folder: Path) -> list[str]:
    """The checkpoints that were said to be on the disk, of the last attempt too."""
    path = folder / "phases.saved"
    return path.read_text().split() if path.exists() else []


def assert_whole(folder: Path) -> None:
    """What has a checkpoint's name is whole, and the last one that was saved is there."""
    checkpoints = folder / "run" / "checkpoints"
    for path in checkpoints.glob("step_*"):
        assert damage(path) is None, path
    assert all((checkpoints / name).is_dir() for name in saved(folder)[-1:])


def cut_power(folder: Path, disk: Path, rng: random.Random) -> None:
    """Leave of the run what a power cut would, and begin with a new account of what is synced.

    The last checkpoint that was saved has to be there, and whole.
    """
    from killed_run import after_power_cut

    last = saved(folder)[-1:]

    left = folder.with_name(f"{folder.name}_after")
    after_power_cut(disk, folder, left, rng)
    shutil.rmtree(folder)
    shutil.rmtree(disk)
    left.rename(folder)
    for name in last:
        assert damage(folder / "run" / "checkpoints" / name) is None, name
    (folder / "phases.saved").write_text("".join(f"{name}\n" for name in last))
    disk.mkdir()
    for path in [folder, *folder.rglob("*")]:  # all that is there now is on the disk
        target = disk / str(path.stat().st_ino)
        if path.is_dir():
            import json

            target.write_text(json.dumps({e.name: e.inode() for e in os.scandir(path)}))
        else:
            shutil.copyfile(path, target)


def end_of(folder: Path) -> dict:
    while Attempt(folder).wait() is None:
        pass
    return fingerprint(folder / "run")


def test_a_run_killed_in_every_phase_comes_to_the_same_bits(uninterrupted, tmp_path):
    rng, hit = random.Random(0), Counter()
    for phase in PHASES:
        # a busy machine may be late, and kill it in the next phase; the second time it waits
        for hold in ("", phase):
            if phase in hit:
                break
            attempt = Attempt(tmp_path, hold=hold)
            assert attempt.wait_for(phase, times=1)
            time.sleep(rng.uniform(0, 0.002))
            hit[attempt.kill()] += 1
    print(f"{hit.total()} kills, by phase: {dict(hit)}")
    assert hit.total() >= 5 and set(PHASES) <= hit.keys()
    assert end_of(tmp_path) == uninterrupted[0]


def test_a_run_whose_machine_loses_power_comes_to_the_same_bits(uninterrupted, tmp_path):
    rng, disk, folder = random.Random(1), tmp_path / "disk", tmp_path / "folder"
    disk.mkdir()
    folder.mkdir()
    for phase in ("save", "train"):
        attempt = Attempt(folder, disk)
        assert attempt.wait_for(phase, times=2)
        time.sleep(rng.uniform(0, 0.01))
        attempt.kill()
        cut_power(folder, disk, rng)
    assert end_of(folder) == uninterrupted[0]


@pytest.mark.slow
@pytest.mark.parametrize("power", [False, True])
def test_fifty_kills_at_random_times(uninterrupted, tmp_path, power):
    """Uniform over the time of the whole run, the interpreter's start included."""
    expected, seconds = uninterrupted
    rng, hit = random.Random(2), Counter()
    number = 0
    while hit.total() < 50 or not set(PHASES) <= hit.keys():
        folder, disk = tmp_path / f"run_{number}", tmp_path / f"disk_{number}"
        number += 1
        folder.mkdir()
        disk.mkdir()
        for _ in range(4):
            attempt = Attempt(folder, disk if power else None)
            if hit.total() >= 50:  # those that chance has left out
                left = next((p for p in PHASES if p not in hit), PHASES[0])
                ended = not attempt.wait_for(left, times=1)
            else:
                ended = attempt.wait(rng.uniform(0, seconds)) == 0
            if ended:
                break
            hit[attempt.kill()] += 1
            if power:
                cut_power(folder, disk, rng)
        assert end_of(folder) == expected
    what = "power cuts" if power else "kills"
    print(f"{hit.total()} {what}, by phase: {dict(hit)}")
