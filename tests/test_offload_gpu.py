"""State and reference in the memory beside a GPU: the same bits, and room on the GPU."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fastrl import optim
from fastrl.config import OptimConfig
from fastrl.offload import Resting
from fastrl.optim import Optimizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def model(dtype):
    torch.manual_seed(0)
    layers = [nn.Linear(1024, 1000 + i) for i in range(4)]
    return nn.ModuleList(layers).to("cuda", dtype)


def steps(dtype, state):
    """The parameters after a few steps, and the bytes on the GPU beside them."""
    m = model(dtype)
    before = torch.cuda.memory_allocated()
    optimizer = Optimizer(m, replace(OptimConfig(schedule="constant", lr=1e-2), state=state))
    for step in range(6):
        rng = torch.Generator("cuda").manual_seed(step)
        for p in m.parameters():
            p.grad = torch.randn(p.shape, generator=rng, device="cuda").to(dtype)
        optimizer.step(step)
    torch.cuda.synchronize()
    if state == "host":
        assert all(x.is_pinned() for pair in optimizer.moments for x in pair)
    return [p.detach().clone() for p in m.parameters()], torch.cuda.memory_allocated() - before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_state_in_host_memory_gives_the_same_bits_and_takes_no_room(dtype, monkeypatch):
    """Pieces that split the parameters, so that copies and updates run beside each other."""
    monkeypatch.setattr(optim, "PIECE_NUMBERS", 1 << 18)
    weights, beside = steps(dtype, "device")
    for _ in range(3):
        again, rest = steps(dtype, "host")
        assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
        copies = sum(p.numel() * p.element_size() for p in again)
        numbers = sum(p.numel() for p in again)
        assert beside - rest >= 0.9 * numbers * (8 if dtype == torch.float32 else 12) - copies


def test_a_resting_reference_takes_no_room():
    m = model(torch.bfloat16).requires_grad_(False)
    kept = [p.clone() for p in m.parameters()]
    before = torch.cuda.memory_allocated()
    resting = Resting(m)
    size = sum(p.numel() * p.element_size() for p in kept)
    assert before - torch.cuda.memory_allocated() >= size
    for _ in range(2):
        with resting.awake():
            assert all(torch.equal(a, b) for a, b in zip(kept, m.parameters(), strict=True))
        assert not any(p.is_cuda for p in m.parameters())
