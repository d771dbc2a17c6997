"""A policy measured for a study: figures of every prompt, so that policies are compared in pairs.

Legend: P: prompts, n: samples a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fastrl.batch import pack
from fastrl.config import Config
from fastrl.datasources import Example, load_examples, test_split
from fastrl.evaluate import Evaluation, evaluate
from fastrl.grading import Grade
from fastrl.model import Decoder
from fastrl.objectives import Objective
from fastrl.prompts import Tokenized
from fastrl.sampler import Sampler, SamplingParams
from fastrl.scoring import score_responses
from fastrl.shapes import outline
from fastrl.statistics import best_of_k, powers_of_two
from fastrl.study.plan import Arm, StudySettings
from fastrl.study.predictions import (
    Drawn,
    correlation,
    covariance,
    log_z_bounds,
    optimum_accuracy,
)
from fastrl.study.wording import reworded, rewordings
from fastrl.tokenizer import Tokenizer, load_tokenizer

SCORED = 16  # samples a prompt whose log-prob under the base is computed
SHOWN_PROMPTS, SHOWN_SAMPLES = 48, 3  # that are kept as text
SEED = 0  # of the test prompts and of all samples: every policy is measured on the same
LONG = "embedded-long"
TOLD_APART = 1e-3  # nats between the log-probs of two responses that are not one

Counter = Callable[[str, int], Callable[[object], None]]
Values = dict[str, np.ndarray]  # figures by name, one entry a prompt


@dataclass(frozen=True)
class Questions:
    """The prompts that every policy of a study is asked."""

    test: list[Example]
    long: list[Example]  # one operator longer than anything in training; of the embedded task
    params: SamplingParams
    mode: str  # where a response has its answer
    source: str

    @classmethod
    def of(cls, settings: StudySettings, config: Config) -> Questions:
        """The test prompts of a configuration: those of `settings.prompts` that its model reads."""
        source = config.data.eval_source or config.data.source
        embedded = source == "embedded"
        count = settings.long_prompts if embedded else 0
        given: dict[str, Any] = {
            "seed": SEED,
            "template": config.data.template or None,
            "shots": config.data.shots,
        }
        task_args = config.data.task_args if source == config.data.source else None
        test = load_examples(
            source,
            split=test_split(source, config.data.source),
            limit=settings.prompts,
            task_args=task_args,
            **given,
        )
        name = config.model.name
        room = outline(name).config.max_position - config.sampling.max_tokens
        return cls(
            test=Tokenized(test, load_tokenizer(name), room).examples,
            long=load_examples(LONG, split="test", limit=count, **given) if count else [],
            params=SamplingParams(
                max_tokens=config.sampling.max_tokens, stop=config.sampling.stop, seed=SEED
            ),
            mode=config.reward.mode,
            source=source,
        )


@dataclass(frozen=True)
class Policy:
    """A model that is measured, with the frozen one that it is compared with."""

    model: Decoder
    tokenizer: Tokenizer
    reference: Decoder | None  # None: it is the reference

    def evaluate(
        self,
        questions: Questions,
        examples: Sequence[Example],
        samples: int,
        *,
        temperature: float = 1.0,
        step: int = 0,
        longer: bool = False,
        on_event: Callable[[object], None] | None = None,
    ) -> Evaluation:
        """`samples` responses to each example; another `step` is another draw.

        `longer`: half as long again, for a step of working more.
        """
        tokens = questions.params.max_tokens
        longest = max(len(self.tokenizer.encode_chat(e.messages)) for e in examples)
        params = replace(
            questions.params,
            n=samples,
            temperature=temperature,
            max_tokens=min(
                tokens + (tokens // 2 if longer else 0), self.model.config.max_position - longest
            ),
        )
        return evaluate(
            Sampler(self.model, tokenizer=self.tokenizer),
            self.tokenizer,
            examples,
            params,
            seed=SEED,
            step=step,
            mode=questions.mode,
            on_event=on_event,
        )

    def logprob_sums(self, evaluation: Evaluation, samples: int) -> tuple[np.ndarray, np.ndarray]:
        """lp under the reference, lpi under the model, of the first samples, [P, samples] each."""
        pairs, groups, completions = evaluation.sequences(samples)
        shape = (len(evaluation.completions), -1)
        own = np.array([sum(c.logprobs) for c in completions]).reshape(shape)
        if self.reference is None:
            return own, own
        batches = pack(
            pairs,
            groups,
            max_tokens=2048,
            share_prompts=True,
            device=self.model.head_weight.device,
        )
        scores = score_responses(self.model, self.reference, batches, completions, 1.0)
        return scores.ref_logprob_R.reshape(shape), scores.policy_logprob_R.reshape(shape)


@dataclass(frozen=True)
class Measured:
    """What `measure` found."""

    values: Values
    texts: list[dict[str, Any]]
    log_z: dict[str, tuple[float, float]] = field(default_factory=dict)


def measure(
    policy: Policy,
    questions: Questions,
    samples: int,
    count: Counter,
    *,
    base_of: Sequence[tuple[Arm, Objective]] | None = None,
) -> Measured:
    """Figures of `samples` responses to every test prompt, and some of them as text.

    They are test.NAME: accuracy, pass@k, maj@k, length, lp and kl (nats a response), unique (share
    of different responses). For the base model, with the arms `base_of` it, what it says of them
    too: see `beforehand`.
    """
    show = count("test", len(questions.test) * samples)
    drawn = policy.evaluate(questions, questions.test, samples, on_event=show)
    ks = powers_of_two(samples)
    lp, lpi = policy.logprob_sums(drawn, SCORED if base_of is None else samples)
    values: Values = {
        "test.accuracy": drawn.correct_Pn.mean(1),
        "test.length": np.array(
            [np.mean([len(c.token_ids) for c in g]) for g in drawn.completions]
        ),
        "test.lp": lp.mean(1),
        "test.kl": (lpi - lp).mean(1),
        "test.unique": np.array(
            [len({c.token_ids for c in g[:SCORED]}) / len(g[:SCORED]) for g in drawn.completions]
        ),
        **{f"test.pass@{k}": v for k, v in drawn.pass_at(ks).items()},
        **{f"test.maj@{k}": v for k, v in drawn.maj_at(ks).items()},
    }
    bounds: dict[str, tuple[float, float]] = {}
    if base_of is not None:
        found, bounds = beforehand(drawn, lp, base_of)
        values |= found
    return Measured(values, texts(drawn, questions.test), bounds)


def measure_more(
    policy: Policy,
    questions: Questions,
    settings: StudySettings,
    count: Counter,
    *,
    other_words: bool = True,
    long_samples: int = 0,
    is_base: bool = False,
) -> Values:
    """Figures that are no samples of the test prompts, of which no prediction is made.

    test.greedy; `test.NAME@WORDING` of prompts that were asked in other words, `flipped` where the
    greedy answer is another; `long.second` counts right responses to longer prompts, `long_samples`
    each; and of the base `long.first`, another draw, by which prompts are chosen.
    """
    greedy = policy.evaluate(questions, questions.test, 1, temperature=0.0)
    values: Values = {"test.greedy": greedy.correct_Pn[:, 0].astype(float)}
    if other_words:
        values |= _other_words(policy, questions, settings, greedy, count)
    if questions.long and long_samples:
        # prompts that the base's first draw never solved are not to be asked on its random numbers:
        # it would seem to solve none of them, and less than by chance whoever is near it
        draws = {"long.second": 1, **({"long.first": 0} if is_base else {})}
        for name, step in draws.items():
            show = count("longer", len(questions.long) * long_samples)
            longer = policy.evaluate(
                questions, questions.long, long_samples, step=step, longer=True, on_event=show
            )
            values[name] = longer.correct_Pn.sum(1).astype(float)
        values["long.n"] = np.full(len(questions.long), float(long_samples))
    return values


def _other_words(
    policy: Policy,
    questions: Questions,
    settings: StudySettings,
    greedy: Evaluation,
    count: Counter,
) -> Values:
    """Accuracy in other words, greedy, and where the answer is another than to the question."""
    values: Values = {}
    some = questions.test[: settings.template_prompts]
    if not some:
        return values
    before = [g[0] for g in greedy.grades]
    words = rewordings(questions.source)
    show = count("other words", len(words) * len(some))
    for name, reword in words.items():
        found = policy.evaluate(
            questions, reworded(some, reword), 1, temperature=0.0, on_event=show
        )
        values[f"test.greedy@{name}"] = found.correct_Pn[:, 0].astype(float)
        values[f"test.flipped@{name}"] = np.array(
            [_is_other(g[0], b) for g, b in zip(found.grades, before, strict=False)], float
        )
    return values


def _is_other(now: Grade, before: Grade) -> bool:
    """Whether an answer is another than before; two that are right are the same."""
    return not (now.correct and before.correct) and now.answer != before.answer


def beforehand(
    drawn: Evaluation, lp_Pn: np.ndarray, arms: Sequence[tuple[Arm, Objective]]
) -> tuple[Values, dict[str, tuple[float, float]]]:
    """What the base model says of training, from its samples alone.

    `predicted.ARM`: the accuracy of each arm's optimum; `base.covariance` of r and log p, in nats,
    `base.correlation`; `base.best@k`: whether the likeliest of k is right. And bounds of log Z by
    arm, means over prompts, in nats.
    """
    right_Pn = drawn.correct_Pn
    prompts = [
        Drawn(lp_n, right_n, [c.token_ids for c in group])
        for lp_n, right_n, group in zip(lp_Pn, right_Pn, drawn.completions, strict=True)
    ]
    rounded = np.round(lp_Pn / TOLD_APART)  # equal responses have equal scores
    values: Values = {
        "base.covariance": np.array([covariance(d) for d in prompts]),
        "base.correlation": np.array([correlation(d) for d in prompts]),
    }
    for k in powers_of_two(right_Pn.shape[1]):
        values[f"base.best@{k}"] = best_of_k(rounded, right_Pn, k)
    bounds: dict[str, tuple[float, float]] = {}
    for arm, objective in arms:
        values[f"predicted.{arm.name}"] = (
            right_Pn.mean(1)  # no reward tells one response from another
            if arm.kind == "random"
            else np.array([optimum_accuracy(objective, d) for d in prompts])
        )
        if objective.is_power and (objective.alpha or 0) > 1:
            both = [log_z_bounds(d, objective.alpha or 1.0) for d in prompts]
            low, high = np.mean(both, axis=0)
            bounds[arm.name] = float(low), float(high)
    return values, bounds


def texts(evaluation: Evaluation, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Some responses to the first prompts, with what the verifier made of them."""
    rows = []
    for p, example in enumerate(examples[:SHOWN_PROMPTS]):
        group = zip(evaluation.texts[p], evaluation.grades[p], strict=True)
        responses = [
            {"text": text, "answer": g.answer, "correct": g.correct, "reason": g.reason}
            for text, g in list(group)[:SHOWN_SAMPLES]
        ]
        rows.append(
            {
                "prompt": example.messages[-1]["content"],
                "gold": example.answer,
                "tags": [str(v) for v in _tags(example)],
                "responses": responses,
            }
        )
    return rows


def difficulty(example: Example) -> str:
    """The kind that accuracy is told apart by: the row's kind, level or task; "" without one."""
    return str(next(iter(_tags(example)), ""))


def _tags(example: Example) -> list[Any]:
    columns: Mapping[str, Any] = example.columns
    return [columns[k] for k in ("kind", "level", "task", "subject", "type") if k in columns]
