"""The command line: fastrl train, resume, check, replay, eval, sample, grade, study, report, ..."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from fastrl import __version__, config
from fastrl.cli_bench import add_bench, bench_command
from fastrl.cli_run import run_to_end, warn
from fastrl.cli_study import add_report, add_study, report_command, study_command
from fastrl.datasources import EVERY_ROW, SPLITS
from fastrl.distributed import World, joined
from fastrl.errors import Failure, UsageError, check_folders
from fastrl.exit_codes import FAILED, OK, STOPPED, USAGE
from fastrl.grading import MODES, GradingPolicy

if TYPE_CHECKING:
    from fastrl.evaluate import Evaluation, Request

# Threads that wait must sleep, not spin, or one busy program beside a run stops it: a step of the
# default run on 2 cores takes 0.43 s alone and 12 s then; asleep 0.57 s and 0.65 s. OpenMP reads
# this when torch is loaded, so it stands before any import of torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class Parser(argparse.ArgumentParser):
    """argparse whose errors are the user's mistakes, in one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code that DESIGN-conforming callers rely on.

    0 every step ran; 1 a failure of ours; 2 the user's mistake; 3 stopped on request, resumable.
    """
    parser = Parser(
        prog="fastrl", description="Reinforcement learning towards a named distribution."
    )
    parser.add_argument("--version", action="version", version=f"fastrl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    _add(commands, "train", train_command, "train a model", add_train)
    _add(
        commands, "resume", resume_command, "continue a run from its newest checkpoint", add_resume
    )
    _add(commands, "check", check_command, "audit a run before its first step", add_check)
    _add(commands, "replay", replay_command, "compute the step of a capsule again", add_replay)
    _add(commands, "eval", eval_command, "pass@k, maj@k and accuracy of a model or run", add_eval)
    _add(commands, "sample", sample_command, "responses of a model to prompts", add_sample)
    _add(commands, "grade", grade_command, "grade the predictions in a JSONL file", add_grade)
    _add(commands, "study", study_command, "the regimes side by side, with baselines", add_study)
    _add(commands, "report", report_command, "runs and studies as one HTML file", add_report)
    _add(commands, "bench", bench_command, "time kernels, sampler and grader", add_bench)
    _add(
        commands,
        "doctor",
        doctor_command,
        "what is installed and which path is used",
        lambda p: None,
    )
    try:
        known, rest = parser.parse_known_args(arguments)
        if known.command is None:
            parser.print_help()
            return USAGE
        if rest and known.command not in ("train", "check", "study"):
            raise UsageError(f"unexpected argument {rest[0]!r}; see fastrl {known.command} --help")
        return known.run(known, rest)
    except UsageError as error:
        print(f"fastrl: {error}", file=sys.stderr)
        return USAGE
    except Failure as error:
        print(f"fastrl: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("fastrl: interrupted", file=sys.stderr)
        return FAILED


def _add(commands, name: str, run: Callable, help: str, add: Callable) -> None:
    parser = commands.add_parser(
        name,
        help=help,
        description=help,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    add(parser)


def add_train(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "fastrl train [CONFIG.toml] [--objective sharpen|task|tilted] [--table.key VALUE ...]"
    )
    parser.epilog = config.help_text()
    parser.add_argument(
        "--help-metrics", action="store_true", help="every metric, its unit and meaning"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="configuration, data, memory and time of the run, without weights; exit code 2 if it"
        " does not fit",
    )
    parser.add_argument("--gpu", default="", metavar="NAME", help="of a dry run: for this GPU")
    parser.add_argument(
        "--memory", default="", metavar="SIZE", help="of a dry run: the device's memory, as 80GB"
    )
    parser.add_argument(
        "--processes", type=int, metavar="N", help="of a dry run: processes, a device each"
    )
    parser.add_argument("--json", action="store_true", help="of a dry run: as one JSON object")


def train_command(known: argparse.Namespace, rest: list[str]) -> int:
    """fastrl train: a new run, from the first step to the final table."""
    if known.help_metrics:
        from fastrl.metrics import help_text

        print(help_text())
        return OK
    if known.dry_run:
        return _dry_run(config.from_words(rest), known)
    with joined() as world:
        settings = config.from_words(rest)
        for name in ("gpu", "memory", "processes", "json"):
            if getattr(known, name):
                raise UsageError(f"--{name} is of a dry run; add --dry-run or leave it out")
        from fastrl.run import start

        return run_to_end(lambda say: start(settings, world), world)


def _dry_run(settings: config.Config, known: argparse.Namespace) -> int:
    from fastrl.dry_run import Assumed, dry_run

    processes = 1 if known.processes is None else known.processes
    found = dry_run(settings, Assumed(known.gpu, known.memory, processes))
    print(json.dumps(found.to_dict(), indent=1) if known.json else found)
    return USAGE if found.refusal else OK


def add_resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR")


def resume_command(known: argparse.Namespace, rest: list[str]) -> int:
    """fastrl resume: continue the run in RUN_DIR."""
    with joined() as world:
        from fastrl.run import resume

        return run_to_end(lambda say: resume(known.run_dir, say, world), world)


def add_check(parser: argparse.ArgumentParser) -> None:
    parser.usage = "fastrl check [CONFIG.toml] [--table.key VALUE ...]"
    parser.epilog = "The settings are those of fastrl train; exit code 2 if a check fails."
    parser.add_argument("--json", action="store_true", help="as a list of JSON objects")


def check_command(known: argparse.Namespace, rest: list[str]) -> int:
    """fastrl check: the audit of a run, as a table."""
    settings = config.from_words(rest)
    from fastrl.check import audit, count
    from fastrl.run import untold

    run = untold(settings)
    checks = audit(run)
    if known.json:
        print(json.dumps([asdict(c) for c in checks], indent=1))
    else:
        rows = [(c.status, c.name, c.found, c.way_out) for c in checks]
        columns = ("", "check", "found", "what to do")
        _print_table(sys.stdout, f"{run.config.model.name}", columns, rows)
        print(count(checks))
    return USAGE if any(c.status == "fail" for c in checks) else OK


def add_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("capsule", metavar="CAPSULE", help="a directory in RUN_DIR/anomalies")


def replay_command(known: argparse.Namespace, rest: list[str]) -> int:
    """fastrl replay: the step that a run stumbled over, again; exit code 1 if it differs."""
    with joined() as world:
        from fastrl.capsule import replay

        found = replay(Path(known.capsule), warn, world)
    _print_table(sys.stdout, known.capsule, ("", "in the capsule", "again"), found.rows())
    print("the same, to the last bit" if found.is_same else "NOT the same")
    return OK if found.is_same else FAILED


def add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL_OR_RUN_OR_CHECKPOINT")
    parser.add_argument(
        "--data", default="", metavar="SPEC", help="as for train; default: the run's"
    )
    parser.add_argument(
        "--config", default="", metavar="TOML", help="its [data] and [sampling] hold"
    )
    parser.add_argument(
        "--split",
        default="",
        choices=(*SPLITS, EVERY_ROW),
        help="default: test; of a file not trained on, all",
    )
    parser.add_argument("--samples", type=int, default=16, metavar="N", help="responses a prompt")
    parser.add_argument("--prompts", type=int, default=500, metavar="N", help="at most N; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the samples")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--max-tokens", type=int, default=0, help="default: the run's, else 1024")
    parser.add_argument("--completions", metavar="FILE.jsonl", help="also write every response")
    parser.add_argument("--out", metavar="FILE.json", help="write the figures there")


def eval_command(known: argparse.Namespace, rest: list[str]) -> int:
    """fastrl eval: sample, grade and report with intervals."""
    from fastrl.evaluate import Request

    with joined() as world:
        request = Request(**{f.name: getattr(known, f.name) for f in fields(Request)})
        check_folders(known.out, known.completions)
        evaluation = _evaluate(request, world)
        if not world.is_first:
            return OK
    text = json.dumps(evaluation.summary(), indent=1)
    if known.out:
        Path(known.out).write_text(text + "\n", encoding="utf-8")
    if known.completions:
        with Path(known.completions).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in evaluation.rows())
    print(text)
    return OK


def _evaluate(request: Request, world: World) -> Evaluation:
    from rich.console import Console
    from rich.progress import Progress

    from fastrl.evaluate import evaluate_model

    progress = Progress(console=Console(stderr=True, quiet=not world.is_first))

    def count(name: str, total: int) -> Callable[[object], None]:
        progress.start()
        task = progress.add_task(name, total=total)
        return lambda _: progress.advance(task)

    try:
        return evaluate_model(request, progress.console.print, count, world)
    finally:
        if progress.tasks:  # stopping prints a line
            progress.stop()


def add_sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL_OR_RUN_OR_CHECKPOINT")
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="a user's turn, - for standard input, --prompt=TEXT if it begins with -; repeatable",
    )
    parser.add_argument("--n", type=int, default=1, metavar="N", help="responses a prompt")
    parser.add_argument("--raw", action="store_true", help="prompts as they are, no chat template")
    parser.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help="of a response; default: 256, less if the model's context is too short",
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0, metavar="N")
    parser.add_argument("--min-p", type=float, default=0.0)
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="ends a response; repeatable"
    )
    parser.add_argument("--seed", type=int, help="default: another one each time")
    parser.add_argument("--dtype", metavar="D", help="float32, bfloat16, float16 or auto")
    parser.add_argument(
        "--json",
        action="store_true",
        help="an object a response: its text, tokens, log-probs and what ended it",
    )


def sample_command(known: argparse.Namespace, rest: list[str]) -> int:
    """fastrl sample: write responses to prompts while they are sampled."""
    from fastrl.sample_text import LONGEST, Request, sample_text
    from fastrl.sampler import SamplingParams

    params = SamplingParams(
        n=known.n,
        max_tokens=LONGEST if known.max_tokens is None else known.max_tokens,
        temperature=known.temperature,
        top_p=known.top_p,
        top_k=known.top_k,
        min_p=known.min_p,
        stop=tuple(known.stop),
        seed=known.seed,
    )
    shortens = known.max_tokens is None
    outcome = sample_text(
        Request(known.model, known.prompt, params, shortens, known.raw, known.dtype, known.json)
    )
    if outcome.reader_left:
        return OK
    print(outcome, file=sys.stderr)
    if outcome.stopped:
        return STOPPED
    if outcome.errors:
        print(
            f"fastrl: the model gave no finite number, which ended {outcome.errors:,} responses",
            file=sys.stderr,
        )
    return FAILED if outcome.errors else OK


def add_grade(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE.jsonl", help="objects with prediction and gold; - is stdin"
    )
    parser.add_argument("--out", metavar="FILE.jsonl", help="- is stdout")
    parser.add_argument(
        "--lint", action="store_true", help="only say which golds (or answers) can mislead"
    )
    parser.add_argument("--mode", choices=MODES, default=MODES[0], help="where a row names none")
    parser.add_argument(
        "--shotgun",
        choices=("wrong", "last"),
        default="wrong",
        help="more than three values in boxes: wrong, or the last one counts",
    )
    parser.add_argument(
        "--six-digits",
        action="store_true",
        help="a decimal right to six significant digits is right for an exact gold",
    )
    parser.add_argument("--no-bare-percent", action="store_true", help="50 is not right for 50 %%")


def grade_command(known: argparse.Namespace, rest: list[str]) -> int:
    """fastrl grade: add correct, answer and reason to every object of a JSONL file."""
    if known.lint and known.out:
        raise UsageError(f"--lint grades nothing, so nothing goes to {known.out}; give one of them")
    if known.lint:
        return _lint(known.file)
    if known.out is None:
        raise UsageError("there is no place for the verdicts; give --out FILE.jsonl, or --lint")
    from fastrl.grade_file import grade_file

    policy = GradingPolicy(known.shotgun, not known.no_bare_percent, known.six_digits)
    with _bytes_read(known.file) as on_read:
        summary = grade_file(known.file, known.out, mode=known.mode, policy=policy, on_read=on_read)
    if sys.stderr.isatty() and not summary.reader_left:
        columns = ("reason", "count", "share")
        _print_table(sys.stderr, f"{summary.graded:,} graded", columns, summary.rows())
    elif not summary.reader_left:
        print(summary, file=sys.stderr)
    return USAGE if summary.bad_lines else OK


def _lint(path: str) -> int:
    from fastrl.lint_golds import count_kinds, lint_golds, read_golds

    golds, numbers, bad_lines = read_golds(path)
    problems = lint_golds(golds)
    if problems:
        rows = [(str(numbers[p.index]), p.kind, p.message) for p in problems]
        _print_table(sys.stdout, path, ("line", "problem", "gold"), rows)
    found = f" ({count_kinds(problems)})" if problems else ""
    print(f"{len(golds):,} golds, {len(problems):,} with a problem{found}")
    return USAGE if problems or bad_lines else OK


@contextmanager
def _bytes_read(path: str) -> Iterator[Callable[[int], object]]:
    """Counts the bytes read of a file, in a bar where there is a terminal."""
    if not sys.stderr.isatty() or not Path(path).is_file():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    columns = BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=Path(path).stat().st_size)
        yield lambda count: progress.advance(task, count)


def _print_table(
    file: TextIO, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """A table on a terminal; elsewhere a line a row, with tabs."""
    if not file.isatty():
        file.writelines("\t".join(row) + "\n" for row in rows)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=Text(title))
    for row in rows:
        table.add_row(*map(Text, row))  # a gold's brackets are no markup
    Console(file=file).print(table)


def doctor_command(known: argparse.Namespace, rest: list[str]) -> int:
    """fastrl doctor: versions, devices and the paths in use."""
    from fastrl.doctor import report

    for name, value in report():
        print(f"{name:<14} {value}")
    return OK


if __name__ == "__main__":
    sys.exit(main())
