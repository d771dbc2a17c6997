"""The shapes of a decoder, read from a Hugging Face config.json or refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastrl.errors import UsageError, shown

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


MOST = 2**24  # of any width, of layers, and of tokens: their products are no number's overflow


@dataclass(frozen=True)
class Llama3Scaling:
    """The frequency scaling of Llama 3.1 (Dubey et al. 2024); names as in config.json."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class DecoderConfig:
    """Shapes and constants of a decoder."""

    family: str  # "llama", "qwen2" or "qwen3"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int  # the longest sequence, prompt and response, in tokens
    tie_embeddings: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: Llama3Scaling | None = None
    eps: float = 1e-6
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    def __post_init__(self) -> None:
        assert self.family in FAMILIES, self.family
        if self.num_heads % self.num_kv_heads:
            raise UsageError(
                f"num_attention_heads is {self.num_heads}, which is no multiple of "
                f"num_key_value_heads, {self.num_kv_heads}: mend config.json"
            )
        if self.head_dim % 2 or not 0 < self.head_dim * self.num_heads <= MOST:
            raise UsageError(
                f"head_dim is {self.head_dim} in config.json, but the rotary embedding turns "
                f"pairs, and {self.num_heads} heads are at most {MOST} wide together: mend it"
            )

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> DecoderConfig:
        """The shapes named by a Hugging Face `config.json`, with transformers' defaults.

        Raises UsageError for another architecture and for settings that change the mathematics in
        a way this decoder lacks. `attention_dropout` is ignored: nothing here drops anything.
        """
        family = str(values.get("model_type"))
        architectures = values.get("architectures") or [FAMILIES.get(family)]
        if family not in FAMILIES or architectures != [FAMILIES[family]]:
            raise UsageError(
                f"config.json has model_type {shown(family)} and architectures "
                f"{shown(architectures)}, which "
                f"fastrl cannot run: use a model of {', '.join(FAMILIES.values())}"
            )
        _refuse_other_mathematics(values)
        try:
            hidden_size = _count(values, "hidden_size")
            num_heads = _count(values, "num_attention_heads")
            head_dim = 128 if family == "qwen3" else hidden_size // num_heads
            theta, scaling = _rope_from_hf(values)
            bias = bool(values.get("attention_bias", False)) and family != "qwen2"
            return cls(
                family=family,
                vocab_size=_count(values, "vocab_size"),
                hidden_size=hidden_size,
                intermediate_size=_count(values, "intermediate_size"),
                num_layers=_count(values, "num_hidden_layers"),
                num_heads=num_heads,
                num_kv_heads=_count(values, "num_key_value_heads", num_heads),
                head_dim=_count(values, "head_dim", head_dim),
                max_position=_count(values, "max_position_embeddings", most=2**31),
                tie_embeddings=bool(values.get("tie_word_embeddings", False)),
                rope_theta=theta,
                rope_scaling=scaling,
                eps=_number(values, "rms_norm_eps", 1e-6),
                qkv_bias=bias or family == "qwen2",
                o_bias=bias,
                mlp_bias=family == "llama" and bool(values.get("mlp_bias", False)),
                qk_norm=family == "qwen3",
            )
        except KeyError as error:
            raise UsageError(
                f"config.json lacks {error.args[0]!r}, which a {family} model needs: "
                "take the model's own config.json"
            ) from None

    def to_hf(self, **extra: Any) -> dict[str, Any]:
        """The `config.json` that transformers reads for these shapes, with `extra` keys added."""
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.rope_theta}
        if self.rope_scaling is not None:
            rope |= vars(self.rope_scaling) | {"rope_type": "llama3"}
        values: dict[str, Any] = {
            "architectures": [FAMILIES[self.family]],
            "model_type": self.family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position,
            "tie_word_embeddings": self.tie_embeddings,
            "rope_parameters": rope,
            "rms_norm_eps": self.eps,
        }
        if self.family != "qwen2":
            values["attention_bias"] = self.qkv_bias
        if self.family == "llama":
            values["mlp_bias"] = self.mlp_bias
        return values | extra


def _count(
    values: Mapping[str, Any], name: str, default: int | None = None, most: int = MOST
) -> int:
    """A whole number; `default` stands for an absent or null one (KeyError without)."""
    value = values.get(name)
    if value is None and default is not None:
        return default
    if value is None:
        raise KeyError(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise UsageError(
            f"{name} is {shown(value)} in config.json, but it has to be a whole number from 1 to "
            f"{most}: mend it"
        )
    return value


def _number(values: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A positive number; `default` stands for an absent one (KeyError without)."""
    value = values[name] if default is None else values.get(name, default)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number < math.inf:
        raise UsageError(
            f"{name} is {shown(value)} in config.json, but it has to be a positive number: mend it"
        )
    return number


def _refuse_other_mathematics(values: Mapping[str, Any]) -> None:
    activation = values.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UsageError(
            f"hidden_act is {shown(activation)} in config.json, but fastrl's decoder has only "
            "'silu': use a model with it"
        )
    kinds = values.get("layer_types") or []
    sliding = not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)
    if values.get("use_sliding_window") or sliding:
        raise UsageError(
            "config.json asks for sliding-window attention, but fastrl's decoder attends to the "
            "whole sequence: use a model with use_sliding_window false"
        )
    if values.get("quantization_config"):
        raise UsageError(
            "the weights are quantised (config.json has a quantization_config), but fastrl trains "
            "fp32, bf16 and fp16 weights: use the unquantised model"
        )


def _rope_from_hf(values: Mapping[str, Any]) -> tuple[float, Llama3Scaling | None]:
    # transformers 5 writes rope_parameters, older versions rope_theta and rope_scaling
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise UsageError(
            f"config.json has the rotary settings {shown(rope)}, which are no object: mend it"
        )
    theta = _number({**values, **rope}, "rope_theta", 10_000.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    partial = rope.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0))
    if kind not in ("default", "llama3") or partial != 1.0:
        what = f"rope type {shown(kind)}"
        if partial != 1.0:
            what = f"partial_rotary_factor {shown(partial)}"
        raise UsageError(
            f"config.json asks for {what}, but fastrl's decoder has only 'default' and 'llama3' "
            "over the whole head: use a model with one of these"
        )
    if kind == "default":
        return theta, None
    return theta, Llama3Scaling(
        factor=_number(rope, "factor"),
        low_freq_factor=_number(rope, "low_freq_factor"),
        high_freq_factor=_number(rope, "high_freq_factor"),
        original_max_position_embeddings=_count(
            rope, "original_max_position_embeddings", most=2**31
        ),
    )


def rotary_frequencies(config: DecoderConfig) -> Tensor:
    """The rotary embedding's angle per position of each pair of channels: fp32 [h / 2].

    Su et al. 2021; with `rope_scaling` long wavelengths are divided by `factor`, short ones kept,
    and those between are interpolated, as in Llama 3.1.
    """
    # in fp32 throughout, as transformers does: these very roundings are part of the trained model
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    if (scaling := config.rope_scaling) is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    context = scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((context / wavelengths - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - keep) * frequencies / scaling.factor + keep * frequencies
