"""A run put together from its configuration, new or resumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastrl import tracking
from fastrl.check import audit, count
from fastrl.checkpoint import (
    DAMAGED,
    TrainerState,
    clear,
    newest_valid,
    read_optimizer,
    read_state,
    weights_sha256,
)
from fastrl.config import Config, read_toml
from fastrl.datasources import Example
from fastrl.distributed import ALONE, World
from fastrl.durable import sync
from fastrl.environment import data_sha256, describe, differences
from fastrl.errors import Failure, UsageError
from fastrl.evaluate import Evaluation, evaluate
from fastrl.fit import MAX_RUNNING
from fastrl.guard import COLLAPSES, Vitals
from fastrl.keeper import Keeper
from fastrl.losses import LossSpec
from fastrl.memory_plan import SAMPLE, SCORE, MemoryPlan
from fastrl.model import Decoder, load_model, resolve_model
from fastrl.objectives import Objective, check_contradictions
from fastrl.offload import Resting
from fastrl.optim import Optimizer
from fastrl.out_of_memory import halving, longest_rows, shrinking
from fastrl.preparation import Preparation, prepare, set_deterministic
from fastrl.prompts import PromptStream
from fastrl.random_init import random_model, random_sha256, save_random_model
from fastrl.rewards import Rewarder
from fastrl.run_directory import RunDirectory, capsule_name
from fastrl.sampler import Sampler, SamplingParams
from fastrl.scoring import Scores
from fastrl.sharding import copy_weights, gathered, shard
from fastrl.shares import pack_share, score_share
from fastrl.step import Learner
from fastrl.tokenizer import Tokenizer
from fastrl.weights import hf_tensors, load_weights, save_model

if TYPE_CHECKING:
    from fastrl.display import Display


@dataclass
class Run:
    """Everything that the loop works with."""

    config: Config
    directory: RunDirectory
    objective: Objective
    learner: Learner
    tokenizer: Tokenizer
    sampler: Sampler
    sampling: SamplingParams
    prompts: PromptStream
    rewarder: Rewarder
    held_out: Mapping[str, Sequence[Example]]  # "validation" and "test", where asked for
    notes: list[str]  # what the user should know before the first step
    memory: MemoryPlan
    data_sha256: Mapping[str, str]  # of each split
    step: int = 0  # optimiser steps done
    tokens_sampled: int = 0
    attempt: int = 0  # how often it was rolled back
    history: list[Vitals] = field(default_factory=list)  # of the steps done
    told: set[str] = field(default_factory=set)  # rules of anomalies that have a capsule

    def evaluate(self, split: str, display: Display) -> None:
        """Evaluate the policy on "validation" or "test" and add the line to eval.jsonl.

        Does nothing without prompts, and where the line of this step is there already.
        """
        examples, world = self.held_out.get(split, ()), self.learner.world
        if not examples or world.from_first(self.directory.has_evaluation(self.step, split)):
            return
        display.phase(f"{split} split")  # each evaluation has its own time
        params = replace(self.sampling, n=self.config.eval.samples, ignore_eos=False)
        with gathered(self.learner.policy, keep=self.learner.keep_gathered):
            evaluation = shrinking(
                self.sampler,
                world,
                lambda: evaluate(
                    self.sampler,
                    self.tokenizer,
                    examples,
                    params,
                    seed=self.config.train.seed,
                    step=0,  # the same random numbers at every step: comparisons are paired
                    mode=self.config.reward.mode,
                    on_event=display.count("evaluate", len(world.share(examples)) * params.n),
                    world=world,
                ),
                display.say,
            )
        line = {"step": self.step, "split": split, **evaluation.summary()}
        kl = self._kl(evaluation, display.say)
        self.directory.add_evaluation({**line, "kl": kl if math.isfinite(kl) else None})

    def _kl(self, evaluation: Evaluation, say: Callable[[str], None]) -> float:
        """KL(policy || reference) in nats a response: the mean of lpi - lp over the samples."""
        if self.step == 0:
            return 0.0
        pairs, groups, completions = evaluation.sequences()

        def both(learner: Learner) -> Scores:
            return score_share(learner, pack_share(learner, pairs, groups), completions)

        rows = longest_rows(list(pairs.values()))
        self.learner, scores = halving(self.learner, rows, both, say)
        return float(np.mean(scores.policy_logprob_R - scores.ref_logprob_R))

    @property
    def state(self) -> TrainerState:
        """What a checkpoint holds beside tensors."""
        return TrainerState(
            step=self.step,
            prompts_drawn=self.prompts.position,
            tokens_sampled=self.tokens_sampled,
            attempt=self.attempt,
            max_tokens_per_batch=self.learner.max_tokens_per_batch,
        )

    @property
    def stream(self) -> str:
        """The random numbers that responses are sampled with: others after each rolling back."""
        return f"attempt-{self.attempt - 1}" if self.attempt else "train"

    def keeper(self, say: Callable[[str], None]) -> Keeper:
        """What writes this run's checkpoints; `say` takes a line for the user."""
        on_gpu = self.learner.optimizer.device.type == "cuda"
        settings = self.config.checkpoint
        return Keeper(settings, self.directory, self.write_model, say, on_gpu=on_gpu)

    def write_model(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        """Save the policy's files with these weights, as `hf_tensors` gives them."""
        policy, model = self.learner.policy, self.config.model
        assert isinstance(policy, Decoder)
        if model.random_init:
            save_random_model(policy, self.tokenizer, path, weights)
        else:
            save_model(policy, resolve_model(model.name), path, weights)

    @contextmanager
    def tensors(self) -> Iterator[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]:
        """The policy's weights under Hugging Face's names, and the optimiser's state, as they are.

        Every process enters it; they are whole, on the first, for as long as it lasts.
        """
        policy = self.learner.policy
        assert isinstance(policy, Decoder)
        with gathered(policy, keep=self.learner.keep_gathered):
            yield hf_tensors(policy), self.learner.optimizer.state_tensors()

    def save_checkpoint(self, keeper: Keeper, *, needed: bool) -> None:
        """Have checkpoints/step_N of the state as it is written. Every process.

        `needed`: as for `Keeper.save`.
        """
        with self.tensors() as (weights, moments):
            if self.learner.world.is_first:
                keeper.save(weights, moments, self.state, needed=needed)


def loss_spec(config: Config) -> tuple[LossSpec, str]:
    """The loss and the name of the advantage estimator that the configuration asks for."""
    loss = config.loss
    if loss.preset:
        return LossSpec.preset(loss.preset), loss.advantage
    spec = LossSpec(
        loss=loss.loss,
        clip_low=loss.clip_low,
        clip_high=loss.clip_high,
        loss_agg_mode=loss.loss_agg_mode,
        kl_estimator=None if loss.kl == "none" else loss.kl,
        kl_coef=loss.kl_coef,
        entropy_coef=loss.entropy_coef,
        sampler_correction=None if loss.sampler_correction == "none" else loss.sampler_correction,
        sampler_correction_cap=loss.sampler_correction_cap,
        on_policy=True,
    )
    return spec, loss.advantage


def start(config: Config, world: World = ALONE) -> Run:
    """A new run with its directory.

    Raises UsageError, before that is made, for what contradicts itself or fails its audit.
    """
    run = untold(config, world)
    if config.train.check:
        checks = audit(run)
        run.notes += [f"{c.name}: {c.found}; {c.way_out}" for c in checks if c.status == "warn"]
        run.notes.append(f"audit: {count(checks)}")
        if failed := [c for c in checks if c.status == "fail"]:
            raise UsageError(
                f"the audit failed ({count(checks)}), {failed[0].name}: {failed[0].found};"
                f" {failed[0].way_out}; fastrl check shows all, --train.check false goes on"
            )
    made = RunDirectory.create(run.config) if world.is_first else None
    path = world.from_first(str(made.path) if made else "")
    run.directory = made or RunDirectory(Path(path), writes=False)
    run.directory.add_environment({**describe(), "step": 0, "data": run.data_sha256})
    sync(*run.directory.take_unsynced())
    return run


def untold(config: Config, world: World = ALONE) -> Run:
    """A new run without a directory. Raises UsageError for what contradicts itself."""
    check_contradictions(config)
    if world.is_first:
        tracking.require(config.tracking)
    prepared = prepare(config, world.size)
    name = config.model.name
    digest = initial_sha256(config, prepared)
    if config.model.sha256 and config.model.sha256 != digest:
        raise UsageError(
            f"the weights of {name} have the SHA-256 {digest[:12]}..., not the"
            f" {config.model.sha256[:12]}... of the configuration; give the model the run was"
            " made for"
        )
    if Path(name).expanduser().is_dir():
        name = str(Path(name).expanduser().resolve())
    config = replace(config, model=replace(config.model, name=name, sha256=digest))
    return assemble(config, world=world, prepared=prepared)


def resume(
    path: str | Path, say: Callable[[str], None], world: World = ALONE, attempt: int = 0
) -> Run:
    """The run in `path` at its newest whole checkpoint, its later records dropped.

    The number of processes may be another one. `attempt`: of a run that is rolled back. Raises
    UsageError where another process is at work on the run.
    """
    directory = RunDirectory.open(path, writes=world.is_first)
    directory.hold()
    config = read_toml(directory.config)
    checkpoint = None
    if world.is_first:
        tracking.require(config.tracking)
        checkpoint, skipped = newest_valid(directory.checkpoints)
        for line in skipped:
            say(line)
        try:
            aside = clear(directory.checkpoints, checkpoint)
        except OSError as error:
            raise Failure(f"{directory.checkpoints} cannot be tidied: {error.strerror}") from None
        for found in aside:
            say(f"{found.name.removeprefix(DAMAGED)} is kept as {found.name}; it may be removed")
    name = world.from_first(checkpoint.name if checkpoint else "")
    checkpoint = directory.checkpoints / name if name else None
    run = restored(config, checkpoint, world)
    then = directory.read_environment()
    for split, digest in run.data_sha256.items():
        if then and then["data"].get(split) != digest:
            raise UsageError(
                f"the {split} prompts are not those that this run began with (their SHA-256 in"
                f" {directory.environment} differs); put the data back as they were"
            )
    now = describe()
    if changed := differences(then, now):
        say(f"not as at the start of the run, so that bits may differ: {'; '.join(changed)}")
    run.directory = directory
    for line in directory.cut_back(run.step if checkpoint else -1):
        say(line)
    if attempt:
        directory.add_roll_back(run.step, attempt)
    run.attempt = max(run.attempt, attempt, world.from_first(directory.attempt(run.step)))
    directory.add_environment({**now, "step": run.step, "data": run.data_sha256})
    run.history = [Vitals.of_metrics(line) for line in directory.read_metrics()]
    # a run that was stopped for a collapse goes on when its user says so; what else was done about
    # one after this step is done again
    stops = config.anomaly.collapse in ("auto", "stop")
    capsules = directory.capsules(run.attempt)
    run.told = {rule for rule, step in capsules.items() if stops or step <= run.step}
    if stops:
        for rule in sorted(run.told & COLLAPSES):
            name = capsule_name(capsules[rule], run.attempt, rule)
            say(f"{directory.anomalies / name} was found before; the run goes on")
    return run


def restored(config: Config, checkpoint: Path | None, world: World = ALONE) -> Run:
    """A run at a checkpoint, or at its start where there is none, without its directory.

    Raises UsageError where the configured model is not the one that the run began with.
    """
    prepared = prepare(config, world.size)
    if initial_sha256(config, prepared) != config.model.sha256:
        raise UsageError(
            f"the reference {config.model.name} is not the model that this run started from (its "
            "SHA-256 differs); put the original weights back"
        )
    run = assemble(config, checkpoint, world, prepared)
    if checkpoint:
        read_optimizer(checkpoint, run.learner.optimizer)
        state = read_state(checkpoint)
        run.step, run.tokens_sampled, run.attempt = state.step, state.tokens_sampled, state.attempt
        run.prompts.position = state.prompts_drawn
        if rows := state.max_tokens_per_batch:
            run.learner = replace(run.learner, max_tokens_per_batch=rows)
    return run


def initial_sha256(config: Config, prepared: Preparation) -> str:
    """The digest of the weights that policy and reference start from."""
    if config.model.random_init:
        return random_sha256(prepared.outline, config.train.seed)
    return weights_sha256(resolve_model(config.model.name))


def models(
    config: Config, prepared: Preparation, checkpoint: Path | None, world: World = ALONE
) -> tuple[Decoder, Decoder]:
    """Policy and frozen reference; the policy's weights from `checkpoint`, if there is one.

    Of several processes each has its pieces only, but the whole reference where it is kept so.
    """
    keep_gathered, device = config.train.keep_gathered, prepared.device
    pieces = partial(shard, keep_gathered=keep_gathered, device=device) if world.size > 1 else None
    of_reference = None if keep_gathered else pieces
    kind: dict[str, Any] = {"dtype": prepared.dtype, "device": device}
    if config.model.random_init:
        found, seed = prepared.outline, config.train.seed
        reference = random_model(found, seed, **kind, sharded=of_reference)
        policy = random_model(found, None, **kind, sharded=pieces)
        if checkpoint:
            load_weights(policy, checkpoint)
        else:
            copy_weights(reference, policy)
    else:
        policy = load_model(checkpoint or config.model.name, **kind, sharded=pieces)
        reference = load_model(config.model.name, **kind, sharded=of_reference)
    return policy, reference.requires_grad_(False)


def assemble(
    config: Config,
    checkpoint: Path | None = None,
    world: World = ALONE,
    prepared: Preparation | None = None,
) -> Run:
    """All parts of a run at step 0, without its directory; the policy's weights from `checkpoint`.

    Without one the policy starts as the configured model. In a `world` of several processes it is
    sharded, and the reference too unless it can be kept whole.
    """
    objective = check_contradictions(config)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    if config.train.deterministic:
        set_deterministic()
    spec, advantage = loss_spec(config)
    rewarder = Rewarder(config.reward, config.sampling.max_tokens)
    prepared = prepared or prepare(config, world.size)
    tokenizer, sets, sampling = prepared.tokenizer, dict(prepared.sets), config.sampling
    policy, reference = models(config, prepared, checkpoint, world)
    # alike on all processes: a layer computed again may be gathered again
    policy.checkpoint_activations = world.any(prepared.memory.workload.checkpointed)
    sampler = Sampler(
        policy,
        tokenizer=tokenizer,
        block_size=sampling.block_size,
        num_blocks=sampling.num_blocks or None,
        max_batch_tokens=sampling.max_batch_tokens,
        max_running=MAX_RUNNING,
        reserved_bytes=prepared.memory.phases[SAMPLE].get(SCORE, 0),
    )
    notes = [sampler.describe(), *prepared.notes]
    if prepared.memory.workload.scores_early:
        notes.append("whole groups are scored while other responses are sampled")
    elif config.train.score_while_sampling == "on":
        notes.append(
            f"train.score_while_sampling is off: {world.size} processes exchange all responses"
            " before they score them"
        )
    keep_gathered = config.train.keep_gathered
    if world.size > 1:
        kept = "whole during a step" if keep_gathered else "gathered a layer at a time"
        notes.append(f"{world.size} processes, parameters {kept}")
    return Run(
        config=config,
        directory=RunDirectory(Path()),
        objective=objective,
        learner=Learner(
            policy=policy,
            reference=reference,
            objective=objective,
            spec=spec,
            advantage=advantage,
            optimizer=Optimizer(policy, config.optim, config.train.max_steps, world),
            max_tokens_per_batch=config.train.max_tokens_per_batch,
            max_response_tokens=sampling.max_tokens,
            drop_groups_without_signal=config.loss.drop_groups_without_signal,
            max_groups=sampling.prompts_per_step,
            mask_truncated=config.loss.mask_truncated,
            minibatches=config.train.minibatches,
            epochs=config.train.epochs,
            share_prompts=config.train.share_prompts,
            world=world,
            resting=Resting(reference) if config.train.reference == "host" else None,
            keep_gathered=keep_gathered,
            score_while_sampling=prepared.memory.workload.scores_early,
        ),
        tokenizer=tokenizer,
        sampler=sampler,
        sampling=SamplingParams(
            n=sampling.responses_per_prompt,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            stop=sampling.stop,
            seed=config.train.seed,
            ignore_eos=sampling.ignore_eos,
        ),
        prompts=PromptStream(sets.pop("train"), seed=config.train.seed),
        rewarder=rewarder,
        held_out={split: found.examples for split, found in sets.items()},
        notes=notes,
        memory=prepared.memory,
        data_sha256={split: data_sha256(s.examples) for split, s in prepared.sets.items()},
    )
