"""A response depends on its prompt and its random numbers alone, to the last bit."""

from __future__ import annotations

import functools

import pytest
from audited_sampler import FAMILIES, AuditedSampler, tiny_decoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastrl.sampler import PromptKey, SamplingParams
from fastrl.sampler.decode import DecodeSteps
from fastrl.sampler.engine import DECODE_STEPS

ENDS = (1, 9, 30)
PROMPTS = [[5], [6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16, 17], [3] * 8, list(range(20, 37))]
PARAMS = [
    SamplingParams(n=3, max_tokens=9, seed=3),
    SamplingParams(n=2, max_tokens=11, seed=3, temperature=0.7, top_k=9, min_p=0.02),
    SamplingParams(n=1, max_tokens=7, seed=3, temperature=0.0),
    SamplingParams(n=4, max_tokens=9, seed=3, temperature=1.3, top_p=0.8),
    SamplingParams(n=4, max_tokens=6, seed=3, ignore_eos=True),
    SamplingParams(n=2, max_tokens=8, seed=3, temperature=0.9),
]
LONGEST = max(len(prompt) + p.max_tokens for prompt, p in zip(PROMPTS, PARAMS, strict=True))


@functools.cache
def alone(family):
    """Each prompt in a call of its own, with room for everything."""
    results = []
    for index, (prompt, params) in enumerate(zip(PROMPTS, PARAMS, strict=True)):
        sampler = AuditedSampler(tiny_decoder(family), block_size=64, eos_token_ids=ENDS)
        results += sampler.generate([prompt], params, prompt_keys=[PromptKey(index)])
        assert sampler.stats.recomputed_tokens == 0
    return results


def assert_the_same(group, expected):
    assert len(group) == len(expected)
    for actual, reference in zip(group, expected, strict=True):
        assert actual == reference  # to the last bit of every log-prob


def sample(family, order, **limits):
    """The prompts of `order` in one call, which is compared with `alone`; the call's sampler."""
    sampler = AuditedSampler(tiny_decoder(family), eos_token_ids=ENDS, **limits)
    results = sampler.generate(
        [PROMPTS[i] for i in order],
        [PARAMS[i] for i in order],
        prompt_keys=[PromptKey(i) for i in order],
    )
    for index, group in zip(order, results, strict=True):
        assert_the_same(group, alone(family)[index])
    return sampler


