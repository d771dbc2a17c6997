"""A long run holds no more at its end than at its beginning."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="reads /proc, which only Linux has"
)
SETTLED = 0.3  # of the steps, after which nothing grows any more


def held(tmp_path, steps, *words):
    """Resident bytes, open files and threads after each step, [steps, 3]."""
    small = [
        "--sampling.prompts_per_step", "4", "--sampling.responses_per_prompt", "4",
        "--eval.prompts", "4", "--eval.test_prompts", "0", "--eval.samples", "2",
        "--eval.every", "50", "--checkpoint.every", "25", "--checkpoint.keep_last", "2",
        "--checkpoint.background", "on", "--anomaly.collapse", "go_on",
        "--output-dir", str(tmp_path / "run"),
    ]  # fmt: skip
    script = Path(__file__).with_name("leaking_run.py")
    done = subprocess.run(
        [sys.executable, str(script), str(steps), *small, *words],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split() for line in done.stderr.splitlines()]
    return np.array([row for row in rows if len(row) == 3 and row[0].isdecimal()], float)


def growth(values):
    """Of each quantity, a step: the slope of a line through the settled part."""
    rows = values[int(SETTLED * len(values)) :]
    return np.polyfit(np.arange(len(rows)), rows, 1)[0]


@pytest.mark.slow
def test_five_hundred_steps_hold_nothing(tmp_path):
    values = held(tmp_path, 500)
    assert len(values) == 500
    slope = growth(values)
    first, last = values[150:200].mean(0), values[-50:].mean(0)
    print(f"500 steps: {slope[0]:.0f} bytes a step; {first} at step 150 to 200, {last} at the end")
    assert last[0] - first[0] < 10e6 and slope[0] < 20_000
    assert values[-1, 1] <= values[150:200, 1].max() and values[-1, 2] <= values[150:200, 2].max()


def test_a_leak_would_be_seen(tmp_path):
    slope = growth(held(tmp_path, 24, "--leak"))
    assert slope[0] > 1_000_000 and slope[1] > 0.9 and slope[2] > 0.9
