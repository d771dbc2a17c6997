"""The head as a module whose forward does the work, for wrappers that shard parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from fastrl.ops.public import PolicyLossOutput, linear_logprobs_and_entropy, linear_policy_loss

# FSDP2 finds a module's output tensors, where its backward hooks go, by flattening what it returns
_pytree.register_dataclass(PolicyLossOutput)


class Head(torch.nn.Linear):
    """A language model's head [V, D] that gives logits, log-probs or a loss.

    FSDP2 gathers a module's parameters around its forward: what reads `weight` outside, as a loss
    of hidden states does, finds a shard. `head(hidden)` are logits; `head(hidden, targets)` is
    `linear_logprobs_and_entropy`, `head(hidden, targets, advantages)` `linear_policy_loss`, with
    their settings.
    """

    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        advantages: Tensor | None = None,
        **settings: Any,
    ) -> Tensor | tuple[Tensor, Tensor] | PolicyLossOutput:
        """See the class; raises what the operations raise."""
        if targets is None:
            return super().forward(hidden)
        settings["bias"] = self.bias
        if advantages is None:
            return linear_logprobs_and_entropy(hidden, self.weight, targets, **settings)
        return linear_policy_loss(hidden, self.weight, targets, advantages, **settings)
