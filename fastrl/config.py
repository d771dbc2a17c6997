"""Settings of a run: frozen dataclasses, read from one TOML file and the command line."""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import tomli_w

from fastrl.errors import UsageError


def setting(default: Any, help: str) -> Any:
    """A dataclass field with its default and the sentence that `--help` prints."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class ModelConfig:
    name: str = setting("embedded", "embedded, embedded:0, embedded:0.5, a directory or a hub id")
    sha256: str = setting(
        "", "digest of the initial weights; a run fills it in, resume insists on it"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "auto: fp32 on CPU, bf16 on GPU"
    )
    device: str = setting("auto", "auto, cpu or cuda")
    random_init: bool = setting(
        False, "fresh random weights at the model's shapes, from its config.json or its hub id"
    )


@dataclass(frozen=True)
class DataConfig:
    source: str = setting(
        "embedded",
        "embedded, embedded-long, reasoning-gym:NAME[+NAME], FILE.jsonl, FILE.parquet,"
        " hf:REPO:SPLIT or a preset",
    )
    eval_source: str = setting("", "source of the test prompts; empty: the same source's")
    template: str = setting("", "user turn with {prompt}; empty: the source's own")
    shots: tuple[str, ...] = setting(
        (), "solved examples before every prompt: user and assistant turns in alternation"
    )
    max_prompt_tokens: int = setting(
        0, "longer prompts are counted and listed; 0: what the context allows"
    )
    limit: int = setting(0, "use the first N rows of the source; 0: all")
    task_args: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={"help": "parameters of reasoning-gym tasks: tables [data.task_args.NAME]"},
    )


@dataclass(frozen=True)
class ObjectiveConfig:
    name: Literal["sharpen", "task", "tilted"] = setting(
        "sharpen", "which distribution to train towards"
    )
    alpha: float | None = setting(None, "sharpening exponent of sharpen and tilted; default 4")
    beta: float | None = setting(
        None, "temperature of the reward; default of tilted 0.01, of task none"
    )
    beta_inv: float | None = setting(None, "1/beta, the study's name; give one of the two")
    mode: Literal["tempered", "likelihood"] = setting(
        "tempered", "of sharpen: p^alpha / Z, or the likeliest response"
    )
    length_norm: str = setting("sum", "of the (alpha - 1) lp term: sum, mean or 'power W'")


@dataclass(frozen=True)
class RewardConfig:
    functions: tuple[str, ...] = setting(
        ("math",),
        "math, format_tags, soft_overlong, repetition, random or PACKAGE.MODULE:FUNCTION; summed"
        " with weights",
    )
    weights: tuple[float, ...] = setting((), "one for each function; empty: all 1")
    mode: Literal["box", "box_or_anchor", "flexible", "hash4", "choice", "tag"] = setting(
        "box", "of math, and of every evaluation: where a response has its answer"
    )
    tags: tuple[str, ...] = setting(
        ("think", "answer"), "of format_tags: the sections that make a response, in order"
    )
    max_tokens: int = setting(0, "of soft_overlong: -1 from there on; 0: sampling.max_tokens")
    buffer_tokens: int = setting(
        0, "of soft_overlong: tokens over which it falls from 0 to -1; 0: a fifth of max_tokens"
    )
    ngram_tokens: int = setting(3, "of repetition: tokens of an n-gram")
    max_penalty: float = setting(
        1.0, "of repetition: what a response would lose all of whose n-grams are repeats"
    )


@dataclass(frozen=True)
class SamplingConfig:
    prompts_per_step: int = setting(64, "prompts of a step")
    responses_per_prompt: int = setting(4, "responses a prompt (the group)")
    max_rounds: int = setting(
        1,
        "with loss.drop_groups_without_signal: how often prompts_per_step others are sampled in a"
        " step, until so many groups have signal (dynamic sampling); more are left out too",
    )
    max_tokens: int = setting(64, "longest response, in tokens")
    max_total_tokens: int = setting(
        0, "longest prompt and response together; 0: the model's context"
    )
    temperature: float = setting(1.0, "temperature T; every log-prob of the run is then at T")
    top_p: float = setting(1.0, "nucleus; below 1 no optimum can be claimed")
    top_k: int = setting(0, "keep the k likeliest tokens; 0: all")
    min_p: float = setting(
        0.0, "keep tokens of at least this share of the likeliest one's probability"
    )
    stop: tuple[str, ...] = setting((), "strings that end a response")
    ignore_eos: bool = setting(False, "the fixed-length ablation: an end token does not stop")
    block_size: int = setting(16, "tokens in a block of the cache")
    num_blocks: int = setting(0, "blocks of the cache; 0: enough for every response of a step")
    max_batch_tokens: int = setting(4096, "rows of one forward of the sampler")


@dataclass(frozen=True)
class LossConfig:
    preset: str = setting(
        "", "a loss by name: 'paper' (the study's), 'trl-grpo', 'verl-dapo', ...; empty: the fields"
    )
    loss: Literal["reinforce", "clip", "cispo", "gspo"] = setting(
        "reinforce", "policy-gradient loss"
    )
    advantage: Literal["rloo", "grpo", "dr_grpo", "reinforce"] = setting(
        "rloo", "advantage estimator"
    )
    loss_agg_mode: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"] = (
        setting("seq-mean-token-sum-norm", "what the sum over tokens is divided by (verl's names)")
    )
    clip_low: float = setting(0.2, "lower bound of the ratio: 1 - clip_low")
    clip_high: float = setting(0.2, "upper bound of the ratio: 1 + clip_high")
    kl: Literal["none", "k1", "k2", "k3"] = setting("none", "KL to the reference in the loss")
    kl_coef: float = setting(0.0, "its coefficient")
    entropy_coef: float = setting(0.0, "coefficient of the entropy bonus")
    sampler_correction: Literal[
        "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = setting("token_truncate", "importance correction from sampler to trainer (TRL's names)")
    sampler_correction_cap: float = setting(20.0, "its bound")
    drop_groups_without_signal: bool = setting(
        False, "leave out groups whose task rewards are all equal"
    )
    mask_truncated: bool = setting(
        False, "leave responses that hit the length limit out of the loss, not out of the baseline"
    )


@dataclass(frozen=True)
class OptimConfig:
    lr: float = setting(6e-4, "peak learning rate")
    betas: tuple[float, ...] = setting((0.9, 0.999), "AdamW's betas")
    eps: float = setting(1e-8, "AdamW's epsilon")
    weight_decay: float = setting(0.01, "AdamW's decoupled weight decay")
    grad_clip: float = setting(1.0, "largest norm of the gradient; 0: none")
    warmup_steps: int = setting(5, "steps of linear warm-up")
    warmup_from: float = setting(0.1, "share of the learning rate at the first step")
    schedule: Literal["constant", "linear"] = setting(
        "linear", "after the warm-up: constant, or linear to 0 at the end of the run"
    )
    state: Literal["device", "host"] = setting(
        "device",
        "where AdamW's moments and fp32 masters lie; host: in the memory of a GPU's machine, and"
        " pass through the GPU in each step, to the same bits",
    )


@dataclass(frozen=True)
class TrainConfig:
    max_steps: int = setting(130, "optimiser steps")
    seed: int = setting(42, "of every random number of the run")
    output_dir: str = setting("", "run directory; empty: runs/OBJECTIVE-DATE")
    max_tokens_per_batch: int = setting(8192, "rows of a micro-batch")
    checkpoint_activations: Literal["auto", "on", "off"] = setting(
        "auto", "compute a layer again in the backward pass; auto: where it would not fit otherwise"
    )
    minibatches: int = setting(
        1, "optimiser steps a pass over a step's responses: its prompts in as many parts"
    )
    epochs: int = setting(1, "passes over a step's responses")
    threads: int = setting(0, "CPU threads; 0: torch's choice")
    deterministic: bool = setting(
        False, "the same bits each time on a GPU too, at some cost; on a CPU they always are"
    )
    check: bool = setting(True, "audit the run before its first step, as fastrl check does")
    share_prompts: Literal["auto", "on", "off"] = setting(
        "auto", "compute the prompt of a group once in training too; auto: where it pays"
    )
    score_while_sampling: Literal["auto", "on", "off"] = setting(
        "auto",
        "log-probs of whole groups while other responses are sampled, on one process; auto: on a"
        " GPU",
    )
    reference: Literal["device", "host"] = setting(
        "device",
        "where the reference lies between its uses; host: in the memory of a GPU's machine",
    )
    keep_gathered: bool = setting(
        True,
        "of several processes, each keeps whole parameters and its own gradient for a whole step;"
        " false: a layer at a time, and a shard of the reference",
    )


@dataclass(frozen=True)
class EvalConfig:
    prompts: int = setting(128, "held-out prompts for the evaluations during the run; 0: none")
    samples: int = setting(4, "responses a prompt")
    every: int = setting(
        25, "steps between evaluations on the validation split; 0: only at the ends"
    )
    test_prompts: int = setting(256, "test prompts for the final table; 0: no final table")


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = setting(25, "steps between checkpoints; 0: only the last")
    keep_last: int = setting(0, "newest checkpoints that are kept; 0: all")
    keep_best: int = setting(
        0, "with keep_last: others kept, of the best accuracy on the validation split"
    )
    background: Literal["auto", "on", "off"] = setting(
        "auto",
        "write while the run goes on, from a copy in host memory; auto: of a run on a GPU",
    )
    on_error: Literal["stop", "go_on"] = setting(
        "stop", "when a checkpoint cannot be written, as on a full disk"
    )


@dataclass(frozen=True)
class AnomalyConfig:
    nonfinite: Literal["stop", "skip", "roll_back"] = setting(
        "stop",
        "when a log-prob, the loss or the gradient is not finite; skip: update nothing and go on;"
        " roll_back: to the newest checkpoint, with other random numbers",
    )
    collapse: Literal["auto", "stop", "skip", "roll_back", "go_on"] = setting(
        "auto",
        "when all responses are cut off or empty, the entropy is under its floor, or the accuracy"
        " fell by half; auto: stop, but go on where sharpening leads there",
    )
    entropy_floor: float = setting(0.001, "of the policy, in nats a token; 0: no such rule")
    max_attempts: int = setting(3, "how often a run is rolled back")


@dataclass(frozen=True)
class WatchdogConfig:
    sample: float = setting(3600.0, "seconds that sampling a step may take; 0: no limit")
    grade: float = setting(600.0, "seconds that grading its responses may take")
    reference: float = setting(3600.0, "seconds that their log-probs may take")
    train: float = setting(3600.0, "seconds that gradients and update may take")
    save: float = setting(3600.0, "seconds that a checkpoint may take")
    evaluate: float = setting(7200.0, "seconds that an evaluation may take")
    action: Literal["say", "stop"] = setting(
        "say", "when one takes longer; stop: end the process, whatever it is at"
    )


@dataclass(frozen=True)
class TrackingConfig:
    tensorboard: bool = setting(False, "write TensorBoard's event files in RUN_DIR/tensorboard")
    wandb: str = setting("", "project of Weights & Biases that the curves go to; empty: none")
    wandb_mode: Literal["online", "offline"] = setting(
        "online", "offline: kept in RUN_DIR/wandb, for `wandb sync`"
    )


@dataclass(frozen=True)
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    anomaly: AnomalyConfig = field(default_factory=AnomalyConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


TABLES: dict[str, type] = {f.name: typing.get_type_hints(Config)[f.name] for f in fields(Config)}

SHORT_FLAGS = {
    "objective": "objective.name",
    "model": "model.name",
    "data": "data.source",
    "reward": "reward.functions",
    "output-dir": "train.output_dir",
    "max-steps": "train.max_steps",
    "seed": "train.seed",
}


def all_keys() -> list[str]:
    """Every `table.key` of a configuration, in the order of the file."""
    return [f"{table}.{f.name}" for table, cls in TABLES.items() for f in fields(cls)]


def _nearest(word: str, known: Sequence[str]) -> str:
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}? " if match else ""


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in args)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_describe(a) for a in args if a is not type(None))
    if origin is tuple:
        return f"a list of {args[0].__name__} values"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    return names.get(hint, "a table")


def split_list(text: str) -> list[str]:
    """The parts of a list as the command line gives it: `a,b`."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _coerce(key: str, value: Any, hint: Any, *, from_text: bool) -> Any:
    """`value` as the type `hint`; a text from the command line is parsed first."""
    bad = UsageError(f"{key} is {value!r}, which is not {_describe(hint)}; give {_describe(hint)}")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (inner,) = (a for a in args if a is not type(None))
        return (
            None
            if from_text and value == "none"
            else _coerce(key, value, inner, from_text=from_text)
        )
    if origin is Literal:
        if value not in args:
            raise UsageError(
                f"{key} is {value!r}; {_nearest(str(value), args)}allowed: {', '.join(args)}"
            )
        return value
    if origin is tuple:
        items = split_list(value) if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise bad
        return tuple(_coerce(key, v, args[0], from_text=from_text) for v in items)
    if hint is bool:
        if from_text and value in ("true", "false"):
            return value == "true"
        if not isinstance(value, bool):
            raise bad
        return value
    if hint in (int, float):
        if from_text:
            try:
                return hint(value)
            except ValueError:
                raise bad from None
        if isinstance(value, bool) or not isinstance(value, (int, float) if hint is float else int):
            raise bad
        return hint(value)
    if hint is str:
        if not isinstance(value, str):
            raise bad
        return value
    if not isinstance(value, Mapping):
        raise bad
    return dict(value)


