"""Power sampling ends at p^alpha / Z: exactly by its transition matrix, and through the sampler.

Token ids: 0 ends a response, 1 and 2 are symbols. A response that is cut at the limit is a leaf.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from fastrl.errors import UsageError
from fastrl.model import Decoder, DecoderConfig, PackedAttention
from fastrl.power_sampling import PowerSamples, log_acceptance, power_sample
from fastrl.sampler import PromptKey, Sampler, SamplingParams
from fastrl.study.trie import END, TablePolicy

SYMBOLS, MAX_TOKENS = 2, 3
PROMPT = (SYMBOLS + 1,)
SHAPE = DecoderConfig(
    family="llama",
    vocab_size=SYMBOLS + 3,
    hidden_size=16,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
    max_position=32,
)
Response = tuple[int, ...]
Accept = Callable[..., np.ndarray]


pytestmark = pytest.mark.usefixtures("one_thread")


def prefixes(length: int) -> list[Response]:
    """All runs of symbols of a length."""
    return list(itertools.product(range(1, SYMBOLS + 1), repeat=length))


def responses(limit: int) -> list[Response]:
    """Every response of at most `limit` tokens."""
    ended = [(*prefix, END) for length in range(limit) for prefix in prefixes(length)]
    return ended + prefixes(limit)


@dataclass(frozen=True)
class Tree:
    """The next-token logits after every prefix, fp64."""

    logits: dict[Response, np.ndarray]

    @classmethod
    def of_table(cls, seed: int, max_tokens: int) -> Tree:
        policy = TablePolicy(SYMBOLS, max_tokens, seed)
        logits, table = {}, policy.logits.detach().numpy()
        for length in range(max_tokens):
            for prefix in prefixes(length):
                node = 0
                for token in prefix:
                    node = node * SYMBOLS + token
                logits[prefix] = table[node]
        return cls(logits)

    @classmethod
    @torch.no_grad()
    def of_decoder(cls, model: Decoder, prompt: Sequence[int], max_tokens: int) -> Tree:
        logits = {}
        for length in range(max_tokens):
            for prefix in prefixes(length):
                ids = torch.tensor([*prompt, *prefix])
                offsets = torch.tensor([0, len(ids)], dtype=torch.int32)
                attention = PackedAttention(offsets, len(ids))
                hidden = model(ids, torch.arange(len(ids)), attention)[-1:]
                logits[prefix] = model.logits(hidden)[0, : model.valid_vocab].double().numpy()
        return cls(logits)

    def logprobs(self, response: Response, temperature: float = 1.0) -> np.ndarray:
        """Of each token."""
        rows = [self.logits[response[:t]] / temperature for t in range(len(response))]
        chosen = [row[token] for row, token in zip(rows, response, strict=True)]
        return np.array(chosen) - [np.logaddexp.reduce(row) for row in rows]

    def law(self, limit: int, temperature: float = 1.0) -> np.ndarray:
        """The probability of every response."""
        return np.exp([self.logprobs(y, temperature).sum() for y in responses(limit)])

    def power(self, limit: int, alpha: float) -> np.ndarray:
        """p^alpha / Z."""
        weights = self.law(limit) ** alpha
        return weights / weights.sum()

    def move(
        self, limit: int, alpha: float, temperature: float, accept: Accept = log_acceptance
    ) -> np.ndarray:
        """The chance of every response after one move from every response."""
        states = responses(limit)
        log_p = [self.logprobs(y) for y in states]
        log_q = [self.logprobs(y, temperature) for y in states]
        matrix = np.zeros((len(states), len(states)))
        for i, y in enumerate(states):
            for m, (j, new) in itertools.product(range(len(y)), enumerate(states)):
                if new[:m] != y[:m] or len(new) <= m:
                    continue
                chance = accept(
                    alpha,
                    log_p=log_p[i][m:].sum(),
                    log_q=log_q[i][m:].sum(),
                    length=len(y),
                    new_log_p=log_p[j][m:].sum(),
                    new_log_q=log_q[j][m:].sum(),
                    new_length=len(new),
                )
                matrix[i, j] += np.exp(log_q[j][m:].sum() + chance) / len(y)
            matrix[i, i] += 1 - matrix[i].sum()
        return matrix

    def chain(self, limits: Sequence[int], steps: int, alpha: float, temperature: float):
        """The law of a chain at its end, block by block."""
        law = np.ones(1)
        known: list[Response] = [()]
        for limit in limits:
            states = responses(limit)
            grown = np.zeros(len(states))
            for y, mass in zip(known, law, strict=True):
                for j, new in enumerate(states):
                    if new[: len(y)] != y or (END in y and new != y):
                        continue
                    log_q = self.logprobs(new, temperature)[len(y) :].sum()
                    grown[j] += mass * np.exp(log_q)
            known = states
            move = self.move(limit, alpha, temperature)
            law = grown @ np.linalg.matrix_power(move, steps)
        return law


def distance(p: np.ndarray, q: np.ndarray) -> float:
    """Total variation."""
    return 0.5 * float(np.abs(p - q).sum())


def imbalance(law: np.ndarray, matrix: np.ndarray) -> float:
    """How far a law is from detailed balance."""
    flow = law[:, None] * matrix
    return float(np.abs(flow - flow.T).max())


@pytest.mark.parametrize("temperature", [None, 1.0, 0.6], ids=["inverse", "1", "0.6"])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_power_distribution_is_stationary(seed, alpha, temperature):
    tree = Tree.of_table(seed, 4)
    matrix = tree.move(4, alpha, temperature or 1 / alpha)
    target = tree.power(4, alpha)
    assert matrix.min() >= 0
    np.testing.assert_allclose(target @ matrix, target, rtol=0, atol=1e-12)
    assert imbalance(target, matrix) <= 1e-12
    # and nothing else is
    far = np.linalg.matrix_power(matrix, 4000)
    np.testing.assert_allclose(far, np.broadcast_to(target, far.shape), atol=1e-9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"length": 1, "new_length": 1},
        {"log_q": 0.0, "new_log_q": 0.0},
        {"log_q": 0.0},
        {"new_log_q": 0.0},
        {"log_p": 0.0, "new_log_p": 0.0},
    ],
    ids=lambda wrong: "-".join(wrong),
)
def test_an_acceptance_without_one_of_its_parts_has_another_law(wrong):
    tree = Tree.of_table(0, 4)
    target = tree.power(4, 2.0)

    def accept(alpha, **parts):
        return log_acceptance(alpha, **(parts | wrong))

    matrix = tree.move(4, 2.0, 0.5, accept)
    assert distance(target @ matrix, target) > 1e-3
    assert imbalance(target, matrix) > 1e-3


def test_it_is_not_token_temperature():
    """P(ab) = .4, P(ba) = P(bb) = .3: alpha 4 favours ab, T 1/4 does not."""
    never = -60.0
    tree = Tree(
        {
            (): np.array([never, math.log(0.4), math.log(0.6)]),
            (1,): np.array([never, never, 0.0]),
            (2,): np.array([never, 0.0, 0.0]),
        }
    )
    ab = responses(2).index((1, 2))
    assert tree.law(2)[ab] == pytest.approx(0.4)
    assert tree.law(2, 0.25)[ab] == pytest.approx(0.1649, abs=5e-5)
    assert tree.power(2, 4.0)[ab] == pytest.approx(0.6124, abs=5e-5)
    law = tree.chain([2], 200, 4.0, 0.25)
    assert law[ab] == pytest.approx(0.6124, abs=5e-5)


def small_decoder(seed: int = 8, head: float = 0.3) -> Decoder:
    """With matrices large enough that p^alpha is far from token temperature."""
    model = Decoder(SHAPE).init_weights(seed, std=0.5)
    with torch.no_grad():
        model.head_weight.mul_(head)
    model.valid_vocab = SYMBOLS + 1
    return model


def sampler_of(model: Decoder, **settings) -> Sampler:
    return Sampler(model, eos_token_ids=[END], **{"max_running": 48, **settings})


def shares(samples: PowerSamples, limit: int) -> np.ndarray:
    """How often each response came out."""
    index = {y: i for i, y in enumerate(responses(limit))}
    found = [index[c.token_ids] for row in samples.completions for c in row]
    return np.bincount(found, minlength=len(index)) / len(found)


@pytest.mark.parametrize(
    ("alpha", "steps", "chains"), [(0.5, 4, 10_000), (2.0, 6, 5000), (4.0, 6, 3000)]
)
def test_chains_of_a_transformer_end_at_the_power_distribution(alpha, steps, chains):
    model = small_decoder()
    tree = Tree.of_decoder(model, PROMPT, MAX_TOKENS)
    target = tree.power(MAX_TOKENS, alpha)
    token_temperature = distance(tree.law(MAX_TOKENS, 1 / alpha), target)
    samples = power_sample(
        sampler_of(model), [PROMPT], SamplingParams(n=chains, max_tokens=MAX_TOKENS, seed=2),
        alpha=alpha, steps=steps, block_tokens=2,
    )  # fmt: skip
    found = distance(shares(samples, MAX_TOKENS), target)
    print(f"alpha {alpha}: {found:.4f}, token temperature {token_temperature:.4f}")
    assert found <= 0.02
    assert token_temperature > 0.15


def test_chains_that_have_not_converged_have_the_law_of_their_moves():
    """So each block's limit, the growth, and the position that a move draws are what is said."""
    model, alpha, temperature = small_decoder(), 4.0, 0.6
    tree = Tree.of_decoder(model, PROMPT, MAX_TOKENS)
    law = tree.chain([2, 3], 1, alpha, temperature)
    samples = power_sample(
        sampler_of(model), [PROMPT], SamplingParams(n=8000, max_tokens=MAX_TOKENS, seed=2),
        alpha=alpha, steps=1, block_tokens=2, proposal_temperature=temperature,
    )  # fmt: skip
    assert distance(shares(samples, MAX_TOKENS), law) <= 0.015
    assert distance(tree.power(MAX_TOKENS, alpha), law) > 0.1
    for other in ([3], [1, 2, 3]):
        assert distance(tree.chain(other, 1, alpha, temperature), law) > 0.03


