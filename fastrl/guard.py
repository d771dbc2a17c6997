"""What a run is not to train on: numbers that are not finite, and a policy that has collapsed.

A collapse is a rule that held in PATIENCE steps in a row, and not in the run's first:

    truncated   every response was cut at the length limit
    empty       no response had an answer
    entropy     the policy's entropy was below `anomaly.entropy_floor`
    accuracy    the mean accuracy of WINDOW steps is less than half of the best such mean before,
                and by more than 4 standard errors of that mean over as many groups

A sharpening run whose reward rose all the same is told apart: it is where p^alpha / Z leads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from safetensors import SafetensorError

from fastrl import capsule
from fastrl.config import AnomalyConfig
from fastrl.errors import Failure, reason
from fastrl.metrics import mean_entropy, task_metrics
from fastrl.run_directory import capsule_name, command
from fastrl.scoring import Scores
from fastrl.step import MASKED, TRAINED, Hooks

if TYPE_CHECKING:
    from fastrl.display import Display
    from fastrl.rollouts import Rollouts
    from fastrl.run import Run

PATIENCE = 3  # steps in a row
WINDOW = 10  # steps of a mean accuracy
STANDARD_ERRORS = 4.0
COLLAPSES = {"truncated", "empty", "entropy", "accuracy"}


class RollBack(Exception):
    """The run is to go back to its newest checkpoint, with other random numbers from there on."""


class Vitals(NamedTuple):
    """What the rules look at, of a step before its update; nan where it cannot be said."""

    groups: float
    truncated: float  # shares
    empty: float
    accuracy: float
    entropy: float  # nats a token
    reward: float  # mean of the objective's

    @classmethod
    def of_metrics(cls, line: Mapping[str, Any]) -> Vitals:
        """Of a line of metrics.jsonl."""
        names = ("prompts_drawn", "truncated_share", "empty_answer_share", "task_accuracy")
        return cls(*(_number(line.get(k)) for k in (*names, "entropy", "reward_mean")))


@dataclass(frozen=True)
class Finding:
    """What was found in a step."""

    kind: str  # "broken", "collapsed", or "sharpened" where the objective itself leads there
    rule: str  # which is told of once
    reason: str  # in words
    numbers: Mapping[str, Any]  # of the step, as far as they were known


class Guard(Hooks):
    """Looks at a step while it is under way, and does what the configuration says when it must."""

    def __init__(self, run: Run, display: Display) -> None:
        """Before the step's prompts are drawn."""
        self.run, self.display = run, display
        self.before = run.state
        self.rollouts: Rollouts | None = None
        self.updates = 0
        self.skips = False  # all updates of the step

    def phase(self, name: str) -> None:
        """A phase begins."""
        self.display.phase(name)

    def say(self, text: str) -> None:
        """A line for the user."""
        self.display.say(f"step {self.before.step + 1}: {text}")

    def sampled(self, rollouts: Rollouts) -> None:
        """The step's responses are there, and nothing was computed from them."""
        self.rollouts = rollouts
        ends = [s.completion.finish_reason for group in rollouts.groups for s in group]
        if errors := ends.count("error"):
            reason = f"the model gave no finite number in {errors:,} of {len(ends):,} responses"
            self.skips = not self.found(Finding("broken", "sampling", reason, {"errors": errors}))

    def before_update(
        self, scores: Scores, roles_R: Sequence[str], reward_R: np.ndarray, loss: float
    ) -> bool:
        """Whether the optimiser is to take its step."""
        kept_R = np.array([role in (TRAINED, MASKED) for role in roles_R])
        numbers: dict[str, Any] = {
            "loss": loss,
            "ref_logprob_R": scores.ref_logprob_R.tolist(),
            "policy_logprob_R": scores.policy_logprob_R.tolist(),
        }
        for rule, whose in (("ref_logprob_R", "reference"), ("policy_logprob_R", "policy")):
            bad = int((~np.isfinite(np.array(numbers[rule])[kept_R])).sum())
            if bad:
                reason = f"the {whose}'s log-prob of {bad:,} of {kept_R.sum():,} responses is not"
                return self.found(Finding("broken", rule, f"{reason} finite", numbers))
        if not math.isfinite(loss):
            return self.found(Finding("broken", "loss", "the loss is not finite", numbers))
        if self.skips:
            return False
        if self.updates:
            return True
        now = self._vitals(scores, reward_R)
        for rule, reason in collapses(self.run.history, now, self.run.config.anomaly):
            if rule in self.run.told:
                continue
            numbers |= now._asdict()
            risen = bool(self.run.history) and now.reward >= self.run.history[0].reward
            asked_for = self.run.objective.name == "sharpen" and risen
            kind = "sharpened" if asked_for else "collapsed"
            return self.found(Finding(kind, rule, reason, numbers))
        return True

    def after_update(self, grad_norm: float) -> None:
        """An optimiser step was taken, unless the norm of its gradient is not finite."""
        if math.isfinite(grad_norm):
            self.updates += 1
            return
        numbers = {"grad_norm": grad_norm}
        self.found(Finding("broken", "gradient", "the gradient is not finite", numbers))

    def found(self, finding: Finding) -> bool:
        """Keep the step in a capsule and do as configured; whether a step is still to be taken.

        Raises Failure where the run is to stop, and RollBack.
        """
        run, config = self.run, self.run.config.anomaly
        policy = config.nonfinite if finding.kind == "broken" else config.collapse
        if policy == "auto":
            policy = "go_on" if finding.kind == "sharpened" else "stop"
        text = finding.reason
        if finding.kind == "sharpened":
            text += "; its reward has risen all the same: this is where sharpening leads, no defect"
        text += f"; {self._keep(finding)}"
        if policy == "stop":
            raise Failure(f"step {self.before.step + 1}: {text}; the run stops")
        if policy == "roll_back":
            if run.attempt >= config.max_attempts:
                raise Failure(
                    f"step {self.before.step + 1}: {text}; the run stops, it was rolled back"
                    f" {run.attempt} times already (anomaly.max_attempts)"
                )
            self.say(f"{text}; back to the newest checkpoint, attempt {run.attempt + 1}")
            raise RollBack
        skips = policy == "skip" or finding.kind == "broken"
        self.say(f"{text}; {'nothing is updated' if skips else 'the run goes on'}")
        return not skips

    def _keep(self, finding: Finding) -> str:
        """Write the capsule unless its rule has one; what is to be said of it."""
        assert self.rollouts is not None
        run, rule = self.run, finding.rule
        if rule in run.told:
            step = run.directory.capsules(run.attempt).get(rule)
            kept = "" if step is None else capsule_name(step, run.attempt, rule)
            return f"the first of its kind is kept in {run.directory.anomalies / kept}"
        run.told.add(rule)
        try:
            path = capsule.write(run, self.before, self.rollouts, finding, self.updates == 0)
        except (OSError, SafetensorError) as error:
            return f"no capsule could be written ({reason(error)})"
        return f"replay the step with: {command('replay', path)}"

    def _vitals(self, scores: Scores, reward_R: np.ndarray) -> Vitals:
        assert self.rollouts is not None
        groups = self.rollouts.groups
        ends = [s.completion.finish_reason for group in groups for s in group]
        found, rewards = task_metrics(groups), reward_R[np.isfinite(reward_R)]
        return Vitals(
            groups=len(groups),
            truncated=ends.count("length") / len(ends),
            empty=_number(found["empty_answer_share"]),
            accuracy=_number(found["task_accuracy"]),
            entropy=_number(mean_entropy(groups, scores, self.run.learner.world)),
            reward=float(rewards.mean()) if len(rewards) else math.nan,
        )


