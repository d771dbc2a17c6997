"""What `ops.sample` refuses, in one sentence and before any kernel; and its operator's form."""

import re

import pytest
import torch
from row_backends import INF, NAN, normal
from sampling_cases import DEFAULTS, KEY, counters_of

from fastrl import ops
from fastrl.errors import UsageError

REFUSED = {
    "temperature": (-1.0, 1e-40, 1e39, NAN, INF),
    "top_k": (-1,),
    "top_p": (0.0, 1.5, NAN),
    "min_p": (-0.5, 1.5, NAN),
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in REFUSED.items() for v in vs])
def test_a_setting_out_of_range_is_refused(name, value):
    logits, counters = normal(3, 9), counters_of(3)
    with pytest.raises(
        UsageError, match=rf"^{name} is {re.escape(str(value))}; it must be [^\n]+$"
    ):
        ops.sample(logits, counters, KEY, **{name: value})
    each = torch.tensor([DEFAULTS[name], value, DEFAULTS[name]])
    value = each[1].item()
    with pytest.raises(
        UsageError, match=rf"^{name} is {re.escape(str(value))} in row 1; it must be [^\n]+$"
    ):
        ops.sample(logits, counters, KEY, **{name: each})


def test_other_input_that_does_not_fit_is_refused():
    logits, counters = normal(3, 9), counters_of(3)
    for arguments, words in (
        ((logits, counters[:2], KEY), r"counters are torch.int64 of shape \(2, 4\)"),
        ((logits, counters.int(), KEY), "counters are torch.int32"),
        ((logits, counters, (1, 1 << 32)), r"key is \(1, 4294967296\)"),
        ((logits, counters, (1, 2, 3)), r"key is \(1, 2, 3\)"),
        ((logits, counters - (1 << 32), KEY), "c0 of the counter of row 0 is -1; .* 0..4294967295"),
        ((logits, counters | (1 << 14), KEY), "c1 of the counter of row 0 is .* 0..16383"),
        ((logits.long(), counters, KEY), "torch.int64"),
        ((logits.t().contiguous().t(), counters, KEY), "contiguous"),
    ):
        with pytest.raises(UsageError, match=words):
            ops.sample(*arguments)
    with pytest.raises(UsageError, match="valid_vocab is 10"):
        ops.sample(logits, counters, KEY, valid_vocab=10)
    with pytest.raises(UsageError, match="backend 'cpu' cannot run here"):
        ops.sample(logits.double(), counters, KEY, backend="cpu")
    with pytest.raises(UsageError, match="top_k has shape"):
        ops.sample(logits, counters, KEY, top_k=torch.tensor([1, 2]))
    with pytest.raises(UsageError, match="top_k is torch.float32; it must be of an integer dtype"):
        ops.sample(logits, counters, KEY, top_k=torch.tensor(0.5))
    with pytest.raises(UsageError, match="top_k is 0.5; it must be"):
        ops.sample(logits, counters, KEY, top_k=0.5)
    wide = torch.zeros(1, 2**20 + 1)
    with pytest.raises(UsageError, match="the vocabulary has 1048577 ids; the counters allow"):
        ops.sample(wide, counters[:1], KEY)
    assert ops.sample(wide, counters[:1], KEY, valid_vocab=2**20).tokens.shape == (1,)


@pytest.mark.parametrize("limited", [True, False])
def test_the_operator_is_well_formed(limited):
    limits = torch.zeros(3, dtype=torch.int32), torch.full((3,), 0.9), torch.zeros(3)
    arguments = (
        normal(3, 9), counters_of(3), *KEY, torch.ones(3), *(limits if limited else [None] * 3), 9,
        None,
    )  # fmt: skip
    for backend in ("torch", "cpu"):
        torch.library.opcheck(torch.ops.fastrl.sample, (*arguments, backend))
