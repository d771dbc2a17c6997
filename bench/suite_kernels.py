"""The kernel cases as pytest-benchmark suites: `pytest bench/suite_kernels.py --benchmark-only`.

A group holds an operation with its rivals; each case is validated before it is timed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastrl.bench import head, rows, sample

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROW_CASES = ("logprobs_and_entropy", "logprobs_and_entropy, backward", "policy_loss")
HEAD_CASES = (
    "linear_policy_loss", "linear_policy_loss, any loss of rows", "linear_logprobs_and_entropy",
)  # fmt: skip


def contenders(module: Any, shape: Any, dtype: torch.dtype, name: str) -> Any:
    """The validated case of that name."""
    for case, _ in module.cases(shape, dtype, DEVICE):
        if case.name == name:
            case.validate()
            return case
    raise AssertionError(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ROW_CASES)
def test_from_logits(benchmark: Any, name: str, dtype: torch.dtype) -> None:
    case = contenders(rows, (512, 49152), dtype, name)
    benchmark.group = f"{name}, {dtype}"
    benchmark.extra_info["baselines"] = list(case.baselines)
    benchmark.pedantic(case.run, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("name", sample.SETTINGS)
def test_sampling(benchmark: Any, name: str) -> None:
    case = contenders(sample, (128, 49152), torch.float32, name)
    benchmark.group = name
    benchmark.pedantic(case.run, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("name", HEAD_CASES)
def test_from_hidden_states(benchmark: Any, name: str) -> None:
    case = contenders(head, (256, 49152, 576), torch.float32, name)
    benchmark.group = name
    benchmark.pedantic(case.run, rounds=3, warmup_rounds=1)
