"""Every name in metrics.jsonl, with its unit and meaning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrl.device_memory import peak_memory_bytes
from fastrl.distributed import ALONE, World
from fastrl.errors import Failure
from fastrl.grading import count_reasons
from fastrl.objectives import Objective
from fastrl.types import Scored

if TYPE_CHECKING:
    from fastrl.rollouts import Rollouts
    from fastrl.scoring import Scores
    from fastrl.step import StepResult

METRICS: dict[str, tuple[str, str]] = {
    "step": ("count", "optimiser steps done, this one included"),
    "objective": ("name", "the regime: sharpen, task or tilted"),
    "task_accuracy": (
        "share",
        "responses that the verifier calls correct, whatever the objective; null without golds",
    ),
    "reward_mean": ("reward", "mean of the objective's reward R"),
    "reward_group_std": (
        "reward",
        "standard deviation of R inside a group, mean over groups; falls to 0 at the optimum",
    ),
    "task_reward_mean": ("reward", "mean of the task reward r"),
    "ref_logprob_sum": (
        "nats",
        "lp: mean log-likelihood of a response under the frozen reference; this, and all below that"
        " is made of log-probs, without filtered and failed responses",
    ),
    "policy_logprob_sum": (
        "nats",
        "lpi: mean log-likelihood of a response under the policy before the step",
    ),
    "ref_logprob_token": ("nats/token", "lp per response token"),
    "policy_logprob_token": ("nats/token", "lpi per response token"),
    "kl": ("nats", "KL(pi || p) of a response, k1 estimate: mean of lpi - lp"),
    "kl_k3": (
        "nats",
        "the same by k3, per-token sum: mean of exp(d) - 1 - d with d = log p - log pi",
    ),
    "entropy": ("nats/token", "mean entropy of the policy's next-token distribution"),
    "length_mean": ("tokens", "mean response length, end token included"),
    "length_median": ("tokens", "median response length"),
    "length_p5": ("tokens", "5th percentile of response length"),
    "length_p95": ("tokens", "95th percentile of response length"),
    "eos_share": ("share", "responses that ended by an end token or a stop string"),
    "truncated_share": ("share", "responses cut at the length limit"),
    "empty_answer_share": ("share", "responses without an answer in a box"),
    "parse_rate": ("share", "responses from which an answer was read"),
    "answers_missing": (
        "count",
        "responses in which the verifier found no answer, or an empty one",
    ),
    "answers_truncated": ("count", "responses cut off inside of a box, or while thinking"),
    "answers_shotgun": ("count", "responses that box more than three different values"),
    "answers_hedge": ("count", "answers that take themselves back: or, not, maybe"),
    "answers_limit": ("count", "answers over the verifier's limits of size or work"),
    "golds_unreadable": ("count", "responses to prompts whose gold answer cannot be read"),
    "unique_answer_share": (
        "share",
        "distinct answers of a group over its responses, mean over groups",
    ),
    "majority_share": ("share", "share of a group's most frequent answer, mean over groups"),
    "corr_reward_ref_logprob": (
        "correlation",
        "corr(r, lp) within groups, mean over groups with both varying; null if none",
    ),
    "cov_reward_ref_logprob": (
        "nats",
        "Cov(r, lp) within groups, mean over groups: the sign of what a little sharpening gains",
    ),
    "groups_all_right": ("share", "groups whose task rewards are all equal and positive"),
    "groups_all_wrong": ("share", "groups whose task rewards are all equal and not positive"),
    "grad_norm": ("norm", "global norm of the gradient before clipping"),
    "clip_share": ("share", "response tokens whose ratio was clipped"),
    "lr": ("rate", "learning rate of the step"),
    "loss": ("loss", "the loss that was minimised, divided by the step's denominator"),
    "mismatch_kl": (
        "nats/token",
        "mean log-prob of the sampler minus the trainer's on the same tokens",
    ),
    "mismatch_max_ratio": ("ratio", "largest trainer-to-sampler probability ratio of a token"),
    "tokens_sampled": (
        "tokens",
        "generated tokens of the step = trained + masked + filtered + failed",
    ),
    "tokens_trained": ("tokens", "in the loss, those with advantage 0 included"),
    "tokens_masked": ("tokens", "sampled, but outside the loss"),
    "tokens_filtered": (
        "tokens",
        "of groups dropped for lack of signal, or since a step had enough of them",
    ),
    "tokens_failed": ("tokens", "of responses cancelled, failed, or whose gold cannot be read"),
    "prompts_drawn": ("count", "prompts of the step, of all rounds of sampling"),
    "sampling_rounds": ("count", "rounds of sampling, up to sampling.max_rounds"),
    "groups_trained": ("count", "groups with a response in the loss"),
    "rows_trained": ("tokens", "packed rows of the training pass, prompts included"),
    "rows_saved": ("tokens", "prompt rows that the responses of a group shared in it"),
    "seconds_sample": ("s", "sampling"),
    "seconds_grade": ("s", "grading and reward functions"),
    "seconds_reference": (
        "s",
        "scoring under the reference and the policy; of groups scored while others were sampled"
        " (train.score_while_sampling), what was left to wait for",
    ),
    "seconds_train": ("s", "forward, backward and optimiser step"),
    "seconds_optimizer": ("s", "of seconds_train, the optimiser step"),
    "rollout_tokens_per_s": ("tokens/s", "generated tokens over seconds_sample"),
    "train_tokens_per_s": ("tokens/s", "packed rows of the training pass over seconds_train"),
    "effective_tokens_per_s": ("tokens/s", "trained tokens over the whole step's seconds"),
    "peak_memory_bytes": (
        "bytes",
        "peak device memory, on a CPU peak resident memory of the process",
    ),
}


def help_text() -> str:
    """A line for every metric: name, unit, meaning."""
    width = max(map(len, METRICS))
    return "\n".join(f"{name:<{width}}  [{unit}] {text}" for name, (unit, text) in METRICS.items())


def step_metrics(
    step: int,
    objective: Objective,
    rollouts: Rollouts,
    result: StepResult,
    world: World = ALONE,
) -> dict[str, Any]:
    """The line of metrics.jsonl for step number `step`, counted from 1, of every process.

    A value that cannot be computed (no golds, no variance) is None. Raises Failure when the ledger
    does not balance.
    """
    groups = rollouts.groups
    responses = [s for group in groups for s in group]
    size = len(groups[0])
    starts = range(0, len(responses), size)
    lengths = np.array([len(s.completion.token_ids) for s in responses])
    ends = [s.completion.finish_reason for s in responses]
    seconds = rollouts.seconds_sample + rollouts.seconds_grade
    seconds += result.seconds_reference + result.seconds_train
    ledger = token_ledger(lengths, result.roles_R, result.tokens_in_loss)
    metrics: dict[str, Any] = {
        "step": step,
        "objective": objective.name,
        **task_metrics(groups),
        **_likelihood_metrics(groups, result, lengths, world),
        "length_mean": float(lengths.mean()),
        "length_median": float(np.median(lengths)),
        "length_p5": float(np.percentile(lengths, 5)),
        "length_p95": float(np.percentile(lengths, 95)),
        "eos_share": ends.count("stop") / len(ends),
        "truncated_share": ends.count("length") / len(ends),
        "grad_norm": result.grad_norm,
        "clip_share": result.clipped_tokens / max(1, ledger["tokens_trained"]),
        "lr": result.lr,
        "loss": result.loss,
        **ledger,
        "prompts_drawn": len(groups),
        "sampling_rounds": rollouts.rounds,
        "groups_trained": sum("trained" in result.roles_R[i : i + size] for i in starts),
        "rows_trained": result.rows,
        "rows_saved": result.rows_saved,
        "seconds_sample": rollouts.seconds_sample,
        "seconds_grade": rollouts.seconds_grade,
        "seconds_reference": result.seconds_reference,
        "seconds_train": result.seconds_train,
        "seconds_optimizer": result.seconds_optimizer,
        "rollout_tokens_per_s": lengths.sum() / rollouts.seconds_sample,
        "train_tokens_per_s": result.rows / result.seconds_train,
        "effective_tokens_per_s": ledger["tokens_trained"] / seconds,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    assert size and metrics.keys() == METRICS.keys(), metrics.keys() ^ METRICS.keys()
    return {name: _plain(metrics[name]) for name in METRICS}


def token_ledger(
    lengths: np.ndarray, roles: Sequence[str], in_loss: float | None = None
) -> dict[str, int]:
    """Generated tokens by what became of them; raises Failure unless they add up, and those that
    are trained are `in_loss`, which the loss counted, where it did.
    """
    ledger = {"tokens_sampled": int(lengths.sum())}
    for name in ("trained", "masked", "filtered", "failed"):
        ledger[f"tokens_{name}"] = int(lengths[[role == name for role in roles]].sum())
    missing = 2 * ledger["tokens_sampled"] - sum(ledger.values())
    if missing:
        raise Failure(
            f"the ledger does not balance, the run stops: {ledger['tokens_sampled']:,} tokens were"
            f" sampled, and {missing:,} of them are neither trained, masked, filtered nor failed"
        )
    if in_loss is not None and in_loss != ledger["tokens_trained"]:
        raise Failure(
            f"the ledger does not balance, the run stops: {ledger['tokens_trained']:,} tokens were"
            f" to be trained, and {in_loss:,.0f} are in the loss"
        )
    return ledger


def _plain(value: Any) -> Any:
    """A JSON value: numpy scalars as Python's, a non-finite number as None."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def mean_entropy(groups: Sequence[Sequence[Scored]], scores: Scores, world: World) -> float:
    """Of the policy's next-token distribution over all response tokens that were scored, nats."""
    lengths = np.array([len(s.completion.token_ids) for group in groups for s in group])
    total = world.sum(sum(float(b.of_policy[1].double().sum()) for b in scores.batches))[0]
    return total / max(1, int(lengths[np.isfinite(scores.ref_logprob_R)].sum()))


