"""From a model to tokens: how often each is drawn, under every filter."""

from __future__ import annotations

import math

import numpy as np
import pytest
from audited_sampler import AuditedSampler, packed_hidden, tiny_decoder
from sampling_cases import FILTERS, assert_frequencies, kept_one_by_one, softmax
from scipy.stats import chisquare

from fastrl.sampler import SamplingParams

SAME = ("plain", "cold", "hot", "top-k", "top-p", "min-p", "cold-top-p", "hot-min-p", "one-left")
CASES = {name: FILTERS[name] for name in SAME} | {
    "all": {"temperature": 1.7, "top_k": 5, "top_p": 0.9, "min_p": 0.35},  # of eight tokens
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_frequencies_of_a_model(settings):
    model = tiny_decoder("qwen2", vocab_size=8)
    params = SamplingParams(n=4096, max_tokens=1, seed=2, **settings)
    prompts = [[3, 1, 4], [1, 5]]
    results = AuditedSampler(model).generate(prompts, params)
    for prompt, group in zip(prompts, results, strict=True):
        logits = model.logits(packed_hidden(model, prompt, [0]))[0].tolist()
        assert_frequencies([c.token_ids[0] for c in group], logits, settings)
        p = softmax(logits, params.temperature)
        mass = sum(p[v] for v in kept_one_by_one(logits, **settings))
        for completion in group[:50]:
            logprob = np.log(p[completion.token_ids[0]])
            assert completion.logprobs[0] == pytest.approx(logprob, abs=1e-5)
            assert completion.log_kept_mass[0] == pytest.approx(math.log(mass), abs=1e-5)


def test_consecutive_tokens_are_independent():
    model = tiny_decoder("qwen2", vocab_size=8)
    flat = SamplingParams(n=4096, max_tokens=2, seed=3, temperature=1e4)
    (group,) = AuditedSampler(model, max_running=4096).generate([[3]], flat)
    pairs = np.array([c.token_ids for c in group]) @ [8, 1]
    assert chisquare(np.bincount(pairs, minlength=64)).pvalue > 1e-3
