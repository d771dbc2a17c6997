"""What a study consists of: models, arms and seeds, as cells that are run one by one.

A cell is a run that is measured (an arm with a model and a seed), or a model measured without
training: `base`, and the baselines that only sample.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fastrl import durable, strict_json
from fastrl.config import Config, split_list, to_dict, with_values
from fastrl.errors import UsageError
from fastrl.objectives import check_contradictions
from fastrl.run_directory import RunDirectory

BASE = "base"
CELLS, RUN = "cells", "run"  # the cells of a study, the run of a cell
BASELINES = "baselines"
PERTURBED_ARMS = ("sharpen", "task")  # that also start from the perturbed models
# settings that may grow while a study goes on; another change would make its cells no pairs
ADDED = (
    "models",
    "arms",
    "alphas",
    "betas",
    "seeds",
    "length_norms",
    "fixed_length",
    "perturbed",
    "baselines",
)
DEFAULT_ARMS = ("sharpen", "task", "tilted", "null")
GRID_ARMS = ("sharpen", "likelihood", "task", "tilted", "null", "random")
ARMS = {
    "sharpen": "p^alpha / Z, for each alpha but 1",
    "likelihood": "the likeliest response",
    "task": "the verifier's reward alone",
    "task-kl": "p exp(r / beta) / Z, for each beta",
    "tilted": "p^alpha exp(r / beta) / Z, for each alpha and beta",
    "null": "alpha 1: the base model is the optimum",
    "random": "task with a reward by chance",
}


@dataclass(frozen=True)
class StudySettings:
    """What is compared, and how it is measured."""

    models: tuple[str, ...] = ()  # empty: the configuration's
    arms: tuple[str, ...] = DEFAULT_ARMS
    alphas: tuple[float, ...] = (4.0,)
    betas: tuple[float, ...] = (0.01,)
    seeds: int = 3
    lrs: tuple[float, ...] = ()  # each arm's learning rate is chosen among these, by validation
    length_norms: tuple[str, ...] = ("sum",)
    fixed_length: bool = False  # also every arm with the end token not stopping
    perturbed: tuple[float, ...] = ()  # also from models with this relative noise in their weights
    baselines: bool = False
    prompts: int = 500  # of the test split
    samples: int = 256  # a prompt, of the base, and of first seeds on the longer prompts
    samples_of_trained: int = 16  # a prompt, of what is trained
    long_prompts: int = 64  # with one operator more, of the embedded task
    template_prompts: int = 200  # asked in other words
    power_steps: tuple[int, ...] = (1, 2, 4, 8)  # Metropolis-Hastings moves a block
    power_block_tokens: int = 16


@dataclass(frozen=True)
class Arm:
    """A regime with its parameters."""

    name: str
    kind: str  # of ARMS
    values: Mapping[str, Any]  # settings over the study's configuration


@dataclass(frozen=True)
class Cell:
    """One thing that is run and measured."""

    name: str  # also its directory under cells/
    model: str  # by the study's name: a perturbed one is MODEL~NOISE
    arm: str  # the name of an arm, BASE or BASELINES
    kind: str
    seed: int
    samples: int  # a test prompt; 0: a trial of a learning rate, which is not measured
    config: Config = field(repr=False)

    @property
    def shown_model(self) -> str:
        """The model without the folders, or the owner, before its name."""
        return _last(self.model)

    @property
    def trains(self) -> bool:
        """Whether there is a run, and not only a measurement."""
        return self.arm not in (BASE, BASELINES)


@dataclass(frozen=True)
class Plan:
    """The cells of a study, in the order in which they are done."""

    settings: StudySettings
    config: Config  # what the arms have in common
    arms: tuple[Arm, ...]
    cells: tuple[Cell, ...]

    def cell(self, name: str) -> Cell:
        """The cell of this name; raises UsageError where there is none."""
        for cell in self.cells:
            if cell.name == name:
                return cell
        raise UsageError(
            f"the study has no cell {name!r}; it has {', '.join(c.name for c in self.cells)}"
        )


def make_plan(settings: StudySettings, config: Config, directory: Path) -> Plan:
    """The grid of a study in `directory`; raises UsageError for settings that no run can have."""
    _check(settings)
    arms = tuple(arms_of(settings))
    names = settings.models or (config.model.name,)
    if bad := [name for name in names if "~" in name]:
        raise UsageError(
            f"the model {bad[0]!r} has a ~ in its name, which marks perturbed models; give a link"
            " of another name"
        )
    models = {name: name for name in names}
    for name, noise in itertools.product(names, settings.perturbed):
        models[f"{name}~{noise:g}"] = str(perturbed_path(directory, name, noise))
    if config.sampling.temperature != 1:
        raise UsageError(
            f"sampling.temperature is {config.sampling.temperature:g}, but a study measures and"
            " predicts at 1; leave it out"
        )
    if settings.lrs and not config.eval.prompts:
        raise UsageError(
            "--lrs are chosen on the validation split, but eval.prompts is 0; give some"
        )
    cells: list[Cell] = []
    for model, path in models.items():
        own = replace(config, model=replace(config.model, name=path))
        cells.append(_cell(model, BASE, BASE, 0, settings.samples, own))
        if settings.baselines and "~" not in model:
            cells.append(_cell(model, BASELINES, BASELINES, 0, settings.samples, own))
    chosen = {
        (model, arm.name): chosen_lr(settings, config, directory, model, arm.name)
        for model, arm in itertools.product(models, arms if settings.lrs else ())
    }
    # seed by seed, so that a study which is stopped has something of everything
    for seed, (model, path), arm in itertools.product(range(settings.seeds), models.items(), arms):
        if "~" in model and arm.kind not in PERTURBED_ARMS:
            continue
        own = replace(config, model=replace(config.model, name=path))
        # one audit of each arm: another seed would find the same
        audited = config.train.check and seed == 0
        values = {**arm.values, "train.seed": seed, "train.check": audited}
        run = with_values(own, values, from_text=False)
        check_contradictions(run)
        samples = settings.samples_of_trained
        if not settings.lrs:
            cells.append(_cell(model, arm.name, arm.kind, seed, samples, run))
            continue
        best = chosen[model, arm.name]
        for lr in settings.lrs:
            if seed == 0 or lr == best:
                tried = replace(run, optim=replace(run.optim, lr=lr))
                measured = samples if lr == best else 0
                cells.append(_cell(model, arm.name, arm.kind, seed, measured, tried, lr))
    if twice := [name for name, n in Counter(c.name for c in cells).items() if n > 1]:
        raise UsageError(
            f"two cells would be called {twice[0]}; give each model and number once, and a model"
            " whose directory has another's name by a link of another name"
        )
    return Plan(settings, config, arms, tuple(cells))


def chosen_lr(
    settings: StudySettings, config: Config, directory: Path, model: str, arm: str
) -> float | None:
    """The learning rate of an arm with the best accuracy on the validation split at its last step.

    The smaller of equals; None until all of `settings.lrs` were tried, with the first seed.
    """
    found = {}
    for lr in settings.lrs:
        run = RunDirectory(directory / CELLS / _name(model, arm, 0, lr) / RUN, writes=False)
        found[lr] = run.accuracies().get(config.train.max_steps)
    scores = {lr: score for lr, score in found.items() if score is not None}
    if len(scores) < len(found):
        return None
    return max(scores, key=lambda lr: (scores[lr], -lr))


def perturbed_path(directory: Path, model: str, noise: float) -> Path:
    """Where a study keeps a model with noise in its weights."""
    return (directory / "models" / f"{_word(model)}~{noise:g}").resolve()


def _word(model: str) -> str:
    """A model's name as a part of a path."""
    return re.sub(r"[^\w.~-]+", "-", _last(model))