def task_metrics(groups: Sequence[Sequence[Scored]]) -> dict[str, float | None]:
    """Verdicts and task rewards; the verifier's accuracy whatever the objective."""
    responses = [s for group in groups for s in group]
    verdicts = [s.grade.correct for s in responses if s.grade and s.grade.correct is not None]
    answers = [[s.grade.answer if s.grade else None for s in group] for group in groups]
    given = sum(a is not None for group in answers for a in group)
    rewards = [{s.task_reward for s in group} for group in groups]
    equal = [r for values in rewards if len(values) == 1 for r in values if r is not None]
    reasons = count_reasons(s.grade for s in responses if s.grade)
    return {
        "answers_missing": reasons["no_answer"] + reasons["empty"],
        "answers_truncated": reasons["truncated"] + reasons["thinking"],
        "answers_shotgun": reasons["shotgun"],
        "answers_hedge": reasons["hedge"],
        "answers_limit": reasons["limit"],
        "golds_unreadable": reasons["gold_empty"],
        "task_accuracy": _mean(verdicts),
        "task_reward_mean": _mean([s.task_reward for s in responses if s.task_reward is not None]),
        "empty_answer_share": 1 - given / len(responses),
        "parse_rate": given / len(responses),
        "unique_answer_share": _mean([len(set(group)) / len(group) for group in answers]),
        "majority_share": _mean(
            [max(group.count(a) for a in group) / len(group) for group in answers]
        ),
        "groups_all_right": sum(r > 0 for r in equal) / len(groups),
        "groups_all_wrong": sum(r <= 0 for r in equal) / len(groups),
    }


