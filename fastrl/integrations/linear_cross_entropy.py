"""Token log-probs and entropies by the names and signatures that verl gave them; needs no verl.

SkyRL, slime and AReaL copied `linear_cross_entropy`, whose place this one takes there:

    from fastrl.integrations.linear_cross_entropy import linear_cross_entropy

The computing is `fastrl.ops`': no temporary in the size of the logits, CPU and GPU, any hidden
width, results in fp32 (fp64 for fp64 input). Legend: N: rows (tokens), D: hidden width, V:
vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastrl.errors import UsageError
from fastrl.ops import linear_logprobs_and_entropy, logprobs_and_entropy

__all__ = [
    "entropy_from_logits",
    "entropy_from_logits_with_chunking",
    "linear_cross_entropy",
    "logprobs_from_logits",
]

REDUCTIONS = ("none", "sum", "mean")


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    reduction: str = "none",
    dist_process_group: torch.distributed.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """(log-probs of the labels, entropies) of the logits hidden @ weight.T / temperature, in nats.

    `hidden` [..., D] and `weight` [V, D], both of which get gradients; `labels` as many as hidden
    has rows, already shifted. Both results are [N], whatever the leading shape; with `reduction`
    "sum" or "mean" the log-probs are one number, the entropies still [N]. As in verl, the
    log-probs are not negated, though the name says cross entropy.
    Raises UsageError for a vocabulary that is split over the processes of `dist_process_group`,
    for a sharded weight, and as `fastrl.ops` does.
    """
    if reduction.lower() not in REDUCTIONS:
        names = ", ".join(map(repr, REDUCTIONS))
        raise UsageError(f"reduction is {reduction!r}; allowed: {names}")
    if dist_process_group is not None and dist_process_group.size() > 1:
        raise UsageError(
            f"linear_cross_entropy was given a tensor-parallel group of {dist_process_group.size()}"
            " processes, but takes a whole vocabulary; use a tensor-parallel size of 1, or the"
            " framework's own function"
        )
    if hasattr(weight, "full_tensor"):
        raise UsageError(
            "the weight is a DTensor, of which each process holds a part; call this inside of the"
            " forward for which FSDP gathers it"
        )
    hidden_ND = hidden.reshape(-1, hidden.shape[-1])
    logprobs_N, entropy_N = linear_logprobs_and_entropy(
        hidden_ND, weight, labels.reshape(-1), temperature=temperature
    )
    if reduction.lower() == "none":
        return logprobs_N, entropy_N
    return (logprobs_N.sum() if reduction.lower() == "sum" else logprobs_N.mean()), entropy_N


def logprobs_from_logits(logits: Tensor, labels: Tensor, inplace_backward: bool = True) -> Tensor:
    """The log-prob of each label under logits [..., V], in nats, in the leading shape of logits.

    `inplace_backward` changes nothing: logits that something else may still read, as an entropy
    does, are never written over.
    """
    return logprobs_and_entropy(logits, labels.reshape(logits.shape[:-1]))[0]


def entropy_from_logits(logits: Tensor) -> Tensor:
    """The entropy of each row of logits [..., V], in nats, in their leading shape."""
    anything = logits.new_zeros(logits.shape[:-1], dtype=torch.int64)
    return logprobs_and_entropy(logits, anything)[1]


def entropy_from_logits_with_chunking(logits: Tensor, chunk_size: int = 2048) -> Tensor:
    """`entropy_from_logits`, which has no temporaries that chunks of `chunk_size` would bound."""
    return entropy_from_logits(logits)
