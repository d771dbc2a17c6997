"""The C++ kernels of a layer over the paged cache: attention alone, and the layer as a whole.

Legend: N: rows, D: hidden width, H: query heads, K: key/value heads, h: head dimension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from fastrl.attention import Rotary
from fastrl.model import Decoder, DecoderConfig, DecoderLayer
from fastrl.ops.dense import fits_cpu

try:
    from fastrl import _C
    from fastrl.ops.native import DTYPES, address
except ImportError:  # torch computes everything; `fastrl doctor` says so
    _C = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from fastrl._C import LayerWeights
    from fastrl.sampler.attention import PagedAttention

    Layers: TypeAlias = list[LayerWeights]

DTYPES_HERE = (torch.float32, torch.bfloat16)


def runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether attention over a cache on this device and of this dtype runs here."""
    return _C is not None and device.type == "cpu" and dtype in DTYPES_HERE


def instruction_set() -> str:
    """That of the kernels in use."""
    assert _C is not None
    return _C.instruction_set()


def layers_of(model: Decoder) -> Layers | None:
    """The addresses of every layer's parameters; None where one of them does not fit the kernels.

    They hold as long as the parameters stay where they are: take them anew for every call.
    """
    layers = [layer for layer in model.layers if isinstance(layer, DecoderLayer)]
    weights = [
        (module.weight, module is layer.gate_up)
        for layer in layers
        for module in (layer.qkv, layer.o, layer.gate_up, layer.down)
    ]
    alike = all(
        p.dtype == weights[0][0].dtype and p.is_contiguous()
        for layer in layers
        for p in layer.parameters()
    )
    if len(layers) < len(model.layers) or not alike:
        return None
    if not all(fits_cpu(weight, gated) for weight, gated in weights):
        return None
    return [_addresses(layer, model.config) for layer in layers]


def _addresses(layer: DecoderLayer, config: DecoderConfig) -> LayerWeights:
    assert _C is not None
    sizes = (
        config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim,
        config.intermediate_size,
    )  # fmt: skip
    q_norm, k_norm = (
        None if norm is None else norm.weight for norm in (layer.q_norm, layer.k_norm)
    )
    tensors = (
        layer.attention_norm.weight, layer.qkv.weight, layer.qkv.bias, q_norm, k_norm,
        layer.o.weight, layer.o.bias, layer.mlp_norm.weight, layer.gate_up.weight,
        layer.gate_up.bias, layer.down.weight, layer.down.bias,
    )  # fmt: skip
    dtype = DTYPES[layer.qkv.weight.dtype]
    return _C.LayerWeights(dtype, *sizes, config.eps, *(address(x) for x in tensors))


def layer(
    weights: LayerWeights, context: PagedAttention, index: int, hidden_ND: Tensor, rotary: Rotary
) -> Tensor:
    """The output of layer `index`: [N, D]; its keys and values are in the cache then."""
    assert _C is not None
    k_cache, v_cache = context.cache.k[index], context.cache.v[index]
    assert hidden_ND.dtype == k_cache.dtype and hidden_ND.is_contiguous()
    out_ND = torch.empty_like(hidden_ND)
    _C.layer(
        weights, address(hidden_ND), address(out_ND), *_rotation(rotary), address(k_cache),
        address(v_cache), *_rows(context), len(hidden_ND), context.cache.block_size,
        k_cache.shape[3] ** -0.5, context.threads,
    )  # fmt: skip
    return out_ND


def attention(
    context: PagedAttention,
    index: int,
    q_NHh: Tensor,
    k_NKh: Tensor,
    v_NKh: Tensor,
    rotary: Rotary | None,
) -> Tensor:
    """Attention of each row over the cached tokens of its sequence up to itself: [N, H, h]."""
    assert _C is not None
    k_cache, v_cache = context.cache.k[index], context.cache.v[index]
    rows, heads, dim = q_NHh.shape
    for x in (q_NHh, k_NKh, v_NKh):
        assert x.dtype == k_cache.dtype and x.stride()[1:] == (dim, 1), "heads side by side"
    out_NHh = torch.empty(q_NHh.shape, dtype=q_NHh.dtype)
    _C.paged_attention(
        DTYPES[q_NHh.dtype], address(q_NHh), address(k_NKh), address(v_NKh), q_NHh.stride(0),
        k_NKh.stride(0), v_NKh.stride(0), *_rotation(rotary), address(k_cache), address(v_cache),
        address(out_NHh), *_rows(context), rows, heads, k_NKh.shape[1], dim,
        context.cache.block_size, dim**-0.5, context.threads,
    )  # fmt: skip
    return out_NHh


def _rotation(rotary: Rotary | None) -> tuple[int, int]:
    if rotary is None:
        return 0, 0
    cos_Na, sin_Na = rotary.cos_Na, rotary.sin_Na
    assert cos_Na.dtype == torch.float32 and cos_Na.is_contiguous() and sin_Na.is_contiguous()
    return address(cos_Na), address(sin_Na)


def _rows(context: PagedAttention) -> tuple[int, int, int, int]:
    rows = (context.tables, context.row_table, context.context)
    assert all(x.dtype == torch.int32 and x.is_contiguous() for x in rows)
    tables, row_table, seen = (address(x) for x in rows)
    return tables, row_table, seen, context.tables.shape[1]
