"""One cell of a study: a run trained and measured, or a model measured as it is."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fastrl import durable, strict_json
from fastrl.checkpoint import damage
from fastrl.config import Config, with_values
from fastrl.errors import Failure, UsageError
from fastrl.model import Decoder, load_model, resolve_model
from fastrl.objectives import check_contradictions
from fastrl.preparation import placement
from fastrl.run_directory import RunDirectory, command
from fastrl.study.baselines import measured_baselines
from fastrl.study.measure import Counter, Measured, Policy, Questions, measure, measure_more
from fastrl.study.plan import BASE, BASELINES, CELLS, RUN, Cell, Plan, perturbed_path
from fastrl.tokenizer import load_tokenizer
from fastrl.weights import hf_tensors, save_model

LAST, BEST = "last", "best"
BEFOREHAND = "beforehand"  # what a base says of training
PLAN = "plan.json"


@dataclass(frozen=True)
class CellFiles:
    """Where a cell's run and measurements are."""

    path: Path

    @property
    def run(self) -> Path:
        """The run's directory."""
        return self.path / RUN

    @property
    def log(self) -> Path:
        """What the cell printed."""
        return self.path / "log.txt"

    def values(self, which: str) -> Path:
        """The figures of every prompt, of the last checkpoint or the best."""
        return self.path / f"{which}.safetensors"

    def found(self, which: str) -> Path:
        """What is no figure of every prompt."""
        return self.path / f"{which}.json"

    def is_trained(self, steps: int) -> bool:
        """Whether the run is at its end."""
        return (self.run / "checkpoints" / f"step_{steps}").is_dir()

    def is_measured(self) -> bool:
        """Whether everything is there."""
        return self.found(LAST).is_file() and self.found(BEST).is_file()

    def write(self, which: str, measured: Measured, about: Mapping[str, Any]) -> None:
        """Write a measurement; its JSON comes last, so that with it all is there."""
        arrays = {k: np.ascontiguousarray(v, np.float64) for k, v in measured.values.items()}
        durable.replace(self.values(which), lambda path: save_file(arrays, path))
        content = {**about, "log_z": measured.log_z, "texts": measured.texts}
        durable.replace_bytes(self.found(which), json.dumps(content, indent=1).encode())

    def read(self, which: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The figures of every prompt, and the rest; raises UsageError for damaged files."""
        try:
            return load_file(self.values(which)), strict_json.parse(self.found(which).read_bytes())
        except (OSError, ValueError, SafetensorError) as error:
            raise UsageError(
                f"{self.path} holds no whole measurement ({error}); remove it, and run the study"
                " again"
            ) from None


def files_of(directory: Path, cell: Cell) -> CellFiles:
    """Where a cell of the study in `directory` is."""
    return CellFiles(directory / CELLS / cell.name)


def cell_command(directory: Path, cell: Cell) -> str:
    """The command that does a cell by hand, as a shell takes it."""
    return f"{command('study --output-dir', directory)} --cell {cell.name}"


def is_done(plan: Plan, directory: Path, cell: Cell) -> bool:
    """Whether a cell is measured: the base with what it says of every arm that the study has now.

    Of a trial, whether its run is at its end. Raises UsageError for damaged files.
    """
    files = files_of(directory, cell)
    if not cell.samples:
        return files.is_trained(cell.config.train.max_steps)
    return files.is_measured() and (cell.arm != BASE or _knows_arms(plan, files, LAST))


def is_predicted(plan: Plan, directory: Path, base: Cell) -> bool:
    """Whether what a base says of every arm is written down, so that its runs may begin."""
    files = files_of(directory, base)
    if files.found(BEFOREHAND).is_file() and _knows_arms(plan, files, BEFOREHAND):
        return True
    return is_done(plan, directory, base)


def _knows_arms(plan: Plan, files: CellFiles, which: str) -> bool:
    _, about = files.read(which)
    return {arm.name for arm in plan.arms} <= {*about.get("arms", ())}


@contextmanager
def alone(path: Path, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """While no other process is at work in a directory.

    Where one is, UsageError is raised, or `say` is told of it and its end is waited for.
    """
    with (path / "lock").open("ab") as file:
        if not durable.lock(file):
            busy = f"another process is at work on {path}"
            if say is None:
                raise UsageError(f"{busy}; wait for its end, or end it")
            say(f"{busy}; its end is waited for")
            durable.lock(file, wait=True)
        yield


def run_config(directory: Path, cell: Cell) -> Config:
    """The configuration of a cell's run."""
    return with_values(
        cell.config, {"train.output_dir": str(files_of(directory, cell).run)}, from_text=False
    )


def do_cell(
    plan: Plan, directory: Path, cell: Cell, train: Callable[[Config], int], count: Counter
) -> int:
    """Train, if it trains, and measure what is not measured yet; the exit code of training.

    `train(config)` starts the run, or goes on with it, and gives its exit code.
    """
    files = files_of(directory, cell)
    base = next(c for c in plan.cells if (c.model, c.arm) == (cell.model, BASE))
    if cell.trains and not is_predicted(plan, directory, base):
        raise UsageError(
            f"what the base says of training is written down before it: do the cell {base.name}"
            " first"
        )
    files.path.mkdir(parents=True, exist_ok=True)
    # one that was begun by a study which was killed goes on, and may end meanwhile
    with alone(files.path, lambda line: print(line, flush=True)):
        if is_done(plan, directory, cell):
            return 0
        return _do_cell(plan, directory, cell, train, count)


def _do_cell(
    plan: Plan, directory: Path, cell: Cell, train: Callable[[Config], int], count: Counter
) -> int:
    files = files_of(directory, cell)
    make_perturbed(directory, cell)
    if cell.config.train.threads:
        torch.set_num_threads(cell.config.train.threads)
    if cell.trains:
        if code := train(run_config(directory, cell)):
            return code
        if cell.samples:
            _measure_run(plan, files, cell, count)
    elif cell.arm == BASE:
        _measure_base(plan, files, cell, count)
    else:
        assert cell.arm == BASELINES
        _measure_baselines(plan, files, cell, count)
    return 0


def make_perturbed(directory: Path, cell: Cell) -> None:
    """The model of a cell that starts from a perturbed one, where it is not there yet.

    Every weight gets normal noise of `noise` times the root mean square of its tensor, seeded by
    the tensor's name.
    """
    name, found, text = cell.model.partition("~")
    if not found:
        return
    target = perturbed_path(directory, name, float(text))
    if (target / "config.json").is_file():
        return
    model = load_model(name, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        tensors = {
            key: value + float(text) * value.square().mean().sqrt() * _noise(key, value)
            for key, value in sorted(hf_tensors(model).items())
        }
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    save_model(model, resolve_model(name), partial, tensors)
    try:
        partial.rename(target)
    except OSError:  # another cell was faster; it made the same
        shutil.rmtree(partial)


def _noise(name: str, like: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)


def policy_of(cell: Cell, checkpoint: Path | None = None) -> Policy:
    """A cell's model, or a checkpoint of its run, beside the model that it began as."""
    device, dtype = placement(cell.config)
    kind: dict[str, Any] = {"dtype": dtype, "device": device}

    def load(name: str | Path) -> Decoder:
        model = load_model(name, **kind)
        model.requires_grad_(False)
        return model

    tokenizer = load_tokenizer(cell.config.model.name)
    base = load(cell.config.model.name)
    if checkpoint is None:
        return Policy(base, tokenizer, None)
    return Policy(load(checkpoint), tokenizer, base)


def _measure_base(plan: Plan, files: CellFiles, cell: Cell, count: Counter) -> None:
    questions = Questions.of(plan.settings, cell.config)
    arms = []
    for arm in plan.arms:
        config = with_values(cell.config, arm.values, from_text=False)
        if not config.sampling.ignore_eos:  # its optimum is over other responses than were drawn
            arms.append((arm, check_contradictions(config)))
    policy = policy_of(cell)
    found = measure(policy, questions, cell.samples, count, base_of=arms)
    about = {"step": 0, "arms": [arm.name for arm in plan.arms]}
    files.write(BEFOREHAND, found, about)
    torch.set_num_threads(1)  # of the cores that it may have had alone: runs begin beside it now
    more = measure_more(
        policy, questions, plan.settings, count, long_samples=cell.samples, is_base=True
    )
    for which in (BEST, LAST):  # the last says that all is there
        files.write(which, replace(found, values=found.values | more), about)


def _measure_baselines(plan: Plan, files: CellFiles, cell: Cell, count: Counter) -> None:
    questions = Questions.of(plan.settings, cell.config)
    values, rows = {}, []
    for found in measured_baselines(plan, policy_of(cell), questions, count):
        values[f"accuracy.{found.name}"] = found.accuracy_P
        values[f"tokens.{found.name}"] = found.tokens_P
        rows.append({"name": found.name, "label": found.label, **found.about})
    for which in (LAST, BEST):
        files.write(which, Measured(values, []), {"baselines": rows})


def _measure_run(plan: Plan, files: CellFiles, cell: Cell, count: Counter) -> None:
    questions = Questions.of(plan.settings, cell.config)
    run = RunDirectory.open(files.run, writes=False)
    last = cell.config.train.max_steps
    best = best_step(run, last)
    for which, step in ((LAST, last), (BEST, best)):
        if files.found(which).is_file():
            continue
        if which == BEST and step == last:
            _copy(files)
            continue
        checkpoint = run.checkpoints / f"step_{step}" if step else None
        if checkpoint and (wrong := damage(checkpoint)):
            raise Failure(f"{checkpoint} cannot be measured: {wrong}; remove {files.path}")
        policy = policy_of(cell, checkpoint)
        if checkpoint is None:  # of the initial model nothing is better; its KL is 0
            policy = replace(policy, reference=None)
        found = measure(policy, questions, cell.samples, count)
        more = measure_more(
            policy, questions, plan.settings, count,
            other_words=which == LAST,
            long_samples=plan.settings.samples if which == LAST and cell.seed == 0 else 0,
        )  # fmt: skip
        files.write(which, replace(found, values=found.values | more), {"step": step})


def _copy(files: CellFiles) -> None:
    """The best checkpoint is the last."""
    durable.replace_bytes(files.values(BEST), files.values(LAST).read_bytes())
    durable.replace_bytes(files.found(BEST), files.found(LAST).read_bytes())


def best_step(run: RunDirectory, last: int) -> int:
    """The step of the best accuracy on the validation split, the earliest of equals.

    The initial model is one of them: a run that only makes it worse has its best at step 0. The
    last step where nothing was evaluated.
    """
    kept = {int(p.name.removeprefix("step_")) for p in run.checkpoints.glob("step_*")}
    scores = {s: a for s, a in run.accuracies().items() if s == 0 or s in kept}
    if not scores:
        return last
    return max(scores, key=lambda step: (scores[step], -step))
