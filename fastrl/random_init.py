"""A model at its real shapes with fresh random weights, for runs without its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from fastrl.config import ModelConfig
from fastrl.errors import UsageError
from fastrl.model import Decoder, empty_model
from fastrl.shapes import Outline
from fastrl.tokenizer import Tokenizer, load_tokenizer
from fastrl.weights import save_weights, write_json

SUBSTITUTE = ModelConfig().name  # whose tokenizer a model without one of its own takes


def find_tokenizer(outline: Outline) -> tuple[Tokenizer, int]:
    """The tokenizer of a random model, and how many of the ids are valid.

    The model's own where its files are at hand, else the default model's: then every id of the
    vocabulary is valid, so that the head has its real shape, and those without text have none.
    """
    size = outline.config.vocab_size
    if outline.has_tokenizer:
        assert outline.directory is not None
        own = load_tokenizer(outline.directory)
        return own, min(own.valid_vocab, size)
    other = load_tokenizer(SUBSTITUTE)
    if other.valid_vocab > size:
        raise UsageError(
            f"{outline.name} has a vocabulary of {size}, too small for the tokenizer of"
            f" {SUBSTITUTE}, {other.valid_vocab} tokens: put the model's own tokenizer into"
            " its directory"
        )
    return other, size


def random_model(
    outline: Outline,
    seed: int | None,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    sharded: Callable[[Decoder], None] | None = None,
) -> Decoder:
    """The model of an outline with fresh weights, the same for the same seed on every device.

    Without a seed they are not set. `sharded`: as for `empty_model`.
    """
    model = empty_model(outline.config, dtype=dtype, device=device, sharded=sharded)
    if seed is not None:
        model.init_weights(seed)
    tokenizer, model.valid_vocab = find_tokenizer(outline)
    model.eos_token_ids = tokenizer.eos_token_ids
    return model


def random_sha256(outline: Outline, seed: int) -> str:
    """A digest of what makes the weights, in place of the digest of weights from files."""
    made_from = {
        "seed": seed,
        "shapes": asdict(outline.config),
        "valid_vocab": find_tokenizer(outline)[1],
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def save_random_model(
    model: Decoder, tokenizer: Tokenizer, directory: Path, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write a directory that transformers' `from_pretrained` loads, from shapes and weights.

    `tensors`: what `weights.hf_tensors` gave of the model.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(directory)
    values = model.config.to_hf(
        dtype=str(model.embed.dtype).removeprefix("torch."),
        eos_token_id=list(tokenizer.eos_token_ids),
    )
    write_json(directory / "config.json", values)
    save_weights(tensors, directory)
