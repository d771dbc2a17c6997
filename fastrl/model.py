"""The decoder of the Llama, Qwen2 and Qwen3 families, one module for trainer and sampler.

Legend: N: packed rows (tokens), D: hidden width, H: query heads, K: key/value heads,
h: head dimension, F: width of the feed-forward layer, V: vocabulary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastrl.attention import AttentionContext, LayerAttention, Rotary
from fastrl.errors import UsageError
from fastrl.model_config import DecoderConfig, Llama3Scaling, rotary_frequencies
from fastrl.ops.layer_rows import rms_norm, swiglu
from fastrl.packed_attention import PackedAttention
from fastrl.sharding import piece, piece_of

__all__ = [
    "AttentionContext",
    "Decoder",
    "DecoderConfig",
    "Llama3Scaling",
    "PackedAttention",
    "load_model",
    "resolve_model",
]

HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]


class _RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, in fp32 at least (Zhang and Sennrich 2019).

    It rounds once, after the weight; transformers rounds before it too. In bf16 this makes the
    logits' root-mean-square error 0.81 to 0.98 of transformers', over ten random models.
    """

    def __init__(self, width: int, eps: float, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype, device=device))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class DecoderLayer(nn.Module):
    """One block: attention, then the feed-forward layer, each with its norm and residual."""

    def __init__(
        self, config: DecoderConfig, index: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.index = index
        self.heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        self.head_dim = head_dim = config.head_dim
        width, inner = config.hidden_size, config.intermediate_size

        def linear(width_in: int, width_out: int, bias: bool) -> nn.Linear:
            # the weights come from a file or from init_weights: torch's own drawing is left out
            return nn.utils.skip_init(
                nn.Linear, width_in, width_out, bias=bias, dtype=dtype, device=device
            )

        def norm(width: int) -> _RMSNorm:
            return _RMSNorm(width, config.eps, dtype, device)

        self.attention_norm = norm(width)
        self.qkv = linear(width, sum(self.heads) * head_dim, config.qkv_bias)
        self.q_norm = norm(head_dim) if config.qk_norm else None
        self.k_norm = norm(head_dim) if config.qk_norm else None
        self.o = linear(config.num_heads * head_dim, width, config.o_bias)
        self.mlp_norm = norm(width)
        self.gate_up = linear(width, 2 * inner, config.mlp_bias)
        self.down = linear(inner, width, config.mlp_bias)

    def forward(self, hidden_ND: Tensor, attention: LayerAttention) -> Tensor:
        """The block's output [N, D]. `attention` applies the rotary embedding to q and k."""
        if (whole_ND := attention.layer(self.index, hidden_ND)) is not None:
            return whole_ND
        heads = self.qkv(self.attention_norm(hidden_ND)).unflatten(-1, (-1, self.head_dim))
        q_NHh, k_NKh, v_NKh = heads.split(self.heads, dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q_NHh, k_NKh = self.q_norm(q_NHh), self.k_norm(k_NKh)
        attended_NHh = attention.attend(self.index, q_NHh, k_NKh, v_NKh)
        hidden_ND = hidden_ND + self.o(attended_NHh.flatten(1))
        return hidden_ND + self.down(swiglu(self.gate_up(self.mlp_norm(hidden_ND))))


class Decoder(nn.Module):
    """A decoder of one of the three families; its parameters are not set until they are loaded
    (`load_model`, `weights.load_weights`) or drawn (`init_weights`).

    `valid_vocab`: ids from there on belong to no token; no operation may sample them or count
    them in a softmax. `eos_token_ids`: what ends a response. `load_model` takes both from the
    directory; here they are the whole vocabulary, and none. `checkpoint_activations`: a forward
    with gradients keeps each layer's input alone, and computes the layer again in the backward
    (Chen et al. 2016).
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        device = torch.device(device)
        self.config = config
        self.valid_vocab = config.vocab_size
        self.eos_token_ids: tuple[int, ...] = ()
        self.checkpoint_activations = False
        self.embed = _matrix(config.vocab_size, config.hidden_size, dtype, device)
        self.layers = nn.ModuleList(
            DecoderLayer(config, index, dtype, device) for index in range(config.num_layers)
        )
        self.norm = _RMSNorm(config.hidden_size, config.eps, dtype, device)
        self.head = (
            None
            if config.tie_embeddings
            else _matrix(config.vocab_size, config.hidden_size, dtype, device)
        )
        # no buffer: Module.to(bfloat16) would round it, and Module.to_empty forget it
        self._frequencies = rotary_frequencies(config)
        if device.type != "meta":
            self._frequencies = self._frequencies.to(device)

    def forward(
        self, token_ids_N: Tensor, positions_N: Tensor, attention: AttentionContext
    ) -> Tensor:
        """Every row's hidden state after the final norm: [N, D]. The head is left to the caller,
        who has a use for some of the rows only.

        `positions_N`: each row's position in its own sequence, from 0.
        """
        hidden_ND = F.embedding(token_ids_N, self.embed)
        if self._frequencies.device != hidden_ND.device:
            self._frequencies = self._frequencies.to(hidden_ND.device)
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        seen = LayerAttention(attention, Rotary.at(positions_N, self._frequencies.to(wide)))
        again = self.checkpoint_activations and torch.is_grad_enabled()
        for layer in self.layers:
            if again:
                hidden_ND = checkpoint(
                    layer, hidden_ND, seen, use_reentrant=False, preserve_rng_state=False
                )
            else:
                hidden_ND = layer(hidden_ND, seen)
        return self.norm(hidden_ND)

    @property
    def head_weight(self) -> Tensor:
        """The output matrix [V, D]: the embedding itself where the two are tied."""
        return self.embed if self.head is None else self.head

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """The logits [N, V], ids from `valid_vocab` on included and unmasked."""
        return F.linear(hidden_ND, self.head_weight)

    @torch.no_grad()
    def init_weights(self, seed: int, std: float = 0.02) -> Decoder:
        """This model with fresh weights: normal matrices, norms one, biases zero.

        The matrices that write into the residual stream are drawn narrower by sqrt(2 layers)
        (Radford et al. 2019). The same seed gives the same weights on every device, and the same
        pieces of them on any number of processes.
        """
        generator = torch.Generator().manual_seed(seed)
        narrow = std / math.sqrt(2 * self.config.num_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                spread = narrow if name.endswith((".o.weight", ".down.weight")) else std
                drawn = torch.empty(parameter.shape).normal_(0.0, spread, generator=generator)
                piece(parameter).copy_(piece_of(drawn, parameter))
            else:
                piece(parameter).fill_(1.0 if "norm" in name else 0.0)
        return self


def _matrix(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, columns, dtype=dtype, device=device))


def empty_model(
    config: DecoderConfig,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    sharded: Callable[[Decoder], None] | None = None,
) -> Decoder:
    """A decoder whose parameters are not set. `sharded` leaves this process its pieces of them
    (as `sharding.shard`) before they take any memory.
    """
    if sharded is None:
        return Decoder(config, dtype=dtype, device=device)
    model = Decoder(config, dtype=dtype, device="meta")
    sharded(model)
    return model.to_empty(device=device)


def load_model(
    name_or_dir: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    sharded: Callable[[Decoder], None] | None = None,
) -> Decoder:
    """The decoder of an embedded model, a Hugging Face directory or a hub id, ready to run.

    `device`: None takes the GPU where there is one. `dtype`: a floating dtype or its name; None
    is float32 on the CPU and bfloat16 on a GPU, "auto" is the one that config.json names.
    `sharded`: as for `empty_model`; each process then reads the rows that it keeps.
    Raises UsageError as `resolve_model`, `DecoderConfig.from_hf`, `load_weights` and
    `load_tokenizer` do.
    """
    from fastrl.tokenizer import load_tokenizer
    from fastrl.weights import check_weights, load_weights, read_json

    directory = resolve_model(name_or_dir)
    values = read_json(directory / "config.json")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    config = DecoderConfig.from_hf(values)
    kind = _dtype(dtype, values, device)
    check_weights(config, directory)
    model = empty_model(config, dtype=kind, device=device, sharded=sharded)
    tokenizer = load_tokenizer(directory)
    model.valid_vocab = min(tokenizer.valid_vocab, config.vocab_size)
    model.eos_token_ids = tokenizer.eos_token_ids
    load_weights(model, directory)
    return model


def _dtype(
    dtype: torch.dtype | str | None, values: Mapping[str, Any], device: torch.device
) -> torch.dtype:
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype == "auto":
        dtype = values.get("dtype") or values.get("torch_dtype") or "float32"
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    allowed = {torch.float32, torch.bfloat16, torch.float16, torch.float64}
    if found not in allowed:
        raise UsageError(
            f"dtype is {dtype!r}, which is none of 'float32', 'bfloat16', 'float16', 'float64' "
            "and 'auto': name one of these"
        )
    return found


def resolve_model(name_or_dir: str | Path, *, weights: bool = True) -> Path:
    """The local directory of a model: the embedded one's, the one given, or the hub's snapshot.

    A hub id ORG/NAME is downloaded once into huggingface_hub's cache: JSON, safetensors (but not
    without `weights`) and the tokenizer's files, no pickle. Raises UsageError where there is no
    such model.
    """
    name = str(name_or_dir)
    if name.partition(":")[0] == "embedded":
        from fastrl.embedded import model_dir

        return model_dir(name)
    directory = Path(name).expanduser()
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise UsageError(
                f"{directory} holds no config.json: give a Hugging Face model directory with "
                "config.json, *.safetensors and the tokenizer's files"
            )
        return directory
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise UsageError(
            f"there is no model {name!r}: give 'embedded', an existing directory, or a hub id of "
            "the form ORG/NAME"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = [p for p in HUB_FILES if weights or not p.endswith(".safetensors")]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"model {name!r} is no directory here and could not be had from the hub ({reason}): "
            "check the name and the network, or give a local directory"
        ) from error
