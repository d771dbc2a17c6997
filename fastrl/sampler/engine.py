"""Prompts to groups of responses with the log-prob of every token."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fastrl import ops
from fastrl.errors import UsageError
from fastrl.model import Decoder
from fastrl.sampler.blocks import BlockPool
from fastrl.sampler.philox import PromptKey, check_range, counters, make_key
from fastrl.sampler.runner import PagedCache, Runner
from fastrl.sampler.scheduler import Chunk, Scheduler
from fastrl.sampler.sequence import Group, SamplingParams, Sequence
from fastrl.tokenizer import Tokenizer
from fastrl.types import Completion


@dataclass(frozen=True)
class Event:
    """A response that is finished."""

    prompt: int  # index in the call
    response: int  # index in its group
    completion: Completion


@dataclass
class SamplerStats:
    """What the last call did."""

    rows_computed: int = 0  # = prompt tokens + generated tokens less one a response + recomputed
    recomputed_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    forwards: int = 0
    seconds: float = 0.0


@dataclass(eq=False)
class _Call:
    """The state of one call of `generate`."""

    scheduler: Scheduler
    runner: Runner
    key: tuple[int, int]
    step: int
    results: list[list[Completion | None]]
    on_event: Callable[[Event], bool | None] | None
    cancelled: bool = False
    stats: SamplerStats = field(default_factory=SamplerStats)


class Sampler:
    """A paged sampler over a model's own parameters, which it never copies.

    `eos_token_ids`: tokens that end a response, by default the model's; `tokenizer`: needed for
    stop strings only.
    `num_blocks`: the pool's size; None takes what the call needs without preemption.
    `max_batch_tokens`: rows of one forward; `max_running`: sequences in the pool at once.
    `poison_free_blocks` fills blocks that nobody owns with NaN, for tests.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        eos_token_ids: Seq[int] | None = None,
        tokenizer: Tokenizer | None = None,
        block_size: int = 16,
        num_blocks: int | None = None,
        max_batch_tokens: int = 2048,
        max_running: int = 256,
        poison_free_blocks: bool = False,
    ) -> None:
        for name, value in (
            ("block_size", block_size),
            ("num_blocks", 1 if num_blocks is None else num_blocks),
            ("max_batch_tokens", max_batch_tokens),
            ("max_running", max_running),
        ):
            if value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1")
        self.model = model
        self.eos_token_ids = frozenset(
            model.eos_token_ids if eos_token_ids is None else eos_token_ids
        )
        self.tokenizer = tokenizer
        self.block_size, self.num_blocks = block_size, num_blocks
        self.max_batch_tokens, self.max_running = max_batch_tokens, max_running
        self.poison = poison_free_blocks
        self.stats = SamplerStats()
        self._cache: PagedCache | None = None

    @torch.no_grad()
    def generate(
        self,
        prompt_token_ids: Seq[Seq[int]],
        params: SamplingParams | Seq[SamplingParams],
        *,
        prompt_keys: Seq[PromptKey] | None = None,
        step: int = 0,
        stream: str = "train",
        on_event: Callable[[Event], bool | None] | None = None,
    ) -> list[list[Completion]]:
        """`params.n` responses to each prompt, grouped by prompt.

        `params`: one for all prompts, or one each. `prompt_keys`, `step` and `stream` name the
        random numbers (default key: the prompt's index in the call). `on_event` receives every
        response as it finishes; returning False cancels the rest, whose finish_reason is then
        "cancelled". Raises UsageError, before any work, for what can never be sampled.
        """
        started = time.perf_counter()
        self.stats = SamplerStats()
        groups = self._groups(prompt_token_ids, params, prompt_keys)
        if not groups:
            return []
        check_range("step", step)
        check_range("token", self.model.valid_vocab - 1)
        call = self._begin(groups, step, stream, on_event)
        while not call.scheduler.done and not call.cancelled:
            self._advance(call, call.scheduler.schedule())
        if call.cancelled:
            self._cancel(call, groups)
        self.stats = call.stats
        self.stats.rows_computed = call.runner.rows
        self.stats.recomputed_tokens = call.runner.recomputed
        self.stats.preemptions = call.scheduler.preemptions
        self.stats.seconds = time.perf_counter() - started
        assert len(call.scheduler.pool.free) == call.scheduler.pool.num_blocks, "a block leaked"
        return [[c for c in group if c is not None] for group in call.results]

    def _groups(
        self,
        prompts: Seq[Seq[int]],
        params: SamplingParams | Seq[SamplingParams],
        keys: Seq[PromptKey] | None,
    ) -> list[Group]:
        every = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        keys = [PromptKey(i) for i in range(len(prompts))] if keys is None else keys
        if len(every) != len(prompts) or len(keys) != len(prompts):
            raise UsageError(
                f"{len(prompts)} prompts came with {len(every)} params and {len(keys)} keys; give"
                " one each"
            )
        context = self.model.config.max_position
        vocab = self.model.config.vocab_size
        groups = []
        for i, (prompt, p, key) in enumerate(zip(prompts, every, keys, strict=True)):
            total = len(prompt) + p.max_tokens
            if not len(prompt):
                raise UsageError(f"prompt {i} is empty; give at least one token")
            if not all(0 <= t < vocab for t in prompt):
                raise UsageError(f"prompt {i} has a token outside the vocabulary 0..{vocab - 1}")
            if total > context:
                raise UsageError(
                    f"prompt {i} has {len(prompt)} tokens, which with max_tokens {p.max_tokens}"
                    f" exceed the model's context of {context}; shorten one of them"
                )
            pool = (self.num_blocks or total) * self.block_size
            if total > pool:
                raise UsageError(
                    f"prompt {i} with {len(prompt)} tokens and max_tokens {p.max_tokens} do not fit"
                    f" the pool of {self.num_blocks} blocks x {self.block_size} tokens; raise"
                    " num_blocks"
                )
            if p.stop and self.tokenizer is None:
                raise UsageError("stop strings need a tokenizer; give Sampler one")
            check_range("response", p.n - 1)
            check_range("position", p.max_tokens - 1)
            check_range("id", key.id)
            check_range("draw", key.draw)
            groups.append(Group(i, list(prompt), p, key))
        if len({g.params.seed for g in groups}) > 1:
            raise UsageError("the params of one call have different seeds; give one seed")
        return groups

    def _begin(self, groups: list[Group], step: int, stream: str, on_event) -> _Call:
        seed = groups[0].params.seed
        longest = max(len(g.prompt) + g.params.max_tokens for g in groups)
        # prompts of the groups that run at once, their responses, and a tail block for each
        running = min(self.max_running, sum(g.params.n for g in groups))
        needed = (running + 1) * (-(-longest // self.block_size) + 1)
        num_blocks = self.num_blocks or needed
        cache = self._cache
        if cache is None or cache.num_blocks < num_blocks:
            cache = PagedCache(self.model, num_blocks, self.block_size, self.poison)
        self._cache = cache
        pool = BlockPool(cache.num_blocks, cache.forget if self.poison else None)
        cache.forget(pool.free)  # a call that raised left its own
        scheduler = Scheduler(
            pool,
            groups,
            block_size=self.block_size,
            max_batch_tokens=self.max_batch_tokens,
            max_running=self.max_running,
        )
        return _Call(
            scheduler=scheduler,
            runner=Runner(self.model, cache, self.max_running, longest),
            key=make_key(secrets.randbits(56) if seed is None else seed, stream),
            step=step,
            results=[[None] * g.params.n for g in groups],
            on_event=on_event,
        )

    def _advance(self, call: _Call, chunks: list[Chunk]) -> None:
        """One forward, and a token for every sequence that it completes."""
        logits_RV = call.runner.forward(chunks)
        call.stats.forwards += 1
        complete = [c.sequence for c in chunks if c.end == c.sequence.total]
        if not complete:
            return
        sequences: list[Sequence] = []  # a finished prompt stands for all responses of its group
        repeats = []
        forks = []
        for sequence in complete:
            group = sequence.group
            children = (
                [sequence]
                if sequence.response >= 0
                else [Sequence(group, r) for r in range(group.params.n)]
            )
            if sequence.response < 0:
                forks.append((sequence, children))
            sequences += children
            repeats.append(len(children))
        if forks:
            logits_RV = logits_RV.repeat_interleave(
                torch.tensor(repeats, device=logits_RV.device), dim=0
            )
        finished = self._sample(call, logits_RV, sequences)
        copies: list[tuple[int, int]] = []
        for parent, children in forks:
            self._fork(call, parent, [c for c in children if id(c) not in finished], copies)
        call.runner.cache.copy(copies)
        for sequence in sequences:
            if (reason := finished.get(id(sequence))) is not None:
                if sequence.slot >= 0:
                    call.scheduler.leave(sequence)
                self._finish(call, sequence, *reason)

    def _sample(
        self, call: _Call, logits_RV: torch.Tensor, sequences: list[Sequence]
    ) -> dict[int, tuple[str, str | None]]:
        """Append a token to every sequence; the reasons of those that it finishes, by id()."""
        groups = [s.group for s in sequences]
        params = [g.params for g in groups]
        where = counters(
            np.array([len(s.token_ids) for s in sequences]),
            np.array([s.response for s in sequences]),
            np.array([g.key.draw for g in groups]),
            np.array([g.key.id for g in groups]),
            call.step,
        )
        found = ops.sample(
            logits_RV, torch.from_numpy(where).to(logits_RV.device), call.key,
            **_settings(params, logits_RV.device),
        )  # fmt: skip
        finished: dict[int, tuple[str, str | None]] = {}
        for sequence, token, logprob, kept_mass in zip(
            sequences,
            found.tokens.tolist(),
            found.logprobs.tolist(),
            found.log_kept_mass.tolist(),
            strict=True,
        ):
            if token < 0:  # the model gave a NaN, or nothing finite
                finished[id(sequence)] = ("error", None)
                continue
            call.stats.generated_tokens += 1
            sequence.token_ids.append(token)
            sequence.logprobs.append(logprob)
            sequence.log_kept_mass.append(kept_mass)
            p = sequence.group.params
            if token in self.eos_token_ids and not p.ignore_eos:
                finished[id(sequence)] = ("stop", None)
            elif p.stop and (string := self._stop_string(sequence)) is not None:
                finished[id(sequence)] = ("stop", string)
            elif len(sequence.token_ids) == p.max_tokens:
                finished[id(sequence)] = ("length", None)
        return finished

    def _stop_string(self, sequence: Sequence) -> str | None:
        assert self.tokenizer is not None
        text = self.tokenizer.decode(sequence.token_ids)
        return next((s for s in sequence.group.params.stop if s in text), None)

    def _fork(
        self,
        call: _Call,
        parent: Sequence,
        children: list[Sequence],
        copies: list[tuple[int, int]],
    ) -> None:
        """Give the prompt's blocks to those responses that go on."""
        scheduler = call.scheduler
        if not children:
            scheduler.leave(parent)
            return
        for child in children[1:]:
            if scheduler.can_fork(parent):
                pair = scheduler.fork(parent, child)
                copies += [pair] if pair else []
            else:
                child.computed = parent.cached
                scheduler.suspend(child)
        scheduler.take_over(parent, children[0])

    def _finish(
        self, call: _Call, sequence: Sequence, reason: str, stop_reason: str | None
    ) -> None:
        completion = sequence.completion(reason, stop_reason)
        group = sequence.group.index
        call.results[group][sequence.response] = completion
        if call.on_event is None or call.cancelled:
            return
        if call.on_event(Event(group, sequence.response, completion)) is False:
            call.cancelled = True

    def _cancel(self, call: _Call, groups: list[Group]) -> None:
        """Free every block; what was sampled so far is handed back as it is."""
        scheduler = call.scheduler
        unfinished = [*scheduler.running, *scheduler.preempted]
        for sequence in list(scheduler.running):
            scheduler.leave(sequence)
        for sequence in unfinished:
            if sequence.response >= 0:
                call.results[sequence.group.index][sequence.response] = sequence.completion(
                    "cancelled"
                )
        empty = Completion((), (), (), "cancelled")
        for group in groups:
            results = call.results[group.index]
            results[:] = [empty if c is None else c for c in results]


def _settings(params: Seq[SamplingParams], device: torch.device) -> dict[str, Any]:
    """What `ops.sample` takes of the params of rows: a number, or one a row."""
    names = ("temperature", "top_k", "top_p", "min_p")
    if all(p is params[0] for p in params):
        return {name: getattr(params[0], name) for name in names}
    # fp64, as the numbers are: a row does not depend on whether its neighbours have others
    found = {
        name: torch.tensor([getattr(p, name) for p in params], dtype=torch.float64, device=device)
        for name in names
    }
    return found | {"top_k": found["top_k"].long()}
