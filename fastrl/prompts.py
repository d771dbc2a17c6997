"""Prompts in a seeded order that its position alone resumes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastrl.datasources import Example, load_examples
from fastrl.errors import UsageError
from fastrl.tokenizer import Tokenizer
from fastrl.types import Prompt

__all__ = ["Example", "PromptStream", "load_examples"]

LISTED = 3  # too long prompts that a report names


class PromptStream:
    """An endless stream of prompts: every epoch is a shuffle by seed and epoch number.

    `position` counts the prompts drawn so far; setting it is all that resuming takes. Prompts over
    `max_prompt_tokens` are left out and listed in `too_long` as (id, tokens). Raises UsageError
    when none is left, or there is none to begin with.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        *,
        seed: int,
        max_prompt_tokens: int | None = None,
    ) -> None:
        if not examples:
            raise UsageError("there is no prompt; give a data set with rows")
        self.examples, self.tokenizer, self.seed = examples, tokenizer, seed
        self.position = 0
        self.max_prompt_tokens = max_prompt_tokens
        self.too_long: list[tuple[int, int]] = []
        self._tokens: list[tuple[int, ...]] = []
        self._kept: list[int] = []
        for i, example in enumerate(examples):
            token_ids = tuple(tokenizer.encode_chat(example.messages))
            self._tokens.append(token_ids)
            if max_prompt_tokens is not None and len(token_ids) > max_prompt_tokens:
                self.too_long.append((example.id, len(token_ids)))
            else:
                self._kept.append(i)
        if not self._kept:
            shortest = min(tokens for _, tokens in self.too_long)
            raise UsageError(
                f"no prompt fits {max_prompt_tokens} tokens, the shortest has {shortest}; raise"
                " data.max_prompt_tokens or lower sampling.max_tokens"
            )
        self._order: tuple[int, np.ndarray] | None = None

    def next(self, count: int) -> list[Prompt]:
        """The next `count` prompts."""
        prompts = [self._prompt(self.position + i) for i in range(count)]
        self.position += count
        return prompts

    def report(self) -> list[str]:
        """A line on prompts that were left out, if any."""
        if not self.too_long:
            return []
        some = ", ".join(f"{i} ({tokens} tokens)" for i, tokens in self.too_long[:LISTED])
        more = ", ..." if len(self.too_long) > LISTED else ""
        return [
            f"{len(self.too_long)} of {len(self.examples)} prompts are longer than"
            f" {self.max_prompt_tokens} tokens and left out: rows {some}{more}"
        ]

    def _prompt(self, position: int) -> Prompt:
        epoch, place = divmod(position, len(self._kept))
        if self._order is None or self._order[0] != epoch:
            key = np.array([self.seed % 2**64, epoch], np.uint64)  # a list of such would be floats
            shuffle = np.random.Generator(np.random.Philox(key=key))
            self._order = epoch, shuffle.permutation(len(self._kept))
        i = self._kept[int(self._order[1][place])]
        example = self.examples[i]
        return Prompt(
            example.id, epoch, example.messages, self._tokens[i], example.answer, example.columns
        )
