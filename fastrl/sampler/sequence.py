"""What is asked of the sampler, and one response on its way."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral

from fastrl.errors import UsageError
from fastrl.sampler.philox import PromptKey
from fastrl.sampler.stop_strings import StopStrings
from fastrl.types import Completion


@dataclass(frozen=True)
class SamplingParams:
    """How to sample; names as in vLLM. Raises UsageError for a value that makes no sense."""

    n: int = 8  # responses a prompt
    max_tokens: int = 64  # of a response, the end token included
    temperature: float = 1.0  # 0: greedy, with log-probs at temperature 1
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()  # end a response as end tokens do, ignore_eos or not
    seed: int | None = None  # None: from the operating system
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for ok, name, allowed in (
            (_whole(self.n) and self.n >= 1, "n", "a whole number of at least 1"),
            (
                _whole(self.max_tokens) and self.max_tokens >= 1,
                "max_tokens",
                "a whole number of at least 1",
            ),
            (
                self.temperature == 0 or 1e-30 <= self.temperature <= 1e30,
                "temperature",
                "0 (greedy) or from 1e-30 to 1e30",
            ),
            (0 < self.top_p <= 1, "top_p", "above 0 and at most 1"),
            (_whole(self.top_k) and self.top_k >= 0, "top_k", "0 (no limit) or positive"),
            (0 <= self.min_p <= 1, "min_p", "from 0 to 1"),
            (
                not isinstance(self.stop, str) and all(self.stop),
                "stop",
                "a tuple of strings that are not empty",
            ),
            (
                isinstance(self.stop_token_ids, tuple | list)
                and all(map(_whole, self.stop_token_ids)),
                "stop_token_ids",
                "a tuple of token ids",
            ),
        ):
            if not ok:
                raise UsageError(f"{name} is {getattr(self, name)!r}; it must be {allowed}")

    @property
    def truncates(self) -> bool:
        """Whether a filter leaves some tokens out."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


def _whole(value: object) -> bool:
    return isinstance(value, Integral)


@dataclass(eq=False)
class Group:
    """A prompt and what is common to its responses."""

    index: int  # in the call
    prompt: list[int]
    params: SamplingParams
    key: PromptKey
    completions: list[Completion | None] = field(init=False)  # None: not finished

    def __post_init__(self) -> None:
        self.completions = [None] * self.params.n


@dataclass(eq=False)
class Sequence:
    """A response on its way, or (before the fork) the prompt of a group on behalf of all of them.

    `cached` counts the tokens of prompt and response whose keys and values are in `blocks`.
    """

    group: Group
    response: int  # index in its group; -1 for the prompt before the fork
    token_ids: list[int] = field(default_factory=list)  # of the response
    logprobs: list[float] = field(default_factory=list)
    log_kept_mass: list[float] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    cached: int = 0
    computed: int = 0  # the largest `cached` so far: what lies below it was computed before
    slot: int = -1  # row of the block table while it is in the pool
    stop_strings: StopStrings | None = None

    @property
    def age(self) -> tuple[int, int]:
        """Smaller is older."""
        return self.group.index, self.response

    @property
    def total(self) -> int:
        """Tokens of prompt and response."""
        return len(self.group.prompt) + len(self.token_ids)

    def token(self, position: int) -> int:
        """The token at a position of prompt and response."""
        prompt = self.group.prompt
        return (
            prompt[position] if position < len(prompt) else self.token_ids[position - len(prompt)]
        )

    def completion(self, finish_reason: str, stop_reason: int | str | None = None) -> Completion:
        """The finished response."""
        return Completion(
            tuple(self.token_ids),
            tuple(self.logprobs),
            tuple(self.log_kept_mass),
            finish_reason,
            stop_reason,
        )
