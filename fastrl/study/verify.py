"""A study's figures and curves held against expected ones, with tolerances.

A file of expectations is JSON: `command` that made it, and `expected`, a list of

    {"model": M, "arm": A, "figure": "last.accuracy", "mean": 0.57, "tolerance": 0.03}
    {"model": M, "arm": A, "curve": "kl", "steps": [10, 20], "mean": [0.1, 0.2], "tolerance": 0.1}

Both are means over seeds; the arm `base` is the model before training. A curve is a mean over
WINDOW steps up to each of `steps`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastrl import strict_json
from fastrl.errors import UsageError

WINDOW = 10
FIGURES = ("last.accuracy", "last.gain", "last.greedy", "last.kl", "last.length")
CURVES = ("task_accuracy", "kl", "length_mean", "entropy")
POINTS = 6  # of a curve
STANDARD_ERRORS = 4.0  # a tolerance is as many
LEAST = {"kl": 0.1, "length": 1.0, "length_mean": 1.5, "entropy": 0.03}  # and no less; else:
LEAST_SHARE = 0.02


@dataclass(frozen=True)
class Compared:
    """One expectation, and what was found instead of it."""

    what: str
    expected: float
    found: float | None  # None: the study has it not
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether it is within its tolerance."""
        return self.found is not None and abs(self.found - self.expected) <= self.tolerance


def verify(study: Mapping[str, Any], path: Path) -> list[Compared]:
    """Every expectation of a file. Raises UsageError for a file that is none.

    An empty `study` has nothing of it: so a file is read before there is one.
    """
    try:
        content = strict_json.parse(path.read_bytes())
        rows = list(content["expected"])
        found = [c for row in rows for c in _compare(study, row)]
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}; give a file of expectations"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} is no file of expectations ({type(error).__name__}: {error}); those of"
            " configs/expected are"
        ) from None
    if not found:
        raise UsageError(f"{path} expects nothing; give a file with expectations")
    return found


def _compare(study: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[Compared]:
    name = f"{row['model']} {row['arm']}"
    arm = find_arm(study, row["model"], row["arm"])
    tolerance = float(row["tolerance"])
    if "figure" in row:
        found = _at(arm, row["figure"])
        yield Compared(f"{name} {row['figure']}", float(row["mean"]), found, tolerance)
        return
    if row["curve"] not in CURVES:
        raise ValueError(f"no curve {row['curve']!r}; allowed: {', '.join(CURVES)}")
    for step, mean in zip(row["steps"], row["mean"], strict=True):
        curves = (arm or {}).get("curves")
        found = None if curves is None else smoothed(curves, row["curve"], step)
        yield Compared(f"{name} {row['curve']} at {step}", float(mean), found, tolerance)


def find_arm(study: Mapping[str, Any], model: str, arm: str) -> Mapping[str, Any] | None:
    """An arm of study.json, or what it says of the model before training; None for neither."""
    if arm == "base":
        found = study.get("models", {}).get(model)
        return None if found is None else {"last": found}
    rows = [a for a in study.get("arms", ()) if (a["model"], a["arm"]) == (model, arm)]
    return rows[0] if rows else None


def _at(arm: Mapping[str, Any] | None, path: str) -> float | None:
    found: Any = arm
    for key in path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found["mean"]) if isinstance(found, Mapping) else None


def smoothed(curves: Mapping[str, Any], key: str, step: int) -> float | None:
    """A curve's mean over the WINDOW steps up to `step`; None where it has none there."""
    values = [
        value
        for at, value in zip(curves["step"], curves[key]["mean"], strict=True)
        if step - WINDOW < at <= step and value is not None
    ]
    return float(np.mean(values)) if values else None


def expectations(study: Mapping[str, Any], command: str) -> dict[str, Any]:
    """A file of expectations from a study: tolerances of STANDARD_ERRORS, and no less than LEAST.

    Of a curve the error is the spread over seeds, as if they were normal.
    """
    rows: list[dict[str, Any]] = []
    for arm in study["arms"]:
        where = {"model": arm["model"], "arm": arm["arm"]}
        for path in FIGURES:
            figure = arm["last"][path.partition(".")[2]]
            least = LEAST.get(path.partition(".")[2], LEAST_SHARE)
            tolerance = max(least, STANDARD_ERRORS * figure["error"])
            rows.append({**where, "figure": path, "mean": _round(figure["mean"]),
                         "tolerance": _round(tolerance)})  # fmt: skip
        steps = arm["curves"]["step"]
        first = min(WINDOW, len(steps)) - 1
        at = [steps[i] for i in sorted({*np.linspace(first, len(steps) - 1, POINTS).astype(int)})]
        for key in CURVES:
            curve = arm["curves"][key]
            means = [smoothed(arm["curves"], key, step) for step in at]
            if None in means:
                continue
            ends = zip(curve["high"], curve["low"], strict=True)
            ranges = [high - low for high, low in ends if high is not None]
            tolerance = max(LEAST.get(key, LEAST_SHARE), float(np.mean(ranges)))
            rows.append({**where, "curve": key, "steps": at, "mean": [_round(m) for m in means],
                         "tolerance": _round(tolerance)})  # fmt: skip
    return {"command": command, "fastrl": study["fastrl"], "expected": rows}


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
