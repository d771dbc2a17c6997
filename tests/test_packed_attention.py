"""Attention over packed rows against a loop over sequences, values and gradients."""

import numpy as np
import pytest
import torch
from attention_truth import packed_by_definition

from fastrl import varlen
from fastrl.packed_attention import PackedAttention


def offsets_of(lengths):
    return torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32)


def assert_same(actual, expected, inputs, generator):
    """The same values, and the same gradients of the inputs."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    upstream = torch.randn(actual.shape, generator=generator, dtype=torch.float64)
    ours = torch.autograd.grad(actual, inputs, upstream)
    theirs = torch.autograd.grad(expected, inputs, upstream)
    for ours_one, theirs_one in zip(ours, theirs, strict=True):
        torch.testing.assert_close(ours_one, theirs_one, rtol=0, atol=1e-11)


def reference_attention(q, k, v, offsets):
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    outputs = []
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        rows = slice(begin, end)
        scores = torch.einsum("qhd,khd->hqk", q[rows], k[rows]) * q.shape[-1] ** -0.5
        future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, v[rows]))
    return torch.cat(outputs)


@pytest.mark.parametrize(
    "lengths", [(5,), (1,), (6, 6, 6), (3, 9, 3), (0, 4, 0, 1), (1, 300, 20, 19, 2), (4, 5, 5, 4)]
)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_packed_attention_is_causal_attention_inside_each_sequence(lengths, kv_heads):
    generator = torch.Generator().manual_seed(3)
    shapes = [(sum(lengths), heads, 8) for heads in (4, kv_heads, kv_heads)]
    qkv = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    qkv = [x.requires_grad_() for x in qkv]
    offsets = offsets_of(lengths)
    actual = PackedAttention(offsets, max(lengths)).attend(0, *qkv)
    expected = reference_attention(*qkv, offsets)
    assert_same(actual, expected, qkv, generator)


@pytest.mark.parametrize("backend", ["sdpa", "definition"])
def test_segments_that_continue_a_prompt_are_whole_sequences(backend, monkeypatch):
    """Rows of prompts come once; outputs and gradients are those of every sequence alone."""
    monkeypatch.setitem(varlen.FUNCTIONS, "definition", lambda: packed_by_definition)
    # prompts of 5 and 3 rows with three and two responses, a sequence alone, a prompt of 5 with two
    lengths = [5, 4, 7, 4, 3, 2, 9, 6, 5, 4, 1]
    prefixes = np.zeros((len(lengths), 2), np.int64)
    offsets = np.cumsum([0, *lengths])
    for prompt, responses in ((0, (1, 2, 3)), (4, (5, 6)), (8, (9, 10))):
        for response in responses:
            prefixes[response] = offsets[prompt], lengths[prompt]
    generator = torch.Generator().manual_seed(4)
    qkv = [
        torch.randn(sum(lengths), heads, 8, generator=generator, dtype=torch.float64)
        for heads in (4, 2, 2)
    ]
    qkv = [x.requires_grad_() for x in qkv]
    attention = PackedAttention(offsets_of(lengths), max(lengths), prefixes, backend=backend)
    actual = attention.attend(0, *qkv)
    expected = torch.empty_like(actual)
    for s, (first, count) in enumerate(prefixes):
        own = list(range(offsets[s], offsets[s + 1]))
        whole = [*range(first, first + count), *own]
        alone = torch.tensor([0, len(whole)], dtype=torch.int32)
        out = reference_attention(*(x[whole] for x in qkv), alone)
        expected[own] = out[count:]
    assert_same(actual, expected, qkv, generator)


def test_packed_attention_of_no_sequences():
    empty = torch.zeros(0, 4, 8)
    assert PackedAttention(torch.zeros(1, dtype=torch.int32), 0).attend(
        0, empty, empty, empty
    ).shape == (0, 4, 8)


@pytest.mark.parametrize("backend", ["sdpa", "cpu"])
def test_padding_is_never_uninitialised_memory(backend):
    lengths = (3, 9, 1, 8, 70)
    qkv = [torch.randn(sum(lengths), 2, 8, requires_grad=True) for _ in range(3)]
    torch.use_deterministic_algorithms(True)  # torch then fills new memory with NaN
    try:
        assert torch.empty(3).isnan().all()
        out = PackedAttention(offsets_of(lengths), 70, backend=backend).attend(0, *qkv)
        gradients = torch.autograd.grad(out.sum(), qkv)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(tensor.isfinite().all() for tensor in (out, *gradients))


def test_sequences_of_one_length_are_not_moved():
    assert PackedAttention(offsets_of((5,) * 300), 5).padding.slots is None


def test_padding_stays_small_when_lengths_are_unequal():
    lengths = tuple(range(20, 81)) * 4
    padding = PackedAttention(offsets_of(lengths), 80).padding
    assert padding.num_rows < 1.15 * sum(lengths)
    assert len(padding.buckets) < 10
