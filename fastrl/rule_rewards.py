"""Rewards by rule, beside the verifier's: format, length, repetition, chance; TRL's signature.

Each is made with its settings and called as `reward(completions=..., **columns)`, with texts or
chat messages; `completion_ids` holds each completion's token ids, the end token included.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastrl.errors import UsageError

Chat = Sequence[Mapping[str, Any]]  # messages with role and content


def completion_text(completion: str | Chat) -> str:
    """A completion's text, which is that of its last message where it is a chat."""
    return completion if isinstance(completion, str) else completion[-1]["content"] or ""


@dataclass(frozen=True)
class FormatTags:
    """1 for exactly one section of each tag, in order, none empty and nothing around them; else 0.

    A tag that stands anywhere twice is worth 0. Raises UsageError for no tag, one named twice or
    one that is no name.
    """

    tags: tuple[str, ...] = ("think", "answer")
    __name__ = "format_tags"

    def __post_init__(self) -> None:
        named = all(re.fullmatch(r"[\w.-]+", tag) for tag in self.tags)
        if not self.tags or not named or len(set(self.tags)) < len(self.tags):
            raise UsageError(
                f"tags is {list(self.tags)}; give different names, such as think and answer"
            )

    def __call__(self, completions: Sequence[str | Chat], **columns: Any) -> list[float]:
        return [float(self._is_formatted(completion_text(c))) for c in completions]

    def _is_formatted(self, text: str) -> bool:
        rest = text.strip()
        for tag in self.tags:
            opening, closing = f"<{tag}>", f"</{tag}>"
            if not rest.startswith(opening) or text.count(opening) + text.count(closing) != 2:
                return False
            section, found, rest = rest.removeprefix(opening).partition(closing)
            if not found or not section.strip():
                return False
            rest = rest.lstrip()
        return not rest


@dataclass(frozen=True)
class SoftOverlong:
    """0 up to `max_tokens - buffer_tokens` tokens, then in a line to -1 at `max_tokens`, and -1.

    DAPO's soft overlong punishment (arXiv:2503.14476, equation 13). `buffer_tokens` 0 is a fifth of
    `max_tokens`, as there. Raises UsageError for a buffer that is longer than `max_tokens`.
    """

    max_tokens: int
    buffer_tokens: int = 0
    __name__ = "soft_overlong"

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}; it must be at least 1")
        if not 0 <= self.buffer_tokens <= self.max_tokens:
            raise UsageError(
                f"buffer_tokens is {self.buffer_tokens}; give 0 (a fifth of max_tokens) up to"
                f" max_tokens, {self.max_tokens}"
            )

    def __call__(self, completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
        buffer = self.buffer_tokens or -(-self.max_tokens // 5)
        over = [len(ids) - (self.max_tokens - buffer) for ids in completion_ids]
        return [max(-max(excess, 0) / buffer, -1.0) for excess in over]


@dataclass(frozen=True)
class Repetition:
    """`-max_penalty` times the share of n-grams of tokens that stood in the completion before.

    The share is 1 - different n-grams / n-grams (arXiv:2502.03373, appendix C.2; Open-R1's, over
    tokens instead of words, so that it needs no blanks between them). Raises UsageError for an
    `ngram_tokens` below 1 and a negative `max_penalty`.
    """

    ngram_tokens: int = 3
    max_penalty: float = 1.0
    __name__ = "repetition"

    def __post_init__(self) -> None:
        if self.ngram_tokens < 1:
            raise UsageError(f"ngram_tokens is {self.ngram_tokens}; it must be at least 1")
        if not 0 <= self.max_penalty < float("inf"):
            raise UsageError(f"max_penalty is {self.max_penalty}; give what is taken off, as in 1")

    def __call__(self, completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
        return [self.max_penalty * (self._different(ids) - 1) for ids in completion_ids]

    def _different(self, ids: Sequence[int]) -> float:
        count = len(ids) - self.ngram_tokens + 1
        if count < 1:
            return 1.0
        ngrams = zip(*(ids[i:] for i in range(self.ngram_tokens)), strict=False)
        return len(set(ngrams)) / count


@dataclass(frozen=True)
class Coin:
    """0 or 1 by chance, whatever the response: the control of a study of rewards.

    By a hash of the prompt, of how often it was drawn before, of the tokens, and of how often all
    of these came before in the same call: a step computed again has the same rewards, and equal
    responses of a group, or to a prompt that is drawn again, have independent ones.
    """

    __name__ = "random"

    def __call__(
        self,
        completion_ids: Sequence[Sequence[int]],
        prompts: Sequence[Any] | None = None,
        draws: Sequence[int] | None = None,
        **columns: Any,
    ) -> list[float]:
        count = len(completion_ids)
        asked = zip(prompts or [""] * count, draws or [0] * count, completion_ids, strict=True)
        seen: Counter[str] = Counter()
        values = []
        for prompt, draw, ids in asked:
            text = f"{prompt}\0{draw}\0{' '.join(map(str, ids))}"
            digest = hashlib.blake2b(f"{text}\0{seen[text]}".encode(), digest_size=1).digest()
            seen[text] += 1
            values.append(float(digest[0] & 1))
        return values