def test_a_move_is_accepted_as_often_as_the_enumeration_says():
    """At every position by itself; proposals far from the target, so that many are rejected."""
    model, alpha, temperature = small_decoder(), 0.5, 0.4
    tree = Tree.of_decoder(model, PROMPT, MAX_TOKENS)
    proposed: list[tuple[int, Response]] = []

    class Listening(Sampler):
        def generate(self, prompts, *args, **rest):
            found = super().generate(prompts, *args, **rest)
            kept = prompts[0][len(PROMPT) :]
            proposed.append((len(kept), (*kept, *found[0][0].token_ids)))
            return found

    told = []
    samples = power_sample(
        Listening(model, eos_token_ids=[END], max_running=1), [PROMPT],
        SamplingParams(n=1, max_tokens=MAX_TOKENS, seed=3),
        alpha=alpha, steps=400, block_tokens=MAX_TOKENS, proposal_temperature=temperature,
        on_progress=told.append,
    )  # fmt: skip
    response = proposed[0][1]
    surprises: list[list[tuple[float, float]]] = [[] for _ in range(MAX_TOKENS)]
    for (m, new), before, after in zip(proposed[1:], told[:-1], told[1:], strict=True):
        assert new[:m] == response[:m]
        log_p, new_log_p = (tree.logprobs(y)[m:].sum() for y in (response, new))
        log_q, new_log_q = (tree.logprobs(y, temperature)[m:].sum() for y in (response, new))
        weight = alpha * (new_log_p - log_p) - (new_log_q - log_q)
        chance = min(1.0, math.exp(weight) * len(response) / len(new))
        accepted = after.accepted - before.accepted
        surprises[m].append((accepted - chance, chance * (1 - chance)))
        response = new if accepted else response
        assert after.tokens == len(response)
    assert samples.completions[0][0].token_ids == response
    assert 0.3 < samples.acceptance < 0.8
    for of_position in surprises:
        found, variance = np.sum(of_position, 0)
        assert variance > 4
        assert abs(found) <= 3.5 * math.sqrt(variance)


