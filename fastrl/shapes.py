"""The shapes of a model before any of its weights is read: from its files, or of a known name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastrl.errors import UsageError
from fastrl.model import resolve_model
from fastrl.model_config import DecoderConfig, Llama3Scaling
from fastrl.tokenizer import has_tokenizer
from fastrl.weights import read_json

# family, vocabulary, width, inner width, layers, heads, key/value heads, head dimension, context
SHAPES = {
    "SmolLM2-135M": DecoderConfig(
        "llama", 49152, 576, 1536, 30, 9, 3, 64, 8192,
        tie_embeddings=True, rope_theta=1e5, eps=1e-5,
    ),
    "Qwen3-0.6B": DecoderConfig(
        "qwen3", 151936, 1024, 3072, 28, 16, 8, 128, 40960,
        tie_embeddings=True, rope_theta=1e6, qk_norm=True,
    ),
    "Qwen2.5-3B": DecoderConfig(
        "qwen2", 151936, 2048, 11008, 36, 16, 2, 128, 32768,
        tie_embeddings=True, rope_theta=1e6, qkv_bias=True,
    ),
    "Llama-3.2-3B": DecoderConfig(
        "llama", 128256, 3072, 8192, 28, 24, 8, 128, 131072,
        tie_embeddings=True, rope_theta=5e5, eps=1e-5,
        rope_scaling=Llama3Scaling(32.0, 1.0, 4.0, 8192),
    ),
    "Qwen3-4B": DecoderConfig(
        "qwen3", 151936, 2560, 9728, 36, 32, 8, 128, 262144,
        tie_embeddings=True, rope_theta=5e6, qk_norm=True,
    ),
}  # fmt: skip
HUB_IDS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": "SmolLM2-135M",
    "Qwen/Qwen3-0.6B": "Qwen3-0.6B",
    "Qwen/Qwen2.5-3B-Instruct": "Qwen2.5-3B",
    "meta-llama/Llama-3.2-3B-Instruct": "Llama-3.2-3B",
    "Qwen/Qwen3-4B-Instruct-2507": "Qwen3-4B",
}


@dataclass(frozen=True)
class Outline:
    """What is known of a model without its weights."""

    name: str
    config: DecoderConfig
    directory: Path | None  # its files; None: there are none here, and its hub id is known

    @property
    def has_tokenizer(self) -> bool:
        """Whether the tokenizer's files are at hand."""
        return self.directory is not None and has_tokenizer(self.directory)


def outline(name: str) -> Outline:
    """The outline of a model's name, directory or hub id; no weights are fetched or read.

    A hub id whose files are neither here nor to be had is looked up in HUB_IDS. Raises UsageError
    as `resolve_model` and `DecoderConfig.from_hf` do.
    """
    try:
        directory = resolve_model(name, weights=False)
    except UsageError:
        if name not in HUB_IDS:
            raise
        return Outline(name, SHAPES[HUB_IDS[name]], None)
    return Outline(name, DecoderConfig.from_hf(read_json(directory / "config.json")), directory)
