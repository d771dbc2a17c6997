"""Hugging Face weights into and out of a decoder: safetensors only, names split and joined."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fastrl import strict_json
from fastrl.errors import UsageError
from fastrl.model_config import DecoderConfig
from fastrl.sharding import piece, piece_of, piece_rows

if TYPE_CHECKING:
    from fastrl.model import Decoder

HEAD = "lm_head.weight"
# what a saved model takes over from its source, beside config.json
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
)


def _data(parameter: nn.Parameter) -> Tensor:
    return parameter.data


def hf_tensors(model: Decoder, read: Callable[[nn.Parameter], Tensor] = _data) -> dict[str, Tensor]:
    """Hugging Face names to views of the model's parameters, the fused ones split by rows.

    Writing to a view writes to the model. `read` chooses what is viewed: the values (default),
    or anything of the same shape, such as the gradient. A tied head is not listed twice.
    """
    return {
        name: read(parameter)[rows.start : rows.stop]
        for name, (parameter, rows) in _places(model).items()
    }


Places = dict[str, tuple[nn.Parameter, range]]


def _places(model: Decoder) -> Places:
    """Hugging Face names to the parameters that hold the tensors, and in which rows."""
    config = model.config
    heads = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
    qkv_rows = [count * config.head_dim for count in heads]
    mlp_rows = [config.intermediate_size] * 2
    places = {"model.embed_tokens.weight": (model.embed, range(len(model.embed)))}
    for index, layer in enumerate(model.layers):
        names = {
            "qkv": (["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], qkv_rows),
            "o": (["self_attn.o_proj"], None),
            "gate_up": (["mlp.gate_proj", "mlp.up_proj"], mlp_rows),
            "down": (["mlp.down_proj"], None),
            "q_norm": (["self_attn.q_norm"], None),
            "k_norm": (["self_attn.k_norm"], None),
            "attention_norm": (["input_layernorm"], None),
            "mlp_norm": (["post_attention_layernorm"], None),
        }
        for name, parameter in layer.named_parameters():
            module, _, kind = name.rpartition(".")
            parts, rows = names[module]
            end = 0
            for part, count in zip(parts, rows or [len(parameter)], strict=True):
                start, end = end, end + count
                places[f"model.layers.{index}.{part}.{kind}"] = (parameter, range(start, end))
    places["model.norm.weight"] = (model.norm.weight, range(len(model.norm.weight)))
    if model.head is not None:
        places[HEAD] = (model.head, range(len(model.head)))
    return places


@dataclass(frozen=True)
class Stored:
    """A tensor of a file, by its header."""

    path: Path
    shape: list[int]
    dtype: str


def check_weights(config: DecoderConfig, directory: Path) -> None:
    """Raise what `load_weights` would, for a decoder of these shapes, before there is one.

    Only headers are read: the shapes of a config.json take no memory unless weights have them.
    """
    from fastrl.model import Decoder

    stored = _headers(directory)
    if config.num_layers > len(stored):
        raise UsageError(
            f"config.json says {config.num_layers} layers, but {directory} holds {len(stored)} "
            "tensors: give the config.json that belongs to these weights"
        )
    _check(stored, _places(Decoder(config, device="meta")), config, directory)


@torch.no_grad()
def load_weights(model: Decoder, directory: str | Path) -> None:
    """Fill `model` from a directory's safetensors, one tensor at a time, cast to its dtype.

    Of a sharded model each process reads the rows that it keeps.
    Raises UsageError where weights are missing, unexpected, misshapen, not floating point or
    unreadable, or stored as pickle only; the model is then unusable.
    """
    directory = Path(directory)
    places = _places(model)
    stored = _headers(directory)
    _check(stored, places, model.config, directory)
    for path in dict.fromkeys(found.path for found in stored.values()):
        with _opened(path) as file:
            for name, found in stored.items():
                if found.path == path and name in places:
                    _fill(*places[name], file.get_slice(name))
    if (tied := stored.get(HEAD)) is None or HEAD in places:
        return
    with _opened(tied.path) as file:
        head = piece_of(file.get_tensor(HEAD), model.embed)
    here = piece(model.embed)
    if not torch.equal(head.to(here), here):
        raise UsageError(
            f"{directory} stores an {HEAD} that differs from model.embed_tokens.weight, "
            "while config.json ties the two: set tie_word_embeddings to false there"
        )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"{path} cannot be read as safetensors ({error}): fetch or save the file again"
        ) from None


def _headers(directory: Path) -> dict[str, Stored]:
    """The tensors of a directory's safetensors by name."""
    stored: dict[str, Stored] = {}
    for path in _weight_files(directory):
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                found = file.get_slice(name)
                if name in stored:
                    raise UsageError(
                        f"{name[:100]} is in {stored[name].path.name} and in {path}: fetch or"
                        " save the model again"
                    )
                stored[name] = Stored(path, list(found.get_shape()), found.get_dtype())
    return stored