KEYS = [PromptKey(7), PromptKey(3, 2), PromptKey(5)]
PROMPTS = [(3,), (4, 3), (3, 4, 4, 3, 3)]
LONG = SamplingParams(n=3, max_tokens=9, seed=5)


def power(prompts=PROMPTS, keys=KEYS, params=LONG, **settings) -> PowerSamples:
    """A few chains; alpha below 1 makes them long."""
    call = {"alpha": 0.5, "steps": 4, "block_tokens": 4} | settings
    sampler = call.pop("sampler", None) or sampler_of(small_decoder(seed=1))
    return power_sample(sampler, prompts, params, prompt_keys=keys, **call)


def test_the_same_call_has_the_same_bits():
    first, again = power(), power()
    assert first.completions == again.completions
    assert first.acceptance == again.acceptance
    others = power(params=SamplingParams(n=3, max_tokens=9, seed=6)), power(stream="eval")
    assert all(first.completions != other.completions for other in others)


def test_every_chain_and_every_turn_has_its_own_random_numbers():
    seen: list[tuple[PromptKey, int]] = []

    class Listening(Sampler):
        def generate(self, prompts, params, *, prompt_keys, step, stream, **rest):
            seen.extend((key, step) for key in prompt_keys)
            return super().generate(
                prompts, params, prompt_keys=prompt_keys, step=step, stream=stream, **rest
            )

    keys = [PromptKey(7, draw) for draw in range(3)]
    power(sampler=Listening(small_decoder(seed=1), eos_token_ids=[END]), keys=keys)
    assert len(seen) == len(set(seen)) > 3 * 3 * 3 * 4


