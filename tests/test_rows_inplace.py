"""The policy loss that writes its gradient over the logits, and what it refuses: mistake 7."""

import pytest
import torch
from row_backends import row_path as row_path

from fastrl import ops
from fastrl.errors import UsageError
from fastrl.losses import LossSpec

N, V = 6, 130


def case():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(2, N // 2, V, generator=generator, requires_grad=True)
    targets = torch.randint(V - 7, (2, N // 2), generator=generator)
    advantages = torch.randn(2, N // 2, generator=generator)
    mask = torch.tensor([[True, True, False], [True, False, True]])
    return base, targets, advantages, {"mask": mask, "valid_vocab": V - 7, "temperature": 0.7}


def placed_case(path):
    base, targets, advantages, settings = case()
    base = path.place(base.detach()).requires_grad_()
    settings = {name: path.place(value) for name, value in settings.items()}
    return base, path.place(targets), path.place(advantages), settings | {"backend": path.backend}


@pytest.mark.parametrize("upstream", [1.0, 0.3])
def test_7_the_same_loss_and_gradient_without_more_memory(row_path, upstream):
    base, targets, advantages, settings = placed_case(row_path)
    found = []
    for inplace in (False, True):
        logits = base * 3
        out = ops.policy_loss(
            logits,
            targets,
            advantages,
            grad_scale=0.5,
            inplace=inplace,
            **settings,
        )
        base.grad = None
        (upstream * out.loss_sum).backward()
        found.append([out.loss_sum.detach(), out.logprobs, out.entropy, base.grad])
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-8)
    logits = base * 3
    address = logits.data_ptr()
    ops.policy_loss(logits, targets, advantages, inplace=True, **settings)
    assert logits.data_ptr() == address and not logits[0, 2].any()  # a masked row's gradient


def test_7_whoever_saved_the_logits_is_told(row_path):
    base, targets, advantages, settings = placed_case(row_path)
    logits = base * 3
    other = logits.log_softmax(-1).sum() + logits.square().sum()
    ops.policy_loss(logits, targets, advantages, inplace=True, **settings)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward()


def test_logits_that_hold_a_gradient_are_refused():
    base, targets, advantages, settings = case()
    logits = base * 3
    ops.policy_loss(logits, targets, advantages, inplace=True, **settings)
    for again in (
        lambda: ops.logprobs_and_entropy(logits, targets),
        lambda: ops.policy_loss(logits, targets, advantages),
        lambda: ops.row_statistics(logits, targets),
    ):
        with pytest.raises(UsageError, match="hold a gradient since .*compute them again"):
            again()


def test_a_second_backward_is_refused():
    base, targets, advantages, settings = case()
    out = ops.policy_loss(base * 3, targets, advantages, inplace=True, **settings)
    out.loss_sum.backward(retain_graph=True)
    with pytest.raises(UsageError, match="second backward .*use inplace=False"):
        out.loss_sum.backward()


@pytest.mark.parametrize(
    "make, settings, message",
    [
        (lambda base: base, {}, "are a leaf .*compute them from something"),
        (lambda base: (base * 3)[..., :100], {}, "not contiguous; call"),
        (lambda base: base * 3, {"loss_fn": lambda lp, h, rows: lp.sum()}, "a second time; use"),
        (
            lambda base: base * 3,
            {
                "spec": LossSpec(kl_estimator="k2", kl_coef=0.1),
                "ref_logprobs": torch.zeros(2, N // 2),
            },
            "a second time; use",
        ),
    ],
)
def test_dangers_are_refused(make, settings, message):
    base, _, advantages, _ = case()
    logits = make(base)
    before = logits.detach().clone()
    targets = torch.zeros(logits.shape[:-1], dtype=torch.int64)
    with pytest.raises(UsageError, match=f"inplace=True cannot be had: .*{message}"):
        ops.policy_loss(logits, targets, advantages, inplace=True, **settings)
    assert torch.equal(logits, before)


def test_without_a_gradient_the_logits_stay():
    base, targets, advantages, settings = case()
    logits = (base * 3).detach()
    before = logits.clone()
    ops.policy_loss(logits, targets, advantages, inplace=True, **settings)
    assert torch.equal(logits, before)
