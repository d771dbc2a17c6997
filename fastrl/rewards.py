"""Responses to scored responses: the verifier's verdict and the task reward r of each."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fastrl.config import RewardConfig
from fastrl.errors import UsageError
from fastrl.grading import Grade, grade
from fastrl.types import Completion, Prompt, Scored

RewardFunction = Callable[..., list[float | None]]


class RewardError(UsageError):
    """A reward function failed, or returned something that is no reward."""


def load_function(name: str) -> RewardFunction:
    """The function that `PACKAGE.MODULE:FUNCTION` names; the working directory is searched last."""
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise UsageError(f"reward {name!r} is not known; give 'math' or PACKAGE.MODULE:FUNCTION")
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
    """One reward a response through TRL's signature `(completions, **columns)`."""
    names = sorted({key for p in prompts for key in p.columns})
    columns = {key: [p.columns.get(key) for p in prompts] for key in names}
    columns |= {
        "prompts": [p.messages[-1]["content"] for p in prompts],
        "answer": [p.answer for p in prompts],
        "completion_ids": [list(c.token_ids) for c in completions],
    }
    try:
        values = function(texts, **columns)
    except Exception as error:  # the user's code may raise anything; it is reported, never hidden
        row = _failing_row(function, columns, texts)
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


def _failing_row(
    function: RewardFunction, columns: dict[str, list], texts: list[str]
) -> int | None:
    """The first row on which the function raises by itself; None when only the batch does."""
    for row, text in enumerate(texts):
        try:
            function([text], **{key: [values[row]] for key, values in columns.items()})
        except Exception:  # what is looked for
            return row
    return None


class Rewarder:
    """Scores responses: every one is graded for the log, r comes from the configured functions."""

    def __init__(self, config: RewardConfig) -> None:
        if not config.functions:
            raise UsageError("reward.functions is empty; give 'math' or PACKAGE.MODULE:FUNCTION")
        if config.weights and len(config.weights) != len(config.functions):
            raise UsageError(
                f"reward.weights has {len(config.weights)} entries for {len(config.functions)}"
                " functions; give one each, or none"
            )
        self.names = config.functions
        self.weights = config.weights or (1.0,) * len(config.functions)
        self.functions = {n: load_function(n) for n in config.functions if n != "math"}

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], texts: list[str]
    ) -> list[Scored]:
        """One Scored a response; `prompts` repeats the prompt of each response.

        Raises RewardError, with the row, when a reward function fails.
        """
        grades = grade(texts, [p.answer for p in prompts])
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
