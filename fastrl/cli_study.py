"""`fastrl study` and `fastrl report`: arguments, progress, and what is printed at the end."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrl import config, durable
from fastrl.errors import UsageError, check_folders
from fastrl.exit_codes import FAILED, OK, STOPPED

if TYPE_CHECKING:
    from fastrl.config import Config
    from fastrl.study.conductor import Outcome
    from fastrl.study.plan import Plan, StudySettings

OWN = {"train.seed": "--seeds", "train.output_dir": "--output-dir", "objective.name": "--arms"}
WORLDS_TRAINED = 5  # of each kind


def add_study(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "fastrl study [CONFIG.toml] [--alphas A,A] [--betas B,B] [--seeds N] [--baselines]"
        " [--table.key VALUE ...]"
    )
    parser.epilog = (
        "Settings that the arms have in common are those of fastrl train, given as --table.key"
        " VALUE.\nThe same command goes on where it stopped; more seeds or arms may be added to it."
    )
    add = parser.add_argument
    add("--arms", metavar="A,A", help="of sharpen, likelihood, task, task-kl, tilted, null, random;"
        " default: sharpen, task, tilted, null, with a grid all but task-kl")  # fmt: skip
    add("--alphas", metavar="A,A", help="of sharpen and tilted; default: 4")
    add("--betas", metavar="B,B", help="of tilted and task-kl; default: 0.01")
    add("--seeds", type=int, metavar="N", help="runs of each arm; default: 3")
    add("--lrs", metavar="L,L", help="each arm's learning rate is the one of these with the best"
        " accuracy on the validation split, of one run each")  # fmt: skip
    add("--models", metavar="M,M", help="default: --model.name")
    add("--length-norms", metavar="L,L", help="of sum, mean, 'power W'; default: sum")
    add("--fixed-length", action="store_true", help="also every arm with ignore_eos")
    add("--perturbed", metavar="N,N", help="also sharpen and task from the models with this"
        " relative noise in their weights")  # fmt: skip
    add("--baselines", action="store_true", help="what sampling alone gives: temperature, best of"
        " N, majority, power sampling, greedy")  # fmt: skip
    add("--prompts", type=int, metavar="N", help="of the test split; default: 500")
    add("--samples", type=int, metavar="N", help="a test prompt, of the base;"
        " default: 256")  # fmt: skip
    add("--samples-of-trained", type=int, metavar="N", help="of what is trained; default: 16")
    add("--long-prompts", type=int, metavar="N", help="longer than any in training, where the data"
        " has such; default: 64")  # fmt: skip
    add("--template-prompts", type=int, metavar="N", help="asked in other words; default: 200")
    add("--jobs", type=int, metavar="N", help="cells at once; default: one a GPU, else one a core")
    add("--output-dir", metavar="DIR", help="default: studies/DATE")
    add("--dry-run", action="store_true", help="the cells, with their commands")
    add("--exact", action="store_true", help="the claims where everything can be computed, alone")
    add("--worlds", type=int, metavar="N", help="of --exact: of each kind, trained on; default:"
        f" {WORLDS_TRAINED}")  # fmt: skip
    add("--cell", metavar="NAME", help="do this one alone, as the study itself does")
    add("--verify", metavar="FILE.json", help="compare with the expected figures in a file; exit"
        " code 1 where one is outside its tolerance")  # fmt: skip


def study_command(known: argparse.Namespace, rest: list[str]) -> int:
    """fastrl study: every cell that is not done, then study.json and report.html."""
    from fastrl.study.cell import PLAN, alone
    from fastrl.study.plan import CELLS, read_plan, write_plan
    from fastrl.study.verify import verify

    if known.cell:
        if not known.output_dir:
            raise UsageError("--cell is of a study that has begun; name its --output-dir")
        _alone("--cell", known, rest, "is part of its study")
        directory = Path(known.output_dir)
        return _do_cell(read_plan(directory / PLAN), directory, known.cell)
    directory = Path(known.output_dir or f"studies/{datetime.now():%Y%m%d-%H%M%S}")
    if known.exact:
        _alone("--exact", known, rest, "has its own worlds")
        return _exact(directory, known)
    if known.worlds is not None:
        raise UsageError("--worlds is of --exact; add --exact or leave it out")
    if known.jobs is not None and known.jobs < 1:
        raise UsageError(f"--jobs is {known.jobs}; it must be at least 1")
    if known.verify:
        verify({}, Path(known.verify))  # before hours of work
    plan = _plan(known, rest, directory)
    if known.dry_run:
        _show_cells(plan, directory)
        return OK
    _check_data(plan)
    try:
        durable.make_directories([directory / CELLS])
        with alone(directory):
            write_plan(plan, directory / PLAN)
            plan, outcome, seconds = _conducted(plan, directory, known)
    except OSError as error:
        raise UsageError(
            f"the directory {directory} cannot be written: {error.strerror}; give another"
            " --output-dir"
        ) from None
    return _told(plan, directory, known, outcome, seconds)


def add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="RUN_OR_STUDY")
    parser.add_argument(
        "--out", default="report.html", metavar="FILE.html", help="default: %(default)s"
    )


def report_command(known: argparse.Namespace, rest: list[str]) -> int:
    """fastrl report: runs and studies as one HTML file."""
    check_folders(known.out)
    from fastrl.report import write_report

    write_report(known.paths, Path(known.out))
    print(known.out)
    return OK


def _alone(flag: str, known: argparse.Namespace, rest: list[str], why: str) -> None:
    """Raises UsageError where there is more on the command line than `flag` can have."""
    more = [*rest, *(f"--{name.replace('_', '-')}" for name in _given(known))]
    for name in ("dry_run", "verify", "jobs"):
        if getattr(known, name) not in (None, False):
            more.append(f"--{name.replace('_', '-')}")
    if flag == "--cell" and (known.exact or known.worlds is not None):
        more.append("--exact")
    if more:
        raise UsageError(f"{more[0]} does not go with {flag}, which {why}; leave it out")


def _plan(known: argparse.Namespace, rest: list[str], directory: Path) -> Plan:
    """The plan of a new study, or of one that has begun, with what is added to it.

    Raises UsageError for a change that would leave cells which do not belong together.
    """
    from fastrl.study.cell import PLAN, files_of
    from fastrl.study.plan import ADDED, make_plan, read_plan

    if not (directory / PLAN).is_file():
        return make_plan(_settings(known), _common(rest), directory)
    before = read_plan(directory / PLAN)
    files = [files_of(directory, cell) for cell in before.cells]
    if not any(f.is_measured() or f.run.exists() for f in files):
        settings = _settings(known) if _given(known) else before.settings
        return make_plan(settings, _common(rest) if rest else before.config, directory)
    settings = replace(before.settings, **_read(_given(known)))
    plan = make_plan(settings, _common(rest) if rest else before.config, directory)
    other = [
        f"[{t}]" for t in config.TABLES if getattr(plan.config, t) != getattr(before.config, t)
    ]
    for field in fields(settings):
        name = field.name
        if name not in ADDED and getattr(settings, name) != getattr(before.settings, name):
            other.append(f"--{name.replace('_', '-')}")
    if other:
        raise UsageError(
            f"the study in {directory} was begun with other settings: {', '.join(other)}; leave"
            " them out to go on with it, or give another --output-dir"
        )
    _check_runs(plan, directory)
    return plan


def _given(known: argparse.Namespace) -> dict[str, Any]:
    """The settings of the grid that are on the command line."""
    from fastrl.study.plan import StudySettings

    names = {f.name for f in fields(StudySettings)}
    return {k: v for k, v in vars(known).items() if k in names and v is not None and v is not False}


def _read(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same with its lists read; raises UsageError for what is no number."""
    from fastrl.study.plan import parse_numbers

    read = dict(given)
    for name in ("alphas", "betas", "perturbed", "lrs"):
        if name in read:
            read[name] = parse_numbers(name, read[name])
    for name in ("arms", "models", "length_norms"):
        if name in read:
            read[name] = tuple(config.split_list(read[name]))
    if "models" in read:
        read["models"] = tuple(map(_absolute, read["models"]))
    return read