def test_a_chain_does_not_depend_on_what_is_beside_it():
    together = power().completions
    alone = [power([p], [k]).completions[0] for p, k in zip(PROMPTS, KEYS, strict=True)]
    backwards = power(PROMPTS[::-1], KEYS[::-1]).completions[::-1]
    crowded = power(sampler=sampler_of(small_decoder(seed=1), max_running=2, max_batch_tokens=16))
    for other in (alone, backwards, crowded.completions):
        for row, other_row in zip(together, other, strict=True):
            assert [c.token_ids for c in row] == [c.token_ids for c in other_row]
            for c, d in zip(row, other_row, strict=True):
                np.testing.assert_allclose(c.logprobs, d.logprobs, atol=1e-5)
    more = power(params=SamplingParams(n=5, max_tokens=9, seed=5)).completions
    assert [c.token_ids for c in more[0][:3]] == [c.token_ids for c in together[0]]


def test_completions_are_what_the_model_says_of_them():
    model = small_decoder(seed=1)
    samples = power(sampler=sampler_of(model))
    reasons = set()
    for prompt, row in zip(PROMPTS, samples.completions, strict=True):
        tree = Tree.of_decoder(model, prompt, 9)
        for c in row:
            np.testing.assert_allclose(c.logprobs, tree.logprobs(c.token_ids), atol=1e-5)
            assert c.log_kept_mass == (0.0,) * len(c.token_ids)
            ended = c.token_ids[-1] == END
            assert END not in c.token_ids[:-1] and (ended or len(c.token_ids) == 9)
            assert (c.finish_reason, c.stop_reason) == ("stop" if ended else "length", None)
            reasons.add(c.finish_reason)
    assert reasons == {"stop", "length"}


def test_a_stop_token_ends_a_response_and_a_move_may_undo_it():
    params = SamplingParams(n=40, max_tokens=9, seed=5, stop_token_ids=(2,))
    rows = power(params=params).completions
    for c in itertools.chain(*rows):
        assert END not in c.token_ids[:-1] and 2 not in c.token_ids[:-1]
        last = c.token_ids[-1]
        assert c.finish_reason == ("stop" if last in (END, 2) else "length")
        assert c.stop_reason == (2 if last == 2 else None)
    assert {c.token_ids[-1] for c in itertools.chain(*rows)} == {END, 1, 2}


def test_tokens_sampled_are_those_of_every_proposal():
    sampled = []

    class Counting(Sampler):
        def generate(self, *args, **rest):
            found = super().generate(*args, **rest)
            sampled.append((len(found), self.stats.generated_tokens))
            return found

    told = []
    sampler = Counting(small_decoder(seed=1), eos_token_ids=[END])
    samples = power(sampler=sampler, on_progress=told.append)
    assert len(sampled) == len(told) == 3 * (1 + 4)
    assert samples.tokens_sampled == sum(tokens for _, tokens in sampled)
    assert (samples.tokens_sampled_P > 9).all()
    assert samples.proposals_P.tolist() == [3 * 3 * 4] * 3
    assert (samples.accepted_P > 0).all() and (samples.accepted_P < samples.proposals_P).all()
    assert samples.acceptance == samples.accepted_P.sum() / 108
    last = told[-1]
    assert (last.turns, last.of_turns) == (15, 15)
    assert (last.proposals, last.accepted) == (108, samples.accepted_P.sum())
    assert last.tokens_sampled == samples.tokens_sampled
    assert last.tokens == sum(len(c.token_ids) for row in samples.completions for c in row)


def test_alpha_1_accepts_what_the_lengths_say():
    tree = Tree.of_table(0, 3)
    for y, new in itertools.product(responses(3), repeat=2):
        log_p, new_log_p = tree.logprobs(y).sum(), tree.logprobs(new).sum()
        found = log_acceptance(
            1.0,
            log_p=log_p, log_q=log_p, length=len(y),
            new_log_p=new_log_p, new_log_q=new_log_p, new_length=len(new),
        )  # fmt: skip
        assert np.exp(found) == pytest.approx(min(1.0, len(y) / len(new)), rel=1e-12)
    model = small_decoder(seed=1)
    never_ends = Sampler(model, eos_token_ids=[])
    assert power(sampler=never_ends, alpha=1.0).acceptance == 1.0
    assert power(sampler=sampler_of(model), alpha=1.0).acceptance < 1.0


