"""How long a step takes at most, from its operations, its bytes and the rates of a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastrl.errors import UsageError
from fastrl.memory_plan import Workload, cache_bytes_a_token, num_parameters

ATTAINED = 0.4  # of a GPU's rated figures
UPDATE_BYTES = 40  # a parameter: masters and moments read and written, gradients and weights
HOST_BYTES_PER_S = 25e9  # to and from a GPU at the same time: half of PCIe 5.0 with 16 lanes
MATMUL_WIDTH, COPIED_NUMBERS, REPEATS = 1024, 1 << 24, 3


@dataclass(frozen=True)
class Rates:
    """What a device does in a second."""

    operations: float  # of matrix products
    bytes: float  # read from memory
    source: str


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet: dense bf16, no sparsity."""

    memory: int  # bytes
    operations: float
    bandwidth: float


GPUS = {
    "a100-80gb": Gpu(80 * 10**9, 312e12, 2.0e12),
    "h100-80gb": Gpu(80 * 10**9, 989e12, 3.35e12),
    "h200": Gpu(141 * 10**9, 989e12, 4.8e12),
}


def gpu_named(name: str) -> Gpu:
    """The GPU of that name; UsageError for one that is not in the table."""
    if name not in GPUS:
        raise UsageError(f"there is no figure for a GPU {name!r}; name one of {', '.join(GPUS)}")
    return GPUS[name]


def rated(name: str) -> Rates:
    """The rates that a run may attain on a named GPU."""
    gpu = gpu_named(name)
    return Rates(
        ATTAINED * gpu.operations,
        ATTAINED * gpu.bandwidth,
        f"{ATTAINED:.0%} of a {name}'s {gpu.operations / 1e12:.0f} T operations/s and"
        f" {gpu.bandwidth / 1e12:.2f} TB/s",
    )


def measured(device: torch.device, dtype: torch.dtype) -> Rates:
    """The rates of products and copies here, in half a second or so."""
    a = torch.ones(MATMUL_WIDTH, MATMUL_WIDTH, dtype=dtype, device=device)
    big = torch.ones(COPIED_NUMBERS, dtype=torch.float32, device=device)
    target = torch.empty_like(big)
    operations = 2 * MATMUL_WIDTH**3 / _seconds(lambda: torch.mm(a, a), device)
    copied = 2 * 4 * COPIED_NUMBERS / _seconds(lambda: target.copy_(big), device)
    name = str(dtype).removeprefix("torch.")
    return Rates(
        operations,
        copied,
        f"measured here, {operations / 1e9:,.0f} G operations/s in {name} and"
        f" {copied / 1e9:.1f} GB/s",
    )


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """The shortest of a few runs."""
    found = []
    for _ in range(REPEATS + 1):  # the first also loads what it needs
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - started)
    return min(found[1:])


@dataclass(frozen=True)
class TimePlan:
    """Seconds of a step, phase by phase, when every response runs to its limit."""

    rates: Rates
    sample: float
    score: float
    train: float
    update: float

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return self.sample + self.score + self.train + self.update

    def __str__(self) -> str:
        parts = ("sample", "score", "train", "update")
        shown = ", ".join(f"{name} {getattr(self, name):.3g}" for name in parts)
        return f"at most {self.step:.3g} s a step ({shown})"


ASSUMPTIONS = (
    "every response at its limit; 2 operations a parameter for a row sampled or scored (policy and"
    " reference), 6 for one trained, 8 with activations computed again; attention and the"
    " communication of processes left out; a decode step reads the weights and the cache once; what"
    " lies in host memory passes at 25 GB/s"
)


def plan_time(workload: Workload, rates: Rates, rounds: int = 1) -> TimePlan:
    """The seconds of a step of one process at the given rates; `rounds` of sampling."""
    w = workload
    parameters = num_parameters(w.config)
    if not w.config.tie_embeddings:
        parameters -= w.config.vocab_size * w.config.hidden_size  # looked up, not multiplied
    here = -(-w.sequences // w.processes)
    rows = here * (w.longest - 1)
    response = w.longest - w.longest_prompt
    running = min(w.running, here)
    cached = running * (w.longest_prompt + response / 2) * cache_bytes_a_token(w)
    decode_step = max(
        2 * parameters * running / rates.operations,
        (parameters * w.itemsize + cached) / rates.bytes,
    )
    state = parameters / w.processes * (12 if w.itemsize == 2 else 8)
    passing = state / HOST_BYTES_PER_S if w.host_state else 0.0
    coming = parameters * w.itemsize / HOST_BYTES_PER_S if w.host_reference else 0.0
    return TimePlan(
        rates,
        sample=rounds * -(-here // running) * response * decode_step,
        score=coming + 2 * 2 * parameters * rows / rates.operations,
        train=(8 if w.checkpointed else 6) * parameters * rows / rates.operations,
        update=max(passing, UPDATE_BYTES * parameters / w.processes / rates.bytes),
    )
