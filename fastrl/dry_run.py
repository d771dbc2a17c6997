"""What a run would do, from its configuration alone: no weights are read and nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tomli_w
import torch

from fastrl.config import Config, to_dict
from fastrl.device_memory import available_bytes, parse_bytes
from fastrl.errors import Unavailable, UsageError
from fastrl.fit import Fit
from fastrl.memory_plan import MemoryPlan, gigabytes
from fastrl.objectives import Objective, check_contradictions
from fastrl.preparation import (
    check_host,
    check_numbers,
    dtype_of,
    longest_prompt,
    process_bytes,
    random_notes,
    split_readers,
    tokenizer_of,
)
from fastrl.prompts import Tokenized
from fastrl.shapes import outline
from fastrl.time_plan import (
    ASSUMPTIONS,
    Rates,
    TimePlan,
    gpu_named,
    measured,
    plan_time,
    rated,
)
from fastrl.tokenizer import Tokenizer

ASSUMED_GPU = "h100-80gb"


@dataclass(frozen=True)
class Assumed:
    """The machine that a dry run plans for, where it is not this one."""

    gpu: str = ""  # a name in time_plan.GPUS
    memory: str = ""  # of the device, as 80GB
    processes: int = 1


@dataclass(frozen=True)
class DryRun:
    """The findings; `refusal` says what would make it fit, "" where it does."""

    config: Config
    objective: Objective
    device: str
    data: Mapping[str, int | str]  # prompts of each split, or why there are none
    notes: list[str]
    memory: MemoryPlan
    available: int | None
    refusal: str
    tokens: Mapping[str, int]  # of a step, at most
    time: TimePlan

    def __str__(self) -> str:
        tokens, hours = self.tokens, self.time.step * self.config.train.max_steps / 3600
        data = "; ".join(
            f"{split} {found:,} prompts" if isinstance(found, int) else f"{split}: {found}"
            for split, found in self.data.items()
        )
        there = "" if self.available is None else f"; {gigabytes(self.available)} GB are there"
        steps = f"{self.config.train.max_steps:,} steps"
        lines = [
            f"{self.objective.name} ({self.objective.study_name}): converges to"
            f" {self.objective.target}",
            "",
            tomli_w.dumps(to_dict(self.config)),
            *(f"note    {line}" for line in self.notes),
            f"device  {self.device}",
            f"data    {data}",
            f"tokens  of a step at most: {tokens['prompts']:,} prompts, {tokens['responses']:,}"
            f" responses, {tokens['sampled']:,} tokens sampled, {tokens['rows']:,} rows trained in"
            f" micro-batches of up to {tokens['micro_batch_rows']:,}",
            *self.memory.table(),
            f"memory  {'does not fit' if self.refusal else 'fits'}: at most"
            f" {gigabytes(self.memory.peak)} GB{there}",
            f"time    {self.time}, {hours:.3g} h for {steps}, evaluations not counted",
            f"        {self.time.rates.source}; {ASSUMPTIONS}",
        ]
        return "\n".join([*lines, *([self.refusal] if self.refusal else [])])

    def to_dict(self) -> dict[str, Any]:
        """The findings as plain values, bytes and seconds."""
        memory, seconds = self.memory, self.time
        return {
            "objective": self.objective.name,
            "target": self.objective.target,
            "config": to_dict(self.config),
            "device": self.device,
            "notes": self.notes,
            "data": dict(self.data),
            "tokens": dict(self.tokens),
            "memory": {
                "fits": not self.refusal,
                "refusal": self.refusal,
                "available": self.available,
                "peak": memory.peak,
                "baseline": memory.baseline,
                "checkpointed": memory.workload.checkpointed,
                "phases": {name: dict(parts) for name, parts in memory.phases.items()},
            },
            "seconds": {
                "step": seconds.step,
                "sample": seconds.sample,
                "score": seconds.score,
                "train": seconds.train,
                "update": seconds.update,
                "assumed": f"{seconds.rates.source}; {ASSUMPTIONS}",
            },
        }


def dry_run(config: Config, assumed: Assumed) -> DryRun:
    """Resolve, count and plan a run; UsageError for a configuration that no run can have."""
    objective = check_contradictions(config)
    check_numbers(config)
    if assumed.processes < 1:
        raise UsageError(f"--processes is {assumed.processes}; it must be at least 1")
    machine = _machine(config, assumed)
    check_host(config, on_gpu=machine.on_gpu)
    found = outline(config.model.name)
    tokenizer: Tokenizer | None = None
    valid_vocab = found.config.vocab_size
    notes = random_notes(found) if config.model.random_init else []
    if config.model.random_init or found.directory:
        tokenizer, valid_vocab = tokenizer_of(config, found)
    else:
        notes.append(
            f"the files of {found.name} are not here: its shapes are from the table of known"
            " shapes, and prompts are taken to be as long as they may be"
        )
    data, longest = _data(config, tokenizer, found.config.max_position)
    fit = Fit(
        shapes=found.config,
        valid_vocab=valid_vocab,
        longest_prompt=longest,
        on_gpu=machine.on_gpu,
        baseline=0 if machine.on_gpu else process_bytes(),
        available=machine.available,
        processes=assumed.processes,
    )
    plan = fit.plan(config)
    work, rounds = plan.workload, config.sampling.max_rounds
    return DryRun(
        config=config,
        objective=objective,
        device=machine.words,
        data=data,
        notes=notes,
        memory=plan,
        available=machine.available,
        refusal="" if fit.holds(plan) else fit.way_out(config),
        tokens={
            "prompts": config.sampling.prompts_per_step * rounds,
            "responses": work.sequences * rounds,
            "sampled": work.sequences * config.sampling.max_tokens * rounds,
            "rows": work.sequences * (work.longest - 1),
            "micro_batch_rows": work.micro_batch_rows,
        },
        time=plan_time(work, machine.rates(), rounds),
    )


@dataclass(frozen=True)
class _Machine:
    words: str
    on_gpu: bool
    available: int | None  # bytes of memory
    rates: Callable[[], Rates]


def _machine(config: Config, assumed: Assumed) -> _Machine:
    """This machine, or the assumed one: a GPU where the run is for one and there is none here."""
    memory = parse_bytes(assumed.memory) if assumed.memory else None
    asked, here = config.model.device, torch.cuda.is_available()
    on_gpu = bool(assumed.gpu) or asked.startswith("cuda") or (asked == "auto" and here)
    each = f"{assumed.processes} x " if assumed.processes > 1 else ""
    if on_gpu and (assumed.gpu or not here):
        name = assumed.gpu or ASSUMED_GPU
        known = gpu_named(name)
        why = "" if assumed.gpu else "; there is no GPU here, --gpu names another"
        words = f"{each}{name} assumed{why}"
        return _Machine(words, True, memory or known.memory, lambda: rated(name))
    device = torch.device("cuda" if on_gpu else "cpu")
    dtype = dtype_of(config, on_gpu=on_gpu)
    return _Machine(
        f"{each}{torch.cuda.get_device_name(device) if on_gpu else 'this CPU'}",
        on_gpu,
        memory or available_bytes(device, sharers=assumed.processes),
        lambda: measured(device, dtype),
    )


def _data(
    config: Config, tokenizer: Tokenizer | None, max_position: int
) -> tuple[dict[str, int | str], int]:
    """The prompts of each split, or why there are none, and the tokens of the longest prompt."""
    room = longest_prompt(config, max_position)
    counts: dict[str, int | str] = {}
    longest: list[int] = []
    gone = False
    for split, read in split_readers(config).items():
        try:
            if gone:  # a hub that is not to be had is not asked again
                raise Unavailable("not asked for either")
            examples = read()
        except Unavailable as error:
            gone = True
            counts[split] = f"not at hand ({error})"
            longest.append(room)
            continue
        if tokenizer is None:
            counts[split] = len(examples)
            longest.append(room)
        else:
            tokenized = Tokenized(examples, tokenizer, room)
            counts[split] = len(tokenized.examples)
            longest.append(tokenized.longest)
    return counts, max(longest)