def _check(
    stored: Mapping[str, Stored], places: Places, config: DecoderConfig, directory: Path
) -> None:
    """Raise UsageError where the stored tensors are not those that have a place."""
    unexpected = [
        name
        for name in stored
        # old Llama files store inv_freq
        if name not in places and name != HEAD and not name.endswith("rotary_emb.inv_freq")
    ]
    if unexpected:
        raise UsageError(
            f"{directory} holds weights that a {config.family} decoder of its config.json "
            f"has no place for, {_some(unexpected)}: give the config.json that belongs to them"
        )
    if missing := set(places) - set(stored):
        hint = (
            "set tie_word_embeddings to true in config.json if the head is the embedding"
            if missing == {HEAD}
            else "give a complete model directory"
        )
        raise UsageError(f"{directory} lacks the weights {_some(sorted(missing))}: {hint}")
    for name, (parameter, rows) in places.items():
        found, expected = stored[name], [len(rows), *parameter.shape[1:]]
        if found.shape != expected:
            raise UsageError(
                f"{name} in {found.path} has shape {found.shape}, but config.json makes it "
                f"{expected}: give the config.json that belongs to these weights"
            )
        if found.dtype not in ("F64", "F32", "F16", "BF16"):
            raise UsageError(
                f"{name} in {found.path} is stored as {found.dtype}, but fastrl reads F64, F32, "
                "F16 and BF16: use the unquantised model"
            )


def _fill(parameter: nn.Parameter, rows: range, stored: Any) -> None:
    """Copy the rows of a stored tensor that this process keeps."""
    here = piece_rows(parameter)
    start, stop = max(rows.start, here.start), min(rows.stop, here.stop)
    if start < stop:
        found = stored[start - rows.start : stop - rows.start]
        piece(parameter)[start - here.start : stop - here.start].copy_(found)


def _some(names: list[str]) -> str:
    shown = ", ".join(name[:100] for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _weight_files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    if single.is_file():  # transformers' order: a single file goes before an index
        return [single]
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UsageError(f"{index} has no weight_map: fetch or save the model again")
        names = {str(name) for name in weight_map.values()}
        # what is there, rather than what a path leads to: a name leads nowhere else
        present = {path.name: path for path in directory.iterdir() if path.is_file()}
        if absent := sorted(names - set(present)):
            raise UsageError(
                f"{directory} lacks {_some(absent)}, which {index.name} names: "
                "fetch the missing files"
            )
        return [present[name] for name in sorted(names)]
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt")):
        raise UsageError(
            f"{directory} has its weights as pickle only, which fastrl never reads: convert them "
            "with transformers, AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)"
        )
    raise UsageError(
        f"{directory} holds no weights: it needs model.safetensors, or "
        "model.safetensors.index.json and the files it names"
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; UsageError where the file is absent or holds none."""
    try:
        values = strict_json.parse(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"there is no {path}: give a Hugging Face model directory") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): fetch it again") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error}): fetch or save it again") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds no JSON object: fetch or save it again")
    return values


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write an object as Hugging Face's files have it."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def save_model(
    model: Decoder,
    source_dir: str | Path,
    out_dir: str | Path,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a directory that transformers' `from_pretrained` loads.

    Weights go to one model.safetensors under Hugging Face's names in the model's dtype;
    config.json (its dtype updated), the generation configuration and the tokenizer's files come
    from `source_dir`. Other files in `out_dir` are left alone. `tensors`: a copy that `hf_tensors`
    gave before, in place of the model's weights as they are.
    """
    source, out = Path(source_dir), Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    config = read_json(source / "config.json")
    config.pop("torch_dtype", None)
    config["dtype"] = str(model.embed.dtype).removeprefix("torch.")
    write_json(out / "config.json", config)
    for name in COMPANIONS:
        if (source / name).is_file() and source.resolve() != out.resolve():
            shutil.copyfile(source / name, out / name)
    save_weights(hf_tensors(model) if tensors is None else tensors, out)


def save_weights(tensors: Mapping[str, Tensor], directory: Path) -> None:
    """Write `directory`/model.safetensors of what `hf_tensors` gave."""
    detached = {name: tensor.detach() for name, tensor in tensors.items()}
    save_file(detached, directory / "model.safetensors", metadata={"format": "pt"})