def _last(model: str) -> str:
    return Path(model).name if "/" in model else model


def _check(settings: StudySettings) -> None:
    if unknown := [a for a in settings.arms if a not in ARMS]:
        raise UsageError(f"there is no arm {unknown[0]!r}; allowed: {', '.join(ARMS)}")
    for name, least in (
        ("seeds", 1),
        ("prompts", 2),  # of one there is no spread
        ("samples", 1),
        ("samples_of_trained", 1),
        ("long_prompts", 0),
        ("template_prompts", 0),
        ("power_block_tokens", 1),
    ):
        if getattr(settings, name) < least:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} is {getattr(settings, name)}; it must be at least {least}")
    if bad := [n for n in settings.perturbed if not 0 < n < 1]:
        raise UsageError(f"--perturbed has {bad[0]}; give shares of a weight's size, as in 0.02")
    if bad := [lr for lr in settings.lrs if not 0 < lr < 1]:
        raise UsageError(f"--lrs has {bad[0]}; give learning rates between 0 and 1, as in 1e-5")
    if not settings.arms:
        raise UsageError(f"--arms names nothing to compare; give some of {', '.join(ARMS)}")
    sharpens, tilts = (
        {"sharpen", "tilted"} & {*settings.arms},
        {"tilted", "task-kl"} & {*settings.arms},
    )
    if sharpens and not {*settings.alphas} - {1.0}:
        raise UsageError(
            f"the arm {min(sharpens)!r} needs --alphas, and one besides 1, which is the arm 'null'"
        )
    if tilts and not settings.betas:
        raise UsageError(f"the arm {min(tilts)!r} needs --betas")
    if not settings.length_norms:
        raise UsageError("--length-norms names none; leave it out for sum")
    if settings.baselines and not settings.alphas:
        raise UsageError("--baselines needs --alphas, the power that is sampled from")


