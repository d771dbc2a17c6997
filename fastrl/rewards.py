"""Responses to scored responses: the verifier's verdict and the task reward r of each."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fastrl.config import RewardConfig
from fastrl.errors import UsageError
from fastrl.grading import Grade
from fastrl.rule_rewards import Coin, FormatTags, Repetition, SoftOverlong
from fastrl.types import Completion, Prompt, Scored

RewardFunction = Callable[..., Sequence[float | None]]


class RewardError(UsageError):
    """A reward function failed, or returned something that is no reward."""


RULES: dict[str, Callable[[RewardConfig, int], RewardFunction]] = {
    "format_tags": lambda c, _: FormatTags(c.tags),
    "soft_overlong": lambda c, longest: SoftOverlong(c.max_tokens or longest, c.buffer_tokens),
    "repetition": lambda c, _: Repetition(c.ngram_tokens, c.max_penalty),
    "random": lambda c, _: Coin(),
}


def load_function(name: str, config: RewardConfig, max_tokens: int) -> RewardFunction:
    """The reward function of a name in RULES with its settings, or of PACKAGE.MODULE:FUNCTION.

    `max_tokens` is the longest response where `config` names none; the working directory is
    searched last. Raises UsageError for a name that is none and a setting that cannot be.
    """
    if name in RULES:
        try:
            return RULES[name](config, max_tokens)
        except UsageError as error:
            raise UsageError(f"reward {name!r} cannot be made: reward.{error}") from None
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        known = ", ".join(map(repr, ["math", *RULES]))
        raise UsageError(f"reward {name!r} is not known; give {known} or PACKAGE.MODULE:FUNCTION")
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f"reward {name!r} cannot be imported ({error}); install its package, or start fastrl in"
            " its folder"
        ) from None
    finally:
        sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UsageError(
            f"{module_name} has no function {function_name!r}; name one after the colon"
        )
    return function


def _call(
    name: str,
    function: RewardFunction,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    texts: list[str],
) -> list[float | None]:
    """One reward a response through TRL's signature `(completions, **columns)`, all by name.

    A column of the data named as one of ours (`completions`, `prompts`, `answer`,
    `completion_ids`) is not passed on.
    """
    names = sorted({key for p in prompts for key in p.columns})
    columns: dict[str, list] = {key: [p.columns.get(key) for p in prompts] for key in names}
    columns |= {
        "completions": texts,
        "prompts": [p.messages[-1]["content"] for p in prompts],
        "answer": [p.answer for p in prompts],
        "completion_ids": [list(c.token_ids) for c in completions],
    }
    if isinstance(function, Coin):
        columns["draws"] = [p.draw for p in prompts]
    try:
        values = function(**columns)
    except Exception as error:  # the user's code may raise anything; it is reported, never hidden
        row = _failing_row(function, columns, len(texts))
        where = f"row {row} (prompt {prompts[row].id})" if row is not None else "the whole batch"
        raise RewardError(
            f"reward {name!r} raised {type(error).__name__}: {error} on {where}; nothing was"
            " updated, mend the function"
        ) from error
    if not isinstance(values, (list, tuple)) or len(values) != len(texts):
        got = (
            f"{len(values)} values" if isinstance(values, (list, tuple)) else type(values).__name__
        )
        raise RewardError(
            f"reward {name!r} returned {got} for {len(texts)} completions; return a list with one"
            " number or None each"
        )
    for row, value in enumerate(values):
        number = isinstance(value, (int, float)) or value is None or hasattr(value, "__float__")
        if not number or (value is not None and not math.isfinite(float(value))):
            raise RewardError(
                f"reward {name!r} returned {value!r} on row {row} (prompt {prompts[row].id}); "
                "return a finite number, or None for no verdict"
            )
    return [None if v is None else float(v) for v in values]


def _failing_row(function: RewardFunction, columns: dict[str, list], count: int) -> int | None:
    """The first row on which the function raises by itself; None when only the batch does."""
    for row in range(count):
        try:
            function(**{key: [values[row]] for key, values in columns.items()})
        except Exception:  # what is looked for
            return row
    return None


class Rewarder:
    """Scores responses: every one is graded for the log, r comes from the configured functions.

    `max_tokens` is the longest response of the run.
    """

    def __init__(self, config: RewardConfig, max_tokens: int = 0) -> None:
        if not config.functions:
            raise UsageError("reward.functions is empty; give 'math', or others beside it")
        if config.weights and len(config.weights) != len(config.functions):
            raise UsageError(
                f"reward.weights has {len(config.weights)} entries for {len(config.functions)}"
                " functions; give one each, or none"
            )
        self.names = config.functions
        self.weights = config.weights or (1.0,) * len(config.functions)
        self.functions = {
            name: load_function(name, config, max_tokens)
            for name in config.functions
            if name != "math"
        }

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        texts: list[str],
        grades: Sequence[Grade],
    ) -> list[Scored]:
        """One Scored a response, from its text and the verifier's verdict.

        `prompts` repeats the prompt of each response. Raises RewardError, with the row, when a
        reward function fails.
        """
        totals: list[float | None] = [0.0] * len(texts)
        for name, weight in zip(self.names, self.weights, strict=True):
            values = (
                [_binary(g) for g in grades]
                if name == "math"
                else _call(name, self.functions[name], prompts, completions, texts)
            )
            totals = [
                None if t is None or v is None else t + weight * v
                for t, v in zip(totals, values, strict=True)
            ]
        return [
            Scored(*row) for row in zip(prompts, completions, texts, grades, totals, strict=True)
        ]


def _binary(verdict: Grade) -> float | None:
    return None if verdict.correct is None else float(verdict.correct)
