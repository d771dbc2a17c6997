"""Responses from the power distribution p^alpha / Z of a model as it is, by Metropolis-Hastings.

After Karan & Du, "Reasoning with Sampling" (arXiv:2510.14901): what sharpening by training has to
be compared with. The response grows in blocks; after each block the chain makes moves on the
response so far, whose target is p^alpha over the responses of at most that many tokens: one that is
cut there is a leaf. A move draws a position m uniformly among the |y| tokens of the response y,
samples it again from m on by the proposal, p at token temperature T', and accepts the result y'
with

    min(1, p(y')^alpha q(y | y') / (p(y)^alpha q(y' | y))),  q(y' | y) = p_T'(y' from m on) / |y|.

The kept tokens cancel, but for the choice of m: 1 / |y| there and 1 / |y'| back. That is detailed
balance for every m by itself, since m is a position of y' too, so also for their mixture.

Both log-probs of a token come from one scoring pass, never the sampler's for q and the scorer's for
p. At T' = 1 / alpha the token's own logit cancels in alpha log p - log p_T', exactly if it is the
same number in both; from two passes that round differently alpha times their difference stays, for
each token, and a chain stops where that is large by luck. In bfloat16 it is no small number.

High acceptance is no convergence: where one early token decides which way a response goes and the
rest follows, only moves from there change it, one in |y|. On 50 prompts of arithmetic (27
tokens a response, alpha 4) 99 % are accepted, and of 4 chains a prompt .76 are right after 40
moves, as by token temperature 1/4, and .71 after 320, on the way to the .69 of p^4 / Z.

Legend: P: prompts, C: chains, `params.n` a prompt, those of a prompt side by side.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral

import numpy as np
import torch

from fastrl.batch import pack
from fastrl.errors import UsageError
from fastrl.ops.choice import philox
from fastrl.sampler import PromptKey, Sampler, SamplingParams
from fastrl.sampler.philox import LIMITS, counters, make_key
from fastrl.sampler.request import groups_of
from fastrl.scoring import score_at
from fastrl.types import Completion

MOVE = 1  # the field `response` of the numbers that a move itself takes; proposals have 0 there


@dataclass(frozen=True)
class PowerProgress:
    """How far a call is after a turn: the growth by a block, or a move, of all chains together."""

    turns: int  # so far
    of_turns: int
    tokens: int  # of the responses as they stand
    tokens_sampled: int  # so far
    proposals: int  # of moves, so far
    accepted: int  # of them


@dataclass(frozen=True)
class PowerSamples:
    """Where the chains ended, grouped by prompt, and what that took.

    `Completion.logprobs` are at temperature 1.
    """

    completions: list[list[Completion]]
    proposals_P: np.ndarray  # moves of the chains of each prompt
    accepted_P: np.ndarray  # of them
    tokens_sampled_P: np.ndarray  # generated for all proposals and growth, kept or not

    @property
    def acceptance(self) -> float:
        """The share of proposals that were accepted; nan where there was none."""
        proposals = int(self.proposals_P.sum())
        return int(self.accepted_P.sum()) / proposals if proposals else math.nan

    @property
    def tokens_sampled(self) -> int:
        """All generated tokens, those of rejected proposals too: the cost."""
        return int(self.tokens_sampled_P.sum())


def power_sample(
    sampler: Sampler,
    prompt_token_ids: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    alpha: float,
    steps: int,
    block_tokens: int,
    proposal_temperature: float | None = None,
    prompt_keys: Sequence[PromptKey] | None = None,
    stream: str = "baseline",
    on_progress: Callable[[PowerProgress], bool | None] | None = None,
) -> PowerSamples:
    """`params.n` independent chains for each prompt, of `steps` moves after every block.

    `proposal_temperature`: T', by default 1 / alpha; without steps the result is sampling at that.
    `prompt_keys`: as for `Sampler.generate`; `params.seed`, `stream` and the key name the random
    numbers of a prompt, whatever prompts are beside it. `on_progress` is called after every turn,
    and cancels the rest by returning False: finish_reason is "cancelled" then. A chain whose model
    gives a NaN stays as it is from there on, with finish_reason "error".
    Raises UsageError, before any work, as `Sampler.generate` does, and for a temperature, filters
    and stop strings: p is the whole model's, at temperature 1.
    """
    temperature = _proposal_temperature(alpha, proposal_temperature)
    _check(params, steps, block_tokens)
    keys = [PromptKey(i) for i in range(len(prompt_token_ids))]
    keys = keys if prompt_keys is None else list(prompt_keys)
    groups_of(
        prompt_token_ids, replace(params, n=1), keys, model=sampler.model, has_tokenizer=False,
        block_size=sampler.block_size, num_blocks=sampler.num_blocks,
    )  # fmt: skip
    limits = [*range(block_tokens, params.max_tokens, block_tokens), params.max_tokens]
    turns = len(limits) * (steps + 1)
    _check_counters(keys, params.n, turns)
    seed = secrets.randbits(56) if params.seed is None else params.seed
    proposal = replace(params, n=1, temperature=temperature, seed=seed)
    chains = _Chains(sampler, prompt_token_ids, keys, params.n, alpha, proposal, stream)
    for turn in range(turns):
        block, move = divmod(turn, steps + 1)
        if move == 0:
            chains.grow(limits[block], turn)
        else:
            chains.move(limits[block], turn)
        if on_progress is not None and on_progress(chains.progress(turn + 1, turns)) is False:
            return chains.samples("cancelled" if turn + 1 < turns else None)
    return chains.samples()


def log_acceptance(
    alpha: float,
    *,
    log_p: np.ndarray,
    log_q: np.ndarray,
    length: np.ndarray,
    new_log_p: np.ndarray,
    new_log_q: np.ndarray,
    new_length: np.ndarray,
) -> np.ndarray:
    """Log of the chance that a move from a response to a new one is accepted, at most 0.

    `log_p`, `log_q`: of the tokens that are replaced, or replace them, all from the same position
    on, at temperature 1 and by the proposal; `length`: of the whole responses, in tokens.
    """
    gain = (alpha * new_log_p - new_log_q) - (alpha * log_p - log_q)
    return np.minimum(0.0, gain + np.log(length) - np.log(new_length))


@dataclass(frozen=True)
class _Response:
    """A response and its log-probs, token by token, at temperature 1 and by the proposal."""

    token_ids: tuple[int, ...] = ()
    log_p: tuple[float, ...] = ()
    log_q: tuple[float, ...] = ()
    finish_reason: str = "length"  # open: cut at the limit
    stop_reason: int | str | None = None

    def then(self, start: int, suffix: _Response) -> _Response:
        """Its tokens before `start`, then the suffix."""
        return replace(
            suffix,
            token_ids=self.token_ids[:start] + suffix.token_ids,
            log_p=self.log_p[:start] + suffix.log_p,
            log_q=self.log_q[:start] + suffix.log_q,
        )

    def completion(self, finish_reason: str | None) -> Completion:
        return Completion(
            self.token_ids,
            self.log_p,
            (0.0,) * len(self.token_ids),
            finish_reason or self.finish_reason,
            self.stop_reason,
        )


def _suffix_sums(
    responses: Sequence[_Response], starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """log p and log q of the tokens from a position on, fp64."""
    pairs = [(sum(r.log_p[m:]), sum(r.log_q[m:])) for r, m in zip(responses, starts, strict=True)]
    log_p, log_q = np.array(pairs, np.float64).reshape(-1, 2).T
    return log_p, log_q


class _Chains:
    """The chains of a call and where they stand."""

    def __init__(
        self,
        sampler: Sampler,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[PromptKey],
        n: int,
        alpha: float,
        proposal: SamplingParams,
        stream: str,
    ) -> None:
        assert proposal.seed is not None
        self.sampler, self.alpha, self.proposal, self.stream = sampler, alpha, proposal, stream
        self.n, self.prompts = n, [tuple(p) for p in prompts]
        # a chain is a draw of its prompt: each kept prefix is a prompt of the sampler's
        self.keys_C = [PromptKey(k.id, k.draw * n + chain) for k in keys for chain in range(n)]
        self.philox_key = make_key(proposal.seed, stream)
        self.response_C = [_Response()] * len(self.keys_C)
        self.failed_C = np.zeros(len(self.keys_C), bool)
        self.proposals_P, self.accepted_P, self.tokens_sampled_P = (
            np.zeros(len(prompts), np.int64) for _ in range(3)
        )

    def grow(self, limit: int, turn: int) -> None:
        """Sample the responses that have not ended on to a limit."""
        growing = [c for c in self._alive() if self.response_C[c].finish_reason == "length"]
        starts = {c: len(self.response_C[c].token_ids) for c in growing}
        for c, grown in self._proposed(starts, limit, turn).items():
            self.response_C[c] = grown

    def move(self, limit: int, turn: int) -> None:
        """One move of every chain over the responses of at most `limit` tokens."""
        words_C4 = self._words(turn)
        lengths_C = np.array([len(r.token_ids) for r in self.response_C], np.int64)
        # a product's high half: uniform over the positions to 2^-32
        starts_C = words_C4[:, 0] * lengths_C >> 32
        uniforms_C = ((words_C4[:, 1] << 20 | words_C4[:, 2] >> 12) + 0.5) * 2.0**-52
        found = self._proposed({c: int(starts_C[c]) for c in self._alive()}, limit, turn)
        moved = list(found)
        log_p, log_q = _suffix_sums([self.response_C[c] for c in moved], starts_C[moved])
        new_log_p, new_log_q = _suffix_sums(list(found.values()), starts_C[moved])
        chances = log_acceptance(
            self.alpha,
            log_p=log_p,
            log_q=log_q,
            length=lengths_C[moved],
            new_log_p=new_log_p,
            new_log_q=new_log_q,
            new_length=np.array([len(r.token_ids) for r in found.values()], np.int64),
        )
        for c, accepted in zip(moved, np.log(uniforms_C[moved]) < chances, strict=True):
            self.proposals_P[c // self.n] += 1
            self.accepted_P[c // self.n] += accepted
            if accepted:
                self.response_C[c] = found[c]

    def progress(self, turns: int, of_turns: int) -> PowerProgress:
        return PowerProgress(
            turns,
            of_turns,
            sum(len(r.token_ids) for r in self.response_C),
            int(self.tokens_sampled_P.sum()),
            int(self.proposals_P.sum()),
            int(self.accepted_P.sum()),
        )

    def samples(self, finish_reason: str | None = None) -> PowerSamples:
        """The responses as they stand, all with one reason if there is one to give."""
        every = [
            response.completion("error" if failed else finish_reason)
            for response, failed in zip(self.response_C, self.failed_C, strict=True)
        ]
        grouped = [every[i : i + self.n] for i in range(0, len(every), self.n)]
        return PowerSamples(grouped, self.proposals_P, self.accepted_P, self.tokens_sampled_P)

    def _alive(self) -> list[int]:
        return np.flatnonzero(~self.failed_C).tolist()

    def _words(self, turn: int) -> np.ndarray:
        """Four random words for each chain, [C, 4]."""
        chains = len(self.keys_C)
        found = counters(
            np.zeros(chains, np.int64),
            np.full(chains, MOVE),
            np.array([k.draw for k in self.keys_C]),
            np.array([k.id for k in self.keys_C]),
            turn,
        )
        return philox(torch.from_numpy(found), self.philox_key).numpy()

    def _proposed(self, starts: dict[int, int], limit: int, turn: int) -> dict[int, _Response]:
        """The responses of chains sampled again from a position on; without those that failed."""
        chains = list(starts)
        params = {m: replace(self.proposal, max_tokens=limit - m) for m in set(starts.values())}
        contexts = {
            c: (*self.prompts[c // self.n], *self.response_C[c].token_ids[:start])
            for c, start in starts.items()
        }
        sampled = self.sampler.generate(
            list(contexts.values()),
            [params[m] for m in starts.values()],
            prompt_keys=[self.keys_C[c] for c in chains],
            step=turn,
            stream=self.stream,
        )
        suffixes = {c: row[0] for c, row in zip(chains, sampled, strict=True)}
        for c, suffix in suffixes.items():
            self.tokens_sampled_P[c // self.n] += len(suffix.token_ids)
            self.failed_C[c] = not suffix.is_complete
        fine = {c: suffix for c, suffix in suffixes.items() if suffix.is_complete}
        scored = self._scored(contexts, fine)
        return {c: self.response_C[c].then(starts[c], suffix) for c, suffix in scored.items()}

    def _scored(
        self, contexts: dict[int, tuple[int, ...]], suffixes: dict[int, Completion]
    ) -> dict[int, _Response]:
        """The suffixes with their log-probs, in the order given."""
        if not suffixes:
            return {}
        model = self.sampler.model
        sequences = {c: (contexts[c], suffix.token_ids) for c, suffix in suffixes.items()}
        batches = pack(
            sequences,
            {c: c for c in sequences},
            max_tokens=self.sampler.max_batch_tokens,
            device=model.head_weight.device,
        )
        found: dict[int, _Response] = {}
        for batch in batches:
            both = score_at(model, batch, (1.0, self.proposal.temperature))
            log_p, log_q = (logprobs_M.tolist() for logprobs_M, _ in both)
            end = 0
            for c in batch.sequences:
                suffix = suffixes[c]
                start, end = end, end + len(suffix.token_ids)
                found[c] = _Response(
                    suffix.token_ids,
                    tuple(log_p[start:end]),
                    tuple(log_q[start:end]),
                    suffix.finish_reason,
                    suffix.stop_reason,
                )
        return {c: found[c] for c in suffixes}


def _proposal_temperature(alpha: float, given: float | None) -> float:
    if not 0 < alpha < math.inf:
        raise UsageError(f"alpha is {alpha!r}; it must be above 0 and finite")
    if given is not None and not 0 < given < math.inf:
        raise UsageError(
            f"proposal_temperature is {given!r}; it must be above 0 and finite, or left out for"
            " 1 / alpha"
        )
    return 1 / alpha if given is None else given


def _check(params: SamplingParams, steps: int, block_tokens: int) -> None:
    """Raise UsageError for what power sampling has no place for."""
    for name, value, least in (("steps", steps, 0), ("block_tokens", block_tokens, 1)):
        if not isinstance(value, Integral) or value < least:
            raise UsageError(f"{name} is {value!r}; it must be a whole number of at least {least}")
    default = SamplingParams()
    for name, why in (
        ("temperature", "the target is a power of p at temperature 1; give proposal_temperature"),
        ("top_p", "proposals must reach every response"),
        ("top_k", "proposals must reach every response"),
        ("min_p", "proposals must reach every response"),
        ("stop", "a stop string may begin in tokens that a move keeps; give stop_token_ids"),
        ("ignore_eos", "the target is a distribution over responses that end"),
    ):
        if getattr(params, name) != getattr(default, name):
            raise UsageError(
                f"{name} is {getattr(params, name)!r}, which power sampling has no place for: {why}"
            )


def _check_counters(keys: Sequence[PromptKey], n: int, turns: int) -> None:
    """Raise UsageError for more chains or turns than the random counter holds."""
    draws = (max((k.draw for k in keys), default=0) + 1) * n
    if draws > LIMITS["draw"]:
        raise UsageError(
            f"{n} chains for each of {draws // n} draws of a prompt take {draws} draws, but the"
            f" random counter holds {LIMITS['draw']}; lower n or give another seed"
        )
    if turns > LIMITS["step"]:
        raise UsageError(
            f"the blocks and steps make {turns} turns, but the random counter holds"
            f" {LIMITS['step']}; lower steps"
        )
