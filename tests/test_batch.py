"""Packing: every token once, whole sequences, shifted targets."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fastrl.batch import pack

tokens = st.lists(st.integers(1, 99), min_size=1, max_size=12)


@given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=20), st.integers(1, 40))
def test_a_packed_batch_is_its_sequences(pairs, budget):
    batches = pack(
        dict(enumerate(pairs)), {i: i // 2 for i in range(len(pairs))}, max_tokens=budget
    )
    seen = []
    for b in batches:
        assert b.cu_seqlens.dtype == torch.int32
        rows = int(b.cu_seqlens[-1])
        assert rows == len(b.token_ids_N)
        assert rows <= budget or len(b.sequences) == 1
        for s, i in enumerate(b.sequences):
            prompt, response = pairs[i]
            part = slice(int(b.cu_seqlens[s]), int(b.cu_seqlens[s + 1]))
            assert b.token_ids_N[part].tolist() == [*prompt, *response][:-1]
            assert b.positions_N[part].tolist() == list(range(len(prompt) + len(response) - 1))
            mask = b.mask_N[part]
            assert b.targets_N[part][mask].tolist() == response
            assert mask.tolist() == [False] * (len(prompt) - 1) + [True] * len(response)
            assert (b.targets_N[part][~mask] == 0).all()
            assert b.prefix_lengths[s] == len(prompt) and b.groups[s] == i // 2
            seen.append(i)
        lengths = b.cu_seqlens.diff()
        assert b.max_seqlen == lengths.max()
    assert sorted(seen) == list(range(len(pairs)))


def test_packing_depends_on_lengths_alone():
    pairs = {i: ([1] * (i % 3 + 1), [2] * (i % 5 + 1)) for i in range(30)}
    backwards = dict(sorted(pairs.items(), reverse=True))
    groups = dict.fromkeys(pairs, 0)
    one, two = (pack(p, groups, max_tokens=16) for p in (pairs, backwards))
    assert [b.sequences for b in one] == [b.sequences for b in two]
