"""What is known of a run before any weight is read: model, data, and whether it fits the memory."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastrl.config import Config
from fastrl.datasources import Example, load_examples, test_split
from fastrl.device_memory import available_bytes, resident_bytes
from fastrl.errors import UsageError
from fastrl.fit import Fit, why_not_early
from fastrl.losses import LossSpec
from fastrl.memory_plan import MemoryPlan
from fastrl.model import resolve_model
from fastrl.prompts import Tokenized
from fastrl.random_init import SUBSTITUTE, find_tokenizer
from fastrl.sampler.philox import MAX_ATTEMPTS
from fastrl.shapes import Outline, outline
from fastrl.tokenizer import Tokenizer, load_tokenizer

FIRST_STEP_BYTES = 100_000_000  # 60 MB in the first forwards, 40 MB with the first completions


@dataclass(frozen=True)
class Preparation:
    """A run without its weights."""

    outline: Outline
    tokenizer: Tokenizer
    sets: dict[str, Tokenized]  # "train", and "validation" and "test" where asked for
    device: torch.device
    dtype: torch.dtype
    memory: MemoryPlan
    notes: list[str]  # what the user should know


def prepare(config: Config, processes: int = 1) -> Preparation:
    """Everything of a run but its weights, for one of some processes.

    Raises UsageError for numbers that no run can have, for a model or data that are not there, and
    for what the device has no memory for.
    """
    check_numbers(config)
    device, dtype = placement(config)
    check_host(config, on_gpu=device.type == "cuda")
    found = outline(config.model.name)
    tokenizer, valid_vocab = tokenizer_of(config, found)
    sets = prompt_sets(config, tokenizer, found.config.max_position)
    on_gpu = device.type == "cuda"
    fit = Fit(
        shapes=found.config,
        valid_vocab=valid_vocab,
        longest_prompt=max(found.longest for found in sets.values()),
        on_gpu=on_gpu,
        baseline=0 if on_gpu else process_bytes(),
        available=available_bytes(device, sharers=processes),
        host=available_bytes(torch.device("cpu"), sharers=processes) if on_gpu else None,
        processes=processes,
    )
    plan = fit.check(config)
    notes = random_notes(found) if config.model.random_init else []
    notes += [f"{split}: {line}" for split, some in sets.items() for line in some.report()]
    return Preparation(found, tokenizer, sets, device, dtype, plan, notes)


def tokenizer_of(config: Config, found: Outline) -> tuple[Tokenizer, int]:
    """The tokenizer of a run, and how many of its ids are valid.

    Raises UsageError for a model whose files are not at hand, unless its weights are random.
    """
    if config.model.random_init:
        return find_tokenizer(found)
    # raises what a name without files is refused with
    tokenizer = load_tokenizer(found.directory or resolve_model(found.name, weights=False))
    return tokenizer, min(tokenizer.valid_vocab, found.config.vocab_size)


def process_bytes() -> int:
    """The resident memory of this process with what a run loads when it first needs it.

    What the first step adds without asking (kernels' code, threads, the writer of completions) is
    FIRST_STEP_BYTES.
    """
    import pyarrow.parquet  # noqa: F401  completions

    weight = torch.zeros(1, requires_grad=True)  # autograd, and what AdamW imports
    optimizer = torch.optim.AdamW([weight])
    (weight * weight).sum().backward()
    optimizer.step()
    return resident_bytes() + FIRST_STEP_BYTES


def placement(config: Config) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype of a run; UsageError for a GPU that is not there."""
    name = config.model.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda") or not re.fullmatch(r"\w+(:\d+)?", name):
        raise UsageError(f"model.device is {name!r}; give auto, cpu, cuda, or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"model.device is {name!r}, but torch finds no GPU here; set model.device to 'cpu', or"
            " plan for one with --dry-run"
        )
    return device, dtype_of(config, on_gpu=device.type == "cuda")


def set_deterministic() -> None:
    """Have torch and the libraries of a GPU take the kernels that give the same bits each time.

    What has none says so, and runs.
    """
    # read by cuBLAS when it is first used; torch asks for one of two values
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def check_host(config: Config, *, on_gpu: bool) -> None:
    """Raise UsageError for what cannot lie in a GPU's host memory."""
    places = {"optim.state": config.optim.state, "train.reference": config.train.reference}
    for key, value in places.items():
        if value == "host" and not on_gpu:
            raise UsageError(
                f"{key} is 'host', which is the memory beside a GPU, and the run is on a CPU; leave"
                " it at 'device'"
            )
    if config.train.reference == "host" and not config.train.keep_gathered:
        raise UsageError(
            "train.reference is 'host' and train.keep_gathered is false, which shares the reference"
            " between the processes already; set one of them to its default"
        )


def dtype_of(config: Config, *, on_gpu: bool) -> torch.dtype:
    """The dtype of a run on such a device."""
    if config.model.dtype == "auto":
        return torch.bfloat16 if on_gpu else torch.float32
    return getattr(torch, config.model.dtype)


def random_notes(found: Outline) -> list[str]:
    """What a run of random weights is to say of them."""
    shapes = "its config.json" if found.directory else "the table of known shapes"
    own = "its own tokenizer" if found.has_tokenizer else f"the {SUBSTITUTE} model's tokenizer"
    return [f"random weights: the shapes of {found.name} from {shapes}, {own}"]


def prompt_sets(config: Config, tokenizer: Tokenizer, max_position: int) -> dict[str, Tokenized]:
    """The prompts of every split that the run reads."""
    room = longest_prompt(config, max_position)
    return {
        split: Tokenized(read(), tokenizer, room) for split, read in split_readers(config).items()
    }


def split_readers(config: Config) -> dict[str, Callable[[], list[Example]]]:
    """For each split that the run reads, what reads it."""
    data, evaluation = config.data, config.eval

    def reader(source: str, split: str, limit: int) -> Callable[[], list[Example]]:
        return lambda: load_examples(
            source,
            split=split,
            seed=config.train.seed,
            limit=limit or None,
            template=data.template or None,
            shots=data.shots,
            task_args=data.task_args if source == data.source else None,
        )

    readers = {"train": reader(data.source, "train", data.limit)}
    if evaluation.prompts:
        readers["validation"] = reader(data.source, "validation", evaluation.prompts)
    if evaluation.test_prompts:
        source = data.eval_source or data.source
        readers["test"] = reader(source, test_split(source, data.source), evaluation.test_prompts)
    return readers


def check_numbers(config: Config) -> None:
    """Raise UsageError for counts and lengths that no run can have, alone or together."""
    sampling, train = config.sampling, config.train
    for key, value, least in (
        ("sampling.prompts_per_step", sampling.prompts_per_step, 1),
        ("sampling.responses_per_prompt", sampling.responses_per_prompt, 2),
        ("sampling.max_rounds", sampling.max_rounds, 1),
        ("sampling.max_tokens", sampling.max_tokens, 1),
        ("train.max_steps", train.max_steps, 1),
        ("train.max_tokens_per_batch", train.max_tokens_per_batch, 1),
        ("train.minibatches", train.minibatches, 1),
        ("train.epochs", train.epochs, 1),
        ("train.seed", train.seed, 0),
        ("train.threads", train.threads, 0),
        ("eval.prompts", config.eval.prompts, 0),
        ("eval.samples", config.eval.samples, 1),
        ("eval.every", config.eval.every, 0),
        ("eval.test_prompts", config.eval.test_prompts, 0),
        ("checkpoint.every", config.checkpoint.every, 0),
        ("checkpoint.keep_last", config.checkpoint.keep_last, 0),
        ("checkpoint.keep_best", config.checkpoint.keep_best, 0),
        ("anomaly.entropy_floor", config.anomaly.entropy_floor, 0),
        ("anomaly.max_attempts", config.anomaly.max_attempts, 0),
        *((f"watchdog.{k}", v, 0) for k, v in vars(config.watchdog).items() if k != "action"),
        ("data.max_prompt_tokens", config.data.max_prompt_tokens, 0),
        ("data.limit", config.data.limit, 0),
        ("sampling.max_total_tokens", sampling.max_total_tokens, 0),
        ("sampling.num_blocks", sampling.num_blocks, 0),
        ("sampling.block_size", sampling.block_size, 1),
    ):
        if not value >= least:  # so that nan is refused too
            reason = (
                " (one response has no baseline)" if key.endswith("responses_per_prompt") else ""
            )
            raise UsageError(f"{key} is {value}; it must be at least {least}{reason}")
    if config.anomaly.max_attempts > MAX_ATTEMPTS:
        raise UsageError(
            f"anomaly.max_attempts is {config.anomaly.max_attempts}; the random numbers tell"
            f" {MAX_ATTEMPTS} attempts apart, give at most so many"
        )
    _check_updates(config)
    if sampling.max_rounds > 1 and not config.loss.drop_groups_without_signal:
        raise UsageError(
            f"sampling.max_rounds is {sampling.max_rounds}, but no group is left out that another"
            " round could stand in for; set loss.drop_groups_without_signal to true (objective task"
            " without beta), or max_rounds to 1"
        )
    if train.score_while_sampling == "on" and (reason := why_not_early(config)):
        raise UsageError(f"train.score_while_sampling is 'on', but {reason}")


def _check_updates(config: Config) -> None:
    """Raise UsageError where several optimiser steps a batch cannot be what is meant."""
    train, loss, prompts = config.train, config.loss, config.sampling.prompts_per_step
    if train.minibatches > prompts:
        raise UsageError(
            f"train.minibatches is {train.minibatches}, but a step has {prompts} prompts; lower it"
        )
    name = LossSpec.preset(loss.preset).loss if loss.preset else loss.loss
    if train.minibatches * train.epochs > 1 and name == "reinforce":
        raise UsageError(
            f"train.minibatches {train.minibatches} and train.epochs {train.epochs} make several"
            " optimiser steps a batch, and the loss 'reinforce' has no ratio to the policy that"
            " sampled; set loss.loss to 'clip', 'cispo' or 'gspo', or leave both at 1"
        )


def longest_prompt(config: Config, max_position: int) -> int:
    """The prompt length that leaves room for a whole response, in tokens.

    Raises UsageError when the configured lengths cannot fit the context or the cache.
    """
    sampling, asked = config.sampling, config.data.max_prompt_tokens
    total = min(sampling.max_total_tokens or max_position, max_position)
    if sampling.max_total_tokens > max_position:
        raise UsageError(
            f"sampling.max_total_tokens is {sampling.max_total_tokens}, over the model's context of"
            f" {max_position} tokens; lower it"
        )
    pool = sampling.num_blocks * sampling.block_size
    if pool and (asked or 1) + sampling.max_tokens > pool:
        raise UsageError(
            f"a prompt of {asked or 1} and a response of {sampling.max_tokens} tokens do not fit"
            f" the cache of {sampling.num_blocks} blocks x {sampling.block_size}; raise"
            " sampling.num_blocks or lower sampling.max_tokens"
        )
    room = min(total, pool or total) - sampling.max_tokens
    if room < 1 or asked > room:
        raise UsageError(
            f"prompts of up to {max(asked, 1)} tokens and sampling.max_tokens {sampling.max_tokens}"
            f" do not fit the {total} tokens in all (the model's context is {max_position}); lower"
            " sampling.max_tokens or data.max_prompt_tokens"
        )
    return asked or room
