"""What can never be sampled is refused in one sentence, before any work."""

from __future__ import annotations

import copy
import math

import pytest
from audited_sampler import AuditedSampler, tiny_decoder
from tiny_models import VOCAB_SIZE

from fastrl.errors import UsageError
from fastrl.sampler import PromptKey, Sampler, SamplingParams

CONTEXT = 512


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("n", 0, "at least 1"),
        ("n", -3, "at least 1"),
        ("max_tokens", 0, "at least 1"),
        ("temperature", -0.1, "0 .greedy. or from 1e-30 to 1e30"),
        ("temperature", math.inf, "0 .greedy. or from 1e-30 to 1e30"),
        ("temperature", math.nan, "0 .greedy. or from 1e-30 to 1e30"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.01, "above 0 and at most 1"),
        ("top_p", math.nan, "above 0 and at most 1"),
        ("top_k", -1, "0 .no limit. or positive"),
        ("min_p", -0.01, "from 0 to 1"),
        ("min_p", 1.01, "from 0 to 1"),
        ("min_p", math.nan, "from 0 to 1"),
        ("stop", ("a", ""), "strings that are not empty"),
        ("stop", "###", "strings that are not empty"),
        ("n", 2.5, "at least 1"),
        ("max_tokens", 1e3, "at least 1"),
        ("top_k", 2.5, "0 .no limit. or positive"),
        ("stop_token_ids", 5, "a tuple of token ids"),
        ("stop_token_ids", "5", "a tuple of token ids"),
        ("stop_token_ids", ("5",), "a tuple of token ids"),
    ],
)
def test_sampling_params_refuse_what_makes_no_sense(name, value, allowed):
    given = repr(value).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(UsageError, match=rf"^{name} is {given}; it must be [^\n]*{allowed}$"):
        SamplingParams(**{name: value})


def test_sampling_params_take_the_ends_of_their_ranges():
    SamplingParams(n=1, max_tokens=1, temperature=0.0, top_p=1.0, top_k=0, min_p=1.0, stop=("a",))


@pytest.mark.parametrize("name", ["block_size", "max_batch_tokens", "max_running"])
@pytest.mark.parametrize("value", [0, -1])
def test_the_sampler_refuses_limits_below_one(name, value):
    with pytest.raises(UsageError, match=rf"^{name} is {value}; it must be at least 1$"):
        Sampler(tiny_decoder(), **{name: value})


@pytest.mark.parametrize("value", [0, -1])
def test_the_sampler_refuses_a_pool_without_blocks(value):
    with pytest.raises(UsageError, match=rf"^num_blocks is {value}; it must be at least 1"):
        Sampler(tiny_decoder(), num_blocks=value)


def assert_refused(match, prompts, params=None, *, limits=None, **settings):
    """The call is refused, with no forward and no event, and the sampler works afterwards."""
    model = tiny_decoder()
    sampler = AuditedSampler(model, **(limits or {}))
    work = []
    hook = model.layers[0].register_forward_hook(lambda *_: work.append("forward"))
    try:
        with pytest.raises(UsageError, match=match) as refusal:
            sampler.generate(
                prompts,
                params or SamplingParams(n=2, max_tokens=4),
                on_event=work.append,
                on_progress=work.append,
                **settings,
            )
        with pytest.raises(UsageError, match=match):  # by the call itself, before any next()
            sampler.as_finished(prompts, params or SamplingParams(n=2, max_tokens=4), **settings)
    finally:
        hook.remove()
    assert not work
    assert "\n" not in str(refusal.value)
    (group,) = sampler.generate([[3, 4]], SamplingParams(n=2, max_tokens=3))
    assert len(group) == 2


def test_an_empty_prompt():
    assert_refused("^prompt 1 is empty; give at least one token$", [[3], []])


@pytest.mark.parametrize("token", [-1, VOCAB_SIZE])
def test_a_token_outside_the_vocabulary(token):
    match = (
        rf"^prompt 1 has the token {token}, which is outside the vocabulary 0\.\.{VOCAB_SIZE - 1};"
        " encode it with the model's own tokenizer$"
    )
    assert_refused(match, [[3], [4, token]])


def test_a_token_of_the_padding_of_the_vocabulary():
    """A prompt may hold one, for it has an embedding; a response never does, so it stops none."""
    model = copy.copy(tiny_decoder())
    model.valid_vocab = 37
    sampler = AuditedSampler(model)
    sampler.generate([[36, 37]], SamplingParams(n=1, max_tokens=2, stop_token_ids=(36,)))
    match = r"^stop_token_ids has 37, which is outside the vocabulary 0\.\.36; leave it out$"
    with pytest.raises(UsageError, match=match):
        sampler.generate([[36]], SamplingParams(n=1, max_tokens=2, stop_token_ids=(36, 37)))


