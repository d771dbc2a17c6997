"""What the sections of a study's report have in common: rows of study.json as series and titles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastrl.page import Series

Study = Mapping[str, Any]
BASE = "base"
WITHOUT_TRAINING = {
    "greedy": "greedy",
    "temperature": "temperature",
    "power": "power sampling",
    "best": "likeliest of k",
    "majority": "majority of k",
}


def plain_models(study: Study) -> list[str]:
    """The models without the perturbed ones."""
    return [m for m in study["models"] if "~" not in m]


def arms_of(study: Study, model: str) -> list[Mapping[str, Any]]:
    """The arms of a model."""
    return [row for row in study["arms"] if row["model"] == model]


def of_model(study: Study, model: str) -> str:
    """What a title ends with where there are several models."""
    return f", {model}" if len(plain_models(study)) > 1 else ""


def means(
    name: str,
    x: Sequence[float],
    figures: Sequence[Mapping[str, float]],
    *,
    mark: Literal["line", "points"] = "points",
    group: str = "",
    labels: Sequence[str] = (),
) -> Series:
    """Means with their intervals."""
    y, low, high = ([f[key] for f in figures] for key in ("mean", "low", "high"))
    return Series(name, x, y, low, high, mark=mark, group=group, labels=labels)


def point(name: str, found: Mapping[str, Any], group: str) -> Series:
    """A policy's accuracy at the tokens of its responses."""
    return means(name, [found["length"]["mean"]], [found["accuracy"]], group=group)


def signed(figure: Mapping[str, float]) -> str:
    """A figure with its interval."""
    return f"{figure['mean']:+.3f} [{figure['low']:+.3f}, {figure['high']:+.3f}]"


def way_of_sampling(row: Mapping[str, Any]) -> str:
    """How a baseline samples."""
    return WITHOUT_TRAINING[row["name"].partition("-")[0]]
