"""exact.json as a section of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastrl.page import Block, Plot, Section, Series, Table, Text
from fastrl.study.page import claim_cards


def exact_section(exact: Mapping[str, Any], command: str) -> Section:
    """The claims where every optimum is a sum over all responses."""
    return Section("Where everything can be computed", list(_blocks(exact, command)), "exact")


def _blocks(exact: Mapping[str, Any], command: str) -> Iterator[Block]:
    yield Text(
        f"Worlds of some hundred responses: accuracies and optima are sums over all of them, in"
        f" {exact['worlds']} random worlds of each kind; policies are trained by the loop's step."
    )
    yield from claim_cards(exact["claims"], command)
    yield Table(
        "A hundred right responses of .008 and a wrong one of .2: accuracy, %",
        ("converges to", "base", "its optimum", "trained", "distance of the two"),
        [
            [row["target"], *(round(100 * row[k], 2) for k in ("base", "optimum", "trained")),
             round(row["distance"], 4)]
            for row in exact["crowd"]
        ],
        note="Distance: total variation.",
    )  # fmt: skip
    kinds = list(exact["gains"])
    arms = ("sharpen 1.25", "sharpen 2", "sharpen 4", "likelihood", "task")
    yield Plot(
        "The gain of each optimum, by how likelihood and correctness go together",
        "worlds",
        "gain over the base",
        [
            Series(
                arm,
                [float(i) for i in range(len(kinds))],
                [exact["gains"][k][arm]["mean"] for k in kinds],
                [exact["gains"][k][arm]["low"] for k in kinds],
                [exact["gains"][k][arm]["high"] for k in kinds],
                mark="points",
            )
            for arm in arms
        ],
        x_ticks={
            float(i): f"{kind}, Cov {exact['gains'][kind]['covariance']['mean']:+.2f}"
            for i, kind in enumerate(kinds)
        },
        y_percent=True,
        note="Log-odds of being right fall with log p, do not depend on it, or rise with it.",
    )
    found = exact["instability"]
    yield Table(
        f"The reference with noise of {exact['noise']} in its logits",
        ("optimum", "its divergence, times the reference's", "spread of its accuracy, points"),
        [
            [name, _mean(found["divergence"].get(name)), round(100 * spread["mean"], 2)]
            for name, spread in found["spread"].items()
        ],
        note="Divergence: KL(optimum || that of the perturbed reference) over KL of the references;"
        f" spread: over {exact['perturbations']} perturbations of a world, mean over worlds.",
    )
    yield Table(
        "Trained, from the reference and from a perturbed one: accuracy, %",
        ("world", "seed", "starts from", "arm", "base", "trained", "distance to the optimum"),
        [
            [row["world"], row["seed"], row["start"], row["arm"], round(100 * row["base"], 1),
             round(100 * row["trained"], 1), _rounded(row.get("distance"))]
            for row in exact["trained"]
        ],
    )  # fmt: skip


def _mean(figure: Mapping[str, float] | None) -> float | None:
    return None if figure is None else round(figure["mean"], 2)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
