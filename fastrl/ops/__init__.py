"""Token log-probs, entropies and policy losses from logits or hidden states; usable alone."""

from fastrl.losses import LossSpec, Rows
from fastrl.ops.module import Head
from fastrl.ops.public import (
    PolicyLossOutput,
    RowStatistics,
    linear_logprobs_and_entropy,
    linear_policy_loss,
    linear_row_statistics,
    logprobs_and_entropy,
    policy_loss,
    row_statistics,
)
from fastrl.ops.sampling import Sample, sample

__all__ = [
    "Head",
    "LossSpec",
    "PolicyLossOutput",
    "RowStatistics",
    "Rows",
    "Sample",
    "linear_logprobs_and_entropy",
    "linear_policy_loss",
    "linear_row_statistics",
    "logprobs_and_entropy",
    "policy_loss",
    "row_statistics",
    "sample",
]
