"""Whether a run fits a memory, and the settings with which it would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from fastrl.config import Config, with_values
from fastrl.errors import UsageError
from fastrl.memory_plan import MemoryPlan, Workload, gigabytes, plan_memory
from fastrl.model_config import DecoderConfig
from fastrl.ops.dense import cpu_multiplies_bf16

MAX_RUNNING = 256  # responses that the sampler holds at once
FEWEST_ROWS = 256  # of a micro-batch: fewer would hardly take less, and are slow
PROCESSES = (2, 4, 8)


def why_not_early(config: Config) -> str:
    """Why groups are not to be scored while others are sampled, and the way out; or ""."""
    if config.train.reference == "host":
        return "train.reference is 'host', away while responses are sampled; set it to 'device'"
    if config.loss.drop_groups_without_signal:
        return (
            "loss.drop_groups_without_signal leaves out groups that would be scored by then; set"
            " one of the two to its default"
        )
    return ""


@dataclass(frozen=True)
class Fit:
    """What a run's memory depends on beside its settings, and the memory that there is."""

    shapes: DecoderConfig
    valid_vocab: int
    longest_prompt: int  # tokens
    on_gpu: bool
    baseline: int = 0  # bytes that the process has already
    available: int | None = None  # bytes, the baseline included; None: nobody says
    host: int | None = None  # bytes of host memory beside a GPU; None: nobody says
    processes: int = 1

    def plan(self, config: Config) -> MemoryPlan:
        """The plan of these settings; "auto" is what costs least time where the run fits so."""
        again = {"on": (True,), "off": (False,), "auto": (False, True)}
        for early, checkpointed in product(
            self._early(config), again[config.train.checkpoint_activations]
        ):
            plan = self._plan(config, checkpointed, early)
            if self.holds(plan):
                break
        return plan

    def _early(self, config: Config) -> tuple[bool, ...]:
        """Whether groups are scored while others are sampled: what to try, in order."""
        asked = config.train.score_while_sampling
        if asked == "off" or self.processes > 1:  # those exchange all responses first
            return (False,)
        if asked == "on":
            return (True,)
        pays = self.on_gpu and not why_not_early(config)
        return (True, False) if pays else (False,)

    def holds(self, plan: MemoryPlan) -> bool:
        """Whether a plan fits what is available."""
        return (self.available is None or plan.peak <= self.available) and self._hosts(plan)

    def _hosts(self, plan: MemoryPlan) -> bool:
        return self.host is None or plan.host <= self.host

    def check(self, config: Config) -> MemoryPlan:
        """The plan of settings that fit; UsageError for others, with some that would."""
        plan = self.plan(config)
        if self.holds(plan):
            return plan
        if not self._hosts(plan):
            assert self.host is not None
            raise UsageError(
                f"the run needs {gigabytes(plan.host)} GB of host memory for what is kept there and"
                f" there are {gigabytes(self.host)} GB; set optim.state or train.reference to"
                " 'device', or start more processes"
            )
        assert self.available is not None
        raise UsageError(
            f"the run needs {gigabytes(plan.needed)} GB of memory (in the {plan.highest}) and there"
            f" are {gigabytes(self.available)} GB; {self.way_out(config)}"
        )

    def way_out(self, config: Config) -> str:
        """What would make the settings fit, in words."""
        least = config
        for settings in self._ways(config):
            changed = with_values(config, settings, from_text=False)
            plan = self.plan(changed)
            if self._hosts(plan):
                least = changed
            if self.holds(plan):
                *first, last = (f"{key} {value}" for key, value in settings.items())
                words = f"{', '.join(first)} and {last}"
                return f"with {words} it needs {gigabytes(plan.needed)} GB"
        needed = gigabytes(self.plan(least).needed)
        for processes in PROCESSES if self.on_gpu else ():
            more = replace(self, processes=processes)
            if processes > self.processes and more.holds(more.plan(least)):
                return (
                    f"no setting brings it below {needed} GB: share the state of the optimiser"
                    f" between {processes} processes, each with such a GPU"
                )
        return (
            f"no setting brings it below {needed} GB: take a smaller model, or a device with more"
            " memory"
        )

    def _ways(self, config: Config) -> Iterator[Mapping[str, Any]]:
        """Settings that need less: fewer rows first, then what costs more."""
        longest = self._workload(config, True, False).longest
        asked = config.train.max_tokens_per_batch
        fewer = (2**n for n in range((asked - 1).bit_length() - 1, 0, -1))
        rows = [asked, *(n for n in fewer if n >= FEWEST_ROWS)]
        small_cache = {"sampling.num_blocks": 4 * -(-longest // config.sampling.block_size)}
        narrow = {"model.dtype": "bfloat16"}
        more: list[dict[str, Any]] = [{}]
        if self.on_gpu:
            resting = {"train.reference": "host"} if config.train.keep_gathered else {}
            more += [resting, resting | {"optim.state": "host"}]
        else:  # a GPU's cache takes what there is
            more.append(small_cache)
        if config.model.dtype == "float32" or not self.on_gpu and config.model.dtype == "auto":
            more += [narrow, *([narrow | small_cache] if not self.on_gpu else [])]
        for extra in more:
            for n in rows:
                yield {
                    "train.max_tokens_per_batch": n,
                    "train.checkpoint_activations": "on",
                    **extra,
                }

    def _plan(self, config: Config, checkpointed: bool, early: bool) -> MemoryPlan:
        workload = self._workload(config, checkpointed, early)
        return plan_memory(workload, self.baseline, self.available)

    def _workload(self, config: Config, checkpointed: bool, early: bool) -> Workload:
        sampling, evaluation = config.sampling, config.eval
        sequences = sampling.prompts_per_step * sampling.responses_per_prompt
        prompts = -(-sampling.prompts_per_step // self.processes)  # of the process with most
        sampled = prompts * sampling.responses_per_prompt
        evaluated = max(evaluation.prompts, evaluation.test_prompts) * evaluation.samples
        narrow = config.model.dtype == "bfloat16" or self.on_gpu and config.model.dtype == "auto"
        return Workload(
            config=self.shapes,
            itemsize=2 if narrow else 4,
            on_gpu=self.on_gpu,
            valid_vocab=self.valid_vocab,
            rows=config.train.max_tokens_per_batch,
            sequences=sequences,
            running=min(MAX_RUNNING, max(sampled, evaluated)),
            longest=self.longest_prompt + sampling.max_tokens,
            longest_prompt=self.longest_prompt,
            max_batch_tokens=sampling.max_batch_tokens,
            block_size=sampling.block_size,
            num_blocks=sampling.num_blocks,
            checkpointed=checkpointed,
            processes=self.processes,
            keep_gathered=config.train.keep_gathered,
            host_state=config.optim.state == "host",
            host_reference=config.train.reference == "host",
            scores_early=early,
            copies_checkpoint=config.checkpoint.background == "on" and not self.on_gpu,
            multiplies_halves=self.on_gpu or cpu_multiplies_bf16(),
        )