@pytest.mark.parametrize("token", [-1, VOCAB_SIZE])
def test_a_stop_token_outside_the_vocabulary(token):
    SamplingParams(stop_token_ids=(0, VOCAB_SIZE - 1))
    given = rf"{token}, which is outside the vocabulary 0\.\.{VOCAB_SIZE - 1}; leave it out$"
    params = [
        SamplingParams(n=2, max_tokens=4, stop_token_ids=ids) for ids in ((), (0, 63, token, 999))
    ]
    assert_refused(f"^stop_token_ids has {given}", [[3], [4]], params)
    with pytest.raises(UsageError, match=f"^eos_token_ids has {given}"):
        Sampler(tiny_decoder(), eos_token_ids=(1, token))


def test_the_models_own_end_tokens_may_lie_outside_of_its_vocabulary():
    model = copy.copy(tiny_decoder())
    model.eos_token_ids = (VOCAB_SIZE + 5,)
    AuditedSampler(model).generate([[3]], SamplingParams(n=1, max_tokens=2))


def test_a_prompt_over_the_context():
    model = tiny_decoder()
    fits = SamplingParams(n=1, max_tokens=2, seed=1)
    AuditedSampler(model).generate([[3] * (CONTEXT - 2)], fits)
    match = rf"^prompt 0 has {CONTEXT - 1} tokens, .*max_tokens 2 exceed the model's context.*512"
    assert_refused(match, [[3] * (CONTEXT - 1)], fits)


def test_a_prompt_over_the_pool():
    limits = {"block_size": 4, "num_blocks": 3}
    fits = SamplingParams(n=3, max_tokens=4, seed=1)
    AuditedSampler(tiny_decoder(), **limits).generate([[3] * 8], fits)
    match = (
        "^prompt 1 has 9 tokens, which with max_tokens 4 exceed the pool of 3 blocks x 4 tokens;"
        " raise num_blocks to 4, or shorten one of them$"
    )
    assert_refused(match, [[3], [3] * 9], fits, limits=limits)


def test_two_prompts_with_the_same_random_numbers():
    match = (
        r"^prompts 0 and 2 have the same PromptKey\(id=7, draw=1\), and so the same random numbers;"
        " give each an id or a draw of its own$"
    )
    keys = [PromptKey(7, 1), PromptKey(7), PromptKey(7, 1)]
    assert_refused(match, [[3], [4], [5]], prompt_keys=keys)


def test_different_seeds_in_one_call():
    match = "^the params of one call have different seeds; give one seed$"
    for seeds in ((1, 2), (None, 0)):
        assert_refused(match, [[3], [4]], [SamplingParams(max_tokens=2, seed=s) for s in seeds])


def test_params_or_keys_that_are_not_one_each():
    params = SamplingParams(max_tokens=2)
    assert_refused("^2 prompts came with 1 params and 2 keys; give one each$", [[3], [4]], [params])
    keys = [PromptKey(0)] * 3
    match = "^2 prompts came with 2 params and 3 keys; give one each$"
    assert_refused(match, [[3], [4]], prompt_keys=keys)


def test_stop_strings_without_a_tokenizer():
    params = SamplingParams(n=2, max_tokens=4, stop=("7",))
    assert_refused("^stop strings need a tokenizer; give Sampler one$", [[3]], params)


@pytest.mark.parametrize(
    ("match", "settings"),
    [
        (r"^id -1 does not fit", {"prompt_keys": [PromptKey(-1)]}),
        (r"^id 4294967296 does not fit", {"prompt_keys": [PromptKey(2**32)]}),
        (r"^draw 16384 does not fit", {"prompt_keys": [PromptKey(0, 2**14)]}),
        (r"^step 4294967296 does not fit", {"step": 2**32}),
        (r"^step -1 does not fit", {"step": -1}),
        (
            r"^n is 4097, .* holds 4096 responses a prompt; give",
            {"params": SamplingParams(n=4097, max_tokens=1)},
        ),
        (r"^the seed is -1", {"params": SamplingParams(max_tokens=1, seed=-1)}),
        (r"^there is no random stream 'other'", {"stream": "other"}),
    ],
)
def test_what_the_random_counter_cannot_hold(match, settings):
    assert_refused(match, [[3]], **settings)


def test_a_vocabulary_that_the_random_counter_cannot_hold():
    model = copy.copy(tiny_decoder())
    model.valid_vocab = 2**20 + 1
    with pytest.raises(UsageError, match="^token 1048576 does not fit"):
        AuditedSampler(model).generate([[3]], SamplingParams())
