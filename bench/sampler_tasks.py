"""What the rows of `fastrl bench sampler` time: prompts, lengths, rivals and bounds.

Prompts are random tokens; responses have a set length, which no end token cuts.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fastrl.bench import sampler_limits as limits
from fastrl.bench.sampler_rivals import ContinuousBatching, Generate, Rival, Subject
from fastrl.errors import UsageError
from fastrl.model import Decoder
from fastrl.sampler import Sampler, SamplingParams

Shape = tuple[int, ...]  # responses, tokens of a prompt, new tokens
GROUP, LARGE_GROUP = 8, 16  # responses a prompt
SHORTEST = 8  # of mixed lengths
LARGE = ("Qwen2.5-3B", "Llama-3.2-3B", "Qwen3-4B")
GPU_NAMES = ("decode", "prefill", "nano-vllm")


class Call:
    """A call of the sampler, again and again; it keeps what the last one found."""

    def __init__(
        self,
        model: Decoder,
        prompts: list[list[int]],
        params: Sequence[SamplingParams],
        num_blocks: int | None = None,
    ) -> None:
        self.prompts, self.params = prompts, params
        self.responses = sum(p.n for p in params)
        self.tokens = sum(p.n * p.max_tokens for p in params)
        longest = max(map(len, prompts)) + max(p.max_tokens for p in params)
        # of a batch of whole rows: each has its prompt and goes on until the longest ends
        self.padded_rows = self.responses * (longest - 1)
        on_gpu = model.embed.device.type == "cuda"
        self.sampler = Sampler(
            model,
            num_blocks=num_blocks,
            max_running=max(256, self.responses),
            max_batch_tokens=8192 if on_gpu else 2048,
        )

    def __call__(self) -> None:
        self.found = self.sampler.generate(self.prompts, self.params)
        assert self.sampler.stats.generated_tokens == self.tokens, "a response has another length"

    @property
    def rows(self) -> int:
        """Rows that the last call computed, prompts and responses."""
        return self.sampler.stats.rows_computed


@dataclass(frozen=True)
class Task:
    """What a row times: our call, its rivals, and the bounds that it is compared with."""

    ours: Call
    rivals: Mapping[str, Call | Rival] = field(default_factory=dict)
    bare_matmuls: Callable[[], None] | None = None
    bounds: Callable[[float], dict[str, float]] = lambda tokens_per_s: {}


def _prompts(model: Decoder, count: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.valid_vocab, (count, length), generator=generator).tolist()


def _params(n: int, new: int, temperature: float = 1.0) -> SamplingParams:
    return SamplingParams(n=n, max_tokens=new, temperature=temperature, seed=0, ignore_eos=True)


def _groups(responses: int, largest: int = GROUP) -> tuple[int, int]:
    """Prompts, and responses of each."""
    group = min(largest, responses)
    if responses % group:
        raise UsageError(f"{responses} responses are no groups of {group}; give a multiple of it")
    return responses // group, group


def sample_groups(one: Subject, shape: Shape) -> Task:
    """Groups of 8 beside `generate` and continuous batching."""
    responses, length, new = shape
    count, group = _groups(responses)
    prompts = _prompts(one.model, count, length)
    rivals = {
        "generate": Generate(one.theirs, prompts, group, new),
        "continuous batching": ContinuousBatching(one.theirs, prompts, group, new),
    }
    ours = Call(one.model, prompts, [_params(group, new)] * count)
    return Task(ours, rivals, limits.bare_matmuls(one.model, responses))


def mixed_lengths(one: Subject, shape: Shape) -> Task:
    """Groups from 8 new tokens to the shape's, beside as many tokens in responses of one length."""
    responses, length, longest = shape
    count, group = _groups(responses)
    prompts = _prompts(one.model, count, length)
    lengths = np.geomspace(SHORTEST, longest, count).round().astype(int).tolist()
    ours = Call(one.model, prompts, [_params(group, new) for new in lengths])
    mean = round(statistics.mean(lengths))
    return Task(ours, {"uniform lengths": Call(one.model, prompts, [_params(group, mean)] * count)})


