"""pass@k, maj@k, accuracy and lengths of a policy on a set of prompts, with intervals.

Legend: P: prompts, n: samples a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastrl.batch import Sequences
from fastrl.checkpoint import newest_valid
from fastrl.config import Config, read_toml
from fastrl.datasources import Example, load_examples, test_split
from fastrl.distributed import ALONE, World
from fastrl.errors import UsageError
from fastrl.grading import Grade, grade
from fastrl.model import load_model
from fastrl.prompts import Tokenized
from fastrl.sampler import Event, PromptKey, Sampler, SamplingParams
from fastrl.statistics import bootstrap_interval, maj_at_k, pass_at_k, powers_of_two
from fastrl.tokenizer import Tokenizer, load_tokenizer
from fastrl.types import Completion
from fastrl.wire import exchange

LONGEST = 1_024  # tokens of a response where neither a run nor the user says


@dataclass(frozen=True)
class Evaluation:
    """What was sampled, one entry a prompt of n samples each."""

    prompt_token_ids: list[tuple[int, ...]]
    completions: list[list[Completion]]
    texts: list[list[str]]
    grades: list[list[Grade]]
    golds: list[str]
    seed: int

    @property
    def correct_Pn(self) -> np.ndarray:
        """bool [P, n]; a gold that cannot be read counts as wrong."""
        return np.array([[bool(g.correct) for g in row] for row in self.grades])

    def summary(self) -> dict[str, Any]:
        """The figures: shares, tokens, and a 95 % interval of the accuracy over prompts."""
        correct_Pn = self.correct_Pn
        samples = correct_Pn.shape[1]
        powers = powers_of_two(samples)
        lengths = np.array([[len(c.token_ids) for c in row] for row in self.completions])
        ends = [c.finish_reason for row in self.completions for c in row]
        answered = [g.answer is not None for row in self.grades for g in row]
        return {
            **{f"pass@{k}": float(v.mean()) for k, v in self.pass_at(powers).items()},
            **{f"maj@{k}": float(v.mean()) for k, v in self.maj_at(powers).items()},
            "accuracy": float(correct_Pn.mean()),
            "ci95": list(bootstrap_interval(correct_Pn.mean(1), self.seed)),
            "length_mean": float(lengths.mean()),
            "num_prompts": len(correct_Pn),
            "num_samples": samples,
            "eos_share": ends.count("stop") / len(ends),
            "truncated_share": ends.count("length") / len(ends),
            "no_answer_share": 1 - sum(answered) / len(answered),
        }

    def pass_at(self, ks: Sequence[int]) -> dict[int, np.ndarray]:
        """pass@k of each prompt, [P], for each k."""
        correct_Pn = self.correct_Pn
        return {k: pass_at_k(correct_Pn.sum(1), correct_Pn.shape[1], k) for k in ks}

    def maj_at(self, ks: Sequence[int]) -> dict[int, np.ndarray]:
        """maj@k of each prompt, [P], for each k."""
        ids_Pn, correct_Pn = self.answer_ids(), self.correct_Pn
        return {k: maj_at_k(ids_Pn, correct_Pn, k, self.seed) for k in ks}

    def sequences(
        self, samples: int | None = None
    ) -> tuple[Sequences, dict[int, int], list[Completion]]:
        """The first samples (all) of each prompt, as `batch.pack` takes them, with their prompts'
        numbers; and the completions in the same order."""
        groups = [group[:samples] for group in self.completions]
        flat = [(p, completion) for p, group in enumerate(groups) for completion in group]
        pairs = {i: (self.prompt_token_ids[p], c.token_ids) for i, (p, c) in enumerate(flat)}
        return pairs, {i: p for i, (p, _) in enumerate(flat)}, [c for _, c in flat]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One object a response, as `fastrl grade` reads them, with the verdict."""
        for p, gold in enumerate(self.golds):
            row = zip(self.texts[p], self.grades[p], self.completions[p], strict=True)
            for text, g, completion in row:
                verdict = {"answer": g.answer, "correct": g.correct, "reason": g.reason}
                ending = {"finish_reason": completion.finish_reason}
                yield {"prompt": p, "prediction": text, "gold": gold, **verdict, **ending}

    def answer_ids(self) -> np.ndarray:
        """int64 [P, n]: equal numbers for equal answers of a prompt, -1 for no answer.

        Correct answers are one class; the others are told apart by their text.
        """
        ids = np.full(self.correct_Pn.shape, -1, np.int64)
        for p, row in enumerate(self.grades):
            known: dict[str, int] = {}
            for i, g in enumerate(row):
                if g.correct:
                    ids[p, i] = 0
                elif g.answer is not None:
                    ids[p, i] = known.setdefault(" ".join(g.answer.split()), len(known) + 1)
        return ids


