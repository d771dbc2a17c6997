"""What tests of sampling share: filters by name, counters, and which ids survive by definition."""

import numpy as np
import torch
from scipy.stats import chisquare

ONES = 0xFFFFFFFF
KEY = (0x12345678, 0xFEDCBA98)
FILTERS = {
    "plain": {},
    "cold": {"temperature": 0.6},
    "hot": {"temperature": 2.5},
    "top-k": {"top_k": 3},
    "large top-k": {"top_k": 77},
    "top-p": {"top_p": 0.7},
    "large top-p": {"top_p": 0.999},
    "small top-p": {"top_p": 1e-9},
    "min-p": {"min_p": 0.3},
    "cold-top-p": {"temperature": 0.6, "top_p": 0.8},
    "hot-min-p": {"temperature": 2.5, "min_p": 0.5},
    "all": {"temperature": 1.7, "top_k": 50, "top_p": 0.9, "min_p": 0.05},
    "top-k-p": {"top_k": 40, "top_p": 0.5},
    "one-left": {"top_k": 1, "temperature": 1.5},
    "greedy": {"temperature": 0.0},
    "greedy-filtered": {"temperature": 0.0, "top_k": 7, "top_p": 0.5},
}
DEFAULTS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def counters_of(rows, seed=0):
    """Counters with bits everywhere, the largest among them."""
    found = torch.randint(1 << 32, (rows, 4), generator=torch.Generator().manual_seed(seed))
    found[0] = ONES
    found[:, 1] &= 0x3FFF
    return found


def softmax(logits, temperature):
    scaled = np.array(logits, float) / (temperature or 1)
    p = np.exp(scaled - scaled.max())
    return p / p.sum()


def kept_one_by_one(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The ids that survive, token by token from the likeliest, as the documentation says."""
    p = softmax(logits, temperature)
    if temperature == 0:
        top_k, top_p, min_p = 1, 1.0, 0.0
    ranked = sorted(range(len(p)), key=lambda v: (-p[v], v))[: top_k or len(p)]
    mass = sum(p[v] for v in ranked)
    nucleus, reached = [], 0.0
    for v in ranked:
        if nucleus and top_p < 1 and reached >= top_p:
            break
        nucleus.append(v)
        reached += p[v] / mass
    return {v for v in nucleus if p[v] >= min_p * p[nucleus[0]]}


def assert_frequencies(tokens, logits, filters):
    """Tokens of one row of logits: none that was filtered out, the others as often as they should.

    Fewer than a thousand draws are looked at for the former alone.
    """
    p = softmax(logits, filters.get("temperature", 1.0))
    support = sorted(kept_one_by_one(logits, **filters))
    counts = np.bincount(tokens, minlength=len(p))
    assert counts.sum() == counts[support].sum(), "a token that was filtered out was drawn"
    if len(support) > 1 and counts.sum() > 1000:
        expected = p[support] / p[support].sum() * counts.sum()
        assert chisquare(counts[support], expected).pvalue > 1e-3
