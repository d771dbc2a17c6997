"""The verifier as the reward function of TRL and of verl; needs neither, and no torch.

TRL takes functions, by itself or beside others:

    from fastrl.integrations.grader import SoftOverlong, accuracy_reward, format_tags
    GRPOTrainer(..., reward_funcs=[accuracy_reward, format_tags, SoftOverlong(max_tokens=1024)])

verl takes this file, by its path, for the `compute_score` in it:

    reward.custom_reward_function.path=.../fastrl/integrations/grader.py
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.mode=box_or_anchor

verl 0.9.1 also takes its older keys, without the first `reward.`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from fastrl.grading import Grade, GradingPolicy, grade
from fastrl.rule_rewards import Chat, FormatTags, Repetition, SoftOverlong, completion_text

__all__ = [
    "FormatTags",
    "Repetition",
    "SoftOverlong",
    "accuracy_reward",
    "compute_score",
    "format_tags",
    "repetition",
]

format_tags = FormatTags()
repetition = Repetition()


def accuracy_reward(
    completions: Sequence[str | Chat],
    solution: Sequence[str],
    log_extra: Callable[[str, list], None] | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """1.0 where the last box of a completion equals the solution, else 0.0; TRL's signature.

    `completions` are texts or chats, whose last message counts; a solution is an answer or a
    worked solution with its answer in a box. None, which TRL leaves out, where the solution cannot
    be read. `log_extra` is TRL's, for the table of completions; `kwargs` are the other columns.
    """
    texts = [completion_text(c) for c in completions]
    grades = grade(texts, _golds(solution))
    if log_extra is not None:
        log_extra("solution", list(solution))
        log_extra("answer", [g.answer for g in grades])
        log_extra("reason", [g.reason for g in grades])
    return [_binary(g) for g in grades]


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Any = None,
    *,
    mode: str = "box",
    shotgun: Literal["wrong", "last"] = "wrong",
    bare_percent: bool = True,
    six_digits: bool = False,
) -> float:
    """1.0 where a response equals its ground truth, else 0.0; verl's signature.

    `ground_truth` is as a solution of `accuracy_reward`, or several of which any is right;
    `data_source` and `extra_info` are verl's and not used; the settings come as `reward_kwargs`.
    A ground truth that cannot be read gives 0.0, so that its group has no advantage, and a
    warning. Raises UsageError as `grade` does.
    """
    several = isinstance(ground_truth, Iterable) and not isinstance(ground_truth, str)
    golds = _golds(ground_truth if several else [ground_truth])
    policy = GradingPolicy(shotgun, bare_percent, six_digits)
    (verdict,) = grade([solution_str], [golds], mode=mode, threads=1, policy=policy)
    if verdict.correct is None:
        warnings.warn(
            f"the ground truth {ground_truth!r} cannot be read, so that every response to its"
            " prompt scores 0; mend it (fastrl grade --lint finds such rows)",
            stacklevel=2,
        )
    return float(bool(verdict.correct))


def _golds(solutions: Iterable[Any]) -> list[str]:
    """The solutions, each that has a complete box as what stands in its last one."""
    golds = ["" if solution is None else str(solution) for solution in solutions]
    boxed = [i for i, gold in enumerate(golds) if "boxed" in gold or "fbox" in gold]
    # compared with a list, boxes side by side are read as one
    found = grade([golds[i] for i in boxed], ["1, 2"] * len(boxed))
    for i, verdict in zip(boxed, found, strict=True):
        golds[i] = verdict.answer or ("" if verdict.reason == "empty" else golds[i])
    return golds


def _binary(verdict: Grade) -> float | None:
    return None if verdict.correct is None else float(verdict.correct)
