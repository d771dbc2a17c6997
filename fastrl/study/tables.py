"""The table that a study ends with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text


def share(figure: Mapping[str, float]) -> str:
    """A share with its interval, in %."""
    return f"{100 * figure['mean']:.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def percent(figure: Mapping[str, float]) -> str:
    """A share in %."""
    return f"{100 * figure['mean']:.1f}"


def number(figure: Mapping[str, float]) -> str:
    """A mean to one digit."""
    return f"{figure['mean']:.1f}"


def points(figure: Mapping[str, float]) -> str:
    """A difference of shares with its interval, in points."""
    return f"{100 * figure['mean']:+.1f} [{100 * figure['low']:+.1f}, {100 * figure['high']:+.1f}]"


def summary_table(study: Mapping[str, Any]) -> Group:
    """Models and arms, a line each, and the claims with their verdicts."""
    table = Table(title="test split, % and points with 95 % intervals", title_justify="left")
    for name in ("", "accuracy", "gain", "predicted", "KL", "tokens"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for model, found in study["models"].items():
        table.add_row(Text(model, style="bold"))
        table.add_row("base", percent(found["accuracy"]), "", "", "0", number(found["length"]))
        for row in study["arms"]:
            if row["model"] == model:
                last = row["last"]
                predicted = row["predicted"]["gain"]["mean"]
                table.add_row(
                    row["arm"], percent(last["accuracy"]), points(last["gain"]),
                    f"{100 * predicted:+.1f}", f"{last['kl']['mean']:.2f}", number(last["length"]),
                )  # fmt: skip
        for row in study["baselines"]:
            if row["model"] == model:
                cells = (percent(row["accuracy"]), points(row["gain"]), "", "")
                table.add_row(row["label"], *cells, number(row["tokens"]))
        table.add_section()
    verdicts = [Text(f"({c['number']}) {c['claim']}: {c['verdict']}") for c in study["claims"]]
    return Group(table, *verdicts)
