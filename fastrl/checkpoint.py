"""Checkpoints: atomic, complete and verified; safetensors and JSON only.

A checkpoint is a Hugging Face directory (`from_pretrained` loads it) that also holds the optimiser
state, the loop's counters and a manifest with the size and SHA-256 of every file. It is written
under another name, synced, and renamed, so that a directory named `step_N` is always whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastrl.distributed import ALONE, World
from fastrl.errors import UsageError
from fastrl.optim import Optimizer

MANIFEST = "manifest.json"
OPTIMIZER = "optimizer.safetensors"
STATE = "trainer_state.json"


@dataclass(frozen=True)
class TrainerState:
    """What the loop needs beside tensors; random numbers are counters and need nothing."""

    step: int  # optimiser steps done
    prompts_drawn: int  # position of the prompt stream
    tokens_sampled: int  # since the start of the run


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(directory: Path) -> str:
    """One digest of all safetensors files of a model directory, by name and content."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        if path.name != OPTIMIZER:
            digest.update(f"{path.name} {sha256(path)}\n".encode())
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_checkpoint(
    directory: Path,
    write_model,
    optimizer: Optimizer,
    state: TrainerState,
    world: World = ALONE,
) -> Path:
    """Write `directory`/step_N and return it; `write_model(path)` saves the model's files there.

    Every process calls it, and the first one writes.
    """
    target = directory / f"step_{state.step}"
    tensors = optimizer.state_tensors()
    if not world.is_first:
        return target
    partial = directory / f".partial_step_{state.step}"
    directory.mkdir(parents=True, exist_ok=True)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    write_model(partial)
    save_file(tensors, partial / OPTIMIZER)
    (partial / STATE).write_text(json.dumps(asdict(state), indent=1))
    files = sorted(p for p in partial.rglob("*") if p.is_file())
    manifest = {
        str(p.relative_to(partial)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in [*files, partial / MANIFEST, partial]:
        _sync(path)
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    _sync(directory)
    return target


def damage(path: Path) -> str | None:
    """What is wrong with the checkpoint `path`, in a few words; None for a whole one."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, entry in manifest.items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != entry["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {entry['bytes']}"
            if sha256(file) != entry["sha256"]:
                return f"{name} does not match its SHA-256"
        return None if STATE in manifest and OPTIMIZER in manifest else "its manifest is incomplete"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"


def newest_valid(directory: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint under `directory`, and a sentence for every one passed over."""
    found = [p for p in directory.glob("step_*") if p.name.removeprefix("step_").isdigit()]
    skipped: list[str] = []
    for path in sorted(found, key=lambda p: int(p.name.removeprefix("step_")), reverse=True):
        problem = damage(path)
        if problem is None:
            return path, skipped
        skipped.append(f"{path} is damaged: {problem}; an older checkpoint is used")
    return None, skipped


def read_state(path: Path) -> TrainerState:
    """The loop's counters in the checkpoint `path`."""
    try:
        return TrainerState(**json.loads((path / STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path / STATE} cannot be read: {error}; resume an older step") from None


def read_optimizer(path: Path, optimizer: Optimizer) -> None:
    """Load the optimiser state in the checkpoint `path` into `optimizer`."""
    with safe_open(path / OPTIMIZER, "pt") as file:
        optimizer.load_state_tensors(_Tensors(file))


class _Tensors(Mapping[str, Tensor]):
    """The tensors of a file, each read when it is asked for: a process keeps its pieces only."""

    def __init__(self, file) -> None:
        self.file = file
        self.names = set(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        return self.file.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
