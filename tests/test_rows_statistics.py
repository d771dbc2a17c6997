"""More of a row from one read: sum p^2, the largest p, the argmax, the kept mass."""

import pytest
import torch
from row_backends import row_path as row_path

from fastrl import ops

V, VALID = 1100, 1087


def measured(path, logits, targets, **settings):
    """`ops.row_statistics` on a path, brought to the CPU."""
    found = path.call("row_statistics", logits, targets, **settings)
    return ops.RowStatistics(**{name: x.cpu() for name, x in vars(found).items()})


def logits_of(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(2, 3, V, generator=generator) * 3).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_against_fp64(row_path, dtype, softcap):
    logits = logits_of(dtype)
    logits[0, 0, 5] = logits[0, 0, 900] = 30.0  # a tie: the first one
    logits[..., VALID:] = float("nan")
    targets = torch.zeros(2, 3, dtype=torch.int64)
    temperature = torch.tensor([[0.5, 1.0, 2.0], [1.0, 0.7, 1.5]])
    mask = torch.tensor([[True, True, True], [True, False, True]])
    z = logits[..., :VALID].double()
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    kth = z.topk(10, -1).values[..., -1]
    # between the tenth and the eleventh, so that rounding does not decide
    thresholds = (kth + z.topk(11, -1).values[..., -1]) / 2
    found = measured(
        row_path, logits, targets, temperature=temperature, mask=mask, valid_vocab=VALID,
        softcap=softcap, thresholds=thresholds.float(),
    )  # fmt: skip
    p = (z / temperature.double()[..., None]).softmax(-1)
    kept = torch.where(z >= thresholds[..., None], p, 0.0).sum(-1).log()
    expected = {
        "sum_squares": p.square().sum(-1),
        "max_prob": p.amax(-1),
        "log_kept_mass": kept,
        "logprobs": p[..., 0].log(),
        "entropy": -(p * p.log()).sum(-1),
    }
    for name, values in expected.items():
        torch.testing.assert_close(
            getattr(found, name)[mask].double(), values[mask], rtol=3e-6, atol=3e-6
        )
        assert getattr(found, name)[1, 1] == 0
    assert torch.equal(found.argmax[mask], z.argmax(-1)[mask]) and found.argmax[1, 1] == -1
    assert softcap is not None or found.argmax[0, 0] == 5


def test_log_probs_have_the_bits_of_the_differentiable_operation(row_path):
    logits, targets = logits_of(), torch.arange(6).view(2, 3)
    found = measured(row_path, logits, targets, temperature=0.7)
    outputs = row_path.call("logprobs_and_entropy", logits, targets, temperature=0.7)
    logprobs, entropy = (x.cpu() for x in outputs)
    assert torch.equal(found.logprobs, logprobs) and torch.equal(found.entropy, entropy)
    assert not found.log_kept_mass.any()


def test_a_row_with_a_nan_has_no_argmax(row_path):
    logits = logits_of()
    logits[0, 1, 77] = float("nan")
    found = measured(row_path, logits, torch.zeros(2, 3, dtype=torch.int64))
    assert found.argmax[0, 1] == -1 and found.sum_squares[0, 1].isnan()
    others = torch.ones(2, 3, dtype=torch.bool)
    others[0, 1] = False
    assert (found.argmax[others] >= 0).all() and found.sum_squares[others].isfinite().all()
