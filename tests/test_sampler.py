"""The paged sampler against transformers, the packed forward and its own contract."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from audited_sampler import (
    FAMILIES,
    AuditedSampler,
    all_nan,
    packed_hidden,
    tiny_decoder,
    tiny_pair,
)
from tiny_models import VOCAB_SIZE, tiny_tokenizer

from fastrl.ops import dense, linear_logprobs_and_entropy
from fastrl.ops.choice import uniforms
from fastrl.ops.rows import Noise
from fastrl.sampler import PromptKey, SamplingParams
from fastrl.sampler import native as native_kernels
from fastrl.sampler.philox import counters, make_key
from fastrl.tokenizer import Tokenizer

BLOCK = 4
PROMPTS = [[5], [6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16, 17], [3] * 8, list(range(20, 45))]


def flat(results):
    return [completion for group in results for completion in group]


def token_ids(results):
    return [completion.token_ids for completion in flat(results)]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers(family):
    theirs, ours = tiny_pair(family)
    greedy = SamplingParams(n=1, max_tokens=24, temperature=0.0)
    unstopped = AuditedSampler(ours, block_size=BLOCK).generate(PROMPTS, greedy)
    ends = [unstopped[2][0].token_ids[5], unstopped[3][0].token_ids[11]]
    results = AuditedSampler(ours, block_size=BLOCK, eos_token_ids=ends).generate(PROMPTS, greedy)
    for prompt, (completion,) in zip(PROMPTS, results, strict=True):
        inputs = torch.tensor([prompt])
        whole = theirs.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=ends,
            pad_token_id=0,
        )
        assert completion.token_ids == tuple(whole[0, len(prompt) :].tolist())
    assert {c.finish_reason for c in flat(results)} == {"stop", "length"}


@pytest.mark.parametrize("valid_vocab", [VOCAB_SIZE, 37])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_equal_the_packed_forward(family, temperature, valid_vocab):
    model = copy.copy(tiny_decoder(family))
    model.valid_vocab = valid_vocab
    params = SamplingParams(n=3, max_tokens=20, temperature=temperature, seed=1)
    results = AuditedSampler(model, block_size=BLOCK).generate(PROMPTS, params)
    for prompt, group in zip(PROMPTS, results, strict=True):
        for completion in group:
            targets = torch.tensor(completion.token_ids)
            assert targets.max() < valid_vocab
            expected, _ = linear_logprobs_and_entropy(
                packed_hidden(model, prompt, completion.token_ids),
                model.head_weight,
                targets,
                temperature=temperature or 1.0,
                valid_vocab=valid_vocab,
            )
            actual = torch.tensor(completion.logprobs)
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
            assert completion.log_kept_mass == (0.0,) * len(completion.token_ids)


def test_a_token_is_the_gumbel_maximum_under_its_own_random_numbers():
    model = tiny_decoder("qwen3")
    keys = [PromptKey(7), PromptKey(2**32 - 1, 3)]
    results = AuditedSampler(model).generate(
        PROMPTS[2:4],
        SamplingParams(n=3, max_tokens=8, seed=2**40 + 5, temperature=0.8),
        prompt_keys=keys,
        step=9,
        stream="attempt-4",
    )
    for prompt, key, group in zip(PROMPTS[2:4], keys, results, strict=True):
        for response, completion in enumerate(group):
            length = len(completion.token_ids)
            where = counters(
                np.arange(length),
                np.full(length, response),
                np.full(length, key.draw),
                np.full(length, key.id),
                9,
            )
            noise = uniforms(
                Noise(torch.from_numpy(where), make_key(2**40 + 5, "attempt-4")), VOCAB_SIZE
            ).numpy()
            logits = model.logits(packed_hidden(model, prompt, completion.token_ids)).detach()
            gumbel = -np.log(-np.log(noise.astype(float)))
            scores = logits.double().numpy() / 0.8 + gumbel
            assert completion.token_ids == tuple(scores.argmax(1).tolist())


def test_the_definition_of_paged_attention_runs_where_there_is_no_extension(monkeypatch):
    model, params = tiny_decoder("llama"), SamplingParams(n=3, max_tokens=9, seed=4)
    native = AuditedSampler(model, block_size=BLOCK).generate(PROMPTS, params)
    for module in (native_kernels, dense):
        monkeypatch.setattr(module, "_C", None)
    defined = AuditedSampler(model, block_size=BLOCK, num_blocks=12).generate(PROMPTS, params)
    assert token_ids(defined) == token_ids(native)
    for one, other in zip(flat(defined), flat(native), strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_float64_is_sampled_in_float64():
    model = copy.deepcopy(tiny_decoder("qwen2")).double()
    prompt, params = PROMPTS[3], SamplingParams(n=1, max_tokens=9, seed=4)
    ((completion,),) = AuditedSampler(model, block_size=BLOCK).generate([prompt], params)
    hidden = packed_hidden(model, prompt, completion.token_ids)
    expected = model.logits(hidden).log_softmax(1)[range(9), completion.token_ids]
    assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-12)


def test_a_prompt_is_computed_once_and_its_responses_differ():
    sampler = AuditedSampler(tiny_decoder(), block_size=BLOCK)
    results = sampler.generate(PROMPTS, SamplingParams(n=8, max_tokens=6, seed=0))
    assert (sampler.stats.recomputed_tokens, sampler.stats.preemptions) == (0, 0)
    assert all(len({c.token_ids for c in group}) == 8 for group in results)


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK])
@pytest.mark.parametrize("n", [1, 4])
def test_prompts_around_the_block_size(length, n):
    model, params = tiny_decoder("qwen2"), SamplingParams(n=n, max_tokens=2 * BLOCK + 1, seed=5)
    prompts = [PROMPTS[-1][:length], PROMPTS[-1][-length:]]
    whole = AuditedSampler(model, block_size=64).generate(prompts, params)
    paged = AuditedSampler(model, block_size=BLOCK).generate(prompts, params)
    assert token_ids(paged) == token_ids(whole)
    assert len(set(token_ids(whole))) == 2 * n


def ends_at(completion, ends, max_tokens):
    """Whether the first end token, or else `max_tokens`, ended the response as it reports."""
    stopped = [index for index, token in enumerate(completion.token_ids) if token in ends]
    if completion.finish_reason == "stop":
        return stopped == [len(completion.token_ids) - 1]
    return not stopped and len(completion.token_ids) == max_tokens


def test_any_end_token_ends_a_response_and_is_part_of_it():
    ends, params = {1, 9, 30, 31, 40}, SamplingParams(n=8, max_tokens=12, seed=6)
    sampler = AuditedSampler(tiny_decoder(), block_size=BLOCK, eos_token_ids=tuple(ends))
    completions = flat(sampler.generate(PROMPTS, params))
    assert all(ends_at(c, ends, 12) and c.stop_reason is None for c in completions)
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    last = {c.token_ids[-1] for c in completions if c.finish_reason == "stop"}
    assert last == ends
    assert any(len(c.token_ids) == 1 for c in completions)
    for c in completions:
        assert len(c.token_ids) == len(c.logprobs) == len(c.log_kept_mass)

    ignoring = SamplingParams(n=8, max_tokens=12, seed=6, ignore_eos=True)
    ignored = flat(sampler.generate(PROMPTS, ignoring))
    assert all(c.finish_reason == "length" and len(c.token_ids) == 12 for c in ignored)
    for stopped, longer in zip(completions, ignored, strict=True):
        assert longer.token_ids[: len(stopped.token_ids)] == stopped.token_ids


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("reason", ["stop", "length"])
def test_every_response_ends_at_its_first_token(n, reason):
    ends = range(VOCAB_SIZE) if reason == "stop" else ()
    sampler = AuditedSampler(tiny_decoder(), block_size=BLOCK, eos_token_ids=ends)
    max_tokens = 5 if reason == "stop" else 1
    results = sampler.generate(PROMPTS, SamplingParams(n=n, max_tokens=max_tokens, seed=7))
    assert [len(group) for group in results] == [n] * len(PROMPTS)
    assert all(len(c.token_ids) == 1 and c.finish_reason == reason for c in flat(results))
    assert sampler.stats.rows_computed == sum(map(len, PROMPTS))


def test_stop_strings():
    tokenizer = Tokenizer(tiny_tokenizer(), (2,), "tiny")
    model = copy.copy(tiny_decoder())
    model.valid_vocab = tokenizer.valid_vocab
    free = SamplingParams(n=8, max_tokens=24, seed=8)
    ends = (2,)
    sampler = AuditedSampler(model, block_size=BLOCK, tokenizer=tokenizer, eos_token_ids=ends)
    texts = [tokenizer.decode(tokens) for tokens in token_ids(sampler.generate(PROMPTS, free))]
    pair = next(text for text in texts if len(text) > 9)[6:8]
    stop = ("7", pair, "0")
    params = SamplingParams(n=8, max_tokens=24, seed=8, stop=stop)
    completions = flat(sampler.generate(PROMPTS, params))
    for text, completion in zip(texts, completions, strict=True):
        stopped = tokenizer.decode(completion.token_ids)
        assert text.startswith(stopped)
        before = tokenizer.decode(completion.token_ids[:-1])
        assert not any(string in before for string in stop)
        if completion.stop_reason is None:
            assert not any(string in stopped for string in stop)
            assert ends_at(completion, ends, 24)
        else:
            assert completion.finish_reason == "stop"
            assert stopped.endswith(completion.stop_reason)
    assert {c.stop_reason for c in completions} == {None, *stop}
    assert {c.finish_reason for c in completions} == {"stop", "length"}


def test_a_stop_string_completed_by_the_last_token_is_a_stop():
    tokenizer = Tokenizer(tiny_tokenizer(), (2,), "tiny")
    model = copy.copy(tiny_decoder())
    model.valid_vocab = tokenizer.valid_vocab
    sampler = AuditedSampler(model, tokenizer=tokenizer)
    every = tuple(tokenizer.decode([token]) for token in range(5, 32))
    params = SamplingParams(n=8, max_tokens=1, seed=1, stop=every)
    completions = flat(sampler.generate(PROMPTS, params))
    for completion in completions:
        text = tokenizer.decode(completion.token_ids)
        expected = ("stop", text) if text else ("length", None)
        assert (completion.finish_reason, completion.stop_reason) == expected


def test_events_come_once_each_and_equal_the_results():
    events = []
    sampler = AuditedSampler(tiny_decoder(), block_size=BLOCK, eos_token_ids=(1, 9, 30, 40))
    params = [SamplingParams(n=n, max_tokens=12, seed=9) for n in (1, 5, 2, 3, 1, 4)]
    results = sampler.generate(PROMPTS, params, on_event=events.append)
    assert [len(group) for group in results] == [p.n for p in params]
    assert len(events) == sum(p.n for p in params)
    told = {(event.prompt, event.response): event.completion for event in events}
    assert told == {(p, r): c for p, group in enumerate(results) for r, c in enumerate(group)}
    lengths = [len(event.completion.token_ids) for event in events]
    assert lengths == sorted(lengths)  # all start together here, so the shortest is told first


@pytest.mark.parametrize("num_blocks", [None, 14])
@pytest.mark.parametrize("told", [1, 5])
def test_cancellation_hands_back_what_there_is(num_blocks, told):
    model, params = tiny_decoder(), SamplingParams(n=4, max_tokens=12, seed=10)
    ends = (1, 9, 30, 40)
    whole = AuditedSampler(model, eos_token_ids=ends).generate(PROMPTS, params)
    sampler = AuditedSampler(
        model, block_size=BLOCK, eos_token_ids=ends, num_blocks=num_blocks, max_batch_tokens=16
    )
    events = []

    def stop_after(event):
        events.append(event)
        return len(events) < told

    results = sampler.generate(PROMPTS, params, on_event=stop_after)
    assert len(events) == told
    assert all(results[e.prompt][e.response] == e.completion for e in events)
    assert [len(group) for group in results] == [4] * len(PROMPTS)
    cancelled = [c for c in flat(results) if c.finish_reason == "cancelled"]
    assert any(c.token_ids for c in cancelled) and any(not c.token_ids for c in cancelled)
    for completion, other in zip(flat(results), flat(whole), strict=True):
        kept = len(completion.token_ids)
        assert completion.token_ids == other.token_ids[:kept]
        assert completion.logprobs == pytest.approx(other.logprobs[:kept], abs=1e-5)
        if completion.finish_reason != "cancelled":
            assert (kept, completion.finish_reason) == (len(other.token_ids), other.finish_reason)
    assert token_ids(sampler.generate(PROMPTS, params)) == token_ids(whole)


@pytest.mark.parametrize("num_blocks", [None, 14])
@pytest.mark.parametrize("forward", [1, 4])
def test_a_call_after_an_exception_starts_afresh(forward, num_blocks):
    model, params = tiny_decoder(), SamplingParams(n=3, max_tokens=8, seed=11)
    expected = AuditedSampler(model, block_size=BLOCK).generate(PROMPTS, params)
    sampler = AuditedSampler(model, block_size=BLOCK, num_blocks=num_blocks)
    calls = 0

    def fail(module, inputs, output):
        nonlocal calls
        calls += 1
        if calls == forward:
            raise RuntimeError("out of memory")

    hook = model.layers[1].register_forward_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            sampler.generate(PROMPTS, params)
    finally:
        hook.remove()
    assert token_ids(sampler.generate(PROMPTS, params)) == token_ids(expected)


def test_weights_changed_in_place_are_the_ones_that_are_sampled():
    model = copy.deepcopy(tiny_decoder("qwen3"))
    params = SamplingParams(n=2, max_tokens=10, seed=12)
    sampler = AuditedSampler(model, block_size=BLOCK)
    before = sampler.generate(PROMPTS, params)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1).add_(0.01)
    after = sampler.generate(PROMPTS, params)
    assert after == AuditedSampler(model, block_size=BLOCK).generate(PROMPTS, params)
    assert token_ids(after) != token_ids(before)


def test_the_cache_serves_longer_and_shorter_calls():
    model = tiny_decoder()
    sampler = AuditedSampler(model, block_size=BLOCK)
    for prompts, n, max_tokens in ((PROMPTS[:2], 1, 3), (PROMPTS, 4, 20), (PROMPTS[1:3], 2, 5)):
        params = SamplingParams(n=n, max_tokens=max_tokens, seed=13)
        fresh = AuditedSampler(model, block_size=BLOCK).generate(prompts, params)
        assert token_ids(sampler.generate(prompts, params)) == token_ids(fresh)
        assert (sampler.stats.preemptions, sampler.stats.recomputed_tokens) == (0, 0)
        cache = sampler.call.runner.cache
        assert all_nan(cache, range(1, cache.num_blocks + 1))


def test_no_prompts_no_completions():
    sampler = AuditedSampler(tiny_decoder())
    sampler.generate(PROMPTS, SamplingParams(n=1, max_tokens=2))
    assert super(AuditedSampler, sampler).generate([], SamplingParams()) == []
    assert sampler.stats.generated_tokens == 0


def test_without_a_seed_every_call_is_another():
    sampler = AuditedSampler(tiny_decoder())
    params = SamplingParams(n=2, max_tokens=12)
    first, second = (token_ids(sampler.generate(PROMPTS, params)) for _ in range(2))
    assert first != second


def test_logits_without_a_distribution_end_a_response_as_an_error():
    model = copy.deepcopy(tiny_decoder("qwen3"))
    with torch.no_grad():
        model.head_weight[3, 0] = torch.nan
    params = [SamplingParams(n=2, max_tokens=5, seed=1), SamplingParams(n=1, max_tokens=1, seed=1)]
    sampler = AuditedSampler(model, block_size=BLOCK)
    for group in sampler.generate(PROMPTS[:2], params):
        for completion in group:
            assert completion.finish_reason == "error"
            assert completion.token_ids == completion.logprobs == completion.log_kept_mass == ()
