"""`bench/tune.py` times settings that give the same results, and says what others do."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="settings are a GPU's")
DEVICE = torch.device("cuda")


@pytest.fixture
def tune(monkeypatch):
    from fastrl.bench import tune

    monkeypatch.setattr(tune, "TURNS", 1)
    monkeypatch.setattr(tune, "LAUNCHES", 1)
    return tune


def few(kernel):
    del kernel.candidates[2:]
    return kernel


def test_settings_of_every_kernel(tune):
    kernels = [*tune.of_rows(4, 300, DEVICE), *tune.of_layers("SmolLM2-135M", 3, 2, 20, DEVICE)]
    assert len(kernels) == 8
    for kernel in kernels:
        slow = "sample" in kernel.name  # minutes in the interpreter, whose products take no bf16
        if hasattr(torch.cuda, "is_fake") and (slow or "attention" in kernel.name):
            continue
        row = tune.tune(few(kernel), DEVICE)
        assert not row["failed"] and len(row["timed"]) >= 2, row
        assert row["now"]["settings"] == kernel.now and row["gain"] >= 1


def test_another_result_is_no_candidate(tune):
    kernel = few(next(tune.of_rows(4, 300, DEVICE)))
    calls = []

    def drifts():
        calls.append(0)
        return torch.full((3,), 1.0 if len(calls) <= 2 else 2.0, device=DEVICE)

    object.__setattr__(kernel, "run", drifts)
    row = tune.tune(kernel, DEVICE)
    assert len(row["timed"]) == 1 and row["best"] == row["now"]
    assert all(problem == "another result: 1" for problem in row["failed"].values())
    assert len(row["failed"]) == len(kernel.candidates)
