"""The table that a study ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
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
    title = "test split: % and points, 95 % intervals, nats and tokens a response"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("", "accuracy", "gain", "predicted", "KL", "tokens"):
        kind: dict[str, Any] = (
            {"justify": "right", "no_wrap": True} if name else {"overflow": "fold"}
        )
        table.add_column(name, **kind)
    for model, found in study["models"].items():
        table.add_row(Text(model, style="bold"))
        table.add_row("base", percent(found["accuracy"]), "", "", "0", number(found["length"]))
        for row in study["arms"]:
            if row["model"] == model:
                last = row["last"]
                predicted = row["predicted"]["gain"]["mean"] if "predicted" in row else None
                table.add_row(
                    row["arm"], percent(last["accuracy"]), points(last["gain"]),
                    "" if predicted is None else f"{100 * predicted:+.1f}",
                    f"{last['kl']['mean']:.2f}", number(last["length"]),
                )  # fmt: skip
        for row in study["baselines"]:
            if row["model"] == model:
                cells = (percent(row["accuracy"]), points(row["gain"]), "", "")
                table.add_row(row["label"], *cells, number(row["tokens"]))
        table.add_section()
    return Group(table, claims_table(study["claims"]))


def claims_table(claims: Sequence[Mapping[str, Any]]) -> Group:
    """Each claim with its verdict, and the figures that decided it, in points."""
    lines = []
    for claim in claims:
        words = f"({claim['number']}) {claim['claim']}: {claim['verdict']}"
        lines.append(Text(words, style="bold"))
        for e in claim["evidence"]:
            lines.append(Text(f"    {points(e)}  {e['what']}, {e['model']}: {e['verdict']}"))
    return Group(*lines)