def _likelihood_metrics(
    groups: Sequence[Sequence[Scored]], result: StepResult, lengths: np.ndarray, world: World
) -> dict[str, float | None]:
    """Likelihoods, the objective's reward, and how far the sampler is from the trainer."""
    scores = result.scores
    lp, lpi = scores.ref_logprob_R, scores.policy_logprob_R
    scored = np.isfinite(lp)
    tokens = max(1, int(lengths[scored].sum()))
    gaps = [(b.ref_logprobs_M - b.of_policy[0]).double() for b in scores.batches]
    drift = [(b.sampler_logprobs_M - b.of_policy[0]).double() for b in scores.batches]
    kl_k3, mismatch = world.sum(
        sum(float((g.exp() - 1 - g).sum()) for g in gaps),
        sum(float(d.sum()) for d in drift),
    )
    ratios = world.gather(max((float((-d).exp().max()) for d in drift), default=None))
    reward_PG = result.reward_R.reshape(len(groups), -1)
    task = np.array([np.nan if s.task_reward is None else s.task_reward for g in groups for s in g])
    covariances, correlations = _within_groups(
        task.reshape(reward_PG.shape), lp.reshape(reward_PG.shape)
    )
    return {
        "reward_mean": _mean(reward_PG[np.isfinite(reward_PG)]),
        "reward_group_std": _mean(
            [np.std(g[np.isfinite(g)], ddof=1) for g in reward_PG if np.isfinite(g).sum() > 1]
        ),
        "ref_logprob_sum": _mean(lp[scored]),
        "policy_logprob_sum": _mean(lpi[scored]),
        "ref_logprob_token": lp[scored].sum() / tokens,
        "policy_logprob_token": lpi[scored].sum() / tokens,
        "kl": _mean(lpi[scored] - lp[scored]),
        "kl_k3": kl_k3 / max(1, scored.sum()),
        "entropy": mean_entropy(groups, scores, world),
        "corr_reward_ref_logprob": _mean(correlations),
        "cov_reward_ref_logprob": _mean(covariances),
        "mismatch_kl": mismatch / tokens,
        "mismatch_max_ratio": max((r for r in ratios if r is not None), default=None),
    }


def _within_groups(task_PG: np.ndarray, lp_PG: np.ndarray) -> tuple[list[float], list[float]]:
    """Cov(r, lp) of every group, and corr(r, lp) of those where both vary."""
    covariances, correlations = [], []
    for task, lp in zip(task_PG, lp_PG, strict=True):
        both = np.isfinite(task) & np.isfinite(lp)
        if both.sum() < 2:
            continue
        covariance = float(np.cov(task[both], lp[both])[0, 1])
        covariances.append(covariance)
        spread = float(np.std(task[both], ddof=1) * np.std(lp[both], ddof=1))
        if spread > 0:
            correlations.append(covariance / spread)
    return covariances, correlations
