"""What a call tells while it works, and how it ends: finished, cancelled, closed or broken off."""

from __future__ import annotations

import copy
import gc
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from audited_sampler import AuditedSampler, all_nan, tiny_decoder
from tiny_models import tiny_tokenizer

import fastrl.sampler
from fastrl import ops
from fastrl.sampler import Event, Progress, SamplingParams
from fastrl.tokenizer import Tokenizer

PROMPTS = [[5], [6, 7, 8], [3] * 9, list(range(10, 24))]
PARAMS = [
    SamplingParams(n=3, max_tokens=7, seed=3),
    SamplingParams(n=1, max_tokens=9, seed=3, temperature=0.8),
    SamplingParams(n=4, max_tokens=5, seed=3, ignore_eos=True),
    SamplingParams(n=2, max_tokens=8, seed=3),
]
ENDS = (1, 9, 30, 40)
LONGEST = max(len(prompt) + p.max_tokens for prompt, p in zip(PROMPTS, PARAMS, strict=True))
TIGHT = {"block_size": 4, "num_blocks": -(-LONGEST // 4), "max_batch_tokens": 6, "max_running": 3}
LIMITS = pytest.mark.parametrize("limits", [{"block_size": 4}, TIGHT], ids=["roomy", "tight"])


def sampler_of(limits, **settings):
    return AuditedSampler(tiny_decoder(), eos_token_ids=ENDS, **limits, **settings)


@pytest.fixture(scope="module")
def whole():
    """What an undisturbed call with room for everything gives."""
    return sampler_of({"block_size": 64}).generate(PROMPTS, PARAMS)


def flat(results):
    return [completion for group in results for completion in group]


def token_ids(results):
    return [[completion.token_ids for completion in group] for group in results]


def assert_free_and_usable(sampler, whole):
    pool, cache = sampler.call.scheduler.pool, sampler.call.runner.cache
    assert sorted(pool.free) == list(range(1, pool.num_blocks + 1))
    assert not any(pool.references)
    assert all_nan(cache, pool.free)
    assert token_ids(sampler.generate(PROMPTS, PARAMS)) == token_ids(whole)


def assert_begins_like(results, whole):
    """Every response is that of `whole`, or cancelled somewhere on the way to it."""
    assert [len(group) for group in results] == [p.n for p in PARAMS]
    for completion, other in zip(flat(results), flat(whole), strict=True):
        kept = len(completion.token_ids)
        assert completion.token_ids == other.token_ids[:kept]
        assert len(completion.logprobs) == len(completion.log_kept_mass) == kept
        assert completion.stop_reason is None
        if completion.finish_reason != "cancelled":
            assert (kept, completion.finish_reason) == (len(other.token_ids), other.finish_reason)


def told_in(limits):
    """How often each callback is called in an undisturbed call."""
    told = {"on_progress": [], "on_event": []}
    sampler_of(limits).generate(PROMPTS, PARAMS, **{k: v.append for k, v in told.items()})
    return {name: len(calls) for name, calls in told.items()}


@LIMITS
def test_progress_tells_of_every_token_once_and_in_order(limits, whole):
    sampler, told = sampler_of(limits), []
    results = sampler.generate(PROMPTS, PARAMS, on_progress=told.append)
    assert token_ids(results) == token_ids(whole)
    assert len(told) == sampler.stats.forwards
    assert all(isinstance(p, Progress) and p.responses == 10 for p in told)
    tokens, generated = defaultdict(list), 0
    for progress in told:
        for prompt, response, token in progress.new_tokens:
            tokens[prompt, response].append(token)
        generated += len(progress.new_tokens)
        if limits is not TIGHT:
            assert list(progress.new_tokens) == sorted(progress.new_tokens)
        assert progress.generated_tokens == generated
        lengths = {place: len(tokens[place]) for place in tokens}
        finished = [len(whole[p][r].token_ids) == n for (p, r), n in lengths.items()]
        assert progress.finished == sum(finished)
        assert progress.tokens_per_s == generated / progress.seconds
    for p, group in enumerate(results):
        for r, completion in enumerate(group):
            assert tuple(tokens[p, r]) == completion.token_ids
    seconds = [0.0, *(p.seconds for p in told), sampler.stats.seconds]
    assert seconds == sorted(set(seconds))
    assert (told[-1].finished, told[-1].generated_tokens) == (10, sampler.stats.generated_tokens)
    if limits is TIGHT:  # a forward over half a prompt has no token to tell of
        assert not all(p.new_tokens for p in told)
        assert sampler.stats.preemptions > 0


def test_progress_comes_before_the_responses_that_it_counts(whole):
    told = []
    sampler_of({}).generate(PROMPTS, PARAMS, on_event=told.append, on_progress=told.append)
    assert isinstance(told[0], Progress)
    finished = counted = 0
    for item in told:
        if isinstance(item, Event):
            finished += 1
        else:
            assert finished == counted
            counted = item.finished
    assert finished == counted == 10


def test_callbacks_run_in_the_callers_grad_mode():
    modes = []

    def note(_):
        modes.append(torch.is_grad_enabled())

    sampler = sampler_of({})
    sampler.generate(PROMPTS, PARAMS, on_event=note, on_progress=note)
    modes += [torch.is_grad_enabled() for _ in sampler.as_finished(PROMPTS, PARAMS)]
    assert all(modes) and len(modes) > 20
    assert not any(keys.requires_grad for keys in sampler.call.runner.cache.k)


@LIMITS
@pytest.mark.parametrize("callback", ["on_progress", "on_event"])
def test_cancelling_at_every_step(callback, limits, whole):
    cancelled = set()
    for last in range(1, told_in(limits)[callback] + 1):
        sampler = sampler_of(limits)
        told = {"on_progress": [], "on_event": []}

        def tell(item, last=last, told=told):
            calls = told["on_event" if isinstance(item, Event) else "on_progress"]
            calls.append(item)
            return len(told[callback]) < last

        results = sampler.generate(PROMPTS, PARAMS, on_progress=tell, on_event=tell)
        assert len(told[callback]) == last, "told after it was cancelled"
        assert_begins_like(results, whole)
        for event in told["on_event"]:
            assert results[event.prompt][event.response] is event.completion
        reasons = [c.finish_reason for c in flat(results)]
        assert len(told["on_event"]) <= 10 - reasons.count("cancelled")
        assert told["on_progress"][-1].finished == 10 - reasons.count("cancelled")
        assert sampler.stats.generated_tokens == sum(len(c.token_ids) for c in flat(results))
        cancelled.add(reasons.count("cancelled"))
        assert_free_and_usable(sampler, whole)
    assert 0 in cancelled and len(cancelled) > 3


@LIMITS
def test_closing_the_generator_after_every_response(limits, whole):
    for last in range(1, 11):
        sampler = sampler_of(limits)
        responses = sampler.as_finished(PROMPTS, PARAMS)
        for _ in range(last):
            event = next(responses)
            assert event.completion.token_ids == whole[event.prompt][event.response].token_ids
        forwards = sampler.stats.forwards
        responses.close()
        assert next(responses, None) is None
        assert sampler.stats.forwards == forwards
        assert_free_and_usable(sampler, whole)


@LIMITS
def test_responses_come_as_they_finish(limits, whole):
    sampler, told = sampler_of(limits), []
    results = sampler.generate(PROMPTS, PARAMS, on_event=told.append)
    forwards = sampler.stats.forwards
    responses = sampler.as_finished(PROMPTS, PARAMS)
    first = next(responses)
    assert 0 < sampler.stats.forwards < forwards
    assert [first, *responses] == told
    assert (sampler.stats.forwards, sampler.stats.generated_tokens) == (
        forwards,
        sum(len(c.token_ids) for c in flat(results)),
    )
    assert_free_and_usable(sampler, whole)


def test_a_generator_that_is_left_alone_frees_its_blocks(whole):
    sampler = sampler_of(TIGHT)
    for event in sampler.as_finished(PROMPTS, PARAMS):
        assert event.completion.token_ids
        break
    gc.collect()
    assert_free_and_usable(sampler, whole)


def test_a_generator_that_is_never_begun_does_nothing(whole):
    sampler = sampler_of({"block_size": 4})
    sampler.generate(PROMPTS, PARAMS)
    forwards = sampler.stats.forwards
    responses = sampler.as_finished(PROMPTS, PARAMS)
    assert sampler.stats.forwards == forwards
    responses.close()
    assert_free_and_usable(sampler, whole)


def test_no_prompts_no_events():
    assert list(sampler_of({}).as_finished([], SamplingParams())) == []


@LIMITS
def test_calls_within_calls_do_not_meet(limits, whole):
    sampler = sampler_of(limits)
    sampler.generate(PROMPTS, PARAMS)  # leaves a cache that both would like to have
    outer = sampler.as_finished(PROMPTS, PARAMS)
    events = [next(outer)]
    for event in outer:
        events.append(event)
        if len(events) % 3 == 0:
            assert token_ids(sampler.generate(PROMPTS, PARAMS)) == token_ids(whole)
    found = {(e.prompt, e.response): e.completion.token_ids for e in events}
    assert found == {
        (p, r): c.token_ids for p, group in enumerate(whole) for r, c in enumerate(group)
    }


class Broken(Exception):
    pass


@LIMITS
@pytest.mark.parametrize("kind", [Broken, KeyboardInterrupt])
@pytest.mark.parametrize("callback", ["on_progress", "on_event"])
def test_an_exception_of_a_callback_at_every_step(callback, kind, limits, whole):
    calls = told_in(limits)[callback]
    for last in range(1, calls + 1):
        sampler, told = sampler_of(limits), []

        def fail(item, last=last, told=told):
            told.append(item)
            if len(told) == last:
                raise kind("enough")

        with pytest.raises(kind, match="enough"):
            sampler.generate(PROMPTS, PARAMS, **{callback: fail})
        assert len(told) == last
        assert_free_and_usable(sampler, whole)


def failing(function, after, kind):
    calls = 0

    def wrapped(*arguments, **settings):
        nonlocal calls
        calls += 1
        if calls == after:
            raise kind("out of memory")
        return function(*arguments, **settings)

    return wrapped


@LIMITS
@pytest.mark.parametrize("kind", [Broken, KeyboardInterrupt])
@pytest.mark.parametrize("after", [1, 2, 3, 5])
@pytest.mark.parametrize("where", ["forward", "sample", "copy", "decode"])
def test_an_exception_within_a_step(where, after, kind, limits, whole, monkeypatch):
    model = copy.copy(tiny_decoder())
    tokenizer = Tokenizer(tiny_tokenizer(), (2,), "tiny")
    sampler = AuditedSampler(model, eos_token_ids=ENDS, tokenizer=tokenizer, **limits)
    params = [copy.copy(p) for p in PARAMS]
    for p in params:
        object.__setattr__(p, "stop", ("never",))
    sampler.generate(PROMPTS, PARAMS)
    cache = sampler.call.runner.cache
    if where == "copy" and limits is not TIGHT:
        after = 1  # one forward takes all prompts, and copies for all of them
    with monkeypatch.context() as patch:
        if where == "forward":
            patch.setattr(model.layers[1], "forward", failing(model.layers[1].forward, after, kind))
        elif where == "sample":
            patch.setattr(ops, "sample", failing(ops.sample, after, kind))
        elif where == "copy":
            patch.setattr(cache, "copy", failing(cache.copy, after, kind))
        else:
            patch.setattr(tokenizer, "decode", failing(tokenizer.decode, after, kind))
        with pytest.raises(kind, match="out of memory"):
            sampler.generate(PROMPTS, params)
    assert_free_and_usable(sampler, whole)


def test_an_interrupt_on_any_line_of_the_sampler(whole):
    """Ctrl-C comes between any two lines, within the books of the blocks too."""
    folder = str(Path(fastrl.sampler.__file__).parent)
    ending = {"_end", "abandon", "reset", "forget"}  # a second interrupt, within the answer to one

    def interrupted(at):
        """Whether line number `at` was there to be interrupted."""
        lines, inside = 0, 0

        def local(frame, event, _):
            nonlocal lines, inside
            if event == "line" and frame.f_code.co_name not in ending:
                lines += 1
                if lines == at:
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return local

        def trace(frame, event, _):
            ours = frame.f_code.co_filename.startswith(folder)
            return local if ours and frame.f_code.co_name not in ending else None

        sampler = sampler_of(TIGHT)
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            sampler.generate(PROMPTS, PARAMS)
            return False
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        if not hasattr(sampler, "call"):  # before there was a pool
            sampler.generate(PROMPTS, PARAMS)
        assert_free_and_usable(sampler, whole)
        return True

    tried = 0
    while interrupted(1 + 397 * tried):
        tried += 1
    assert tried > 15


def test_a_stop_token_ends_a_response_and_is_part_of_it():
    free = SamplingParams(n=8, max_tokens=12, seed=6, ignore_eos=True)
    sampler = sampler_of({"block_size": 4})
    endless = flat(sampler.generate(PROMPTS, free))
    reasons = set()
    for ignore_eos in (False, True):
        stop = (7, 9, 33, 50, 61)  # 9 is an end token as well
        params = SamplingParams(
            n=8, max_tokens=12, seed=6, ignore_eos=ignore_eos, stop_token_ids=stop
        )
        for completion, longer in zip(
            flat(sampler.generate(PROMPTS, params)), endless, strict=True
        ):
            ends = () if ignore_eos else ENDS
            expected = len(longer.token_ids)
            for length, token in enumerate(longer.token_ids, 1):
                if token in ends or token in stop:
                    expected = length
                    break
            assert completion.token_ids == longer.token_ids[:expected]
            last = completion.token_ids[-1]
            if last in ends:
                assert (completion.finish_reason, completion.stop_reason) == ("stop", None)
            elif last in stop:
                assert (completion.finish_reason, completion.stop_reason) == ("stop", last)
            else:
                assert (completion.finish_reason, completion.stop_reason) == ("length", None)
            reasons.add((ignore_eos, completion.stop_reason))
    assert {(False, 7), (True, 9), (True, 33), (False, None), (True, None)} <= reasons
    assert (False, 9) not in reasons


def test_the_last_token_may_be_a_stop_token():
    everything = tuple(range(64))
    params = SamplingParams(n=2, max_tokens=1, seed=6, ignore_eos=True, stop_token_ids=everything)
    for completion in flat(sampler_of({}).generate(PROMPTS, params)):
        assert (completion.finish_reason, completion.stop_reason) == (
            "stop",
            completion.token_ids[0],
        )
