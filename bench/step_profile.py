"""Where a step of training spends its time on a GPU, kernel by kernel.

    python bench/step_profile.py [MODEL [trace.json]]

Two steps are run for their compiling and capturing, one is recorded; the trace is for a viewer.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from fastrl.bench.step_ours import Ours

SHAPE = (32, 8, 128)  # prompts, responses a prompt, new tokens: what the smallest context holds
SHOWN = 30


def main(model: str = "embedded", trace: str = "") -> int:
    """Print the step's phases, and what takes most of it."""
    if not torch.cuda.is_available():
        print("step_profile.py: torch finds no GPU here, and the profile is one of a GPU's kernels")
        return 2
    with tempfile.TemporaryDirectory() as directory:
        steps = Ours(model, SHAPE, "bfloat16", Path(directory))
        for _ in range(2):
            steps()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
            steps()
            torch.cuda.synchronize()
        step = steps.steps[-1]
        print({key: round(value, 4) for key, value in step.items() if key.startswith("seconds")})
        print(recorded.key_averages().table(sort_by="self_device_time_total", row_limit=SHOWN))
        if trace:
            recorded.export_chrome_trace(trace)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
