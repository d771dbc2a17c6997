"""The nouns that travel through the loop.

Legend, used in every file: T: tokens, V: vocabulary, D: hidden width, P: prompts of a step,
G: responses a prompt, N: packed rows (tokens), S: packed sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from fastrl.grading import Grade


class Policy(Protocol):
    """What the loop asks of a model: hidden states of packed rows, and the head over them."""

    @property
    def head_weight(self) -> torch.Tensor:
        """[V, D]"""

    @property
    def valid_vocab(self) -> int:
        """Ids from there on belong to no token."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trainable tensors."""

    def __call__(
        self, token_ids_N: torch.Tensor, positions_N: torch.Tensor, attention: Any
    ) -> torch.Tensor:
        """Hidden states [N, D]."""


@dataclass(frozen=True)
class Prompt:
    """One prompt as drawn for a step."""

    id: int  # stable: the row's index in its data set, whatever the order of drawing
    draw: int  # how often this prompt was drawn before in this run
    messages: tuple[Mapping[str, str], ...]  # chat messages, the last one the user's
    token_ids: tuple[int, ...]  # through the chat template, the generation prompt included
    answer: str  # the gold answer, as text
    columns: Mapping[str, Any] = field(default_factory=dict)  # the row's other columns, for rewards


@dataclass(frozen=True)
class Completion:
    """One sampled response."""

    token_ids: tuple[int, ...]  # generated tokens only, the end token included
    logprobs: tuple[float, ...]  # log p_T of each token under the full softmax at temperature T
    log_kept_mass: tuple[float, ...]  # log of the mass that top-k/top-p/min-p kept; 0 without
    finish_reason: str  # "stop", "length", "cancelled" or "error"
    stop_reason: int | str | None = None  # the stop token or string; None for an end token

    @property
    def is_complete(self) -> bool:
        """Whether it was sampled to its end or its limit: not cancelled, and no error."""
        return self.finish_reason in ("stop", "length")


@dataclass(frozen=True)
class Scored:
    """A response with its text and its verdict; what the objective starts from."""

    prompt: Prompt
    completion: Completion
    text: str
    grade: Grade | None  # None where a reward function of the user's replaced the grader
    task_reward: float | None  # r; None: failed (outside the loss, counted in the ledger)


@dataclass(frozen=True)
class Batch:
    """Packed rows under a token budget: whole sequences, prompt and response, end to end.

    A row is a token; a row of a sequence predicts the sequence's next token. Targets are already
    shifted, and `mask` is True where the target is a response token that is in the loss: the last
    token of the prompt and all but the last of the response.

    Rows come in segments. Either a segment is a sequence, or the prompt of a group comes once, all
    but its last token, as a segment that the sequences of the group continue: `prefixes`.
    """

    token_ids_N: torch.Tensor  # int64
    positions_N: torch.Tensor  # int64, from 0 in each sequence
    targets_N: torch.Tensor  # int64; 0 where mask is False
    mask_N: torch.Tensor  # bool
    cu_seqlens: torch.Tensor  # int32, offsets of the segments over the rows
    max_seqlen: int  # rows of the longest segment
    prefixes: np.ndarray | None  # int64 [segments, 2]: first row and rows of what it continues
    sequences: tuple[int, ...]  # index of each sequence in the step's flat response list
    prefix_lengths: tuple[int, ...]  # prompt tokens of each sequence
    groups: tuple[int, ...]  # group (prompt) index of each sequence

    @property
    def unshared_rows(self) -> int:
        """Rows of the same sequences with a prompt each."""
        responses = int(self.mask_N.sum())
        return sum(self.prefix_lengths) - len(self.sequences) + responses
