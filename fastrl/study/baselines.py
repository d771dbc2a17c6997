"""What sampling alone gives, of a model as it is: accuracy of every prompt, and the tokens it took.

Best of k and the majority of k have as many samples as the tokens of power sampling pay for.

Legend: P: prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrl.grading import grade
from fastrl.power_sampling import power_sample
from fastrl.sampler import PromptKey, Sampler
from fastrl.statistics import best_of_k, maj_at_k
from fastrl.study.measure import TOLD_APART, Counter, Policy, Questions
from fastrl.study.plan import Plan

if TYPE_CHECKING:
    from fastrl.types import Completion

CHAINS = 2  # a prompt, of power sampling
DRAWN = 8  # samples a prompt, of temperature
POOL = 64  # samples a prompt, of which the best and the majority of k are taken


@dataclass(frozen=True)
class Baseline:
    """A way of sampling, measured."""

    name: str
    label: str
    accuracy_P: np.ndarray
    tokens_P: np.ndarray  # generated for one answer
    about: dict[str, Any]


def measured_baselines(
    plan: Plan, policy: Policy, questions: Questions, count: Counter
) -> Iterator[Baseline]:
    """Greedy, temperature 1 / alpha, power sampling, and best and majority at equal tokens."""
    examples = questions.test
    alpha = max(plan.settings.alphas)
    found = policy.evaluate(questions, examples, 1, temperature=0.0)
    yield Baseline("greedy", "greedy", found.correct_Pn.mean(1), _lengths(found.completions), {})
    for a in plan.settings.alphas:
        if a == 1:
            continue
        show = count(f"temperature 1/{a:g}", len(examples) * DRAWN)
        found = policy.evaluate(questions, examples, DRAWN, temperature=1 / a, on_event=show)
        yield Baseline(
            f"temperature-{a:g}", f"temperature 1/{a:g}", found.correct_Pn.mean(1),
            _lengths(found.completions), {"alpha": a},
        )  # fmt: skip
    show = count("best and majority", len(examples) * POOL)
    pool = policy.evaluate(questions, examples, POOL, step=1, on_event=show)
    lp_Pn, _ = policy.logprob_sums(pool, POOL)
    rounded, ids_Pn = np.round(lp_Pn / TOLD_APART), pool.answer_ids()
    length = float(_lengths(pool.completions).mean())
    for steps in plan.settings.power_steps:
        power = _power(policy, questions, alpha, steps, plan.settings.power_block_tokens, count)
        yield power
        k = min(POOL, max(1, round(float(power.tokens_P.mean()) / length)))
        tokens_P = k * _lengths(pool.completions)
        about = {"k": k, "as_power_steps": steps}
        best = best_of_k(rounded, pool.correct_Pn, k)
        yield Baseline(f"best-{steps}", f"likeliest of {k}", best, tokens_P, about)
        majority = maj_at_k(ids_Pn, pool.correct_Pn, k)
        yield Baseline(f"majority-{steps}", f"majority of {k}", majority, tokens_P, about)


def _lengths(completions: list[list[Completion]]) -> np.ndarray:
    return np.array([np.mean([len(c.token_ids) for c in group]) for group in completions])


def _power(
    policy: Policy,
    questions: Questions,
    alpha: float,
    steps: int,
    block_tokens: int,
    count: Counter,
) -> Baseline:
    """Metropolis-Hastings on p^alpha, CHAINS a prompt."""
    examples = questions.test
    blocks = -(-questions.params.max_tokens // block_tokens)
    show = count(f"power sampling, {steps} moves", blocks * (steps + 1))
    prompts = [tuple(policy.tokenizer.encode_chat(e.messages)) for e in examples]
    found = power_sample(
        Sampler(policy.model, tokenizer=policy.tokenizer),
        prompts,
        replace(questions.params, n=CHAINS, stop=()),
        alpha=alpha,
        steps=steps,
        block_tokens=block_tokens,
        prompt_keys=[PromptKey(e.id) for e in examples],
        on_progress=show,
    )
    texts = [policy.tokenizer.decode(c.token_ids) for group in found.completions for c in group]
    golds = [e.answer for e in examples for _ in range(CHAINS)]
    right = np.array([bool(g.correct) for g in grade(texts, golds, mode=questions.mode)])
    return Baseline(
        f"power-{steps}", f"power sampling, {steps} moves",
        right.reshape(len(examples), CHAINS).mean(1),
        found.tokens_sampled_P / CHAINS,
        {"alpha": alpha, "steps": steps, "acceptance": found.acceptance},
    )  # fmt: skip
