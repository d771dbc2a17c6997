"""Prompts in a seeded order that its position alone resumes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastrl.datasources import Example
from fastrl.errors import UsageError
from fastrl.tokenizer import Tokenizer
from fastrl.types import Prompt

LISTED = 3  # too long prompts that a report names


class Tokenized:
    """Examples with their prompts' token ids, those over `max_prompt_tokens` left out and listed.

    `too_long` lists (id, tokens). Raises UsageError when none is left, or there is none to begin
    with.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        max_prompt_tokens: int | None = None,
    ) -> None:
        if not examples:
            raise UsageError("there is no prompt; give a data set with rows")
        self.max_prompt_tokens = max_prompt_tokens
        self.examples: list[Example] = []
        self.token_ids: list[tuple[int, ...]] = []
        self.too_long: list[tuple[int, int]] = []
        for example in examples:
            token_ids = tuple(tokenizer.encode_chat(example.messages))
            if max_prompt_tokens is not None and len(token_ids) > max_prompt_tokens:
                self.too_long.append((example.id, len(token_ids)))
            else:
                self.examples.append(example)
                self.token_ids.append(token_ids)
        if not self.examples:
            shortest = min(tokens for _, tokens in self.too_long)
            raise UsageError(
                f"no prompt fits {max_prompt_tokens} tokens, the shortest has {shortest}; raise"
                " data.max_prompt_tokens or lower sampling.max_tokens"
            )

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.token_ids))

    def report(self) -> list[str]:
        """A line on prompts that were left out, if any."""
        if not self.too_long:
            return []
        some = ", ".join(f"{i} ({tokens} tokens)" for i, tokens in self.too_long[:LISTED])
        more = ", ..." if len(self.too_long) > LISTED else ""
        total = len(self.examples) + len(self.too_long)
        return [
            f"{len(self.too_long)} of {total} prompts are longer than {self.max_prompt_tokens}"
            f" tokens and left out: rows {some}{more}"
        ]


class PromptStream:
    """An endless stream of prompts: every epoch is a shuffle by seed and epoch number.

    `position` counts the prompts drawn so far; setting it is all that resuming takes.
    """

    def __init__(self, source: Tokenized, *, seed: int) -> None:
        self.source, self.seed = source, seed
        self.position = 0
        self._order: tuple[int, np.ndarray] | None = None

    def next(self, count: int) -> list[Prompt]:
        """The next `count` prompts."""
        prompts = [self._prompt(self.position + i) for i in range(count)]
        self.position += count
        return prompts

    def _prompt(self, position: int) -> Prompt:
        epoch, place = divmod(position, len(self.source.examples))
        if self._order is None or self._order[0] != epoch:
            key = np.array([self.seed % 2**64, epoch], np.uint64)  # a list of such would be floats
            shuffle = np.random.Generator(np.random.Philox(key=key))
            self._order = epoch, shuffle.permutation(len(self.source.examples))
        i = int(self._order[1][place])
        e = self.source.examples[i]
        return Prompt(e.id, epoch, e.messages, self.source.token_ids[i], e.answer, e.columns)