@st.composite
def calls(draw):
    """Prompts in some order, and limits down to those that hold one sequence at a time."""
    order = draw(st.permutations(range(len(PROMPTS))))[: draw(st.integers(1, len(PROMPTS)))]
    block_size = draw(st.integers(1, 9))
    least = -(-LONGEST // block_size)
    return order, {
        "block_size": block_size,
        "num_blocks": draw(st.none() | st.integers(least, 3 * least)),
        "max_batch_tokens": draw(st.integers(1, 8) | st.integers(8, 64)),
        "max_running": draw(st.integers(1, 20)),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_neither_the_batch_nor_the_limits_matter(family):
    @settings(
        max_examples=60,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(calls())
    def check(call):
        order, limits = call
        sampler = sample(family, order, **limits)
        preempted.append(sampler.stats.preemptions > 0)

    preempted = []
    check()
    assert sum(preempted) > 5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block_size", [1, 4, 7])
def test_preemption_changes_nothing(family, block_size):
    order = range(len(PROMPTS))
    roomy = sample(family, order, block_size=block_size)
    assert (roomy.stats.preemptions, roomy.stats.recomputed_tokens) == (0, 0)
    blocks = -(-LONGEST // block_size)
    tight = sample(family, order, block_size=block_size, num_blocks=blocks)
    assert tight.stats.preemptions > 0
    assert tight.stats.recomputed_tokens > 20
    assert tight.stats.forwards > roomy.stats.forwards


@pytest.mark.parametrize("limits", [{}, {"max_running": 5}, {"num_blocks": 12}])
@pytest.mark.parametrize("lag", [1, 2])
def test_steps_begun_before_the_last_ones_are_read_change_nothing(lag, limits):
    """As on a GPU: the rows of responses that had finished meanwhile are dropped, and counted."""

    class Ahead(AuditedSampler):
        def _begin(self, *arguments):
            call = super()._begin(*arguments)
            call.runner.steps.lag = lag
            return call

    sampler = Ahead(tiny_decoder("llama"), block_size=8, eos_token_ids=ENDS, **limits)
    keys = [PromptKey(i) for i in range(len(PROMPTS))]
    for group, expected in zip(
        sampler.generate(PROMPTS, PARAMS, prompt_keys=keys), alone("llama"), strict=True
    ):
        assert_the_same(group, expected)
    assert sampler.stats.discarded_rows > 0


def test_a_prompt_is_preempted_between_its_chunks():
    sampler = AuditedSampler(tiny_decoder(), block_size=2, num_blocks=13, max_batch_tokens=3)
    params = SamplingParams(n=1, max_tokens=9, seed=3, ignore_eos=True)
    preempted = []

    def record(sequence, original):
        preempted.append((sequence.response, sequence.cached))
        original(sequence)

    begin = sampler._begin

    def watched(*arguments):
        call = begin(*arguments)
        original = call.scheduler.preempt
        call.scheduler.preempt = lambda sequence: record(sequence, original)
        return call

    sampler._begin = watched
    prompts = [PROMPTS[3], PROMPTS[5]]
    results = sampler.generate(prompts, params)
    assert any(response == -1 and 0 < cached < 17 for response, cached in preempted)
    roomy = AuditedSampler(tiny_decoder(), block_size=64).generate(prompts, params)
    for group, expected in zip(results, roomy, strict=True):
        assert_the_same(group, expected)


@pytest.mark.parametrize("max_batch_tokens", [1, 2, 5, 16, 17, 18])
def test_chunks_of_a_prompt_change_nothing(max_batch_tokens):
    sampler = sample("qwen2", [5, 0, 3], block_size=4, max_batch_tokens=max_batch_tokens)
    assert sampler.stats.recomputed_tokens == 0
    assert sampler.stats.rows_computed <= max_batch_tokens * sampler.stats.forwards


@pytest.mark.parametrize("max_running", [1, 2, 3, 6])
def test_the_number_of_running_sequences_changes_nothing(max_running):
    sampler = sample("qwen3", range(len(PROMPTS)), block_size=4, max_running=max_running)
    assert sampler.stats.preemptions == 0


def test_a_prompt_is_computed_once_however_few_sequences_run():
    sampler = AuditedSampler(tiny_decoder("llama"), block_size=4, max_running=7)
    sampler.generate(PROMPTS, SamplingParams(n=3, max_tokens=6, seed=0))
    assert sampler.stats.recomputed_tokens == 0


def test_the_same_call_gives_the_same_bits():
    def run():
        sampler = AuditedSampler(
            tiny_decoder("llama"), block_size=3, num_blocks=12, max_batch_tokens=11
        )
        return sampler.generate(PROMPTS, PARAMS)

    assert run() == run()


@pytest.mark.parametrize(
    "change",
    [{"step": 1}, {"stream": "eval"}, {"prompt_keys": [PromptKey(i, 1) for i in range(6)]}],
    ids=lambda change: next(iter(change)),
)
def test_step_stream_and_draw_change_the_tokens(change):
    sampler = AuditedSampler(tiny_decoder("llama"), block_size=4, eos_token_ids=ENDS)
    results = sampler.generate(PROMPTS, PARAMS, **change)
    for params, group, expected in zip(PARAMS, results, alone("llama"), strict=True):
        same = [a.token_ids == b.token_ids for a, b in zip(group, expected, strict=True)]
        assert all(same) if params.temperature == 0 else not all(same)


def test_those_that_go_on_are_not_handed_over_again_when_one_finishes(monkeypatch):
    """Rows are set up once for up to DECODE_STEPS steps, however many finish meanwhile."""
    begun, kept = [], []
    begin, keep = DecodeSteps.begin, DecodeSteps.keep
    monkeypatch.setattr(DecodeSteps, "begin", lambda *a: (begun.append(1), begin(*a))[1])
    monkeypatch.setattr(
        DecodeSteps, "keep", lambda self, rows: (kept.append(rows), keep(self, rows))
    )
    sampler = AuditedSampler(tiny_decoder(FAMILIES[0]), eos_token_ids=ENDS)
    params = SamplingParams(n=40, max_tokens=30, seed=3)
    [group] = sampler.generate([PROMPTS[0]], params, prompt_keys=[PromptKey(0)])
    lengths = {len(c.token_ids) for c in group}
    assert len(lengths) > 4, "they finish at several steps"
    assert len(begun) == -(-(max(lengths) - 1) // DECODE_STEPS) < len(kept)