def _absolute(name: str) -> str:
    """A path that is there, or in the home directory, from the root on; another name as it is."""
    path = Path(name).expanduser()
    found = "/" in name and (path.exists() or name.startswith("~"))
    return str(path.absolute()) if found else name


def _settings(known: argparse.Namespace) -> StudySettings:
    from fastrl.study.plan import GRID_ARMS, StudySettings

    given = _read(_given(known))
    if "arms" not in given and {"alphas", "betas"} & set(given):
        given["arms"] = GRID_ARMS
    return StudySettings(**given)


def _common(words: list[str]) -> Config:
    """What the arms have in common; raises UsageError for what the study itself sets."""
    common = config.from_words(words)
    usual = config.Config()
    for key, flag in OWN.items():
        table, _, name = key.partition(".")
        value = getattr(getattr(common, table), name)
        if value != getattr(getattr(usual, table), name):
            raise UsageError(f"{key} is {value!r}, but the study sets it; use {flag} instead")
    if common.objective != usual.objective:
        raise UsageError("[objective] is what the study varies; use --arms, --alphas and --betas")
    # from whatever folder the study is gone on with
    data = replace(
        common.data,
        source=_absolute_file(common.data.source),
        eval_source=_absolute_file(common.data.eval_source),
    )
    # the study measures by itself, and looks at collapses instead of stopping at them
    return replace(
        common,
        data=data,
        model=replace(common.model, name=_absolute(common.model.name)),
        eval=replace(common.eval, test_prompts=0),
        anomaly=replace(common.anomaly, collapse="go_on"),
    )


