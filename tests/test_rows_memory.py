"""Rows of logits on every path: what may not be read, what may not be lost, and where it lies.

Of the list in `test_rows.py`: 5 what must not be read, 8 offsets beyond 32 bits; NaN and infinite
logits; memory with gaps, and gradients written over the logits.
"""

import pytest
import torch
from row_backends import (
    INF,
    NAN,
    assert_near_the_truth,
    integers,
    logit_rows,
    normal,
    same_bits,
    upstream,
)
from row_backends import row_path as row_path

from fastrl.errors import UsageError

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
IN_ADVANCE = "on a CPU a target outside the vocabulary is refused before the kernel"
DOES_NOT_APPLY = {
    ("test_5_a_target_outside_the_vocabulary_gives_nan", "torch"): IN_ADVANCE,
    ("test_5_a_target_outside_the_vocabulary_gives_nan", "cpu"): IN_ADVANCE,
}


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
def test_5_masked_rows_are_never_read(row_path, poison):
    mask = torch.tensor([True, False, False, True, True])
    logits, targets, a_g = normal(5, 123), integers(123, 5), upstream(5)
    temperature = normal(5, scale=0.2).abs() + 0.5
    settings = {"mask_N": mask, "temperature": temperature}
    expected = assert_near_the_truth(row_path, logit_rows(logits, targets, **settings), *a_g)
    logits[~mask], temperature[~mask], targets[~mask] = poison, poison, -(2**40)
    a_g[0][~mask] = a_g[1][~mask] = NAN
    got = row_path.everything(logit_rows(logits, targets, **settings), *a_g)
    assert same_bits(got, expected) and not any(v[~mask].any() for v in got)


def test_5_rows_without_a_gradient_are_never_read(row_path):
    logits, (a, g) = normal(4, 123), upstream(4)
    logits[1] = NAN
    a[1] = g[1] = a[2] = g[3] = 0.0
    gradient = row_path.gradient(logit_rows(logits, integers(123, 4)), a, g)
    assert not gradient[1].any() and gradient.isfinite().all()
    assert gradient[0].any() and gradient[2].any() and gradient[3].any()


def test_5_a_target_in_the_padded_vocabulary_is_refused(row_path):
    if row_path.device != "cpu":
        pytest.skip("on a GPU a look at the targets is a synchronisation: they give NaN")
    for target in (100, 122, 123, -1):
        with pytest.raises(UsageError, match=f"target of row 1 is {target}, outside"):
            row_path.call(
                "logprobs_and_entropy", normal(2, 123), torch.tensor([0, target]), valid_vocab=100
            )


def test_5_a_target_outside_the_vocabulary_gives_nan(row_path):
    for target in (100, 122, -1, 2**40):
        x = logit_rows(normal(3, 123), torch.tensor([0, target, 99]), valid=100)
        logprobs, entropy, gradient = row_path.everything(x, torch.ones(3), torch.zeros(3))
        assert logprobs.isnan().tolist() == [False, True, False] and entropy.isfinite().all()
        assert gradient[[0, 2]].isfinite().all()


def test_8_rows_beyond_32_bit_offsets(row_path):
    rows = normal(2, 123, dtype=torch.float16)
    memory = torch.empty(2**31 + 123, dtype=torch.float16, device=row_path.device)  # two ends only
    logits = memory.as_strided((2, 123), (2**31, 1))
    logits.copy_(rows)
    targets, (a, g) = integers(123, 2), upstream(2)
    expected = row_path.everything(logit_rows(rows, targets), a, g)
    far = logit_rows(logits, row_path.place(targets))
    assert same_bits(row_path.statistics(far), expected[:2])
    row_path.kernels.gradient(far, row_path.place(a), row_path.place(g), logits)
    assert same_bits([logits.cpu()], expected[2:])


NANS = [0x7FC00000, -0x400000, 0x7FFFFFFF, 0x7F800001, 0x7FC00001]  # bits; quiet, signalling


@pytest.mark.parametrize("bits", [*NANS, 0x7F800000], ids=hex)
def test_nan_and_infinity_reach_their_row_and_no_other(row_path, bits):
    """Wherever the bad logit stands, above and below what comes after it."""
    block = row_path.block
    width = 2 * block + 9
    bad = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    places = [0, 1, 15, block - 1, block, width - 1, 0, 3, block]
    rows = 2 * len(places)
    logits, targets = normal(rows, width, scale=1.0), integers(width, rows)
    for i, column in enumerate(places):
        logits[2 * i, column] = bad
    # far above the block of the bad one, which then counts for nothing; and the target itself
    logits[12, block + 2] = logits[14, block + 4] = 2000.0
    targets[16] = block
    targets[12] = targets[14] = block + 1
    got = row_path.everything(logit_rows(logits, targets), *upstream(rows))
    for v in got:
        flat = v.reshape(rows, -1)
        assert flat[::2].isnan().all(1).tolist() == [True] * len(places)
        assert flat[1::2].isfinite().all()


def test_nan_rows_leave_padded_columns_at_zero(row_path):
    logits = normal(2, 130)
    logits[0, 5] = NAN
    gradient = row_path.gradient(logit_rows(logits, integers(123, 2), valid=123), *upstream(2))
    assert gradient[0, :123].isnan().all() and not gradient[:, 123:].any()


def test_infinite_logits_under_a_softcap(row_path):
    logits = normal(4, 123)
    logits[0, 3] = logits[1, 7] = INF
    logits[2, 3] = -INF
    x = logit_rows(logits, torch.tensor([3, 0, 3, 1]), softcap=5.0)
    got = assert_near_the_truth(row_path, x, *upstream(4))
    assert got[2][0, 3] == got[2][1, 7] == got[2][2, 3] == 0


@pytest.mark.parametrize("settings", [{}, {"softcap": 4.0, "logit_scale": 1.2}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_memory_and_gradients_over_the_logits(row_path, dtype, settings):
    """Rows with gaps in the logits and in the gradient; the gaps keep what they hold."""
    width, block = row_path.block + 21, 40
    logits = normal(3, width, dtype=dtype)
    targets, (a, g) = torch.tensor([0, width - 12, 700]), upstream(3)
    settings = {**settings, "valid": width - 11}
    expected = row_path.everything(logit_rows(logits, targets, **settings), a, g)

    def spaced(values):
        memory = torch.full((6, width + block), 7.0, dtype=dtype, device=row_path.device)
        view = memory[::2, 13 : 13 + width]
        view.copy_(values)
        return memory, view

    (_, source), (memory, out) = spaced(logits), spaced(torch.full_like(logits, NAN))
    x = logit_rows(source, row_path.place(targets), **settings)
    assert same_bits(row_path.statistics(x), expected[:2])
    for target in (out, source):
        row_path.kernels.gradient(x, row_path.place(a), row_path.place(g), target)
        assert same_bits([target.cpu()], expected[2:])
    memory[::2, 13 : 13 + width] = 7.0
    assert (memory == 7.0).all()