def with_values(config: Config, values: Mapping[str, Any], *, from_text: bool) -> Config:
    """`config` with the `table.key` entries of `values` replaced."""
    for key, value in values.items():
        table, _, name = key.partition(".")
        if key not in all_keys():
            if table in TABLES and name:
                known = [f.name for f in fields(TABLES[table])]
                raise UsageError(
                    f"unknown key {name!r} in [{table}]; {_nearest(name, known)}"
                    f"the keys of [{table}] are {', '.join(known)}"
                )
            flags = [*TABLES, *SHORT_FLAGS]
            raise UsageError(
                f"unknown setting {key!r}; {_nearest(key, [*all_keys(), *flags])}"
                f"the tables are {', '.join(TABLES)}, see fastrl train --help"
            )
        hint = typing.get_type_hints(TABLES[table])[name]
        coerced = _coerce(key, value, hint, from_text=from_text)
        config = replace(config, **{table: replace(getattr(config, table), **{name: coerced})})
    return config


def read_toml(path: str | Path, base: Config | None = None) -> Config:
    """The configuration in a TOML file over the defaults (or `base`).

    Raises UsageError for a file that is missing or malformed, an unknown key or a wrong type.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot read the configuration {path}: {error.strerror}; give a TOML file"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}; mend that line") from None
    values: dict[str, Any] = {}
    for table, content in data.items():
        if not isinstance(content, dict):
            raise UsageError(
                f"{path} has the key {table!r} outside a table; put it under one of "
                + ", ".join(f"[{t}]" for t in TABLES)
            )
        if table not in TABLES:
            raise UsageError(
                f"{path} has the unknown table [{table}]; {_nearest(table, list(TABLES))}"
                f"the tables are {', '.join(TABLES)}"
            )
        values.update({f"{table}.{name}": value for name, value in content.items()})
    return with_values(base or Config(), values, from_text=False)


def parse_overrides(config: Config, arguments: Sequence[str]) -> Config:
    """`config` with the command line's `--table.key VALUE`, `--flag=VALUE` or short flags."""
    values: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise UsageError(
                f"unexpected argument {word!r}; settings are given as --table.key VALUE"
            )
        name, equals, value = word[2:].partition("=")
        key = SHORT_FLAGS.get(name, name.replace("-", "_"))
        table, _, leaf = key.partition(".")
        known = table in TABLES and leaf in {f.name for f in fields(TABLES[table])}
        if not equals:
            is_bool = known and typing.get_type_hints(TABLES[table])[leaf] is bool
            if is_bool and (not rest or rest[0] not in ("true", "false")):
                value = "true"
            elif rest and (not known or not rest[0].startswith("--")):
                value = rest.pop(0)
            elif known:
                raise UsageError(f"--{name} needs a value; give --{name} VALUE")
        values[key] = value
    return with_values(config, values, from_text=True)