def _absolute_file(source: str) -> str:
    from fastrl.datasources import is_undivided

    file = is_undivided(source) and Path(source).exists()
    return str(Path(source).absolute()) if file else source


def _check_data(plan: Plan) -> None:
    """Raises UsageError for a model or test prompts that cannot be had."""
    from fastrl.study.measure import Questions
    from fastrl.study.plan import BASE

    for cell in plan.cells:
        if cell.arm == BASE and "~" not in cell.model:
            Questions.of(plan.settings, cell.config)


def _check_runs(plan: Plan, directory: Path) -> None:
    """Raises UsageError where a run is there that was made with other settings."""
    from fastrl.study.cell import files_of, run_config

    for cell in plan.cells:
        path = files_of(directory, cell).run / "config.toml"
        if not cell.trains or not path.is_file():
            continue
        made, wanted = config.read_toml(path), run_config(directory, cell)
        # the study may be called by another path, or have been moved
        known = replace(made.model, name=wanted.model.name, sha256=wanted.model.sha256)
        train = replace(made.train, output_dir=wanted.train.output_dir)
        made = replace(made, model=known, train=train)
        if made != wanted:
            other = [t for t in config.TABLES if getattr(made, t) != getattr(wanted, t)]
            raise UsageError(
                f"{path} is of a run with other settings in [{'], ['.join(other)}];"
                " give another --output-dir"
            )


def _show_cells(plan: Plan, directory: Path) -> None:
    from fastrl.study.cell import cell_command

    for cell in plan.cells:
        print(f"{cell.name:<40} {cell_command(directory, cell)}")
    runs = sum(c.trains for c in plan.cells)
    steps = plan.config.train.max_steps
    print(f"{runs} runs of {steps} steps, {len(plan.cells) - runs} measurements without training")


def _do_cell(plan: Plan, directory: Path, name: str) -> int:
    from fastrl.cli_run import run_to_end, warn
    from fastrl.distributed import ALONE
    from fastrl.run import resume, start
    from fastrl.study.cell import do_cell, files_of

    cell = plan.cell(name)
    files = files_of(directory, cell)

    def train(settings: Config) -> int:
        path = Path(settings.train.output_dir)
        if not (path / "config.toml").is_file():
            return run_to_end(lambda say: start(settings, ALONE), ALONE)
        if files.is_trained(settings.train.max_steps):
            return OK
        return run_to_end(lambda say: resume(path, warn, ALONE), ALONE)

    return do_cell(plan, directory, cell, train, _counter(files.path))


def _counter(path: Path) -> Callable[[str, int], Callable[[object], None]]:
    """What notes how far a measurement is, for the study that waits for it."""
    from fastrl.study.conductor import PROGRESS

    def count(phase: str, total: int) -> Callable[[object], None]:
        done, noted = 0, 0.0

        def one(event: object) -> None:
            nonlocal done, noted
            done += 1
            if (now := time.monotonic()) - noted > 0.5 or done == total:
                noted = now
                found = {"phase": phase, "done": done, "total": total}
                _replace_text(path / PROGRESS, json.dumps(found))

        return one

    return count


