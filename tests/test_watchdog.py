"""A phase that takes too long is named; what a run's figures warn of."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastrl import watchdog
from fastrl.alerts import alerts
from fastrl.config import WatchdogConfig
from fastrl.watchdog import Watchdog


class Clock:
    """Stands still at `now`; counts how often it was looked at."""

    now, looks = 0.0, 0

    def monotonic(self):
        self.looks += 1
        return self.now

    def at(self, now):
        """It is `now`, and the watchdog has seen it."""
        self.now, seen = now, self.looks
        while self.looks < seen + 2:
            time.sleep(0.001)


def test_a_slow_phase_is_named_with_its_place_and_its_limit(monkeypatch):
    clock, said = Clock(), []
    monkeypatch.setattr(watchdog, "time", clock)
    with Watchdog(WatchdogConfig(sample=0.1, grade=0), said.append) as dog:
        dog.phase("grade")
        clock.at(5)
        dog.phase("sample 1/9")
        clock.at(5.05)
        assert not said
        dog.phase("sample 2/9")  # the same phase
        for now, lines in [(5.09, 0), (5.11, 1), (5.19, 1), (5.21, 2), (5.39, 2), (5.41, 3)]:
            clock.at(now)
            assert len(said) == lines, now
        dog.phase("train")
        clock.at(9)
    assert len(said) == 3 and all("the phase 'sample' has taken" in s for s in said)
    assert "its limit is 0.1 s (watchdog.sample)" in said[0]
    assert f"{Path(__file__).name}:" in said[0]


def test_a_run_that_hangs_is_ended(tmp_path):
    """In an interpreter of its own, which the watchdog ends whatever its thread is at."""
    (tmp_path / "slow.py").write_text(
        "import time\ndef reward(completions, **columns):\n    time.sleep(600)\n"
    )
    words = ["--objective", "task", "--reward", "slow:reward", "--train.check", "false"]
    words += ["--eval.prompts", "0", "--eval.test_prompts", "0", "--watchdog.grade", "1"]
    words += ["--watchdog.action", "stop", "--output-dir", str(tmp_path / "run")]
    done = subprocess.run(
        [str(Path(sys.executable).parent / "fastrl"), "train", *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert "fastrl: the phase 'grade' has taken 1 s" in done.stderr
    assert "continue with: fastrl resume" in done.stderr and "slow.py" in done.stderr


FINE = {
    "objective": "task", "truncated_share": 0.1, "groups_all_right": 0.2, "groups_all_wrong": 0.2,
    "clip_share": 0.01, "reward_group_std": 0.4, "parse_rate": 0.9,
}  # fmt: skip


@pytest.mark.parametrize(
    "change, said",
    [
        ({"truncated_share": 0.6}, "60% of the responses were cut"),
        ({"groups_all_wrong": 0.7}, "90% of the groups are all right or all wrong"),
        ({"clip_share": 1.0}, "100% of the tokens are clipped"),
        ({"reward_group_std": 0.0}, "constant"),
        ({"reward_group_std": 1.4e-16}, "constant"),  # of 0.7 three times
        ({"parse_rate": 0.3}, "from 30% of the responses only"),
    ],
)
def test_alerts(change, said):
    assert alerts([FINE]) == []
    (text,) = alerts([FINE | change])
    assert said in text and ("; " in text or ", so" in text)
    assert alerts([FINE | change, *[FINE] * 9]) == []  # a mean over steps
    assert alerts([FINE | dict.fromkeys(change)]) == []  # what is not known


def test_groups_without_signal_do_not_matter_to_sharpening():
    assert alerts([FINE | {"objective": "sharpen", "groups_all_wrong": 0.8}]) == []


def test_each_evaluation_has_its_own_time(tmp_path, monkeypatch):
    from test_train import train

    from fastrl.display import Display

    original, seen = Display.phase, []

    def phase(self, name):
        seen.append(name.split()[0])
        original(self, name)

    monkeypatch.setattr(Display, "phase", phase)
    assert train(tmp_path / "run", "--train.max_steps", "1") == 0
    phases = [name for name, before in zip(seen, ["", *seen], strict=False) if name != before]
    assert phases[:4] == ["validation", "evaluate", "test", "evaluate"]
