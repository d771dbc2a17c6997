"""Sequences shared out to processes: even, groups whole where that is possible, always the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrl.balance import SLACK, share_out


def loads(rows, owners, size):
    return np.bincount(owners, rows, size)


def test_one_process_has_all_of_them():
    assert share_out(np.array([3, 1, 2]), np.array([0, 0, 1]), 1).tolist() == [0, 0, 0]
    assert share_out(np.array([], int), np.array([], int), 4).tolist() == []


def test_groups_stay_whole_where_that_is_even():
    owners = share_out(np.full(32, 10), np.repeat(np.arange(8), 4), 4)
    assert loads(np.full(32, 10), owners, 4).tolist() == [80] * 4
    assert all(len(set(group)) == 1 for group in owners.reshape(8, 4))


def test_a_group_too_many_is_split_and_no_other():
    rows, groups = np.full(12, 10), np.repeat(np.arange(3), 4)
    owners = share_out(rows, groups, 2)
    assert loads(rows, owners, 2).tolist() == [60, 60]
    assert sorted(len(set(group)) for group in owners.reshape(3, 4)) == [1, 1, 2]


def test_a_process_may_have_nothing():
    owners = share_out(np.array([5, 7]), np.array([0, 0]), 4)
    assert len(set(owners)) == 2 and owners.max() < 4


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4096), st.integers(0, 12)), min_size=1, max_size=80),
    st.integers(2, 9),
)
def test_no_process_has_more_than_an_even_share_and_a_sequence(sequences, size):
    rows, groups = (np.array(column) for column in zip(*sequences, strict=True))
    owners = share_out(rows, groups, size)
    assert owners.shape == rows.shape and owners.min() >= 0 and owners.max() < size
    assert np.array_equal(owners, share_out(rows, groups, size))
    load = loads(rows, owners, size)
    assert load.max() <= max((1 + SLACK) * rows.sum() / size, load.min() + rows.max())


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_step_of_long_tailed_lengths_is_even(size):
    rng = np.random.default_rng(0)
    rows = 100 + rng.lognormal(5, 1, 512).astype(int).clip(1, 2048)
    load = loads(rows, share_out(rows, np.repeat(np.arange(64), 8), size), size)
    assert load.max() <= (1 + SLACK) * load.mean()
