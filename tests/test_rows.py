"""Rows of logits on every path: values and gradients, at block edges and for values that break.

The numbers in the names are those of the list of known mistakes of such kernels: 1 padded columns,
2 the first maximum, 3 a block of -inf, 4 0 * -inf, 5 what must not be read, 6 cancellation,
14 the entropy's gradient, 15 one temperature, 17 everything masked. The other `test_rows_*.py` hold
the rest.
"""

import pytest
import torch
from row_backends import (
    INF,
    NAN,
    assert_near,
    assert_near_the_truth,
    by_formula,
    first,
    integers,
    logit_rows,
    normal,
    same_bits,
    upstream,
)
from row_backends import row_path as row_path

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WIDTHS = {1: 16, 2: 16, 123: 16, 1000: 8, 32000: 3, 49152: 2, 128256: 2, 151936: 2}  # and rows


def settings_of(rows, width):
    """Settings by name, for rows of a width."""
    temperatures = torch.tensor([0.3, 0.5, 1.0, 2.0, 7.0]).repeat(-(-rows // 5))[:rows]
    return {
        "nothing": {},
        "temperature": {"temperature": 0.7},
        "temperatures": {"temperature": temperatures},
        "softcap": {"softcap": 4.0},
        "logit_scale": {"logit_scale": 1.3},
        "negative scale": {"logit_scale": -0.6},
        "small scale": {"logit_scale": 0.01, "temperature": 0.02},
        "valid": {"valid": max(1, width - 7)},
        "all": {
            "temperature": temperatures,
            "softcap": 5.0,
            "logit_scale": -1.4,
            "valid": max(1, width - 9),
            "mask_N": torch.arange(rows) % 3 != 1,
        },
    }


def poisoned(x):
    """The same rows with NaN wherever nothing may look."""
    logits, targets, t = x.logits_NV.clone(), x.targets_N.clone(), x.temperature
    logits[:, x.valid :] = NAN
    if x.mask_N is not None:
        logits[~x.mask_N], targets[~x.mask_N] = NAN, -100
        t = torch.where(x.mask_N, t, NAN) if isinstance(t, torch.Tensor) else t
    return logit_rows(
        logits, targets, mask_N=x.mask_N, temperature=t, valid=x.valid, softcap=x.softcap,
        logit_scale=x.logit_scale,
    )  # fmt: skip


@pytest.mark.parametrize("name", settings_of(1, 1))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [w for w in WIDTHS if w <= 1000])
def test_as_near_the_truth_as_torch(row_path, width, dtype, name):
    rows = WIDTHS[width]
    settings = settings_of(rows, width)[name]
    targets = integers(settings.get("valid", width), rows)
    x = logit_rows(normal(rows, width, dtype=dtype), targets, **settings)
    a, g = upstream(rows)
    *values, gradient = assert_near_the_truth(row_path, poisoned(x), a, g, interpret=3)
    assert not gradient[:, x.valid :].any()
    if x.mask_N is not None:
        x = first(x, len(gradient))
        assert not any(v[~x.mask_N].any() for v in (*values, gradient))


@pytest.mark.parametrize("dtype, name", [
    (torch.float32, "nothing"), (torch.float16, "all"), (torch.bfloat16, "temperature"),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("width", [w for w in WIDTHS if w > 1000])
def test_as_near_the_truth_as_torch_at_real_vocabularies(row_path, width, dtype, name):
    rows = WIDTHS[width]
    settings = settings_of(rows, width)[name]
    valid = settings.get("valid", width)
    targets = integers(valid, rows)
    targets[-1] = valid - 1
    x = logit_rows(normal(rows, width, dtype=dtype), targets, **settings)
    assert_near_the_truth(row_path, poisoned(x), *upstream(rows))


@pytest.mark.parametrize("softcap", [0.1, 3.0, 50.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_softcaps_from_nearly_linear_to_saturated(row_path, softcap, scale):
    logits = normal(16, 123, scale=scale)
    x = logit_rows(logits, integers(123, 16), softcap=softcap, temperature=0.8)
    assert_near_the_truth(row_path, x, *upstream(16), interpret=3)


def test_a_softcap_leaves_small_logits_their_digits(row_path):
    """tanh near 0, which a small temperature makes large, and where its two formulas meet."""
    for size, temperature in ((0.8, 1.0), (1e-3, 1e-4)):
        logits = torch.linspace(-size, size, 257).expand(24, -1)
        targets = torch.arange(24) * 11
        x = logit_rows(logits, targets, softcap=1.0, temperature=temperature)
        assert_near_the_truth(row_path, x, *upstream(24), interpret=4)


def edges(path):
    """Widths about the tail of a vector and the edge of a block."""
    around = [n * path.block + d for n in (1, 2) for d in (-1, 0, 1)]
    if path.backend == "triton":  # short rows: one block, the next power of 2
        return [1, 2, 15, 16, 17, 257, *around[:3], around[-1]]
    return [*range(1, 21), 31, 33, 63, 65, *around]


@pytest.mark.parametrize("poison", [NAN, INF, 1e30])
def test_1_padded_columns_take_no_part(row_path, poison):
    """At every edge, above and beside very low logits."""
    for valid in edges(row_path):
        logits = normal(16, valid + 3) - 80.0  # a padded 0 would take all
        logits[:, valid:] = poison
        targets = torch.arange(16) % valid
        targets[0] = valid - 1
        x = logit_rows(logits, targets, valid=valid)
        got = assert_near_the_truth(row_path, x, *upstream(16), interpret=2)
        assert (got[0] <= 0).all() and not got[2][:, valid:].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_1_every_edge_with_the_peak_in_the_last_column(row_path, dtype):
    for width in edges(row_path):
        logits = normal(16, width, scale=1.0, dtype=dtype)
        logits[::2, -1] = 9.0
        targets = torch.arange(16) % width
        targets[::2] = width - 1
        x = logit_rows(logits, targets)
        assert_near_the_truth(row_path, x, *upstream(16), interpret=2)


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_2_a_shift_of_all_logits_changes_nothing(row_path, shift):
    # multiples of 1/64 below 64 stay exact in fp32 beside 1e4
    logits = (normal(3, 2 * row_path.block + 5) * 64).round().div(64)
    targets = integers(logits.shape[1], 3)
    a, g = upstream(3)
    shifted = logit_rows(logits + shift, targets)
    expected = row_path.everything(logit_rows(logits, targets), a, g)
    assert same_bits(row_path.everything(shifted, a, g), expected)
    assert_near_the_truth(row_path, shifted, a, g)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_3_blocks_of_impossible_tokens(row_path, dtype):
    """First, between and last; the rest low or high."""
    block = row_path.block
    width = 3 * block + 17
    logits = normal(6, width, dtype=dtype)
    logits[0, :block] = logits[1, : 2 * block + 3] = logits[2, block : 2 * block] = -INF
    logits[3, 5:] = logits[4, : width - 1] = -INF
    logits[5, : 2 * block] = -INF
    logits[5, 2 * block :] -= 1e4
    targets = torch.tensor([block, 2 * block + 9, 3, 4, width - 1, width - 2])
    x = logit_rows(logits, targets)
    got = assert_near_the_truth(row_path, x, *upstream(6))
    assert all(v.isfinite().all() for v in got) and not got[2][logits.isneginf()].any()
    assert got[0][4] == 0 and got[1][4] == 0 and not got[2][4].any()


def test_3_a_row_of_nothing_but_impossible_tokens_is_nan_as_in_torch(row_path):
    logits = normal(3, 123)
    logits[1] = -INF
    got = row_path.everything(logit_rows(logits, torch.tensor([0, 5, 9])), *upstream(3))
    expected = by_formula(logit_rows(logits, torch.tensor([0, 5, 9])), *upstream(3), torch.float32)
    assert got[0][1].isnan() and got[1][1].isnan() and expected[0][1].isnan()
    assert all(v[[0, 2]].isfinite().all() for v in got)


@pytest.mark.parametrize("size", [1.0, 40.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_4_impossible_tokens_add_nothing_to_entropy_or_gradient(row_path, dtype, size):
    logits = normal(4, 123, dtype=dtype)
    logits[:3, ::2] = -INF
    logits[3, 5:] = -INF
    x = logit_rows(logits, torch.tensor([1, 71, 121, 4]))
    got = assert_near_the_truth(row_path, x, *upstream(4, size))
    assert not got[2][logits.isneginf()].any()


def test_4_columns_that_underflow_add_nothing(row_path):
    """e^(z-m) is 0 and z - m finite, or so large that z - m overflows."""
    logits = normal(3, 123)
    logits[0, ::2] = -300.0
    logits[1, ::2] = -3e38
    logits[2, 1] = 3e38
    x = logit_rows(logits, torch.tensor([1, 3, 1]))
    assert_near_the_truth(row_path, x, *upstream(3))


def test_5_an_impossible_target_still_pushes_the_others_down(row_path):
    logits = normal(2, 123)
    logits[0, 2] = -INF
    x = logit_rows(logits, torch.tensor([2, 2]))
    a, g = torch.ones(2), torch.zeros(2)
    logprobs, entropy, gradient = row_path.everything(x, a, g)
    assert logprobs[0] == -INF and logprobs[1].isfinite() and entropy.isfinite().all()
    expected = torch.eye(123, dtype=torch.float64)[2] - logits.double().softmax(1)
    assert_near([gradient], [expected.float()], [expected])
    # the entropy does not depend on an impossible token, nor its gradient on being the target
    by_entropy = row_path.gradient(x, g, a)
    other = row_path.gradient(logit_rows(logits, torch.tensor([3, 3])), g, a)
    assert by_entropy[0, 2] == 0 and same_bits([by_entropy[0, 4:]], [other[0, 4:]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_6_the_gradient_at_a_likely_target_does_not_cancel(row_path, dtype):
    """1 - p to the precision of its log-prob, from p = 1 - 6e-8 to p = 0.1."""
    above = torch.arange(-1.0, 17.0, 0.5)
    logits = torch.zeros(len(above), 3).to(dtype)
    logits[:, 0], logits[:, 2] = above.to(dtype), -INF
    targets = torch.zeros(len(above), dtype=torch.int64)
    x = logit_rows(logits, targets)
    logprobs, _, gradient = row_path.everything(x, torch.ones(len(above)), torch.zeros(len(above)))
    expected = -torch.expm1(logprobs.double())
    assert (logprobs.diff() >= 0).all() and logprobs[0] < -1 and logprobs[-1] > -1e-6
    eps = torch.finfo(dtype).eps
    truncated = 2 if row_path.interpreted and dtype == torch.bfloat16 else 1
    limit = truncated * eps * expected + 1e-6 * expected + torch.finfo(dtype).smallest_normal * eps
    assert ((gradient[:, 0].double() - expected).abs() <= limit).all()


@pytest.mark.parametrize("peak", [12.0, 30.0, 200.0, 1000.0])
def test_6_peaked_rows(row_path, peak):
    logits, targets = normal(6, 123, scale=0.5), integers(123, 6)
    logits[torch.arange(3), targets[:3]] += peak
    logits[3:, 7] += peak
    got = assert_near_the_truth(row_path, logit_rows(logits, targets), *upstream(6))
    assert (got[0] <= 0).all() and (got[1] >= 0).all()


def test_6_one_column_far_above_the_rest_in_fp16(row_path):
    logits = torch.full((1, 123), -6e4, dtype=torch.float16)
    logits[0, 3] = 6e4
    got = row_path.everything(logit_rows(logits, torch.tensor([3])), *upstream(1))
    assert not any(v.any() for v in got)


def test_14_the_entropy_has_a_gradient(row_path):
    logits, targets = normal(4, 123), integers(123, 4)
    for a, g in ((torch.zeros(4), torch.ones(4)), (torch.ones(4), torch.zeros(4))):
        assert_near_the_truth(row_path, logit_rows(logits, targets), a, g)
    leaf = row_path.place(logits.clone()).requires_grad_()
    _, entropy = row_path.call("logprobs_and_entropy", leaf, targets)
    entropy.sum().backward()
    alone = row_path.gradient(logit_rows(logits, targets), torch.zeros(4), torch.ones(4))
    assert alone.any() and same_bits([leaf.grad.cpu()], [alone])


@pytest.mark.parametrize("each", [False, True], ids=["one", "each"])
def test_15_the_temperature_divides_once(row_path, each):
    """A power of two scales exactly: log-prob and entropy are those of the divided logits."""
    logits, targets = normal(3, 1000), integers(1000, 3)
    a, g = upstream(3)
    for t in (0.25, 4.0):
        expected = row_path.everything(logit_rows(logits / t, targets), a, g)
        expected[2] = expected[2] / t
        temperature = torch.full((3,), t) if each else t
        x = logit_rows(logits, targets, temperature=temperature)
        assert same_bits(row_path.everything(x, a, g), expected)
        scaled = logit_rows(logits, targets, logit_scale=1 / t)
        assert same_bits(row_path.everything(scaled, a, g), expected)


def test_17_everything_masked(row_path):
    nan = torch.full((3, 123), NAN)
    x = logit_rows(nan, torch.full((3,), -1), mask_N=torch.zeros(3, dtype=torch.bool))
    assert not any(v.any() for v in row_path.everything(x, *upstream(3)))


def test_17_no_rows(row_path):
    x = logit_rows(torch.zeros(0, 123), torch.zeros(0, dtype=torch.int64))
    got = row_path.everything(x, *upstream(0))
    assert [v.shape for v in got] == [(0,), (0,), (0, 123)]