def arms_of(settings: StudySettings) -> Iterator[Arm]:
    """Every arm of the grid, in the order of ARMS."""
    for i, norm in enumerate(settings.length_norms):
        for fixed in (False, True) if settings.fixed_length else (False,):
            for arm in _plain_arms(settings):
                likelihood = arm.kind in ("sharpen", "likelihood", "tilted")
                if i and not likelihood:
                    continue
                words = [arm.name]
                values = dict(arm.values)
                if norm != "sum" and likelihood:
                    words.append(re.sub(r"[^\w.]+", "-", norm))
                    values["objective.length_norm"] = norm
                if fixed:
                    words.append("fixed-length")
                    values["sampling.ignore_eos"] = True
                yield Arm("-".join(words), arm.kind, values)


def _plain_arms(settings: StudySettings) -> Iterator[Arm]:
    alphas = [a for a in settings.alphas if a != 1]
    for kind in ARMS:
        if kind not in settings.arms:
            continue
        if kind == "sharpen":
            for a in alphas:
                yield Arm(f"sharpen-a{a:g}", kind, _objective(name="sharpen", alpha=a))
        elif kind == "likelihood":
            values = _objective(name="sharpen", mode="likelihood", alpha=1.0)
            yield Arm(kind, kind, values)
        elif kind == "task":
            yield Arm(kind, kind, _objective(name="task"))
        elif kind == "task-kl":
            for b in settings.betas:
                yield Arm(f"task-b{b:g}", kind, _objective(name="task", beta=b))
        elif kind == "tilted":
            for a, b in itertools.product(alphas, settings.betas):
                values = _objective(name="tilted", alpha=a, beta=b)
                yield Arm(f"tilted-a{a:g}-b{b:g}", kind, values)
        elif kind == "null":
            yield Arm(kind, kind, _objective(name="sharpen", alpha=1.0))
        else:
            values = {**_objective(name="task"), "reward.functions": ["random"]}
            yield Arm(kind, kind, values)


def _objective(**values: Any) -> dict[str, Any]:
    return {f"objective.{key}": value for key, value in values.items()}


def _name(model: str, arm: str, seed: int, lr: float | None = None) -> str:
    words = [_word(model), arm]
    if lr is not None:
        words.append(f"lr-{lr:g}")
    if arm not in (BASE, BASELINES):
        words.append(f"seed-{seed}")
    return "/".join(words)


def _cell(
    model: str,
    arm: str,
    kind: str,
    seed: int,
    samples: int,
    config: Config,
    lr: float | None = None,
) -> Cell:
    return Cell(_name(model, arm, seed, lr), model, arm, kind, seed, samples, config)


def write_plan(plan: Plan, path: Path) -> None:
    """Write what `read_plan` makes the same plan of."""
    content = {"settings": asdict(plan.settings), "config": to_dict(plan.config)}
    text = json.dumps(content, indent=1)
    durable.replace_bytes(path, (text + "\n").encode())


def read_plan(path: Path) -> Plan:
    """The plan in a file; raises UsageError where there is none, or another version wrote it."""
    try:
        content = strict_json.parse(path.read_bytes())
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in content["settings"].items()}
        settings: StudySettings = StudySettings(**given)  # type: ignore[arg-type]
        tables = content["config"].items()
        values = {f"{table}.{key}": v for table, keys in tables for key, v in keys.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(
            f"{path} is no plan of a study; give the directory that `fastrl study` was given"
        ) from None
    return make_plan(settings, with_values(Config(), values, from_text=False), path.parent)


def parse_numbers(flag: str, text: str) -> tuple[float, ...]:
    """The numbers of a list as the command line gives it; raises UsageError for what is none."""
    try:
        return tuple(float(word) for word in split_list(text))
    except ValueError:
        raise UsageError(f"--{flag} is {text!r}; give numbers, as in 1.25,2,4") from None