def collapses(
    history: Sequence[Vitals], now: Vitals, config: AnomalyConfig
) -> list[tuple[str, str]]:
    """The rules that a step meets, each with the reason in words; `history`: the steps before."""
    if not history:
        return []
    recent = [*history, now][-PATIENCE:]

    def lasts(is_so: Callable[[Vitals], bool]) -> bool:
        return len(recent) == PATIENCE and all(map(is_so, recent)) and not is_so(history[0])

    floor, steps = config.entropy_floor, f"in {PATIENCE} steps in a row"
    found = {
        "truncated": (
            lasts(lambda v: v.truncated == 1),
            f"every response was cut at the length limit {steps}",
        ),
        "empty": (lasts(lambda v: v.empty == 1), f"no response had an answer {steps}"),
        "entropy": (
            lasts(lambda v: v.entropy < floor),
            f"the policy's entropy was below {floor} nats a token {steps}",
        ),
    }
    if halved := _halved([*history, now]):
        found["accuracy"] = True, halved
    return [(rule, reason) for rule, (holds, reason) in found.items() if holds]


def _halved(vitals: Sequence[Vitals]) -> str:
    """How far the accuracy fell, where it is less than half of its best; else ""."""
    if len(vitals) < 2 * WINDOW:
        return ""
    means = np.convolve([v.accuracy for v in vitals], np.full(WINDOW, 1 / WINDOW), "valid")
    before, now = means[:-WINDOW], float(means[-1])
    if not np.isfinite(before).any():
        return ""
    best = float(np.nanmax(before))
    error = math.sqrt(best * (1 - best) / max(1.0, WINDOW * vitals[-1].groups))
    if not now < best / 2 or best - now <= STANDARD_ERRORS * error:
        return ""
    return f"the accuracy over {WINDOW} steps fell from {100 * best:.1f} to {100 * now:.1f} %"


def _number(value: float | None) -> float:
    return math.nan if value is None else value
