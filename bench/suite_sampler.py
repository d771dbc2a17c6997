"""The sampler and transformers as a pytest-benchmark suite: `pytest bench/suite_sampler.py`.

The embedded model, 256 responses; each contender makes the same number of tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastrl.bench.sampler import validate
from fastrl.bench.sampler_rivals import subject
from fastrl.bench.sampler_tasks import sample_groups

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("who", ["fastrl", "generate", "continuous batching"])
def test_groups(benchmark: Any, who: str, dtype: torch.dtype) -> None:
    one = subject("embedded", dtype, DEVICE)
    task = sample_groups(one, (256, 20, 64))
    task.ours()
    validate(task.ours, one)
    benchmark.group = f"256 responses, {dtype}"
    benchmark.extra_info["tokens"] = task.ours.tokens
    run = task.ours if who == "fastrl" else task.rivals[who]
    benchmark.pedantic(run, rounds=3, warmup_rounds=1)
