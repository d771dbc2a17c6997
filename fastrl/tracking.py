"""A run's records as curves elsewhere: TensorBoard's event files, Weights & Biases.

A tracker begins with all that metrics.jsonl and eval.jsonl have, so that it shows what they show,
whatever a kill, a resumption or a roll back left of it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

import tomli_w

from fastrl import durable
from fastrl.config import TrackingConfig, to_dict
from fastrl.errors import UsageError

if TYPE_CHECKING:
    from fastrl.run import Run

EVENTS = "events.out.tfevents."
FINISH_SECONDS = 600  # what Weights & Biases may take to upload the rest at the end
USED: dict[str, tuple[str, ...]] = {
    "tensorboard": (
        "tensorboard.compat.proto.event_pb2",
        "tensorboard.summary.writer.record_writer",
    ),
    "wandb": (),
}
NOT_IN_A_PROJECT = "/\\#?%:"  # Weights & Biases takes none of these


class Tracker(Protocol):
    """Draws curves."""

    name: str

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Show figures of a step, which is not before that of the last call."""

    def close(self, *, failed: bool) -> None:
        """Show what is left; `failed`: the run ends with an error."""


def require(config: TrackingConfig) -> None:
    """Raises UsageError for a tracker that cannot be had here, before any work."""
    if config.tensorboard:
        _require("tensorboard", "tensorboard is false")
    if not config.wandb:
        return
    if bad := sorted(set(config.wandb) & set(NOT_IN_A_PROJECT)):
        raise UsageError(
            f"tracking.wandb is {config.wandb!r}, and a project's name has no {' '.join(bad)};"
            " give another"
        )
    wandb = _require("wandb", "wandb is empty")
    if config.wandb_mode == "online":
        try:
            known = wandb.login(verify=False)  # on a terminal it asks
        except Exception:  # the library raises whatever it likes
            known = False
        if not known:
            raise UsageError(
                "Weights & Biases has no key here; run `wandb login`, or set tracking.wandb_mode to"
                " 'offline'"
            )


def _require(package: str, otherwise: str) -> Any:
    """The package, with what is used of it."""
    try:
        found = import_module(package)
        if found.__file__ is None:  # a folder of that name, such as wandb's own files
            raise ModuleNotFoundError(name=package)
        for module in USED[package]:
            import_module(module)
        return found
    except ModuleNotFoundError as error:
        lacks = "is not installed" if error.name == package else f"lacks {error.name}"
        said = f"{package} {lacks}; run: pip install 'fastrl[{package}]'"
    except Exception as error:  # such as a version of protobuf that it cannot work with
        said = f"{package} cannot be imported ({_line(error)}); mend its installation"
    raise UsageError(f"{said}, or go without it: tracking.{otherwise}")


@contextmanager
def tracked(run: Run, say: Callable[[str], None]) -> Iterator[None]:
    """While the run's records go to the trackers of its configuration too, on the first process.

    A tracker that fails is told of once and left; no failure of one ends the run.
    """
    config, files = run.config.tracking, run.directory
    trackers: list[Tracker] = []

    def lost(tracker: Tracker | type[Tracker], error: Exception) -> None:
        say(
            f"{tracker.name} failed ({_line(error)}); the run goes on without it, and"
            f" {files.metrics} has its figures"
        )

    def begin(kind: type[TensorBoard] | type[WeightsAndBiases]) -> None:
        earlier = [*files.read_metrics(), *files.read_evaluations()]
        try:
            tracker = kind(run)
            for record in sorted(earlier, key=lambda record: record["step"]):
                tracker.add(record["step"], named(record))
            trackers.append(tracker)
        except Exception as error:  # of a network, of a disk, or a library's own
            lost(kind, error)

    def add(record: Mapping[str, Any]) -> None:
        for tracker in list(trackers):
            try:
                tracker.add(record["step"], named(record))
            except Exception as error:
                trackers.remove(tracker)
                lost(tracker, error)

    if files.writes and config.tensorboard:
        begin(TensorBoard)
    if files.writes and config.wandb:
        begin(WeightsAndBiases)
    files.on_record, failed = add, True
    try:
        yield
        failed = False
    finally:
        files.on_record = None
        for tracker in trackers:
            try:
                tracker.close(failed=failed)
            except Exception as error:
                lost(tracker, error)


