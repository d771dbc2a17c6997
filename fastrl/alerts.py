"""What a run's figures warn of: said at the first step, and beside the final table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOST = 0.5  # from this share on
NEARLY_ALL = 0.8
ALL = 0.95
NOTHING = 1e-9  # a spread that rounding leaves of equal rewards
LAST_STEPS = 10  # that the final table's are means over


def alerts(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on the mean of some lines of metrics.jsonl, each with what to do."""

    def mean(*names: str) -> float | None:
        rows: list[list[Any]] = [[line.get(name) for name in names] for line in lines]
        found = [sum(map(float, row)) for row in rows if None not in row]
        return sum(found) / len(found) if found else None

    def at_least(bound: float, *names: str) -> float | None:
        value = mean(*names)
        return value if value is not None and value >= bound else None

    uses_task = any(line.get("objective") != "sharpen" for line in lines)
    found = []
    if cut := at_least(MOST, "truncated_share"):
        found.append(
            f"{cut:.0%} of the responses were cut at the length limit; raise sampling.max_tokens"
        )
    if uses_task and (flat := at_least(NEARLY_ALL, "groups_all_right", "groups_all_wrong")):
        found.append(
            f"{flat:.0%} of the groups are all right or all wrong and teach nothing; take prompts"
            " of another difficulty, more responses a prompt, or dynamic sampling"
            " (loss.drop_groups_without_signal and sampling.max_rounds)"
        )
    if clipped := at_least(ALL, "clip_share"):
        found.append(
            f"{clipped:.0%} of the tokens are clipped, which leaves no gradient; take fewer"
            " train.epochs or train.minibatches, a lower optim.lr, or wider bounds"
        )
    spread = mean("reward_group_std")
    if spread is not None and spread < NOTHING:
        found.append(
            "the rewards of every group are constant, so that every advantage is 0; look at"
            " completions/ and at the reward functions"
        )
    parsed = mean("parse_rate")
    if parsed is not None and parsed <= 1 - MOST:
        found.append(
            f"an answer was read from {parsed:.0%} of the responses only; ask for \\boxed{{}} in"
            " the prompt, or set reward.mode to how the model answers"
        )
    return found
