"""The study's four claims: figures, what could be detected, verdicts by thresholds.

The thresholds stand here, and were committed before the runs they judge. They were not chosen
blindly: the accuracies of `sharpen` with alpha 4 and of `task` on the embedded models, in the
README, were known. A verdict holds for the models and arms of the study it was made of.

A claim about every model is judged by each model's interval, widened for their number (Bonferroni).
Source of the claims: arXiv:2604.16259.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

# shares of accuracy, and of answers
UNFAVOURABLE = 0.02  # claim 1: how much worse than the base the optimum is at least
FLIPPED = 0.02  # claim 2: how many more answers change with the words of the question
DROPPED = 0.02  # claim 2: how much more of the best checkpoint's accuracy is lost by the last
SHORT = 0.05  # claim 3: how far sharpening's best gain stays below the task reward's
ROBUST = 0.05  # claim 4: how large the task reward's gain is at least

SUPPORTED, CONTRADICTED, UNDECIDED, NOT_RUN = "supported", "contradicted", "undecided", "not run"


@dataclass(frozen=True)
class Evidence:
    """One figure of one model, and what it is held against."""

    what: str
    model: str
    mean: float
    error: float
    supports: Callable[[float, float], bool]  # from the ends of its interval
    contradicts: Callable[[float, float], bool]

    def interval(self, comparisons: int) -> tuple[float, float]:
        """The 95 % interval, widened for so many comparisons."""
        z = NormalDist().inv_cdf(1 - 0.025 / comparisons)
        return self.mean - z * self.error, self.mean + z * self.error

    def verdict(self, comparisons: int) -> str:
        """Supported, contradicted or undecided by itself."""
        ends = self.interval(comparisons)
        if self.supports(*ends):
            return SUPPORTED
        return CONTRADICTED if self.contradicts(*ends) else UNDECIDED


def above(what: str, model: str, figure: Mapping[str, float], threshold: float) -> Evidence:
    """Support where the whole interval lies above the threshold, contradiction where below."""
    return Evidence(
        what,
        model,
        figure["mean"],
        figure["error"],
        lambda low, high: low > threshold,
        lambda low, high: high < threshold,
    )


def claims(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The four claims as the figures of study.json decide them."""
    of = _arms(study)
    return [
        decided(
            1,
            "The optimum of sharpening can be unfavourable",
            f"on some model the optimum, and the trained policy, are more than"
            f" {100 * UNFAVOURABLE:g} points less accurate than the base",
            _unfavourable(of),
            some=True,
        ),
        decided(
            2,
            "Sharpening is unstable",
            f"on every model over {100 * FLIPPED:g} % more answers change with the words of the"
            f" question than after task reward, or over {100 * DROPPED:g} points more are lost"
            " between the best checkpoint and the last",
            [],
            either=_unstable(of),
        ),
        decided(
            3,
            "The gains of sharpening are limited",
            f"on every model the best checkpoint gains at least {100 * SHORT:g} points less than"
            " that of task reward",
            _limited(of),
        ),
        decided(
            4,
            "A task reward gives robust gains",
            f"on every model the last checkpoint gains more than {100 * ROBUST:g} points, and more"
            " than 0 asked in other words",
            _robust(of),
        ),
    ]


def _arms(study: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """By model: the arm of sharpening with the largest alpha, and that of task reward."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in study["arms"]:
        if "~" in row["model"] or "sampling.ignore_eos" in row["values"]:
            continue
        if "objective.length_norm" in row["values"]:
            continue
        own = found.setdefault(row["model"], {})
        kind = row["kind"]
        alpha = row["values"].get("objective.alpha", 0)
        before = own.get(kind)
        if before is None or alpha > before["values"].get("objective.alpha", 0):
            own[kind] = row
    return found


def _unfavourable(of: Mapping[str, Mapping[str, Any]]) -> list[Evidence]:
    found = []
    for model, arms in of.items():
        if "sharpen" not in arms:
            continue
        row = arms["sharpen"]
        # of the optimum and of the trained policy, the one nearer to the base decides
        nearer = max(row["predicted"]["gain"], row["last"]["gain"], key=lambda f: f["mean"])
        loss = {"mean": -nearer["mean"], "error": nearer["error"]}
        what = f"points lost by the optimum and the trained policy, the smaller ({row['arm']})"
        found.append(above(what, model, loss, UNFAVOURABLE))
    return found


def _unstable(of: Mapping[str, Mapping[str, Any]]) -> list[list[Evidence]]:
    flipped, dropped = [], []
    for model, arms in of.items():
        if not {"sharpen", "task"} <= set(arms):
            continue
        less_task = arms["sharpen"]["less_task"]
        if "flipped" in less_task:
            what = "answers that change with the words, sharpen less task"
            flipped.append(above(what, model, less_task["flipped"], FLIPPED))
        what = "accuracy lost from best to last, sharpen less task"
        dropped.append(above(what, model, less_task["lost_from_best"], DROPPED))
    return [some for some in (flipped, dropped) if some]


def _limited(of: Mapping[str, Mapping[str, Any]]) -> list[Evidence]:
    found = []
    for model, arms in of.items():
        if {"sharpen", "task"} <= set(arms):
            less_task = arms["sharpen"]["less_task"]["accuracy_of_best"]
            more = {"mean": -less_task["mean"], "error": less_task["error"]}
            what = "gain of task reward less that of sharpening, best checkpoints"
            found.append(above(what, model, more, SHORT))
    return found


def _robust(of: Mapping[str, Mapping[str, Any]]) -> list[Evidence]:
    found = []
    for model, arms in of.items():
        if "task" not in arms:
            continue
        last = arms["task"]["last"]
        found.append(above("gain of task reward", model, last["gain"], ROBUST))
        if last["wording"]:
            what = "its gain asked in other words"
            found.append(above(what, model, last["wording"]["gain"], 0.0))
    return found


def decided(
    number: int,
    claim: str,
    threshold: str,
    evidence: Sequence[Evidence],
    *,
    some: bool = False,
    either: Sequence[Sequence[Evidence]] = (),
) -> dict[str, Any]:
    """A claim with its verdict by its evidence.

    `some`: that of one model is enough; `either`: evidence of several kinds, of which one is.
    """
    kinds = [list(evidence)] if evidence else [list(kind) for kind in either]
    rows = [e for kind in kinds for e in kind]
    count = max((len(kind) for kind in kinds), default=1)
    verdicts = [_verdict([e.verdict(count) for e in kind], some) for kind in kinds]
    return {
        "number": number,
        "claim": claim,
        "threshold": threshold,
        "verdict": _of_kinds(verdicts),
        "evidence": [
            {
                "what": e.what,
                "model": e.model,
                "mean": e.mean,
                "low": e.interval(count)[0],
                "high": e.interval(count)[1],
                "detectable": 2.8 * e.error,
                "verdict": e.verdict(count),
            }
            for e in rows
        ],
    }


def _verdict(verdicts: Sequence[str], some: bool) -> str:
    decided = (SUPPORTED, CONTRADICTED) if some else (CONTRADICTED, SUPPORTED)
    if decided[0] in verdicts:
        return decided[0]
    return decided[1] if all(v == decided[1] for v in verdicts) else UNDECIDED


def _of_kinds(verdicts: Sequence[str]) -> str:
    """One kind of evidence supports a claim; against it all have to speak."""
    if not verdicts:
        return NOT_RUN
    if SUPPORTED in verdicts:
        return SUPPORTED
    return CONTRADICTED if all(v == CONTRADICTED for v in verdicts) else UNDECIDED
