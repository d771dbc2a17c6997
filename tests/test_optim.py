"""The optimiser: clipping, warm-up, masters, and a state that comes back to the same bits."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastrl import optim
from fastrl.config import OptimConfig
from fastrl.errors import UsageError
from fastrl.optim import Optimizer


def model(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)).to(dtype)


def set_grads(m, step):
    rng = torch.Generator().manual_seed(step)
    for p in m.parameters():
        p.grad = torch.randn(p.shape, generator=rng).to(p.dtype)


def test_equals_torchs_adamw_with_clipping():
    ours, theirs = model(), model()
    config = OptimConfig(
        schedule="constant", lr=1e-2, weight_decay=0.1, grad_clip=0.5, warmup_steps=0
    )
    optimizer = Optimizer(ours, config)
    reference = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(5):
        set_grads(ours, step)
        set_grads(theirs, step)
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        reference.step()
        assert optimizer.step(step) == pytest.approx(float(norm), rel=1e-6)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_warm_up_then_constant_or_falling():
    config = OptimConfig(lr=2.0, warmup_steps=4, warmup_from=0.1, schedule="constant")
    optimizer = Optimizer(model(), config)
    rates = [optimizer.lr_at(step) for step in range(6)]
    assert rates == pytest.approx([0.2, 0.65, 1.1, 1.55, 2.0, 2.0])
    optimizer = Optimizer(model(), replace(config, schedule="linear"), total_steps=8)
    rates = [optimizer.lr_at(step) for step in range(9)]
    assert rates == pytest.approx([0.2, 0.65, 1.1, 1.55, 2.0, 1.5, 1.0, 0.5, 0.0])
    with pytest.raises(UsageError, match="linear schedule"):
        Optimizer(model(), replace(config, schedule="linear"))


def test_narrow_parameters_have_masters_that_keep_small_steps():
    m = model(torch.bfloat16)
    config = OptimConfig(
        schedule="constant", lr=1e-5, weight_decay=0.0, grad_clip=0.0, warmup_steps=0
    )
    optimizer = Optimizer(m, config)
    pointers = [p.data_ptr() for p in m.parameters()]
    start = [master.clone() for master in optimizer.masters]
    for step in range(50):
        for p in m.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step(step)
    assert [p.data_ptr() for p in m.parameters()] == pointers
    for master, before, p in zip(optimizer.masters, start, m.parameters(), strict=True):
        torch.testing.assert_close(
            before - master, torch.full_like(master, 50e-5), rtol=0.01, atol=1e-6
        )
        assert torch.equal(p, master.bfloat16())


def test_a_gradient_that_is_not_finite_changes_nothing():
    m = model()
    optimizer = Optimizer(m, OptimConfig(schedule="constant"))
    before = [p.detach().clone() for p in m.parameters()]
    set_grads(m, 0)
    next(m.parameters()).grad[0] = math.nan
    assert not math.isfinite(optimizer.step(0))
    assert all(torch.equal(a, b) for a, b in zip(before, m.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_comes_back_to_the_same_bits(dtype):
    config = OptimConfig(schedule="constant", lr=1e-2, warmup_steps=0)
    one = model(dtype)
    optimizer = Optimizer(one, config)
    for step in range(3):
        set_grads(one, step)
        optimizer.step(step)
    two = model(dtype)
    two.load_state_dict(one.state_dict())
    again = Optimizer(two, config)
    again.load_state_tensors({k: v.clone() for k, v in optimizer.state_tensors().items()})
    for step in range(3, 6):
        for m, o in ((one, optimizer), (two, again)):
            set_grads(m, step)
            o.step(step)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("piece", [1 << 24, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_in_host_memory_gives_the_same_bits(dtype, piece, monkeypatch):
    """Also where a checkpoint of one kind goes on as the other; in pieces that split parameters."""
    monkeypatch.setattr(optim, "PIECE_NUMBERS", piece)
    config = OptimConfig(schedule="constant", lr=1e-2, warmup_steps=0, grad_clip=0.5)
    models = [model(dtype) for _ in range(3)]
    kinds = ["device", "host", "device"]
    optimizers = [
        Optimizer(m, replace(config, state=kind)) for m, kind in zip(models, kinds, strict=True)
    ]
    for step in range(5):
        if step == 3:
            states = [{k: v.clone() for k, v in o.state_tensors().items()} for o in optimizers]
            optimizers[1] = Optimizer(models[1], config)
            optimizers[2] = Optimizer(models[2], replace(config, state="host"))
            for optimizer, state in zip(optimizers[1:], states[:2], strict=True):
                optimizer.load_state_tensors(state)
        for m, optimizer in zip(models, optimizers, strict=True):
            set_grads(m, step)
            if step == 2:
                next(m.parameters()).grad = None
            optimizer.step(step)
    for parameters in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(parameters[0], parameters[1])
        assert torch.equal(parameters[0], parameters[2])


def test_a_state_of_another_model_is_refused():
    optimizer = Optimizer(model(), OptimConfig(schedule="constant"))
    with pytest.raises(UsageError, match="has not"):
        optimizer.load_state_tensors({"exp_avg.x": torch.zeros(1)})


def test_settings_out_of_range():
    with pytest.raises(UsageError, match="betas"):
        Optimizer(model(), OptimConfig(schedule="constant", betas=(0.9,)))
    with pytest.raises(UsageError, match="negative"):
        Optimizer(model(), OptimConfig(schedule="constant", lr=-1.0))


def test_the_norm_of_a_bf16_gradient_is_no_bf16_number():
    """Of hundreds of parameters, as near the truth as their own rounding allows."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(7, 5) for _ in range(100)]).bfloat16()
    optimizer = Optimizer(model, OptimConfig(grad_clip=0.0, schedule="constant"))
    for p in model.parameters():
        p.grad = torch.randn(p.shape).bfloat16()
    truth = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters()))
    assert optimizer.step(0) == pytest.approx(truth, rel=1e-6)
