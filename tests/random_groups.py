"""Groups of random responses to random prompts, of very different lengths."""

from __future__ import annotations

import random

from fastrl.model import Decoder
from fastrl.types import Completion, Prompt, Scored


def random_groups(model: Decoder, *, prompts: int, size: int, seed: int = 0) -> list[list[Scored]]:
    """`prompts` groups of `size` responses, of tokens that the model has."""
    draw = random.Random(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(model.valid_vocab) for _ in range(count))

    groups = []
    for number in range(prompts):
        prompt = Prompt(number, 0, (), tokens(draw.choice([1, 5, 30])), "")
        group = []
        for _ in range(size):
            ids = tokens(draw.choice([1, 2, 9, 40]))
            logprobs = tuple(-5 * draw.random() for _ in ids)
            completion = Completion(ids, logprobs, (0.0,) * len(ids), "stop")
            group.append(Scored(prompt, completion, "", None, draw.random()))
        groups.append(group)
    return groups
