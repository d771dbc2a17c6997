"""What a step's loss is divided by, and the study's estimator, whole."""

import pytest
import torch

from fastrl import ops
from fastrl.losses import PRESETS, LossSpec, loss_denominator

LENGTHS = torch.tensor([3, 1, 7, 9, 4])
N, V = int(LENGTHS.sum()), 20


def normal(*shape, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


LOGITS = normal(N, V, seed=0)
TARGETS = torch.randint(V, (N,), generator=torch.Generator().manual_seed(1))
ADVANTAGES = normal(N, seed=2)


def logprobs(logits):
    return logits.log_softmax(1).gather(1, TARGETS[:, None])[:, 0]


def gradient(loss):
    """The value of a loss of the logits, and its gradient."""
    leaf = LOGITS.clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    return float(value.detach()), leaf.grad


def test_the_estimator_of_the_study():
    """-(1 / C) sum_t min(exp(log pi - log pi_sampler), 20) A log pi, the weight detached."""
    mask = torch.arange(N) % 5 > 0
    sampler = logprobs(LOGITS) - normal(N, seed=3, scale=3.0)
    weight = (logprobs(LOGITS) - sampler).exp()
    assert (weight[mask] > 20).any() and (weight[mask] < 20).any()
    spec = LossSpec.preset("paper")
    tokens = int(mask.sum())
    denominator = loss_denominator(spec, num_tokens=tokens, num_sequences=5, max_tokens=1000)

    def loss(logits):
        return ops.policy_loss(
            logits, TARGETS, ADVANTAGES, sampler_logprobs=sampler, mask=mask,
            grad_scale=1 / denominator, spec=spec,
        ).loss_sum  # fmt: skip

    def formula(logits):
        return -(weight.clamp(max=20) * ADVANTAGES * logprobs(logits))[mask].sum() / tokens

    value, got = gradient(loss)
    expected_value, expected = gradient(formula)
    assert value == pytest.approx(expected_value, rel=1e-12)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)


def test_the_estimator_of_the_study_has_no_other_term():
    assert PRESETS["paper"] == LossSpec(
        loss="reinforce",
        loss_agg_mode="token-mean",
        kl_estimator=None,
        kl_coef=0.0,
        entropy_coef=0.0,
        sampler_correction="token_truncate",
        sampler_correction_cap=20.0,
        on_policy=True,
    )


@pytest.mark.parametrize(
    "mode, expected",
    [("token-mean", 70), ("seq-mean-token-mean", 6), ("seq-mean-token-sum-norm", 6 * 50)],
)
def test_denominators(mode, expected):
    spec = LossSpec(loss_agg_mode=mode)
    assert loss_denominator(spec, num_tokens=70, num_sequences=6, max_tokens=50) == expected
    assert loss_denominator(spec, num_tokens=0, num_sequences=0, max_tokens=50) == 1


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
def test_a_loss_over_its_denominator_is_the_mean_of_that_name(mode):
    """A sequence without an unmasked token counts among the sequences, and adds nothing."""
    spec = LossSpec(loss_agg_mode=mode)
    offsets = torch.cat([torch.zeros(1), LENGTHS.cumsum(0)]).int()
    mask = torch.arange(N) != 3  # the one row of the second sequence
    mask[5] = False
    tokens = torch.tensor([3, 0, 6, 9, 4])
    denominator = loss_denominator(spec, num_tokens=22, num_sequences=5, max_tokens=11)
    out = ops.policy_loss(
        LOGITS, TARGETS, ADVANTAGES, mask=mask, cu_seqlens=offsets, grad_scale=1 / denominator,
        spec=spec,
    )  # fmt: skip
    losses = torch.where(mask, -ADVANTAGES * logprobs(LOGITS), 0.0).split(LENGTHS.tolist())
    sums = torch.stack([part.sum() for part in losses])
    means = {
        "token-mean": sums.sum() / 22,
        "seq-mean-token-mean": (sums / tokens.clamp(min=1)).mean(),
        "seq-mean-token-sum-norm": (sums / 11).mean(),
    }
    assert float(out.loss_sum) == pytest.approx(float(means[mode]), rel=1e-12)