def evaluate(
    sampler: Sampler,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    params: SamplingParams,
    *,
    seed: int,
    stream: str = "eval",
    step: int = 0,
    mode: str = "box",
    on_event: Callable[[Event], None] | None = None,
    world: World = ALONE,
) -> Evaluation:
    """Sample `params.n` responses to every example and grade them.

    The random numbers depend on `seed`, `stream`, `step` and the examples' ids: two policies are
    compared on the same ones. `mode` (of grading.MODES) is where a response has its answer;
    `on_event` is told of every response as it finishes. The processes of a `world` share the
    examples, and all get the evaluation of all of them.
    Raises UsageError as `Sampler.generate` does, and for an empty set of examples.
    """
    if not examples:
        raise UsageError("there is no prompt to evaluate on; give a data set with rows")
    prompts = [tuple(tokenizer.encode_chat(e.messages)) for e in examples]
    mine = world.share(examples)
    sampled = sampler.generate(
        world.share(prompts),
        replace(params, seed=seed),
        prompt_keys=[PromptKey(e.id) for e in mine],
        step=step,
        stream=stream,
        on_event=on_event,
    )
    decoded = [[tokenizer.decode(c.token_ids) for c in row] for row in sampled]
    flat = iter(
        grade(
            [t for row in decoded for t in row],
            [e.answer for e in mine for _ in range(params.n)],
            mode=mode,
        )
    )
    rows = exchange(
        world,
        [
            [(c, text, next(flat), None) for c, text in zip(*row, strict=True)]
            for row in zip(sampled, decoded, strict=True)
        ],
    )
    completions = [[response[0] for response in row] for row in rows]
    texts = [[response[1] for response in row] for row in rows]
    grades = [[response[2] for response in row if response[2] is not None] for row in rows]
    golds = [e.answer for e in examples]
    return Evaluation(prompts, completions, texts, grades, golds, seed)


@dataclass(frozen=True)
class Located:
    """A model to evaluate, and the run it belongs to."""

    model: str  # what `load_model` takes
    config: Config | None  # the run's; None outside a run


def locate(name: str) -> Located:
    """The model that a name stands for: a run's newest whole checkpoint, a checkpoint, or a model.

    Raises UsageError for a run that has no whole checkpoint.
    """
    path = Path(name)
    if (path / "config.toml").is_file():
        checkpoint, _ = newest_valid(path / "checkpoints")
        if checkpoint is None:
            raise UsageError(f"{path} holds no whole checkpoint; name a model, or resume that run")
        return Located(str(checkpoint), read_toml(path / "config.toml"))
    of_run = path.resolve().parent.parent / "config.toml"
    if path.resolve().parent.name == "checkpoints" and of_run.is_file():
        return Located(name, read_toml(of_run))
    return Located(name, None)


@dataclass(frozen=True)
class Request:
    """What `fastrl eval` was asked for; 0 and "" mean: as in the run, else the default."""

    model: str
    data: str = ""
    config: str = ""  # a TOML file whose [data] and [sampling] are used
    split: str = ""
    samples: int = 16
    prompts: int = 500
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 0


def evaluate_model(
    request: Request,
    say: Callable[[str], None],
    count: Callable[[str, int], Callable[[object], None]],
    world: World = ALONE,
) -> Evaluation:
    """The evaluation that `request` asks for, by all processes of a `world`.

    `say` is told of prompts that are too long, `count(name, total)` gives what counts responses.
    Raises UsageError for counts below 1, an unknown model or data, and lengths that do not fit.
    """
    for name, value, least in (
        ("--samples", request.samples, 1),
        ("--prompts", request.prompts, 0),
        ("--max-tokens", request.max_tokens, 0),
    ):
        if value < least:
            raise UsageError(f"{name} is {value}; it must be at least {least}")
    located = locate(request.model)
    given = read_toml(request.config) if request.config else located.config
    config = given or Config()
    source = request.data or config.data.eval_source or config.data.source
    own = source in (config.data.source, config.data.eval_source)
    model, tokenizer = load_model(located.model), load_tokenizer(located.model)
    context = model.config.max_position
    max_tokens = request.max_tokens or (
        given.sampling.max_tokens if given else min(LONGEST, context // 2)
    )
    examples = load_examples(
        source,
        split=request.split or test_split(source, given.data.source if given else ""),
        seed=request.seed,
        limit=request.prompts or None,
        template=config.data.template or None if own else None,
        shots=config.data.shots if own else (),
        task_args=config.data.task_args if source == config.data.source else None,
    )
    fitting = Tokenized(examples, tokenizer, context - max_tokens)
    for line in fitting.report():
        say(line)
    return evaluate(
        Sampler(model, tokenizer=tokenizer),
        tokenizer,
        fitting.examples,
        SamplingParams(
            n=request.samples,
            max_tokens=max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            stop=config.sampling.stop,
        ),
        seed=request.seed,
        mode=config.reward.mode,
        on_event=count("evaluate", len(world.share(fitting.examples)) * request.samples),
        world=world,
    )