def from_words(words: list[str]) -> Config:
    """The configuration of a file, if the first word is one, and of what the others change."""
    rest, config = list(words), Config()
    if rest and not rest[0].startswith("--"):
        config = read_toml(rest.pop(0))
    return parse_overrides(config, rest)


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """The configuration as tables of plain values; absent values are left out."""
    tables: dict[str, dict[str, Any]] = {}
    for table, cls in TABLES.items():
        section = getattr(config, table)
        entries = {f.name: getattr(section, f.name) for f in fields(cls)}
        tables[table] = {
            k: list(v) if isinstance(v, tuple) else v for k, v in entries.items() if v is not None
        }
    return tables


def write_toml(config: Config, path: str | Path) -> None:
    """Write the resolved configuration, so that reading it gives the same configuration."""
    Path(path).write_text(tomli_w.dumps(to_dict(config)), encoding="utf-8")


def help_text() -> str:
    """Every setting with its default and meaning, for `fastrl train --help`."""
    lines = ["Settings, in the file as [table] key = value, here as --table.key VALUE:", ""]
    short = {key: f"--{flag}, " for flag, key in SHORT_FLAGS.items()}
    for table, cls in TABLES.items():
        section = cls()
        for f in fields(cls):
            key = f"{table}.{f.name}"
            hint = typing.get_type_hints(cls)[f.name]
            choices = (
                f" ({' | '.join(typing.get_args(hint))})"
                if typing.get_origin(hint) is Literal
                else ""
            )
            default = getattr(section, f.name)
            lines.append(
                f"  {short.get(key, '')}--{key}  {f.metadata['help']}{choices} [{default!r}]"
            )
    return "\n".join(lines)