def shared_prompt(one: Subject, shape: Shape) -> Task:
    """Groups of 16 beside the same requests as groups of one."""
    responses, length, new = shape
    count, group = _groups(responses, LARGE_GROUP)
    prompts = _prompts(one.model, count, length)
    ours = Call(one.model, prompts, [_params(group, new)] * count)
    every = [prompt for prompt in prompts for _ in range(group)]
    separate = Call(one.model, every, [_params(1, new)] * responses)
    return Task(ours, {f"prompt computed {group} times": separate})


def decode(one: Subject, shape: Shape, machine: limits.Machine) -> Task:
    """As `sample_groups`, with the bound of a decode step in the middle of the responses."""
    responses, length, new = shape
    task = sample_groups(one, shape)
    own, shared = responses * new / 2, len(task.ours.prompts) * length
    seconds = limits.decode_seconds(
        one.model.config, machine, responses, responses * length + own, shared + own,
        one.model.embed.element_size(),
    )  # fmt: skip
    allowed = responses / seconds
    return Task(
        task.ours, task.rivals, task.bare_matmuls,
        lambda speed: {"limit_tokens_per_s": allowed, "share_of_limit": speed / allowed},
    )  # fmt: skip


def prefill(one: Subject, shape: Shape, machine: limits.Machine) -> Task:
    """A token each after long prompts, as a share of the measured matmul rate."""
    count, length, new = shape
    if new != 1:
        raise UsageError(f"a prefill makes 1 new token, not {new}; write {count},{length},1")
    prompts = _prompts(one.model, count, length)
    work = limits.prefill_operations(one.model.config, count, length)

    def bounds(tokens_per_s: float) -> dict[str, float]:
        rate = work * tokens_per_s / count
        return {
            "prompt_tokens_per_s": length * tokens_per_s,
            "tflops": rate / 1e12,
            "matmul_tflops": machine.matmul_rate / 1e12,
            "share_of_matmul_rate": rate / machine.matmul_rate,
        }

    return Task(Call(one.model, prompts, [_params(1, 1)] * count), bounds=bounds)


def nano_vllm(one: Subject, shape: Shape, machine: limits.Machine) -> Task:
    """The requests of nano-vllm's bench.py: random lengths from 100, temperature 0.6."""
    count, longest, most = shape
    draw = random.Random(0)
    prompts = [
        [draw.randint(0, 10_000) for _ in range(draw.randint(100, longest))] for _ in range(count)
    ]
    params = [_params(1, draw.randint(100, most), temperature=0.6) for _ in range(count)]
    # without a number it takes blocks for 256 of the longest
    lengths = [len(prompt) + p.max_tokens for prompt, p in zip(prompts, params, strict=True)]
    return Task(Call(one.model, prompts, params, num_blocks=sum(-(-n // 16) for n in lengths)))


@dataclass(frozen=True)
class Case:
    """A kind of row, with its shapes. `source` None: SmolLM2-135M, or what --model names."""

    name: str
    make: Callable[..., Task]
    shapes: tuple[Shape, ...]
    source: str | None = None


CASES = (
    Case("sample groups", sample_groups, ((32, 58, 64), (128, 58, 64))),
    Case("mixed lengths", mixed_lengths, ((128, 58, 256),)),
    Case("shared prompt", shared_prompt, ((32, 1000, 64),)),
    Case("embedded", sample_groups, ((256, 20, 64),), "embedded"),
)
DECODE_SHAPES = tuple((responses, 64, 128) for responses in (1, 8, 64, 256, 512))
GPU_CASES = (
    *(
        case
        for name in LARGE
        for case in (
            Case("decode", decode, DECODE_SHAPES, name),
            Case("prefill", prefill, ((8, 2048, 1),), name),
        )
    ),
    Case("nano-vllm", nano_vllm, ((256, 1024, 1024),), "Qwen3-0.6B"),
)
