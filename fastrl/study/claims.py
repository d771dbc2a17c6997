"""The study's four claims: figures, what could be detected, verdicts by thresholds.

The thresholds stand here, and were committed before the runs they judge. They were not chosen
blindly: the accuracies of `sharpen` with alpha 4 and of `task` on the embedded models, in the
README, were known. A verdict holds for the models and arms of the study it was made of.

A claim is judged by the intervals of all its figures, widened for their number (Bonferroni). A
model whose figures are not all there, as where an arm was not run, speaks neither for a claim about
every model, nor against one about some.
Source of the claims: arXiv:2604.16259.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
    exact: bool = False  # computed; else an error of 0 is that of too few samples, all alike

    def interval(self, comparisons: int) -> tuple[float, float]:
        """The 95 % interval, widened for so many comparisons."""
        z = _z(comparisons)
        return self.mean - z * self.error, self.mean + z * self.error

    def detectable(self, comparisons: int) -> float:
        """How far from the threshold the truth has to be, to be found with a chance of 80 %."""
        return (_z(comparisons) + NormalDist().inv_cdf(0.8)) * self.error

    def verdict(self, comparisons: int) -> str:
        """Supported, contradicted or undecided by itself."""
        if self.error == 0 and not self.exact:
            return UNDECIDED
        ends = self.interval(comparisons)
        if self.supports(*ends):
            return SUPPORTED
        return CONTRADICTED if self.contradicts(*ends) else UNDECIDED


def _z(comparisons: int) -> float:
    """Standard errors of a 95 % interval's half, widened for so many comparisons."""
    return NormalDist().inv_cdf(1 - 0.025 / comparisons)


def above(
    what: str, model: str, figure: Mapping[str, float], threshold: float, *, exact: bool = False
) -> Evidence:
    """Support where the whole interval lies above the threshold, contradiction where below."""
    return Evidence(
        what,
        model,
        figure["mean"],
        figure["error"],
        lambda low, high: low > threshold,
        lambda low, high: high < threshold,
        exact,
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
            [_unfavourable(of)],
            of,
            each=2,
            some=True,
        ),
        decided(
            2,
            "Sharpening is unstable",
            f"on every model over {100 * FLIPPED:g} % more answers change with the words of the"
            f" question than after task reward, or over {100 * DROPPED:g} points more are lost"
            " between the best checkpoint and the last",
            _unstable(of),
            of,
        ),
        decided(
            3,
            "The gains of sharpening are limited",
            f"on every model the best checkpoint gains at least {100 * SHORT:g} points less than"
            " that of task reward",
            [_limited(of)],
            of,
        ),
        decided(
            4,
            "A task reward gives robust gains",
            f"on every model the last checkpoint gains more than {100 * ROBUST:g} points, and more"
            " than 0 asked in other words",
            [_robust(of)],
            of,
            each=2,
        ),
    ]


def _arms(study: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """By model: the arm of sharpening with the largest alpha above 1, and that of task reward."""
    names = [name for name in study["models"] if "~" not in name]
    found: dict[str, dict[str, Mapping[str, Any]]] = {name: {} for name in names}
    for row in study["arms"]:
        values, kind = row["values"], row["kind"]
        if row["model"] not in found or {"sampling.ignore_eos", "objective.length_norm"} & {
            *values
        }:
            continue
        own = found[row["model"]]
        alpha = values.get("objective.alpha", 0)
        sharper = kind not in own or alpha > own[kind]["values"].get("objective.alpha", 0)
        if kind == "task" or kind == "sharpen" and alpha > 1 and sharper:
            own[kind] = row
    return found


def _unfavourable(of: Mapping[str, Mapping[str, Any]]) -> list[Evidence]:
    found = []
    for model, arms in of.items():
        if "sharpen" not in arms:
            continue
        row = arms["sharpen"]
        for who, which in (("the optimum", "predicted"), ("the trained policy", "last")):
            if which in row:
                gain = row[which]["gain"]
                loss = {"mean": -gain["mean"], "error": gain["error"]}
                what = f"accuracy lost by {who} ({row['arm']})"
                found.append(above(what, model, loss, UNFAVOURABLE))
    return found


def _unstable(of: Mapping[str, Mapping[str, Any]]) -> list[list[Evidence]]:
    flipped, dropped = [], []
    for model, arms in of.items():
        less_task = arms.get("sharpen", {}).get("less_task")
        if less_task is None:
            continue
        if "flipped" in less_task:
            what = "answers that change with the words, sharpen less task"
            flipped.append(above(what, model, less_task["flipped"], FLIPPED))
        what = "accuracy lost from best to last, sharpen less task"
        dropped.append(above(what, model, less_task["lost_from_best"], DROPPED))
    return [flipped, dropped]


def _limited(of: Mapping[str, Mapping[str, Any]]) -> list[Evidence]:
    found = []
    for model, arms in of.items():
        less_task = arms.get("sharpen", {}).get("less_task")
        if less_task is not None:
            best = less_task["accuracy_of_best"]
            more = {"mean": -best["mean"], "error": best["error"]}
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
    kinds: Sequence[Sequence[Evidence]],
    models: Iterable[str] = (),
    *,
    each: int = 1,
    some: bool = False,
) -> dict[str, Any]:
    """A claim with its verdict by evidence of several kinds, of which one is enough.

    `models`: those that are judged, beside those of the evidence; `each`: figures that one has to
    have of a kind, all of which have to support the claim; `some`: one model is enough.
    """
    rows = [e for kind in kinds for e in kind]
    count = max(1, len(rows))
    names = list(dict.fromkeys([*models, *(e.model for e in rows)]))
    verdicts = []
    for kind in kinds:
        of = {name: [e.verdict(count) for e in kind if e.model == name] for name in names}
        verdicts.append(_any(_all(v, each) for v in of.values()) if some else
                        _all([_all(v, each) for v in of.values()], len(names)))  # fmt: skip
    return {
        "number": number,
        "claim": claim,
        "threshold": threshold,
        "verdict": _any(verdicts) if rows else NOT_RUN,
        "evidence": [
            {
                "what": e.what,
                "model": e.model,
                "mean": e.mean,
                "low": e.interval(count)[0],
                "high": e.interval(count)[1],
                "detectable": e.detectable(count),
                "verdict": e.verdict(count),
            }
            for e in rows
        ],
    }


def _all(verdicts: Sequence[str], count: int) -> str:
    """What has to hold of each of `count`: against it one is enough."""
    if CONTRADICTED in verdicts:
        return CONTRADICTED
    return SUPPORTED if verdicts.count(SUPPORTED) >= count > 0 else UNDECIDED


def _any(verdicts: Iterable[str]) -> str:
    """What has to hold of one: against it all have to speak."""
    found = list(verdicts)
    if SUPPORTED in found:
        return SUPPORTED
    return CONTRADICTED if all(v == CONTRADICTED for v in found) else UNDECIDED
