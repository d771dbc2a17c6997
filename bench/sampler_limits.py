"""What sampling cannot be faster than: bare matmuls, measured; bytes and operations, computed.

A decode step of M responses multiplies M rows by every matrix of the model once: those products
alone, in the model's dtype and with its own weights, step after step, are measured beside the
sampler. On a GPU the bound of a step is the sum over its operations of the larger of bytes /
bandwidth and operations / matmul rate (Williams et al. 2009), both of them measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastrl.bench.timing import bandwidth, measure
from fastrl.model import Decoder, DecoderConfig

STEPS = 16  # of bare matmuls in a turn


@dataclass(frozen=True)
class Machine:
    """What was measured: bytes read a second, and operations a second of a large product."""

    bandwidth: float
    matmul_rate: float


def measure_machine(weight: torch.Tensor, width: int = 8192, repeats: int = 7) -> Machine:
    """Reading `weight` once, and a square product of `width` in its dtype."""
    # random, as activations are: a GPU is faster, because cooler, on constants
    square = torch.randn(width, width, device=weight.device).to(weight.dtype)
    times = measure({"product": lambda: square @ square}, weight.device, repeats)["product"]
    rate = 2e3 * width**3 / statistics.median(times)
    return Machine(bandwidth(weight, repeats).read, rate)


def matrices(model: Decoder) -> list[torch.Tensor]:
    """The weights that a decode step multiplies by, in its order; of the head the valid rows."""
    found = [
        getattr(layer, name).weight
        for layer in model.layers
        for name in ("qkv", "o", "gate_up", "down")
    ]
    return [*found, model.head_weight[: model.valid_vocab]]


def bare_matmuls(model: Decoder, responses: int) -> Callable[[], None]:
    """A run of STEPS decode steps that are nothing but their products."""
    weights = matrices(model)
    widths = {weight.shape[1] for weight in weights}
    inputs = {
        width: torch.randn(responses, width, device=weights[0].device).to(weights[0].dtype)
        for width in widths
    }

    @torch.no_grad()
    def run() -> None:
        for _ in range(STEPS):
            for weight in weights:
                F.linear(inputs[weight.shape[1]], weight)

    return run


def products(config: DecoderConfig) -> list[tuple[int, int]]:
    """(Columns, rows) of a layer's four matrices."""
    width, inner = config.hidden_size, config.intermediate_size
    q, kv = (count * config.head_dim for count in (config.num_heads, config.num_kv_heads))
    return [(width, q + 2 * kv), (q, width), (width, 2 * inner), (inner, width)]


def decode_seconds(
    config: DecoderConfig, machine: Machine, responses: int, seen: float, cached: float, size: int
) -> float:
    """The bound of a decode step.

    `seen`: tokens that the responses attend to, summed over them; `cached`: those of them that are
    distinct, whose keys and values have to be read; `size`: bytes of a number.
    """

    def bound(numbers: float, operations: float) -> float:
        return max(size * numbers / machine.bandwidth, operations / machine.matmul_rate)

    def product(columns: int, rows: int) -> float:
        moved = columns * rows + responses * (columns + rows)
        return bound(moved, 2 * responses * columns * rows)

    q, kv = (count * config.head_dim for count in (config.num_heads, config.num_kv_heads))
    attention = bound(2 * cached * kv + 2 * responses * q, 4 * seen * q)
    layer = sum(product(*shape) for shape in products(config)) + attention
    return config.num_layers * layer + product(config.hidden_size, config.vocab_size)


def prefill_operations(config: DecoderConfig, prompts: int, length: int) -> float:
    """Multiplications and additions of `prompts` causal prompts, the head on their last tokens."""
    layer = sum(2 * columns * rows for columns, rows in products(config)) * length
    attention = 4 * config.num_heads * config.head_dim * length * (length + 1) / 2
    head = 2 * config.hidden_size * config.vocab_size
    return float(prompts * (config.num_layers * (layer + attention) + head))
