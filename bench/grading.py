"""`fastrl bench grading`: answers a second, one thread and two, beside Math-Verify.

Ours grades a whole workload a turn, golds given as strings. Math-Verify, some thousand times
slower, takes the next few pairs of it a turn, so that it sees as many distinct ones as time
allows; `baseline_ms` is its time for the whole workload at that rate.
"""

from __future__ import annotations

import importlib.metadata
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from fastrl import __version__
from fastrl.bench.grading_pairs import WORKLOADS, Pair, workload
from fastrl.bench.kernels import where
from fastrl.bench.timing import measure, percentile, resident_rise
from fastrl.errors import UsageError
from fastrl.grading import Grade, grade

THREADS = (1, 2)
RIVAL = "math-verify"
# pairs a turn of Math-Verify, for about a second
RIVAL_PAIRS = {"integers": 512, "fractions": 512, "expressions": 64, "completions": 64}


def math_verify() -> Callable[[str, str], bool]:
    """A function of completion and gold with the settings of TRL's `accuracy_reward`.

    The gold stands between dollar signs, as Math-Verify's manual asks: without them it does not
    read `x^2+1`. Raises ImportError where it is not installed.
    """
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    config = LatexExtractionConfig(
        normalization_config=NormalizationConfig(units=True),
        boxed_match_priority=0,
        try_extract_without_anchor=False,
    )

    def verdict(completion: str, gold: str) -> bool:
        wanted = parse(f"${gold}$", parsing_timeout=10)
        found = parse(
            completion,
            extraction_config=[config],
            extraction_mode="first_match",
            parsing_timeout=10,
        )
        return bool(verify(wanted, found, timeout_seconds=5))

    return verdict


class Rival:
    """Math-Verify on the next pairs of a workload, call after call."""

    def __init__(self, pairs: list[Pair], count: int) -> None:
        self.verdict = math_verify()
        self.pairs = pairs
        self.count = min(count, len(pairs))
        self.verdicts: dict[int, bool] = {}
        self.at = 0

    def __call__(self) -> None:
        for _ in range(self.count):
            pair = self.pairs[self.at]
            self.verdicts[self.at] = self.verdict(pair.completion, pair.gold)
            self.at = (self.at + 1) % len(self.pairs)

    def wrong(self) -> int:
        """Verdicts so far that are not the truth."""
        return sum(found != self.pairs[at].is_right for at, found in self.verdicts.items())


def _validate(pairs: list[Pair], grades: list[Grade]) -> None:
    for pair, found in zip(pairs, grades, strict=True):
        if found.correct is not pair.is_right:
            raise AssertionError(f"{found.answer!r} against {pair.gold!r}: {found.reason}")


def run(only: str | None = None, repeats: int = 7, once: bool = False) -> Iterator[dict[str, Any]]:
    """Rows of results, one at a time. `once` grades each workload a single time, for a profiler."""
    if only is not None and only not in WORKLOADS:
        raise UsageError(f"there is no workload {only!r}; allowed: {', '.join(WORKLOADS)}")
    for name in (only,) if only else WORKLOADS:
        pairs = workload(name)
        completions = [pair.completion for pair in pairs]
        golds = [pair.gold for pair in pairs]
        if once:
            grade(completions, golds, threads=1)
            continue
        yield from _rows(name, pairs, completions, golds, repeats)


def _rows(
    name: str, pairs: list[Pair], completions: list[str], golds: list[str], repeats: int
) -> Iterator[dict[str, Any]]:
    device = torch.device("cpu")
    runs: dict[str, Callable[[], Any]] = {}
    peaks = {}
    for threads in THREADS:
        ours = partial(grade, completions, golds, threads=threads)
        found, peaks[threads] = resident_rise(ours)
        _validate(pairs, found)
        runs[str(threads)] = ours
    rival, problem = None, ""
    try:
        rival = Rival(pairs, RIVAL_PAIRS[name])
        rival()
        runs[RIVAL] = rival
    except ImportError as error:
        problem = f"{error}; pip install 'fastrl[bench]'"
    times = measure(runs, device, repeats)
    versions = [f"fastrl {__version__}"]
    if rival is not None:
        versions.append(f"{RIVAL} {importlib.metadata.version(RIVAL)}")
    words = {"machine": where(device)["machine"], "versions": ", ".join(versions)}
    for threads in THREADS:
        ours_ms = times[str(threads)]
        ms = statistics.median(ours_ms)
        row: dict[str, Any] = {
            "name": name,
            "shape": [len(pairs)],
            "dtype": "",
            "device": device.type,
            "threads": threads,
            "ms": ms,
            "ms_p20": percentile(ours_ms, 20),
            "ms_p80": percentile(ours_ms, 80),
            "peak_bytes": peaks[threads],
            "max_error": 0.0,  # validated: no verdict is wrong
            "wrong_verdicts": 0,
            "answers_per_s": 1e3 * len(pairs) / ms,
            "baseline": RIVAL,
        }
        if rival is None:
            row |= {"baseline_ms": None, "speedup": None, "baseline_failed": problem}
        else:
            theirs = statistics.median(times[RIVAL]) * len(pairs) / rival.count
            row |= {
                "baseline_ms": theirs,
                "speedup": theirs / ms,
                "baseline_answers_per_s": 1e3 * len(pairs) / theirs,
                "baseline_graded": len(rival.verdicts),
                "baseline_wrong_verdicts": rival.wrong(),
            }
        yield row | words
