"""Rows that nothing needs, left out of the head's products or taken through them as zeros."""

import pytest
import torch
from row_backends import integers, normal

from fastrl import ops

N, D, V = 24, 6, 20
SETTINGS = {"logit_scale": 0.9, "valid_vocab": V - 3, "softcap": 8.0, "temperature": 0.7}


@pytest.mark.parametrize("operation", ["loss", "statistics"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_compaction_is_a_choice_that_changes_nothing(operation, dtype):
    """Masked hidden states hold NaN; without compaction they go through the products as zeros."""
    head = [normal(N, D, seed=0), normal(V, D, seed=1), normal(V, seed=2)]
    head = [x.to(dtype) for x in head]
    targets, mask = integers(V - 3, N), torch.arange(N) % 4 != 1
    head[0][~mask] = float("nan")
    found = []
    for compact in (True, False):
        hidden, weight, bias = (x.detach().clone().requires_grad_() for x in head)
        settings = {"bias": bias, "mask": mask, "compact": compact, **SETTINGS}
        if operation == "loss":
            advantages = torch.where(torch.arange(N) % 3 > 0, normal(N, seed=4), 0.0)
            out = ops.linear_policy_loss(hidden, weight, targets, advantages, **settings)
            total, outputs = out.loss_sum, (out.logprobs, out.entropy)
        else:
            outputs = ops.linear_logprobs_and_entropy(hidden, weight, targets, **settings)
            total = sum((x * x).sum() for x in outputs)
        total.backward()
        found.append([*(x.detach() for x in outputs), hidden.grad, weight.grad, bias.grad])
    for x, y in zip(*found, strict=True):
        assert torch.isfinite(x).all() and torch.isfinite(y).all()
        limit = 4 * torch.finfo(dtype).eps * float(x.abs().max()) * 10
        assert float((x - y).abs().max()) <= limit