def _replace_text(path: Path, text: str) -> None:
    """Replace a file that may be lost in a crash."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _conducted(
    plan: Plan, directory: Path, known: argparse.Namespace
) -> tuple[Plan, Outcome, float]:
    """The plan as it is at the end, what became of its cells, and the seconds it took."""
    from fastrl.signals import StopOnSignal
    from fastrl.study.cell import PLAN
    from fastrl.study.conductor import conduct, usual_jobs
    from fastrl.study.plan import read_plan
    from fastrl.study.progress import StudyProgress

    jobs = usual_jobs() if known.jobs is None else known.jobs
    started = time.perf_counter()
    with StopOnSignal() as stop:
        while True:
            with StudyProgress(len(plan.cells)) as progress:
                outcome = conduct(plan, directory, jobs, stop, progress.show)
            tried, plan = plan, read_plan(directory / PLAN)  # learning rates may be known now
            if plan == tried or outcome.stopped or outcome.failed:
                return plan, outcome, time.perf_counter() - started


def _told(
    plan: Plan, directory: Path, known: argparse.Namespace, outcome: Outcome, seconds: float
) -> int:
    """What is printed of it, with the files that are made of all cells; the exit code."""
    from fastrl.run_directory import command

    for name, why in outcome.failed.items():
        print(f"fastrl: the cell {name} failed:\n{why}")
    if outcome.stopped:
        again = command("study --output-dir", directory)
        print(f"stopped with {len(outcome.done)} of {len(plan.cells)} cells done; go on: {again}")
        return STOPPED
    study = _conclude(plan, directory)
    print(f"{len(outcome.done)} of {len(plan.cells)} cells, {seconds:.0f} s")
    differs = known.verify and not _verified(study, Path(known.verify))
    return FAILED if outcome.failed or differs else OK


def _verified(study: Mapping[str, Any], path: Path) -> bool:
    """Whether a study is what a file expects, which is printed."""
    from fastrl.study.verify import verify

    found = verify(study, path)
    for c in found:
        if not c.holds:
            there = "not there" if c.found is None else f"{c.found:.4g}"
            print(f"{c.what}: {there}, expected {c.expected:.4g} within {c.tolerance:.4g}")
    held = sum(c.holds for c in found)
    print(f"{held} of {len(found)} expectations of {path} hold")
    return held == len(found)


def _exact(directory: Path, known: argparse.Namespace) -> int:
    """fastrl study --exact: exact.json, and the claims."""
    from rich.console import Console

    from fastrl.report import write_report
    from fastrl.study.exact import exact_study
    from fastrl.study.tables import claims_table

    worlds = WORLDS_TRAINED if known.worlds is None else known.worlds
    if worlds < 2:
        raise UsageError(f"--worlds is {worlds}; it must be at least 2, one has no spread")
    try:
        durable.make_directories([directory])
    except OSError as error:
        raise UsageError(
            f"the directory {directory} cannot be made: {error.strerror}; give another --output-dir"
        ) from None
    started = time.perf_counter()
    console = Console()
    with console.status("") as status:
        found = exact_study(worlds, status.update if console.is_terminal else print)
    durable.replace_bytes(directory / "exact.json", (json.dumps(found, indent=1) + "\n").encode())
    console.print(claims_table(found["claims"]))
    write_report([directory], directory / "report.html")
    print(f"figures  {directory / 'exact.json'}")
    print(f"report   {directory / 'report.html'}")
    print(f"{time.perf_counter() - started:.0f} s")
    return OK


def _conclude(plan: Plan, directory: Path) -> dict[str, Any]:
    """Write study.json and report.html of what is done, and print the table."""
    from rich.console import Console

    from fastrl.report import write_report
    from fastrl.study.analysis import analyse
    from fastrl.study.tables import summary_table

    study = analyse(plan, directory)
    text = json.dumps(study, indent=1, allow_nan=False)
    durable.replace_bytes(directory / "study.json", (text + "\n").encode())
    Console().print(summary_table(study))
    write_report([directory], directory / "report.html")
    print(f"figures  {directory / 'study.json'}")
    print(f"report   {directory / 'report.html'}")
    return study