def test_without_steps_it_is_token_temperature():
    model = small_decoder()
    samples = power_sample(
        sampler_of(model), [PROMPT], SamplingParams(n=4000, max_tokens=MAX_TOKENS, seed=1),
        alpha=4.0, steps=0, block_tokens=1,
    )  # fmt: skip
    law = Tree.of_decoder(model, PROMPT, MAX_TOKENS).law(MAX_TOKENS, 0.25)
    assert distance(shares(samples, MAX_TOKENS), law) <= 0.02
    assert math.isnan(samples.acceptance)
    kept = sum(len(c.token_ids) for c in samples.completions[0])
    assert samples.tokens_sampled == kept


def test_a_caller_may_cancel():
    samples = power(on_progress=lambda progress: progress.turns < 7)
    assert all(c.finish_reason == "cancelled" for row in samples.completions for c in row)
    assert all(1 <= len(c.token_ids) <= 8 for row in samples.completions for c in row)
    assert samples.proposals_P.tolist() == [3 * 5] * 3
    told = []
    whole = power(on_progress=lambda progress: told.append(progress) or len(told) < 15)
    assert whole.completions == power().completions  # there was no rest to cancel


def test_a_model_that_gives_nan_ends_the_chain():
    model = small_decoder(seed=1)
    with torch.no_grad():
        model.embed[4] = math.nan  # of the second and the third prompt
    samples = power(sampler=sampler_of(model))
    fine, *failed = samples.completions
    assert all(c.is_complete for c in fine)
    for c in itertools.chain(*failed):
        assert (c.token_ids, c.logprobs, c.finish_reason) == ((), (), "error")
    assert samples.proposals_P.tolist() == [36, 0, 0]
    assert [c.token_ids for c in fine] == [c.token_ids for c in power().completions[0]]


def test_no_prompt_is_no_work():
    samples = power([], [])
    assert samples.completions == [] and samples.tokens_sampled == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alpha": 0.0}, "alpha is 0.0; it must be above 0"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"alpha": math.inf}, "alpha is inf"),
        ({"steps": -1}, "steps is -1; it must be a whole number of at least 0"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"steps": 1 << 32}, "random counter holds 4294967296; lower steps"),
        ({"block_tokens": 0}, "block_tokens is 0; it must be a whole number of at least 1"),
        ({"proposal_temperature": 0.0}, "proposal_temperature is 0.0"),
        ({"temperature": 0.5}, "temperature is 0.5, .* give proposal_temperature"),
        ({"top_p": 0.9}, "top_p is 0.9, .* must reach every response"),
        ({"top_k": 5}, "top_k is 5, .* must reach every response"),
        ({"min_p": 0.1}, "min_p is 0.1, .* must reach every response"),
        ({"stop": ("x",)}, r"stop is \('x',\), .* give stop_token_ids"),
        ({"ignore_eos": True}, "ignore_eos is True, .* that end"),
        ({"max_tokens": 33}, "exceed the model's context of 32"),
        ({"n": 3000, "keys": [PromptKey(0, 5)]}, "take 18000 draws, .* holds 16384; lower n"),
        ({"stream": "other"}, "no random stream"),
        ({"seed": -1}, "seed is -1"),
        ({"prompts": [()], "keys": [PromptKey(0)]}, "prompt 0 is empty"),
        ({"keys": KEYS[:2]}, "3 prompts came with"),
        ({"keys": [PromptKey(0)] * 3}, "same random numbers"),
    ],
)
def test_refusals(settings, words):
    """In one sentence, before any work."""
    fields = ("temperature", "top_p", "top_k", "min_p", "stop", "ignore_eos", "max_tokens", "n")
    asked = dict(settings)
    changed = {k: asked.pop(k) for k in (*fields, "seed") if k in asked}
    params = SamplingParams(**({"n": 3, "max_tokens": 9, "seed": 5} | changed))
    if "keys" in asked and len(asked["keys"]) == 1:
        asked.setdefault("prompts", PROMPTS[:1])

    class Idle(Sampler):
        def generate(self, *args, **rest):
            raise AssertionError("work was begun")

    with pytest.raises(UsageError, match=words):
        power(sampler=Idle(small_decoder(), eos_token_ids=[END]), params=params, **asked)
