"""The curves elsewhere are those of metrics.jsonl and eval.jsonl, each step once."""

import importlib.util
import json
import math
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from test_train import SMALL, lines

from fastrl import tracking
from fastrl.cli import main
from fastrl.config import Config, TrackingConfig, parse_overrides, to_dict
from fastrl.errors import UsageError
from fastrl.metrics import METRICS
from fastrl.run_directory import RunDirectory
from fastrl.tracking import named, tracked, wandb_id


def needs(package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; pip install 'fastrl[{package}]' installs it")


def train(run, *words):
    return main(["train", "--output-dir", str(run), *SMALL, "--train.check", "false", *words])


def wanted(run: Path) -> dict[int, dict[str, float]]:
    """What the curves are to show at each step, by a way of its own."""
    found: dict[int, dict[str, float]] = {}
    for line in lines(run / "metrics.jsonl"):
        numbers = {k: v for k, v in line.items() if k not in ("step", "objective")}
        found[line["step"]] = {k: v for k, v in numbers.items() if v is not None}
    for line in lines(run / "eval.jsonl"):
        figures = {f"{line['split']}/{k}": v for k, v in line.items() if k not in ("step", "split")}
        low, high = figures.pop(f"{line['split']}/ci95")
        figures |= {f"{line['split']}/ci95_low": low, f"{line['split']}/ci95_high": high}
        step = found.setdefault(line["step"], {})
        step.update({k: v for k, v in figures.items() if v is not None})
    return found


class Service(ModuleType):
    """Weights & Biases as a run meets it: what was received of a step cannot be changed."""

    __file__ = "wandb.py"

    def __init__(self):
        super().__init__("wandb")
        self.runs: dict[str, dict[int, dict]] = {}
        self.begun: list[dict] = []
        self.finished: list[int] = []
        self.fails_at: int | None = None
        self.has_key = True

    def login(self, **_):
        if self.has_key is None:
            raise RuntimeError("no terminal")
        return self.has_key

    def Settings(self, **settings):
        return settings

    def init(self, **given):
        self.begun.append(given)
        if self.fails_at == -1:
            raise ConnectionError("no route\nto host")
        known = self.runs.setdefault(given["id"], {})
        return SimpleNamespace(
            step=max(known, default=-1) + 1,
            log=lambda figures, step: self.log(known, figures, step),
            finish=lambda exit_code: self.finished.append(exit_code),
        )

    def log(self, known, figures, step):
        assert step > max(known, default=-1), "what was received is sent again"
        if self.fails_at == step:
            raise ConnectionError("no route\nto host")
        known[step] = dict(figures)


@pytest.fixture
def service(monkeypatch):
    stub = Service()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    return stub


def test_every_number_has_its_name():
    assert named({"step": 3, "objective": "task", "kl": 0.5, "cov_reward_ref_logprob": None}) == {
        "kl": 0.5
    }
    assert named({"step": 3, "split": "test", "pass@4": 1.0, "ci95": [0.2, 0.4]}) == {
        "test/pass@4": 1.0,
        "test/ci95_low": 0.2,
        "test/ci95_high": 0.4,
    }


def test_weights_and_biases_has_every_figure_once(service, tmp_path):
    run = tmp_path / "run"
    assert train(run, "--tracking.wandb", "curves") == 0
    (begun,) = service.begun
    assert service.runs == {begun["id"]: wanted(run)} and service.finished == [0]
    assert set(METRICS) - set(service.runs[begun["id"]][1]) <= {
        "step", "objective", "corr_reward_ref_logprob",  # null where no group has both varying
    }  # fmt: skip
    assert (begun["project"], begun["mode"], begun["resume"]) == ("curves", "online", "allow")
    assert begun["name"] == "run" and begun["dir"] == str(run)
    assert begun["config"]["sampling"]["prompts_per_step"] == 4
    assert begun["config"]["model"]["sha256"]

    kept = service.runs[begun["id"]] = dict(service.runs[begun["id"]])
    for cut, received in ((2, 4), (0, 3)):
        # the newest checkpoint, and the last step that was received before a kill
        again = tmp_path / f"cut_{cut}_{received}"
        shutil.copytree(run, again)
        for checkpoint in list((again / "checkpoints").iterdir()):
            if int(checkpoint.name.removeprefix("step_")) > cut:
                shutil.rmtree(checkpoint)
        service.runs = {begun["id"]: {k: v for k, v in kept.items() if k <= received}}
        assert main(["resume", str(again)]) == 0
        assert {k: v["kl"] for k, v in service.runs[begun["id"]].items() if k} == {
            m["step"]: m["kl"] for m in lines(again / "metrics.jsonl")
        }
        assert service.runs.keys() == {begun["id"]}
        then = {k: set(v) for k, v in wanted(again).items()}
        assert {k: set(v) for k, v in service.runs[begun["id"]].items()} == then


def test_an_attempt_after_a_roll_back_is_a_run_of_its_own(service, tmp_path, monkeypatch):
    from fastrl import step

    original, seen = step.backward, []

    def backward(learner, *rest):
        loss, *others = original(learner, *rest)
        seen.append(learner.optimizer.counts[0])
        return (math.nan if seen[-1] == 3 and seen.count(3) == 1 else loss), *others

    monkeypatch.setattr(step, "backward", backward)
    run = tmp_path / "run"
    words = ["--anomaly.nonfinite", "roll_back", "--tracking.wandb", "curves"]
    with_events = importlib.util.find_spec("tensorboard") is not None
    words += ["--tracking.tensorboard"] * with_events
    assert train(run, *words) == 0
    first, second = service.begun
    assert second["id"] == f"{first['id']}-1" and second["name"] == "run, attempt 1"
    assert service.finished == [1, 0]
    assert sorted(service.runs[first["id"]]) == [0, 1, 2, 3]
    assert service.runs[second["id"]] == wanted(run)
    assert service.runs[first["id"]][3] != service.runs[second["id"]][3]
    if with_events:
        assert_events_are(run)


@pytest.mark.parametrize("at", [-1, 1])
def test_a_tracker_that_fails_is_told_of_once(service, tmp_path, capsys, at):
    service.fails_at = at
    run = tmp_path / "run"
    assert train(run, "--tracking.wandb", "curves", "--max-steps", "2") == 0
    out = capsys.readouterr().out
    assert out.count("failed") == 1
    assert "Weights & Biases failed (ConnectionError: no route); the run goes on without it" in out
    assert len(lines(run / "metrics.jsonl")) == 2


def test_the_id_is_kept_and_a_damaged_one_is_replaced(tmp_path):
    found = wandb_id(tmp_path)
    assert wandb_id(tmp_path) == found
    (tmp_path / "wandb_id").write_text("\0\0")
    assert wandb_id(tmp_path) != found


@pytest.mark.parametrize("has_key", [False, None])
def test_without_a_key(service, tmp_path, capsys, has_key):
    service.has_key = has_key
    run = tmp_path / "run"
    assert train(run, "--tracking.wandb", "curves") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "`wandb login`" in err and "'offline'" in err
    assert not run.exists()
    tracking.require(TrackingConfig(wandb="curves", wandb_mode="offline"))


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_package_that_is_missing(package, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    words = {"tensorboard": ["--tracking.tensorboard"], "wandb": ["--tracking.wandb", "curves"]}
    run = tmp_path / "run"
    assert train(run, *words[package]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"pip install 'fastrl[{package}]'" in err
    assert f"tracking.{package} is" in err and not run.exists()


def test_packages_that_cannot_be_used(service, monkeypatch):
    with pytest.raises(UsageError, match="'a/b', and a project's name has no /"):
        tracking.require(TrackingConfig(wandb="a/b"))
    service.__file__ = None  # a folder of that name beside the program
    with pytest.raises(UsageError, match="wandb is not installed"):
        tracking.require(TrackingConfig(wandb="curves"))

    def import_module(name):
        raise TypeError("Descriptors cannot be created directly.\nIf this call came from")

    monkeypatch.setattr(tracking, "import_module", import_module)
    with pytest.raises(UsageError, match=r"\(TypeError: Descriptors cannot be created directly.\)"):
        tracking.require(TrackingConfig(wandb="curves"))


def test_other_processes_than_the_first_track_nothing(service, tmp_path):
    config = parse_overrides(Config(), ["--tracking.wandb", "curves"])
    directory = RunDirectory(tmp_path, writes=False)
    with tracked(SimpleNamespace(config=config, directory=directory), print):
        directory.add_metrics({"step": 1, "kl": 0.0})
    assert not service.begun and not list(tmp_path.iterdir())


def assert_events_are(run: Path) -> None:
    """What TensorBoard would show is what the run's records have, in fp32."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    found: dict[int, dict[str, float]] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            step = found.setdefault(event.step, {})
            assert tag not in step, "a step is there twice"
            step[tag] = event.value
    assert found.keys() == wanted(run).keys()
    for step, figures in wanted(run).items():
        assert found[step] == pytest.approx(figures, rel=1e-6)
    text = events.Tensors("config")[-1]
    assert b"\n    prompts_per_step = 4\n" in text.tensor_proto.string_val[0]


def test_event_files_have_every_figure_after_a_kill_too(tmp_path):
    needs("tensorboard")
    run = tmp_path / "run"
    assert train(run, "--tracking.tensorboard") == 0
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert_events_are(run)
    shutil.rmtree(run / "checkpoints" / "step_4")
    assert main(["resume", str(run)]) == 0  # steps 3 and 4 are there already
    assert len(list((run / "tensorboard").iterdir())) == 2
    assert_events_are(run)
    for file in (run / "tensorboard").iterdir():
        file.write_bytes(file.read_bytes()[:500])  # as a power cut may leave them
    assert main(["resume", str(run)]) == 0
    assert_events_are(run)


def test_a_run_that_is_tracked_later_has_its_curves_from_the_first_step_on(tmp_path):
    needs("tensorboard")
    run = tmp_path / "run"
    assert train(run) == 0
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace("tensorboard = false", "tensorboard = true"))
    assert main(["resume", str(run)]) == 0
    assert_events_are(run)


def test_a_disk_that_is_full_ends_no_run(tmp_path, capsys, monkeypatch):
    needs("tensorboard")
    from tensorboard.summary.writer.record_writer import RecordWriter

    original, written = RecordWriter.write, []

    def write(self, data):
        written.append(data)
        if len(written) == 7:
            raise OSError(28, "No space left on device")
        original(self, data)

    monkeypatch.setattr(RecordWriter, "write", write)
    run = tmp_path / "run"
    assert train(run, "--tracking.tensorboard") == 0
    assert capsys.readouterr().out.count("TensorBoard failed (OSError: [Errno 28] No space") == 1
    assert len(written) == 7 and len(lines(run / "metrics.jsonl")) == 4


def logged_offline(path: Path) -> dict[int, dict[str, float]]:
    """The steps in a .wandb file: records in blocks of 32 KiB, as LevelDB's log has them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts, found = path.read_bytes(), 7, b"", {}
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind not in (1, 4):  # whole, or the last part
            continue
        record, parts = Record.FromString(parts), b""
        if record.HasField("history"):
            items = record.history.item
            line = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in items}
            step = line["_step"]
            assert step not in found
            found[step] = {k: v for k, v in line.items() if not k.startswith("_")}
    return found


def test_weights_and_biases_itself_offline(tmp_path, monkeypatch):
    needs("wandb")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    run = tmp_path / "run"
    assert train(run, "--tracking.wandb", "curves", "--tracking.wandb-mode", "offline") == 0
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    assert logged_offline(file) == wanted(run)
    shutil.rmtree(run / "checkpoints" / "step_4")
    assert main(["resume", str(run)]) == 0
    (again,) = set(run.glob("wandb/offline-run-*/*.wandb")) - {file}
    assert again.name == file.name and logged_offline(again) == wanted(run)


def test_the_settings_are_in_the_resolved_configuration():
    assert to_dict(Config())["tracking"] == {
        "tensorboard": False, "wandb": "", "wandb_mode": "online",
    }  # fmt: skip
