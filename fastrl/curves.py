"""curves.png: a run at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PANELS = (
    ("task_accuracy", "task accuracy", "share"),
    ("reward_mean", "objective reward R", "nats or reward"),
    ("kl", "KL(policy || base)", "nats a response"),
    ("length_mean", "response length", "tokens"),
    ("entropy", "entropy", "nats a token"),
    ("reward_group_std", "spread of R in a group", "0 at the optimum"),
)


def draw_curves(
    metrics: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
    title: str,
    path: Path,
) -> None:
    """Draw six panels over the steps, with the held-out accuracy and its intervals, to a PNG."""
    from matplotlib.figure import Figure  # a second of imports that only the end of a run needs

    figure = Figure(figsize=(11, 6))
    # by hand: to measure every text for it takes as long as to draw
    figure.subplots_adjust(left=0.06, right=0.985, bottom=0.08, top=0.89, wspace=0.27, hspace=0.38)
    figure.suptitle(title, fontsize=11)
    steps = [m["step"] for m in metrics]
    for axis, (key, name, unit) in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        values = [float("nan") if m[key] is None else m[key] for m in metrics]
        axis.plot(steps, values, color="#1f5fa8", linewidth=1.2, label="rollouts")
        axis.set_title(name, fontsize=10)
        axis.set_ylabel(unit, fontsize=8)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25, linewidth=0.5)
        if key == "task_accuracy":
            for split, color in (("validation", "#d1711c"), ("test", "#2b8a3e")):
                points = [e for e in evaluations if e["split"] == split]
                if points:
                    accuracy = [e["accuracy"] for e in points]
                    axis.errorbar(
                        [e["step"] for e in points],
                        accuracy,
                        yerr=[
                            [a - e["ci95"][0] for a, e in zip(accuracy, points, strict=True)],
                            [e["ci95"][1] - a for a, e in zip(accuracy, points, strict=True)],
                        ],
                        fmt="o",
                        markersize=4,
                        capsize=2,
                        color=color,
                        label=f"{split}, 95 %",
                    )
            axis.set_ylim(0, 1)
            axis.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=110)
