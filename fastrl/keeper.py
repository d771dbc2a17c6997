"""When a run's checkpoints are written, what is done where they cannot be, and which are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError
from torch import Tensor

from fastrl.checkpoint import TrainerState, remove, steps, write_checkpoint
from fastrl.config import CheckpointConfig
from fastrl.durable import sync
from fastrl.errors import Failure, reason
from fastrl.run_directory import RunDirectory, command

Tensors = Mapping[str, Tensor]


class Keeper:
    """Writes the checkpoints of a run, one at a time, in the background where that is asked for.

    To be used as a context, which ends when the last one is on the disk.
    Before a checkpoint has its name, the records of its steps are on the disk: whatever it is
    resumed after, nothing of them is missing.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        directory: RunDirectory,
        write_model: Callable[[Path, Tensors], object],
        say: Callable[[str], None],
        *,
        on_gpu: bool = False,
    ) -> None:
        """`write_model(path, weights)` saves the model's files; `say` takes a line for the user."""
        self._config, self._directory = config, directory
        self._write_model, self._say = write_model, say
        background = config.background == "on" or config.background == "auto" and on_gpu
        self._pool = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._writing: tuple[int, Future[None]] | None = None

    def __enter__(self) -> Keeper:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except Failure as failed:
            if error is None:
                raise
            self._say(str(failed))  # beside what is on its way
        finally:
            if self._pool is not None:
                self._pool.shutdown()

    def save(
        self, weights: Tensors, optimizer: Tensors, state: TrainerState, *, needed: bool = False
    ) -> None:
        """Write checkpoints/step_N, or begin to, once the one before is written.

        `needed`: the run ends with it, so that it is there, or Failure is raised, when this
        returns. Raises Failure as `wait` does.
        """
        self.wait()
        records = self._directory.take_unsynced()
        accuracies = self._directory.accuracies() if self._config.keep_best else {}
        if self._pool is None or needed:
            self._answer(
                state.step,
                lambda: self._write(weights, optimizer, state, records, accuracies),
                needed,
            )
            return
        weights, optimizer = _copy(weights), _copy(optimizer)
        self._writing = (
            state.step,
            self._pool.submit(self._write, weights, optimizer, state, records, accuracies),
        )

    def wait(self) -> None:
        """Return when the last checkpoint is on the disk.

        Raises Failure where it could not be written, unless the run is to go on then.
        """
        if self._writing is not None:
            (step, written), self._writing = self._writing, None
            self._answer(step, written.result)

    def _answer(self, step: int, write: Callable[[], None], needed: bool = False) -> None:
        try:
            write()
        except (OSError, SafetensorError) as error:
            checkpoints = self._directory.checkpoints
            older = next((str(path) for path in steps(checkpoints).values()), "")
            kept = f"{older} is as it was" if older else "there is no older one"
            text = (
                f"the checkpoint of step {step} cannot be written to {checkpoints}:"
                f" {reason(error)}; {kept}"
            )
            if self._config.on_error == "go_on" and not needed:
                self._say(f"{text}; the run goes on")
                return
            raise Failure(
                f"{text}; make room, then continue with: {command('resume', self._directory.path)}"
            ) from None

    def _write(
        self,
        weights: Tensors,
        optimizer: Tensors,
        state: TrainerState,
        records: Iterable[Path],
        accuracies: Mapping[int, float],
    ) -> None:
        sync(*(path for path in records if path.exists()))
        checkpoints = self._directory.checkpoints
        write_checkpoint(
            checkpoints, lambda path: self._write_model(path, weights), optimizer, state
        )
        config = self._config
        for step in superfluous(steps(checkpoints), accuracies, config.keep_last, config.keep_best):
            try:
                remove(checkpoints / f"step_{step}")
            except OSError as error:
                self._say(f"the old checkpoint of step {step} cannot be removed: {reason(error)}")


def superfluous(
    steps: Iterable[int], accuracies: Mapping[int, float], keep_last: int, keep_best: int
) -> list[int]:
    """The steps of checkpoints that are not kept.

    The newest `keep_last` are (0: all are), and of the others the `keep_best` of the best accuracy,
    the newer of equal ones; one without an accuracy is none of the best.
    """
    others = sorted(steps, reverse=True)[keep_last:] if keep_last else []
    best = sorted((s for s in others if s in accuracies), key=lambda s: (-accuracies[s], -s))
    return [s for s in others if s not in best[:keep_best]]


def _copy(tensors: Tensors) -> dict[str, Tensor]:
    """In host memory, where training does not change them."""
    return {name: torch.clone(t.detach().cpu()) for name, t in tensors.items()}
