"""Checkpoints: whole or absent, verified, and never a pickle."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fastrl.checkpoint import (
    MANIFEST,
    OPTIMIZER,
    STATE,
    TrainerState,
    damage,
    newest_valid,
    read_optimizer,
    read_state,
    weights_sha256,
    write_checkpoint,
)
from fastrl.config import OptimConfig
from fastrl.errors import UsageError
from fastrl.optim import Optimizer


@pytest.fixture
def trained():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = Optimizer(model, OptimConfig(schedule="constant"))
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step(0)
    return model, optimizer


def write(directory, trained, step):
    model, optimizer = trained
    state = TrainerState(step, step * 32, step * 1000)
    return write_checkpoint(
        directory,
        lambda p: save_file(dict(model.state_dict()), p / "model.safetensors"),
        optimizer.state_tensors(),
        state,
    )


def test_what_was_written_comes_back(tmp_path, trained):
    path = write(tmp_path, trained, 5)
    assert path == tmp_path / "step_5" and damage(path) is None
    assert read_state(path) == TrainerState(5, 160, 5000)
    again = Optimizer(trained[0], OptimConfig(schedule="constant"))
    read_optimizer(path, again)
    saved, loaded = trained[1].state_tensors(), again.state_tensors()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[k], loaded[k]) for k in saved)
    suffixes = {p.suffix for p in path.rglob("*") if p.is_file()}
    assert suffixes == {".json", ".safetensors"}
    assert not list(tmp_path.glob(".partial*"))


@pytest.mark.parametrize(
    "how", ["cut", "flip", "gone", "manifest", "no manifest", "empty manifest"]
)
def test_a_damaged_checkpoint_is_named_and_the_older_one_used(tmp_path, trained, how):
    old, new = write(tmp_path, trained, 5), write(tmp_path, trained, 12)
    assert newest_valid(tmp_path) == (new, [])
    file = new / OPTIMIZER
    data = bytearray(file.read_bytes())
    if how == "cut":
        file.write_bytes(data[:-1])
    elif how == "flip":
        data[-1] ^= 1
        file.write_bytes(data)
    elif how == "gone":
        file.unlink()
    elif how == "manifest":
        (new / MANIFEST).write_text("[1, 2")
    elif how == "no manifest":
        (new / MANIFEST).unlink()
    else:
        (new / MANIFEST).write_text("{}")
    path, skipped = newest_valid(tmp_path)
    assert path == old
    assert len(skipped) == 1 and str(new) in skipped[0]


def test_a_write_that_dies_leaves_nothing_that_looks_whole(tmp_path, trained):
    def dies(path):
        (path / "model.safetensors").write_bytes(b"half")
        raise OSError("no space left on device")

    old = write(tmp_path, trained, 5)
    with pytest.raises(OSError, match="no space"):
        write_checkpoint(tmp_path, dies, {}, TrainerState(6, 0, 0))
    assert [p.name for p in tmp_path.iterdir()] == ["step_5"]
    assert newest_valid(tmp_path) == (old, [])
    assert write(tmp_path, trained, 6).is_dir()  # the remains are in nobody's way


def test_no_checkpoint(tmp_path):
    assert newest_valid(tmp_path / "none") == (None, [])


def test_a_state_that_is_not_one(tmp_path):
    (tmp_path / STATE).write_text(json.dumps({"step": 1}))
    with pytest.raises(UsageError, match="resume an older step"):
        read_state(tmp_path)


def test_the_digest_of_weights_follows_their_content(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    first = weights_sha256(tmp_path)
    save_file({"a": torch.ones(2)}, tmp_path / OPTIMIZER)
    assert weights_sha256(tmp_path) == first
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert weights_sha256(tmp_path) != first
