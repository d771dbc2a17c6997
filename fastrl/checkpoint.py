"""Checkpoints: atomic, complete and verified; safetensors and JSON only.

A checkpoint is a Hugging Face directory (`from_pretrained` loads it) that also holds the optimiser
state, the loop's counters and a manifest with the size and SHA-256 of every file. It is written
under another name, synced, and renamed, so that a directory named `step_N` is always whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastrl import strict_json
from fastrl.durable import make_directories, sync
from fastrl.errors import UsageError
from fastrl.optim import Optimizer

MANIFEST = "manifest.json"
OPTIMIZER = "optimizer.safetensors"
STATE = "trainer_state.json"
PARTIAL = ".partial_"  # before the name of what is being written or removed
DAMAGED = "damaged_"


@dataclass(frozen=True)
class TrainerState:
    """What the loop needs beside tensors; random numbers are counters and need nothing."""

    step: int  # optimiser steps done
    prompts_drawn: int  # position of the prompt stream
    tokens_sampled: int  # since the start of the run
    attempt: int = 0  # how often the run was rolled back to an older checkpoint
    max_tokens_per_batch: int = 0  # less than configured where memory ran out; 0: as configured

    @classmethod
    def of(cls, values: Any) -> TrainerState:
        """Of a JSON object; TypeError for one that has other keys, or no counters."""
        state = cls(**values)
        if not all(type(value) is int and value >= 0 for value in asdict(state).values()):
            raise TypeError("its counters are no whole numbers")
        return state


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


def write_checkpoint(
    directory: Path,
    write_model: Callable[[Path], object],
    optimizer: Mapping[str, Tensor],
    state: TrainerState,
) -> Path:
    """Write `directory`/step_N and return it, on the disk.

    `write_model(path)` saves the model's files there, `optimizer` is `Optimizer.state_tensors()`.
    Whatever is raised, older checkpoints are as they were, and what was written so far is gone.
    """
    target = directory / f"step_{state.step}"
    partial = directory / f"{PARTIAL}step_{state.step}"
    make_directories([directory])
    remove(partial)
    partial.mkdir()
    try:
        write_model(partial)
        save_file(dict(optimizer), partial / OPTIMIZER)
        (partial / STATE).write_text(json.dumps(asdict(state), indent=1))
        files = sorted(p for p in partial.rglob("*") if p.is_file())
        manifest = {
            str(p.relative_to(partial)): {"bytes": p.stat().st_size, "sha256": sha256(p)}
            for p in files
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
        sync(*files, partial / MANIFEST, partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    remove(target)  # of a run that was cut back to an older step
    partial.rename(target)
    sync(directory)
    return target


def remove(path: Path) -> None:
    """Remove a checkpoint; one that is half removed has no checkpoint's name."""
    if path.is_dir():
        going = path.with_name(f"{PARTIAL}removed_{path.name.removeprefix(PARTIAL)}")
        shutil.rmtree(going, ignore_errors=True)
        path.rename(going)
        sync(path.parent)  # before a file of it is gone
        shutil.rmtree(going)


def steps(directory: Path) -> dict[int, Path]:
    """The checkpoints under `directory`, whole or not, by their step, the newest first."""
    found = {
        int(p.name.removeprefix("step_")): p
        for p in directory.glob("step_*")
        if p.name.removeprefix("step_").isdecimal()
    }
    return dict(sorted(found.items(), reverse=True))


def clear(directory: Path, kept: Path | None) -> list[Path]:
    """Remove what was left half written, and set aside what is newer than the checkpoint `kept`.

    Gives the new names of damaged checkpoints: they are none any more, for whoever counts them.
    """
    for path in directory.glob(f"{PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)
    aside = []
    for path in steps(directory).values():
        if path == kept:
            break
        target = path.with_name(f"{DAMAGED}{path.name}")
        shutil.rmtree(target, ignore_errors=True)
        aside.append(path.rename(target))
    return aside


def damage(path: Path) -> str | None:
    """What is wrong with the checkpoint `path`, in a few words; None for a whole one."""
    try:
        manifest = strict_json.parse((path / MANIFEST).read_bytes())
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
    skipped: list[str] = []
    for path in steps(directory).values():
        problem = damage(path)
        if problem is None:
            return path, skipped
        skipped.append(f"{path} is damaged: {problem}; an older checkpoint is used")
    return None, skipped


def read_state(path: Path) -> TrainerState:
    """The loop's counters in the checkpoint `path`."""
    try:
        return TrainerState.of(strict_json.parse((path / STATE).read_bytes()))
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
