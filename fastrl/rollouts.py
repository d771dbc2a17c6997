"""Groups of scored responses to the prompts of a step: sampled, graded, of every process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastrl.background import BackgroundGrader, Verdict
from fastrl.distributed import World
from fastrl.early import EarlyScorer
from fastrl.out_of_memory import shrinking
from fastrl.sampler import PromptKey
from fastrl.sharding import gathered
from fastrl.types import Completion, Prompt, Scored
from fastrl.wire import exchange

if TYPE_CHECKING:
    from fastrl.display import Display
    from fastrl.run import Run


@dataclass(frozen=True)
class Rollouts:
    """What a step sampled, in the order in which the prompts were drawn."""

    groups: list[list[Scored]]
    rounds: int
    seconds_sample: float
    seconds_grade: float


def has_signal(group: Sequence[Scored]) -> bool:
    """Whether the task rewards of the responses that did not fail differ."""
    rewards = {s.task_reward for s in group if s.completion.is_complete}
    return len(rewards - {None}) > 1


def roll_out(run: Run, display: Display, scorer: EarlyScorer) -> Rollouts:
    """A step's responses, from every process.

    Another round draws as many prompts again, up to `sampling.max_rounds`, while groups with
    signal are missing (DAPO's dynamic sampling, arXiv:2503.14476). All processes see all groups,
    and so decide alike.
    """
    config = run.config.sampling
    found = Rollouts([], 0, 0.0, 0.0)
    enough = False
    while not enough and found.rounds < config.max_rounds:
        phase = f"sample, round {found.rounds + 1}" if found.rounds else "sample"
        drawn = run.prompts.next(config.prompts_per_step)
        groups, seconds_sample, seconds_grade = sample(run, display, phase, drawn, scorer)
        found = Rollouts(
            found.groups + groups,
            found.rounds + 1,
            found.seconds_sample + seconds_sample,
            found.seconds_grade + seconds_grade,
        )
        enough = sum(map(has_signal, found.groups)) >= config.prompts_per_step
    return found


def sample(
    run: Run, display: Display, phase: str, drawn: Sequence[Prompt], scorer: EarlyScorer
) -> tuple[list[list[Scored]], float, float]:
    """A group of scored responses to each prompt, of every process; seconds to sample and grade."""
    world, started = run.learner.world, time.perf_counter()
    prompts = world.share(drawn)

    def attempt() -> tuple[list[list[Completion]], list[list[Verdict]], float]:
        show = display.count(phase, len(prompts) * run.sampling.n)
        with BackgroundGrader(
            run.tokenizer,
            [p.answer for p in prompts],
            run.config.reward.mode,
            on_event=scorer.watch(prompts, show),
        ) as grader:
            groups = generate(run, prompts, grader)
            sampled = time.perf_counter()
            display.phase("grade")
            return groups, grader.finish(groups), sampled

    groups, verdicts, sampled = shrinking(run.sampler, world, attempt, display.say)
    scored = everyones(world, drawn, score_groups(run, prompts, groups, verdicts))
    sampled = started + max(world.gather(sampled - started))
    return scored, sampled - started, time.perf_counter() - sampled


def generate(
    run: Run, prompts: Sequence[Prompt], grader: BackgroundGrader
) -> list[list[Completion]]:
    """The responses of this process, each handed to the grader as it finishes."""
    with gathered(run.learner.policy, keep=run.config.train.keep_gathered):
        groups = run.sampler.generate(
            [p.token_ids for p in prompts],
            run.sampling,
            prompt_keys=[PromptKey(p.id, p.draw) for p in prompts],
            step=run.step,
            stream=run.stream,
            on_event=grader.add,
        )
        run.sampler.release()
    return groups


def score_groups(
    run: Run,
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[Completion]],
    verdicts: Sequence[Sequence[Verdict]],
) -> list[list[Scored]]:
    """Every response with its text, its verdict and its task reward, grouped as sampled."""
    if not groups:  # more processes than prompts
        return []
    completions = [c for group in groups for c in group]
    owners = [p for p, group in zip(prompts, groups, strict=True) for _ in group]
    texts, grades = zip(*(v for group in verdicts for v in group), strict=True)
    scored = iter(run.rewarder.score(owners, completions, list(texts), grades))
    return [[next(scored) for _ in group] for group in groups]


def everyones(
    world: World, prompts: Sequence[Prompt], scored: Sequence[Sequence[Scored]]
) -> list[list[Scored]]:
    """The groups of all prompts, from this process's and the others'."""
    if world.size == 1:
        return [list(group) for group in scored]
    mine = [[(s.completion, s.text, s.grade, s.task_reward) for s in group] for group in scored]
    groups = exchange(world, mine)
    return [
        [Scored(p, *response) for response in group]
        for p, group in zip(prompts, groups, strict=True)
    ]
