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


groups_of_pairs = st.lists(
    st.tuples(tokens, st.lists(tokens, min_size=1, max_size=5)), min_size=1, max_size=8
)


@given(groups_of_pairs, st.integers(1, 60))
def test_a_shared_prompt_comes_once_a_batch(groups, budget):
    pairs, owner = {}, {}
    for group, (prompt, responses) in enumerate(groups):
        for response in responses:
            owner[len(pairs)] = group
            pairs[len(pairs)] = (prompt, response)
    seen = []
    for b in pack(pairs, owner, max_tokens=budget, share_prompts=True):
        rows = len(b.token_ids_N)
        assert rows <= budget or len(b.sequences) == 1
        prefixes = b.prefixes if b.prefixes is not None else [(0, 0)] * (len(b.cu_seqlens) - 1)
        found, shared = [], {}
        for s, (first, count) in enumerate(prefixes):
            part = slice(int(b.cu_seqlens[s]), int(b.cu_seqlens[s + 1]))
            whole = [*range(first, first + count), *range(part.start, part.stop)]
            assert first + count <= part.start  # a prompt stands before what continues it
            assert b.positions_N[whole].tolist() == list(range(len(whole)))
            mask = b.mask_N[part]
            assert (b.targets_N[part][~mask] == 0).all()
            if not mask.any():  # a prompt that others continue
                shared[part.start] = part.stop - part.start
                continue
            found.append((b.token_ids_N[whole].tolist(), b.targets_N[part][mask].tolist()))
        expected = [([*pairs[i][0], *pairs[i][1]][:-1], pairs[i][1]) for i in b.sequences]
        assert found == expected
        assert b.groups == tuple(owner[i] for i in b.sequences)
        assert b.prefix_lengths == tuple(len(pairs[i][0]) for i in b.sequences)
        twice = {g for g in b.groups if b.groups.count(g) > 1 and len(groups[g][0]) > 1}
        assert len(shared) == len(twice)
        distinct = sum(len(groups[g][0]) - 1 for g in set(b.groups))
        assert rows == distinct + sum(len(pairs[i][1]) for i in b.sequences)
        assert b.max_seqlen == b.cu_seqlens.diff().max()
        seen += b.sequences
    assert sorted(seen) == list(pairs)


def test_packing_depends_on_lengths_alone():
    pairs = {i: ([1] * (i % 3 + 1), [2] * (i % 5 + 1)) for i in range(30)}
    backwards = dict(sorted(pairs.items(), reverse=True))
    groups = dict.fromkeys(pairs, 0)
    one, two = (pack(p, groups, max_tokens=16) for p in (pairs, backwards))
    assert [b.sequences for b in one] == [b.sequences for b in two]
