"""The loop: prompts, sample, reward, advantage, pack, loss, step, checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastrl.early import EarlyScorer
from fastrl.guard import Guard, Vitals
from fastrl.metrics import step_metrics
from fastrl.rollouts import roll_out
from fastrl.step import TRAINED, train_step

if TYPE_CHECKING:
    from fastrl.display import Display
    from fastrl.run import Run


class Stopped(Exception):
    """A stop was requested; the state after step `args[0]` is on disk."""


def train(run: Run, display: Display) -> None:
    """Train from where `run` stands to its last step.

    Raises Stopped, with a checkpoint on disk, after the step in which a stop was requested.
    """
    config, world = run.config, run.learner.world
    if world.any(display.stop_requested):  # nothing was done yet
        raise Stopped(run.step)
    with run.keeper(display.say) as keeper:
        while run.step < config.train.max_steps:
            metrics = take_step(run, display)
            display.step(metrics)
            last = run.step == config.train.max_steps
            if last or is_due(config.eval.every, run.step):
                run.evaluate("validation", display)
            ends = last or world.any(display.stop_requested)
            if ends or is_due(config.checkpoint.every, run.step):
                display.phase("save")
                run.save_checkpoint(keeper, needed=ends)
            if ends and not last:
                raise Stopped(run.step)


def take_step(run: Run, display: Display) -> dict[str, Any]:
    """The run's next step, whole; its line of metrics.jsonl, which is written with the rest.

    Raises Failure and RollBack as the guard does.
    """
    step, guard = run.step, Guard(run, display)
    with EarlyScorer(run.learner, run.sampling.n) as scorer:
        rollouts = roll_out(run, display, scorer)
        guard.sampled(rollouts)
        result = train_step(run.learner, rollouts.groups, step, scorer, guard)
    if TRAINED not in result.roles_R:
        guard.say("no response is in the loss")
    run.step = step + 1
    run.learner = replace(run.learner, max_tokens_per_batch=result.max_tokens_per_batch)
    metrics = step_metrics(run.step, run.objective, rollouts, result, run.learner.world)
    run.tokens_sampled += metrics["tokens_sampled"]
    run.history.append(Vitals.of_metrics(metrics))
    run.directory.add_completions(run.step, rollouts.groups, result)
    run.directory.add_metrics(metrics)
    return metrics


def is_due(every: int, step: int) -> bool:
    """Whether something done every `every` steps (0: never) is done after step number `step`."""
    return every > 0 and step % every == 0