def named(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record by the names of their curves.

    A metric keeps its name; a figure of an evaluation has its split before it, as in
    "test/accuracy", and the ends of an interval are two: "test/ci95_low", "test/ci95_high".
    """
    prefix = f"{record['split']}/" if "split" in record else ""
    found: dict[str, float] = {}
    for name, value in record.items():
        if name == "ci95":
            found[f"{prefix}ci95_low"], found[f"{prefix}ci95_high"] = value
        elif name != "step" and isinstance(value, (int, float)):
            found[prefix + name] = value
    return found


class TensorBoard:
    """Event files in RUN_DIR/tensorboard, a new one each time a run goes on.

    A new file declares all steps of older ones void and has them again, which is what a reader
    takes a restart at step 0 for. Written here rather than by torch.utils.tensorboard, which keeps
    figures in memory for up to two minutes, and whose thread prints a traceback on a full disk.
    """

    name = "TensorBoard"

    def __init__(self, run: Run) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = run.directory.path / "tensorboard"
        folder.mkdir(exist_ok=True)
        ends = [path.name.removeprefix(EVENTS) for path in folder.glob(f"{EVENTS}*")]
        newest = max((int(end) for end in ends if end.isdecimal()), default=0)
        # files are read in the order of their names, whatever the clock says
        number = max(int(time.time()), newest + 1)
        self._writer = RecordWriter((folder / f"{EVENTS}{number:010d}").open("xb"))
        self._write(file_version="brain.Event:2")
        self._write(step=0, session_log=SessionLog(status=SessionLog.START))
        self._write(step=run.step, summary=_text("config", tomli_w.dumps(to_dict(run.config))))

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=v) for name, v in figures.items()]
        self._write(step=step, summary=Summary(value=values))

    def close(self, *, failed: bool) -> None:
        self._writer.close()

    def _write(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), **fields).SerializeToString())
        self._writer.flush()


def _text(tag: str, text: str) -> Any:
    """A summary that TensorBoard shows as text."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    kind = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    indented = re.sub("^", "    ", text, flags=re.M)  # markdown for "as it is"
    tensor = TensorProto(dtype=DT_STRING, string_val=[indented.encode()])
    return Summary(value=[Summary.Value(tag=tag, metadata=kind, tensor=tensor)])


class WeightsAndBiases:
    """A run of a project there, of which RUN_DIR/wandb_id keeps the id.

    A resumed run goes on with the same one: steps that were received are not sent again, for they
    come out the same. Steps after a roll back come out otherwise, and nothing can be taken back
    there: each attempt is a run of its own, with the steps that it keeps.
    """

    name = "Weights & Biases"

    def __init__(self, run: Run) -> None:
        import wandb

        config, path = run.config.tracking, run.directory.path
        name = path.resolve().name
        self._run = wandb.init(
            project=config.wandb,
            id=wandb_id(path) + (f"-{run.attempt}" if run.attempt else ""),
            name=f"{name}, attempt {run.attempt}" if run.attempt else name,
            resume="allow",
            reinit="finish_previous",
            mode=config.wandb_mode,
            dir=str(path),
            config=to_dict(run.config),
            settings=wandb.Settings(console="off", quiet=True, finish_timeout=FINISH_SECONDS),
        )
        self._first = self._run.step  # the first that was not received
        self._step = -1
        self._figures: dict[str, float] = {}  # of this step: a step is sent once, and whole

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        if step > self._step:
            self._send()
            self._step = step
        self._figures |= figures

    def close(self, *, failed: bool) -> None:
        self._send()
        self._run.finish(exit_code=int(failed))

    def _send(self) -> None:
        figures, self._figures = self._figures, {}
        if figures and self._step >= self._first:
            self._run.log(figures, step=self._step)


def wandb_id(path: Path) -> str:
    """The id by which Weights & Biases knows the run in `path`, made when it is first asked for."""
    file = path / "wandb_id"
    known = file.read_text(encoding="utf-8").strip() if file.exists() else ""
    if not re.fullmatch(r"[0-9a-f]{8,}", known):
        known = uuid4().hex[:12]
        durable.replace_bytes(file, f"{known}\n".encode())
    return known


def _line(error: Exception) -> str:
    """What an error says, on one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
