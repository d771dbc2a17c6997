"""Prompts to groups of responses with the log-prob of every token."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Generator
from collections.abc import Sequence as Seq
from contextlib import closing
from typing import Any

import numpy as np
import torch

from fastrl import ops
from fastrl.errors import Failure, UsageError
from fastrl.model import Decoder
from fastrl.ops.dense import MULTIPLY_BF16
from fastrl.sampler import memory, native
from fastrl.sampler.attention import choose
from fastrl.sampler.blocks import BlockPool
from fastrl.sampler.cache import PagedCache
from fastrl.sampler.call import Call, Event, Progress, SamplerStats
from fastrl.sampler.decode import DecodeSteps, Sampled
from fastrl.sampler.philox import PromptKey, check_range, counters, make_key
from fastrl.sampler.request import check_known, groups_of
from fastrl.sampler.runner import Runner, make_steps
from fastrl.sampler.scheduler import Chunk, Scheduler
from fastrl.sampler.sequence import Group, SamplingParams, Sequence
from fastrl.sampler.stop_strings import StopStrings
from fastrl.tokenizer import Tokenizer
from fastrl.types import Completion

DECODE_STEPS = 16  # without a look at what waits: a block of cache taken ahead


class Sampler:
    """A paged sampler over a model's own parameters, which it never copies.

    `eos_token_ids`: tokens that end a response, by default the model's; `tokenizer`: needed for
    stop strings only.
    `num_blocks`: the pool's size; None takes what the call needs without preemption.
    `max_batch_tokens`: rows of one forward; `max_running`: sequences in the pool at once;
    `reserved_bytes`: of a GPU, what others take meanwhile.
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
        reserved_bytes: int = 0,
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
        check_known("eos_token_ids has", eos_token_ids or (), model.valid_vocab, "leave it out")
        self.model = model
        self.eos_token_ids = frozenset(
            model.eos_token_ids if eos_token_ids is None else eos_token_ids
        )
        self.tokenizer = tokenizer
        self.block_size, self.num_blocks = block_size, num_blocks
        self.max_batch_tokens, self.max_running = max_batch_tokens, max_running
        self.poison = poison_free_blocks
        self.stats = SamplerStats()
        self._steps: DecodeSteps | None = None  # with the cache
        self._reserved_bytes = reserved_bytes
        self._room = memory.Room(model, block_size, max_batch_tokens, reserved_bytes)
        self._least = self._blocks = 1  # of the last call: what its longest takes, and the pool

    def generate(
        self,
        prompt_token_ids: Seq[Seq[int]],
        params: SamplingParams | Seq[SamplingParams],
        *,
        prompt_keys: Seq[PromptKey] | None = None,
        step: int = 0,
        stream: str = "train",
        on_event: Callable[[Event], bool | None] | None = None,
        on_progress: Callable[[Progress], bool | None] | None = None,
    ) -> list[list[Completion]]:
        """`params.n` responses to each prompt, grouped by prompt.

        `params`: one for all prompts, or one each. `prompt_keys`, `step` and `stream` name the
        random numbers (default key: the prompt's index in the call). `on_progress` is called after
        each forward, then `on_event` with every response that it finished; either cancels the rest
        by returning False: their finish_reason is "cancelled", and no more is told of them.
        However a call ends, by an exception too, every block is free and the next call is as good
        as the first. Raises UsageError, before any work, for what can never be sampled.
        """
        groups, key = self._request(prompt_token_ids, params, prompt_keys, step, stream)
        with closing(self._forwards(groups, key, step)) as forwards:
            for call in forwards:
                if on_progress is not None and on_progress(call.progress()) is False:
                    break
                if on_event is not None and any(on_event(e) is False for e in call.events):
                    break
        return [[c for c in group.completions if c is not None] for group in groups]

    def as_finished(
        self,
        prompt_token_ids: Seq[Seq[int]],
        params: SamplingParams | Seq[SamplingParams],
        *,
        prompt_keys: Seq[PromptKey] | None = None,
        step: int = 0,
        stream: str = "train",
    ) -> Generator[Event, None, None]:
        """Each response as soon as it is finished; between two of them nothing is computed.

        Arguments as for `generate`; UsageError is raised by the call itself. Closing the generator
        cancels the rest and frees every block, as does leaving it to be collected.
        """
        groups, key = self._request(prompt_token_ids, params, prompt_keys, step, stream)
        return self._events(groups, key, step)

    def release(self) -> None:
        """Give a GPU's memory of the cache to others, the backward pass say, until the next call.

        That call takes one memory for all of it again, and captures the graphs that it uses anew:
        `stats.seconds_capture`. On a CPU the cache stays.
        """
        if self._steps is not None and self._steps.captures:
            self._steps = None
            torch.cuda.empty_cache()

    def shrink(self) -> str:
        """After a call that ran out of memory: half the pool and half the rows of a forward.

        Returns the new numbers in words. Responses stay what they were on a CPU; on a GPU other
        shapes of products may round differently. Raises Failure where the longest sequence of that
        call would not fit the pool.
        """
        blocks = max(self._least, (self.num_blocks or self._blocks) // 2)
        rows = max(self.block_size, self.max_batch_tokens // 2)
        if (blocks, rows) == (self.num_blocks, self.max_batch_tokens):
            raise Failure(
                f"out of memory while sampling with the smallest pool, {blocks:,} blocks; lower"
                " sampling.max_tokens"
            )
        self.num_blocks, self.max_batch_tokens = blocks, rows
        self._steps = None
        if self.model.head_weight.device.type == "cuda":
            torch.cuda.empty_cache()
        self._room = memory.Room(self.model, self.block_size, rows, self._reserved_bytes)
        return f"{blocks:,} blocks of cache and forwards of up to {rows:,} rows"

    def describe(self) -> str:
        """How this model is sampled here, in words."""
        weight = self.model.head_weight
        backends = choose(weight.device, weight.dtype, self.model.config.head_dim)
        dtype = str(weight.dtype).removeprefix("torch.")
        words = f"sampling in {dtype}, attention: {backends}"
        if backends.decode == "triton":
            return f"{words}, decode steps as CUDA graphs"
        if backends.decode != "cpu" or native.layers_of(self.model) is None:
            return words
        which = native.instruction_set()
        words += f", layers in C++ ({which})"
        if weight.dtype == torch.bfloat16 and which not in MULTIPLY_BF16:
            words += "; this processor has no products in bfloat16: float32 is faster"
        return words

    def _events(
        self, groups: list[Group], key: tuple[int, int], step: int
    ) -> Generator[Event, None, None]:
        with closing(self._forwards(groups, key, step)) as forwards:
            for call in forwards:
                yield from call.events

    def _forwards(
        self, groups: list[Group], key: tuple[int, int], step: int
    ) -> Generator[Call, None, None]:
        """The state of the call after each of its forwards: THE loop of the sampler."""
        self.stats = SamplerStats()
        if not groups:
            return
        call = self._begin(groups, key, step)
        try:
            while not call.scheduler.done:
                chunks = call.scheduler.schedule()
                if all(chunk.is_next_token for chunk in chunks):
                    yield from self._decode(call, [c.sequence for c in chunks])
                else:
                    self._advance(call, chunks)
                    yield call
            assert len(call.scheduler.pool.free) == call.scheduler.pool.num_blocks, "a block leaked"
        finally:
            self._end(call)

    def _request(
        self,
        prompts: Seq[Seq[int]],
        params: SamplingParams | Seq[SamplingParams],
        keys: Seq[PromptKey] | None,
        step: int,
        stream: str,
    ) -> tuple[list[Group], tuple[int, int]]:
        """What is asked for, and the key of its random numbers, once it can be sampled."""
        groups = groups_of(
            prompts, params, keys, model=self.model, has_tokenizer=self.tokenizer is not None,
            block_size=self.block_size, num_blocks=self.num_blocks,
        )  # fmt: skip
        check_range("step", step)
        check_range("token", self.model.valid_vocab - 1)
        seed = groups[0].params.seed if groups else None
        return groups, make_key(secrets.randbits(56) if seed is None else seed, stream)

    def _begin(self, groups: list[Group], key: tuple[int, int], step: int) -> Call:
        started = time.perf_counter()
        longest = max(len(g.prompt) + g.params.max_tokens for g in groups)
        least = -(-longest // self.block_size)  # blocks of the longest alone
        # prompts of the groups that run at once, their responses, and a tail block for each
        running = min(self.max_running, sum(g.params.n for g in groups))
        needed = (running + 1) * (least + 1)
        most_logits = max(running, *(g.params.n for g in groups))
        self._least = least
        # taken away until the call ends: one that begins meanwhile makes its own
        steps, self._steps = self._steps, None
        wanted = self.num_blocks or self._room.limit(needed, least)
        if steps is None or not steps.fit(self.model, wanted, self.block_size, longest):
            steps = None  # its memory first
            num_blocks = self.num_blocks or self._room.num_blocks(needed, least, most_logits)
            self._blocks = num_blocks
            cache = PagedCache(self.model, num_blocks, self.block_size, self.poison)
            steps = make_steps(self.model, cache, self.max_running, longest)
        cache = steps.cache
        pool = BlockPool(cache.num_blocks, cache.forget if self.poison else None)
        cache.forget(pool.free)
        scheduler = Scheduler(
            pool,
            groups,
            block_size=self.block_size,
            max_batch_tokens=self.max_batch_tokens,
            max_running=self.max_running,
        )
        return Call(
            groups=groups,
            scheduler=scheduler,
            runner=Runner(self.model, steps, self.max_running, longest),
            key=key,
            step=step,
            started=started,
            stats=self.stats,
        )

    def _end(self, call: Call) -> None:
        """Free every block; what was sampled so far is kept as it is."""
        scheduler = call.scheduler
        for sequence in (*scheduler.running, *scheduler.preempted):
            if sequence.response >= 0:
                cancelled = sequence.completion("cancelled")
                sequence.group.completions[sequence.response] = cancelled
        scheduler.abandon()
        empty = Completion((), (), (), "cancelled")
        for group in call.groups:
            group.completions[:] = [empty if c is None else c for c in group.completions]
        call.stats.rows_computed = call.runner.rows
        call.stats.recomputed_tokens = call.runner.recomputed
        call.stats.preemptions = scheduler.preemptions
        call.stats.seconds_capture = call.runner.steps.take_seconds_capture()
        call.stats.seconds = time.perf_counter() - call.started
        self._steps = call.runner.steps

    @torch.no_grad()
    def _advance(self, call: Call, chunks: list[Chunk]) -> None:
        """One forward, and a token for every sequence that it completes."""
        call.sampled, call.events = [], []
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
        self._leave(call, sequences, finished)

    @torch.no_grad()
    def _decode(self, call: Call, sequences: list[Sequence]) -> Generator[Call, None, None]:
        """Steps of one row each, DECODE_STEPS of them; fewer where all finish.

        Where graphs are ahead of the host only until the first that finishes: its row would go on.
        """
        scheduler, steps = call.scheduler, call.runner.steps
        left = min(s.group.params.max_tokens - len(s.token_ids) for s in sequences)
        count = scheduler.reserve(sequences, min(left, DECODE_STEPS))
        params = [s.group.params for s in sequences]
        call.runner.begin_steps(
            sequences, _counters(sequences, call.step), call.key,
            _settings(params, call.runner.cache.device), max(len(s.blocks) for s in sequences),
        )  # fmt: skip
        started: deque[Sampled] = deque()  # steps whose results were not read yet
        running = sequences
        try:
            for done in range(count + steps.lag):
                if done < count and len(running) == len(sequences):
                    started.append(steps.launch())
                    call.stats.forwards += 1
                    call.runner.count_step(sequences)
                if done < steps.lag or not started:
                    continue
                # what follows is the host's work on a step, while the GPU is at the next
                columns = started.popleft().wait()
                if len(running) < len(sequences):  # begun before it was known who had finished
                    kept = {id(s) for s in running}
                    columns = [
                        [x for x, s in zip(c, sequences, strict=True) if id(s) in kept]
                        for c in columns
                    ]
                    call.stats.discarded_rows += len(sequences) - len(running)
                call.sampled, call.events = [], []
                finished = self._append(call, running, columns)
                self._leave(call, running, finished)
                if finished:
                    rows = [i for i, s in enumerate(running) if id(s) not in finished]
                    running = [running[i] for i in rows]
                yield call
                if finished and not steps.lag:
                    if not running:
                        break
                    steps.keep(np.array(rows))
                    sequences = running
        finally:  # begun, and nobody waits for them
            call.stats.discarded_rows += len(sequences) * len(started)
        scheduler.trim(running)

    def _sample(
        self, call: Call, logits_RV: torch.Tensor, sequences: list[Sequence]
    ) -> dict[int, tuple[str, int | str | None]]:
        """Append a token to every sequence; the reasons of those that it finishes, by id()."""
        device = logits_RV.device
        found = ops.sample(
            logits_RV, torch.from_numpy(_counters(sequences, call.step)).to(device), call.key,
            **_settings([s.group.params for s in sequences], device),
        )  # fmt: skip
        columns = (found.tokens.tolist(), found.logprobs.tolist(), found.log_kept_mass.tolist())
        return self._append(call, sequences, columns)

    def _append(
        self, call: Call, sequences: list[Sequence], columns: Seq[Seq[Any]]
    ) -> dict[int, tuple[str, int | str | None]]:
        """As `_sample`, from tokens, log-probs and logs of the kept mass."""
        finished: dict[int, tuple[str, int | str | None]] = {}
        sampled, before, ends = call.sampled, len(call.sampled), self.eos_token_ids
        for sequence, token, logprob, kept_mass in zip(sequences, *columns, strict=True):
            if token < 0:  # the model gave a NaN, or nothing finite
                finished[id(sequence)] = ("error", None)
                continue
            sampled.append(sequence)
            sequence.token_ids.append(token)
            sequence.logprobs.append(logprob)
            sequence.log_kept_mass.append(kept_mass)
            p = sequence.group.params
            if token in ends and not p.ignore_eos:
                finished[id(sequence)] = ("stop", None)
            elif token in p.stop_token_ids:
                finished[id(sequence)] = ("stop", token)
            elif p.stop and (string := self._stop_string(sequence)) is not None:
                finished[id(sequence)] = ("stop", string)
            elif len(sequence.token_ids) == p.max_tokens:
                finished[id(sequence)] = ("length", None)
        call.stats.generated_tokens += len(sampled) - before
        return finished

    def _leave(
        self,
        call: Call,
        sequences: list[Sequence],
        finished: dict[int, tuple[str, int | str | None]],
    ) -> None:
        """Take those that are finished out of the pool."""
        if not finished:  # as after most steps
            return
        for sequence in sequences:
            if (reason := finished.get(id(sequence))) is not None:
                if sequence.slot >= 0:
                    call.scheduler.leave(sequence)
                self._finish(call, sequence, *reason)

    def _stop_string(self, sequence: Sequence) -> str | None:
        if sequence.stop_strings is None:
            assert self.tokenizer is not None
            sequence.stop_strings = StopStrings(self.tokenizer, sequence.group.params.stop)
        return sequence.stop_strings.find(sequence.token_ids)

    def _fork(
        self,
        call: Call,
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
        self, call: Call, sequence: Sequence, reason: str, stop_reason: int | str | None
    ) -> None:
        completion = sequence.completion(reason, stop_reason)
        group, response = sequence.group, sequence.response
        group.completions[response] = completion
        call.finished += 1
        call.events.append(Event(group.index, response, completion))


def _counters(sequences: Seq[Sequence], step: int) -> np.ndarray:
    """The random counters of the next token of each sequence."""
    groups = [s.group for s in sequences]
    return counters(
        np.array([len(s.token_ids) for s in sequences]),
        np.array([s.response for s in sequences]),
        np.array([g.key.draw for g in groups]),
        np.array([g.key.id for g in groups]),
        step,
    )


def _settings(params: Seq[SamplingParams], device: torch.device) -> dict[str, Any]:
    """What `ops.sample` takes of the params of rows: a number, or one a row."""
    names = ("temperature", "top_k", "top_p", "min_p")
    if len({tuple(getattr(p, name) for name in names) for p in params}) == 1:
        return {name: getattr(params[0], name) for name in names}
    # fp64, as the numbers are: a row does not depend on whether its neighbours have others
    found = {
        name: torch.tensor([getattr(p, name) for p in params], dtype=torch.float64, device=device)
        for name in names
    }
    return found | {"top_k": found["top_k"].long()}
