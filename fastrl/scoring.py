"""The log-prob of every response token under policy and reference, by one function.

Legend: R: responses of a step, N: packed rows, M: response rows of a packed batch, D: width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from fastrl import ops
from fastrl.model import PackedAttention
from fastrl.types import Batch, Completion, Policy


@dataclass(frozen=True)
class BatchScores:
    """The response rows of one packed batch; vectors are detached, fp32 (fp64 for fp64 models)."""

    responses: np.ndarray  # index of each sequence in the step's responses
    lengths: np.ndarray  # response tokens of each sequence
    ref_logprobs_M: torch.Tensor
    sampler_logprobs_M: torch.Tensor  # as sampled: the full softmax's less the log of the kept mass
    # under the policy as the trainer computes it; None until the training pass has them
    logprobs_M: torch.Tensor | None
    entropy_M: torch.Tensor | None

    @property
    def cu_seqlens(self) -> torch.Tensor:
        """int32 offsets of the sequences over the response rows."""
        offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        return torch.tensor(offsets, dtype=torch.int32, device=self.ref_logprobs_M.device)

    @property
    def of_policy(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs and entropies under the policy, [M] each."""
        assert self.logprobs_M is not None and self.entropy_M is not None, "not scored yet"
        return self.logprobs_M, self.entropy_M

    def sums(self, values_M: torch.Tensor) -> np.ndarray:
        """Over each response, fp64."""
        starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])
        return np.add.reduceat(values_M.double().cpu().numpy(), starts)

    def by_response(self) -> Iterator[tuple[int, BatchScores]]:
        """The rows of each response by themselves, with its index."""
        ends = np.cumsum(self.lengths)
        for n, (end, length) in enumerate(zip(ends, self.lengths, strict=True)):
            of_one, rows = slice(n, n + 1), slice(end - length, end)
            vectors: Any = {k: None if x is None else x[rows] for k, x in self._vectors().items()}
            one = BatchScores(self.responses[of_one], self.lengths[of_one], **vectors)
            yield int(self.responses[n]), one

    @staticmethod
    def joined(parts: Sequence[BatchScores]) -> BatchScores:
        """The rows of several as those of one batch."""
        vectors: Any = {
            name: None if x is None else torch.cat([p._vectors()[name] for p in parts])
            for name, x in parts[0]._vectors().items()
        }
        responses, lengths = ([getattr(p, k) for p in parts] for k in ("responses", "lengths"))
        return BatchScores(np.concatenate(responses), np.concatenate(lengths), **vectors)

    def _vectors(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name.endswith("_M")}

    def repeat(self, values_R: np.ndarray) -> torch.Tensor:
        """One entry a response as one entry a response row, [M], on the batch's device."""
        values = torch.from_numpy(np.repeat(values_R[self.responses], self.lengths))
        values = values.to(self.ref_logprobs_M.dtype) if values.is_floating_point() else values
        return values.to(self.ref_logprobs_M.device)


@dataclass(frozen=True)
class Scores:
    """lp and lpi of every response, in nats (nan for one that was not scored), and their rows."""

    batches: list[BatchScores]
    ref_logprob_R: np.ndarray
    policy_logprob_R: np.ndarray


def response_rows(model: Policy, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states [M, D] and targets [M] of the rows that predict a response token."""
    attention = PackedAttention(batch.cu_seqlens, batch.max_seqlen, batch.prefixes)
    hidden_ND = model(batch.token_ids_N, batch.positions_N, attention)
    return hidden_ND[batch.mask_N], batch.targets_N[batch.mask_N]


def score(
    model: Policy, batch: Batch, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of the response tokens of a packed batch, [M] each, no gradient."""
    [found] = score_at(model, batch, (temperature,))
    return found


def score_at(
    model: Policy, batch: Batch, temperatures: Sequence[float]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """As `score`, at each of several temperatures, from the same hidden states."""
    with torch.no_grad():
        hidden_MD, targets_M = response_rows(model, batch)
        return [
            ops.linear_logprobs_and_entropy(
                hidden_MD,
                model.head_weight,
                targets_M,
                temperature=temperature,
                valid_vocab=model.valid_vocab,
            )
            for temperature in temperatures
        ]


def score_batch(
    policy: Policy | None,
    reference: Policy,
    batch: Batch,
    completions: Sequence[Completion] | Mapping[int, Completion],
    temperature: float,
) -> BatchScores:
    """The rows of a packed batch, whose `sequences` are indices into `completions`."""
    chosen = [completions[i] for i in batch.sequences]
    ref_M, _ = score(reference, batch, temperature)
    logprobs_M, entropy_M = (None, None) if policy is None else score(policy, batch, temperature)
    sampler = np.concatenate([np.subtract(c.logprobs, c.log_kept_mass) for c in chosen])
    return BatchScores(
        responses=np.array(batch.sequences),
        lengths=np.array([len(c.token_ids) for c in chosen]),
        ref_logprobs_M=ref_M,
        logprobs_M=logprobs_M,
        sampler_logprobs_M=torch.tensor(sampler, dtype=ref_M.dtype, device=ref_M.device),
        entropy_M=entropy_M,
    )


def score_responses(
    policy: Policy | None,
    reference: Policy,
    batches: Sequence[Batch],
    completions: Sequence[Completion],
    temperature: float,
    early: Sequence[tuple[Batch, BatchScores]] = (),
) -> Scores:
    """lp and lpi of every packed response; `Batch.sequences` are indices into `completions`.

    Without a policy lpi is nan until `add_policy`. `early`: batches that were scored already.
    """
    lp_R, lpi_R = (np.full(len(completions), np.nan) for _ in range(2))
    known = {batch.sequences: rows for batch, rows in early}
    scored = []
    for batch in batches:
        rows = known.get(batch.sequences)
        if rows is None:
            rows = score_batch(policy, reference, batch, completions, temperature)
        lp_R[rows.responses] = rows.sums(rows.ref_logprobs_M)
        if rows.logprobs_M is not None:
            lpi_R[rows.responses] = rows.sums(rows.logprobs_M)
        scored.append(rows)
    return Scores(scored, lp_R, lpi_R)


def add_policy(scores: Scores, seen: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Scores:
    """The scores with the policy's log-probs and entropies of each batch, [M] each."""
    lpi_R, batches = np.full_like(scores.policy_logprob_R, np.nan), []
    for rows, (logprobs_M, entropy_M) in zip(scores.batches, seen, strict=True):
        lpi_R[rows.responses] = rows.sums(logprobs_M)
        batches.append(replace(rows, logprobs_M=logprobs_M, entropy_M=entropy_M))
    return Scores(batches, scores.ref_logprob_R, lpi_R)
