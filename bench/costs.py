"""A picture of what a step costs: python bench/costs.py RECORD.json PICTURE.png

RECORD.json is of `fastrl bench step --only costs`. Above the time of a step and of its phases,
below the memory of a run, measured and planned, over model size, response length, group size and
vocabulary. All axes are logarithmic; a dotted line is what grows in proportion.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

SWEEPS = {  # of a record: what its values count
    "model size": "parameters",
    "response length": "new tokens a response",
    "group size": "responses a prompt",
    "vocabulary": "ids of the vocabulary",
}
TIMES = (  # of a row: name, colour
    ("ms", "whole step", "#222"),
    ("pass_ms", "training pass", "#d1711c"),
    ("sample_ms", "sampling", "#1f5fa8"),
    ("reference_ms", "scoring", "#2b8a3e"),
    ("optimizer_ms", "optimiser", "#c92a2a"),
    ("grade_ms", "grading", "#888"),
)
LEAST_SHARE = 0.01  # of a step: a phase that never has as much is left out
GREY = "#888"


def draw(record: list[dict[str, Any]], path: Path) -> None:
    """The picture as a file."""
    record = [row | {"pass_ms": row["train_ms"] - row["optimizer_ms"]} for row in record]
    base = next(row for row in record if row["base"])
    # a run that was cut off may lack some
    sweeps = [name for name in SWEEPS if any(r["base"] and r["sweep"] == name for r in record)]
    figure = Figure(figsize=(2.7 * len(sweeps) + 1.7, 6), layout="constrained")
    figure.suptitle(title(base), fontsize=10)
    panels = figure.subplots(2, len(sweeps), sharex="col", sharey="row", squeeze=False)
    shown = [time for time in TIMES if max(r[time[0]] / r["ms"] for r in record) >= LEAST_SHARE]
    for (above, below), sweep in zip(panels.T, sweeps, strict=True):
        rows = sorted((r for r in record if r["sweep"] == sweep), key=lambda r: r["value"])
        values = [r["value"] for r in rows]
        for key, name, color in shown:
            seconds = [r[key] / 1e3 for r in rows]
            width = 2 if key == "ms" else 1.2
            above.loglog(values, seconds, ".-", color=color, linewidth=width, label=name)
        measured = [r for r in rows if r["peak_bytes"] is not None]
        sizes = [r["peak_bytes"] / 1e9 for r in measured]
        planned = [r["planned_bytes"] / 1e9 for r in rows]
        below.loglog([r["value"] for r in measured], sizes, ".-", color="#1f5fa8", label="measured")
        below.loglog(values, planned, ".--", color="#d1711c", label="planned")
        above.set_title(f"over {sweep}", fontsize=10)
        below.set_xlabel(SWEEPS[sweep], fontsize=9)
    for row, key, unit, label in zip(
        panels, ("ms", "planned_bytes"), (1e3, 1e9), ("time of a step, s", "memory of a run, GB"),
        strict=True,
    ):  # fmt: skip
        row[0].set_ylabel(label, fontsize=9)
        row[0].set_ylim(row[0].get_ylim())  # as the points have made it
        for axis, sweep in zip(row, sweeps, strict=True):
            values = sorted(r["value"] for r in record if r["sweep"] == sweep)
            at = next(r["value"] for r in record if r["sweep"] == sweep and r["base"])
            finish(axis, values, at, base[key] / unit)
        row[-1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)


def finish(axis: Axes, values: list[int], at: int, height: float) -> None:
    """Ticks in plain numbers, and a line of slope 1 through a point."""
    ends = values[0], values[-1]
    line = [height * value / at for value in ends]
    axis.plot(ends, line, color=GREY, linewidth=1, linestyle=":", label="in proportion")
    ticks = values[:: -1 - (len(values) > 5)]
    axis.set_xticks(ticks, [short(value) for value in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter("{x:g}")
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25, linewidth=0.5)


def short(value: int) -> str:
    """A count in at most seven characters."""
    for unit, size in (("B", 10**9), ("M", 10**6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,}"


def title(base: dict[str, Any]) -> str:
    """The base point and the machine in words."""
    prompts, group, new = base["shape"]
    return (
        f"{prompts} prompts x {group} responses x {new} tokens, {short(base['parameters'])}"
        f" parameters, vocabulary {base['vocabulary']:,}, {base['dtype']}: in each column one of"
        f" these varies; {base['machine']}"
    )


def main() -> None:
    """Read the record, draw the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("record", type=Path)
    parser.add_argument("picture", type=Path)
    known = parser.parse_args()
    draw(json.loads(known.record.read_text()), known.picture)


if __name__ == "__main__":
    main()
