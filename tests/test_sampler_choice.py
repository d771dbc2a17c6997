"""From logits to tokens: which tokens the filters keep, and how often each is drawn."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from audited_sampler import AuditedSampler, packed_hidden, tiny_decoder
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from fastrl.sampler import SamplingParams
from fastrl.sampler.choice import Choice, choose, kept
from fastrl.sampler.philox import uniforms

DRAWS = 20_000
LOGITS = (1.1, -0.4, 0.9, 2.0, -3.0, 0.1, 1.6)
CASES = {
    "plain": {},
    "cold": {"temperature": 0.6},
    "hot": {"temperature": 2.5},
    "top-k": {"top_k": 3},
    "top-p": {"top_p": 0.7},
    "min-p": {"min_p": 0.3},
    "cold-top-p": {"temperature": 0.6, "top_p": 0.8},
    "hot-min-p": {"temperature": 2.5, "min_p": 0.5},
    "all": {"temperature": 1.7, "top_k": 5, "top_p": 0.9, "min_p": 0.35},
    "one-left": {"top_k": 1, "temperature": 1.5},
}


def softmax(logits, temperature):
    scaled = np.array(logits, float) / (temperature or 1)
    p = np.exp(scaled - scaled.max())
    return p / p.sum()


def kept_one_by_one(logits, params):
    """The ids that survive, token by token from the likeliest, as the documentation says."""
    p = softmax(logits, params.temperature)
    ranked = sorted(range(len(p)), key=lambda v: (-p[v], v))[: params.top_k or len(p)]
    mass = sum(p[v] for v in ranked)
    nucleus, reached = [], 0.0
    for v in ranked:
        if nucleus and params.top_p < 1 and reached >= params.top_p:
            break
        nucleus.append(v)
        reached += p[v] / mass
    return {v for v in nucleus if p[v] >= params.min_p * p[nucleus[0]]}


def kept_ids(logits, params):
    row = torch.tensor([logits], dtype=torch.float64) / (params.temperature or 1)
    return set(kept(row, [params])[0].nonzero()[:, 0].tolist())


def draw(rows, vocab, seed=1):
    index = np.arange(rows)
    zeros = np.zeros_like(index)
    return torch.from_numpy(uniforms(index, zeros, zeros, zeros, 0, (seed, 0), vocab))


def assert_frequencies(tokens, logits, params):
    p = softmax(logits, params.temperature)
    support = sorted(kept_one_by_one(logits, params))
    counts = np.bincount(tokens, minlength=len(p))
    assert counts.sum() == counts[support].sum(), "a token that was filtered out was drawn"
    if len(support) > 1:
        expected = p[support] / p[support].sum() * counts.sum()
        assert chisquare(counts[support], expected).pvalue > 1e-3


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_frequencies(settings):
    params = SamplingParams(**settings)
    choice = choose(
        torch.tensor(LOGITS).expand(DRAWS, -1), draw(DRAWS, len(LOGITS)), [params] * DRAWS
    )
    assert_frequencies(choice.tokens.numpy(), LOGITS, params)


def test_frequencies_of_rows_with_different_params():
    every = [SamplingParams(**settings) for settings in CASES.values()]
    params = [every[row % len(every)] for row in range(DRAWS)]
    logits = torch.tensor(LOGITS).expand(DRAWS, -1)
    tokens = choose(logits, draw(DRAWS, len(LOGITS)), params).tokens.numpy()
    for index, one in enumerate(every):
        assert_frequencies(tokens[index :: len(every)], LOGITS, one)


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_frequencies_of_a_model(settings):
    model = tiny_decoder("qwen2", vocab_size=8)
    params = SamplingParams(n=4096, max_tokens=1, seed=2, **settings)
    prompts = [[3, 1, 4], [1, 5]]
    results = AuditedSampler(model).generate(prompts, params)
    for prompt, group in zip(prompts, results, strict=True):
        logits = model.logits(packed_hidden(model, prompt, [0]))[0].tolist()
        assert_frequencies([c.token_ids[0] for c in group], logits, params)
        p = softmax(logits, params.temperature)
        mass = sum(p[v] for v in kept_one_by_one(logits, params))
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


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.integers(-12, 12).map(lambda x: x / 4), min_size=1, max_size=9),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.integers(0, 10),
    st.floats(0.01, 1),
    st.just(0.0) | st.floats(0, 1),
)
def test_the_kept_set_is_the_documented_one(logits, temperature, top_k, top_p, min_p):
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    p = np.sort(softmax(logits, temperature))[::-1]
    reached = (p[: top_k or None] / p[: top_k or None].sum()).cumsum()
    assume(top_p == 1 or abs(reached - top_p).min() > 1e-9)
    assume(abs(p / p[0] - min_p).min() > 1e-9 or min_p == 1)
    assert kept_ids(logits, params) == kept_one_by_one(logits, params)
    assert int(np.argmax(logits)) in kept_ids(logits, params)


def test_the_filters_act_in_order():
    def ids(probabilities, **settings):
        return kept_ids(np.log(probabilities).tolist(), SamplingParams(**settings))

    # top-p first would take 0.4 and 0.3; of what top-k leaves, 0.4 is already more than half
    assert ids([0.4, 0.3, 0.2, 0.1], top_k=2, top_p=0.5) == {0}
    assert ids([0.4, 0.3, 0.2, 0.1], top_p=0.5) == {0, 1}
    # min-p first would leave 0.5 and 0.2, of which 0.5 is more than 0.65
    assert ids([0.5, 0.2, 0.15, 0.1, 0.05], top_p=0.65, min_p=0.35) == {0, 1}
    # at T = 2 the three probabilities are 0.42, 0.33 and 0.26; at T = 1, 0.7 is reached sooner
    assert ids([0.5, 0.3, 0.2], temperature=2.0, top_p=0.7) == {0, 1}
    assert ids([0.5, 0.3, 0.2], temperature=2.0, min_p=0.6) == {0, 1, 2}
    assert ids([0.5, 0.3, 0.2], min_p=0.61) == {0}


def test_equal_logits_are_taken_in_the_order_of_their_ids():
    assert kept_ids([0.0, 1.0, 1.0, 1.0, 0.0], SamplingParams(top_k=2)) == {1, 2}
    assert kept_ids([0.0, 0.0, 1.0, 0.0, 0.0], SamplingParams(top_k=3)) == {0, 1, 2}
    assert kept_ids([1.0, 1.0, 1.0, 1.0], SamplingParams(top_p=0.5)) == {0, 1}
    assert kept_ids([1.0, 1.0, 0.9, 1.0], SamplingParams(min_p=1.0)) == {0, 1, 3}
    many = torch.zeros(1, 50_000)
    many[:, ::3] = 1.0
    keep = kept(many, [SamplingParams(top_k=20_000)])[0]
    assert keep[::3].all()
    others = torch.arange(50_000)[torch.arange(50_000) % 3 > 0]
    assert keep[others].nonzero()[:, 0].tolist() == list(range(20_000 - len(many[0, ::3])))


def test_no_limit_keeps_every_token():
    logits = torch.randn(3, 50_000, generator=torch.Generator().manual_seed(0)) * 8
    assert kept(logits, [SamplingParams()] * 3).all()
    assert kept(logits, [SamplingParams(top_k=99_999_999)] * 3).all()
    assert kept(logits, [SamplingParams(top_p=1e-50)] * 3).sum(1).tolist() == [1, 1, 1]


@pytest.mark.parametrize("uniform_params", [True, False], ids=["one-for-all", "one-each"])
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_logprobs_are_of_the_full_softmax_and_the_kept_mass_is_logged(settings, uniform_params):
    params = SamplingParams(**settings)
    others = [params if uniform_params else SamplingParams(**settings) for _ in range(49)]
    choice = choose(torch.tensor(LOGITS).expand(50, -1), draw(50, len(LOGITS)), [params, *others])
    p = softmax(LOGITS, params.temperature)
    mass = sum(p[v] for v in kept_one_by_one(LOGITS, params))
    expected = np.log(p)[choice.tokens].tolist()
    assert choice.logprobs.tolist() == pytest.approx(expected, abs=1e-6)
    assert choice.log_kept_mass.tolist() == pytest.approx([math.log(mass)] * 50, abs=1e-6)
    if not params.truncates:
        assert choice.log_kept_mass.tolist() == [0.0] * 50


@pytest.mark.parametrize("neighbours", [(), ({"top_k": 2},), ({"temperature": 0.5}, {})])
def test_greedy_takes_the_likeliest_and_reports_temperature_one(neighbours):
    every = [{"temperature": 0.0}, {"temperature": 0.0, "top_k": 2, "top_p": 0.5}, *neighbours]
    params = [SamplingParams(**settings) for settings in every]
    rows = len(params)
    choice = choose(torch.tensor(LOGITS).expand(rows, -1), draw(rows, len(LOGITS)), params)
    best = int(np.argmax(LOGITS))
    expected = math.log(softmax(LOGITS, 1.0)[best])
    assert choice.tokens[:2].tolist() == [best, best]
    assert choice.logprobs[:2].tolist() == pytest.approx([expected] * 2, abs=1e-6)
    assert choice.log_kept_mass[:2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("uniform_params", [True, False], ids=["one-for-all", "one-each"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_are_left_as_they_are(temperature, uniform_params):
    params = SamplingParams(temperature=temperature, top_k=2)
    others = [params if uniform_params else SamplingParams(temperature=1.0, top_k=1)] * 3
    logits = torch.tensor(LOGITS).repeat(4, 1)
    choose(logits, draw(4, len(LOGITS)), [params, *others])
    assert torch.equal(logits, torch.tensor(LOGITS).repeat(4, 1))


def alone(logits, noise, params):
    """Each row in a call of its own."""
    rows = [
        choose(logits[row : row + 1], noise[row : row + 1], [one]) for row, one in enumerate(params)
    ]
    return Choice(*(torch.cat(column) for column in zip(*map(astuple, rows), strict=True)))


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_the_number_of_rows_changes_no_bit(settings):
    logits = torch.randn(40, 61, generator=torch.Generator().manual_seed(1)) * 2
    noise, params = draw(40, 61), [SamplingParams(**settings)] * 40
    together, apart = choose(logits, noise, params), alone(logits, noise, params)
    for actual, expected in zip(astuple(together), astuple(apart), strict=True):
        assert torch.equal(actual, expected)


def test_the_params_of_other_rows_change_nothing():
    logits = torch.randn(40, 61, generator=torch.Generator().manual_seed(1)) * 2
    every = [SamplingParams(**settings) for settings in (*CASES.values(), {"temperature": 0.0})]
    noise, params = draw(40, 61), [every[row % len(every)] for row in range(40)]
    together, apart = choose(logits, noise, params), alone(logits, noise, params)
    assert torch.equal(together.tokens, apart.tokens)
    # a temperature is a double here and a row's fp32 there
    torch.testing.assert_close(together.logprobs, apart.logprobs, rtol=0, atol=2e-6)
    torch.testing.assert_close(together.log_kept_mass, apart.log_kept_mass, rtol=0, atol=2e-6)
