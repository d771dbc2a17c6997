"""Decode steps of some sequences: one row each, whose inputs stay on the device and advance there.

On a GPU a step is one CUDA graph, captured for the next of a table of batch sizes, that ends with
its own next inputs: the host only says "go" and reads the tokens of the step before.

Legend: R: rows (sequences), W: blocks of a table.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrl import ops
from fastrl.model import Decoder
from fastrl.ops.dense import dense, fits_cpu
from fastrl.sampler import native
from fastrl.sampler.attention import Backends, PagedAttention
from fastrl.sampler.cache import PagedCache

SIZES = (1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, 1025, 32))  # rows of graphs
CAPTURED_AT = (
    3  # uses: capturing takes two steps, which a size that soon passes would not give back
)
RESPONSE_BITS = 12  # of a counter's c0, below the position (`philox`)


@dataclass(frozen=True)
class Sampled:
    """A token of each row, and its log-probs; on a GPU on its way to the host."""

    results_3R: Tensor  # fp64: tokens, logprobs, log_kept_mass
    copied: torch.cuda.Event | None

    def wait(self) -> list[list[float]]:
        """Token ids, log-probs and logs of the kept mass, a list each."""
        if self.copied is not None:
            self.copied.synchronize()
        tokens, *others = self.results_3R.tolist()
        return [[int(token) for token in tokens], *others]


class DecodeSteps:
    """The steps over one cache; on a GPU with the graphs, which hold its addresses."""

    def __init__(
        self,
        model: Decoder,
        cache: PagedCache,
        backends: Backends,
        *,
        max_rows: int,
        width: int,
    ) -> None:
        self.model, self.cache, self.width = model, cache, width
        self.backends = backends
        self.layers: native.Layers | None = None
        self.device = cache.k[0].device
        self.captures = self.device.type == "cuda" and backends.decode == "triton"
        self.lag = 1 if self.captures else 0  # steps begun before the results of one are read
        self.seconds_capture = 0.0
        self.rows = 0
        self.max_rows = max_rows = self._size(max_rows)
        self.tokens_R = torch.zeros(max_rows, dtype=torch.int64, device=self.device)
        self.positions_R = torch.zeros_like(self.tokens_R)
        self.tables_RW = torch.zeros(max_rows, width, dtype=torch.int32, device=self.device)
        self.own_R = torch.arange(max_rows, dtype=torch.int32, device=self.device)
        self.counters_R4 = torch.zeros(max_rows, 4, dtype=torch.int64, device=self.device)
        self.settings: dict[str, Tensor] = {}
        self.constants: tuple[tuple[str, float], ...] = ()
        self.key = (0, 0)
        self.graphs: dict[tuple, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.uses: Counter[tuple] = Counter()
        self.addresses = _addresses(model)
        # one for all captures: libraries keep a workspace for every stream. Of a priority that
        # its graphs keep: they go before what another thread computes meanwhile, on a stream that
        # is never this one
        self.stream = torch.cuda.Stream(self.device, priority=-1) if self.captures else None
        self.pool: Any = None
        self.hosts: list[Tensor] = []

    def fit(self, model: Decoder, num_blocks: int, block_size: int, longest: int) -> bool:
        """Whether the cache and the tables hold sequences up to `longest` tokens of this model."""
        same = self.model is model and self.addresses == _addresses(model)
        enough = self.width * block_size >= longest
        return same and enough and self.cache.fits(model, num_blocks, block_size)

    def _size(self, rows: int) -> int:
        """The rows that a step of `rows` computes."""
        if not self.captures:
            return rows
        return next((s for s in SIZES if s >= rows), -(-rows // SIZES[-1]) * SIZES[-1])

    def begin(
        self,
        tokens: np.ndarray,
        positions: np.ndarray,
        tables: np.ndarray,
        counters: np.ndarray,
        key: tuple[int, int],
        settings: Mapping[str, Any],
    ) -> None:
        """Take other sequences: last token, its position, table and counter of each.

        `settings`: temperature, top_k, top_p and min_p, all numbers, or all a tensor [R].
        """
        if key != self.key:  # a graph holds its key: those of another are of no more use
            self.graphs.clear()
            self.uses.clear()
        self.rows, self.key = len(tokens), key
        size = self._size(self.rows)
        padded = np.full((size - self.rows, tables.shape[1]), self.cache.unread_block, np.int32)
        for target, rows in (
            (self.tokens_R, np.append(tokens, np.zeros(size - self.rows, np.int64))),
            (self.positions_R, np.append(positions, np.full(size - self.rows, -1))),
            (self.tables_RW[:, : tables.shape[1]], np.concatenate([tables, padded])),
            (self.counters_R4[: self.rows], counters),
        ):
            target[: len(rows)].copy_(torch.from_numpy(rows))
        mixed = isinstance(settings["temperature"], Tensor)
        self.constants = () if mixed else tuple(settings.items())
        if mixed and not self.settings:
            self.settings = {
                name: torch.ones(self.max_rows, dtype=values.dtype, device=self.device)
                for name, values in settings.items()
            }
        if mixed:
            for name, values in settings.items():
                self.settings[name][: self.rows].copy_(values)

    def keep(self, rows: np.ndarray) -> None:
        """Go on with some of the sequences, by their rows of now; not where graphs are ahead."""
        assert self.lag == 0
        index = torch.from_numpy(rows).to(self.device)
        state = (self.tokens_R, self.positions_R, self.tables_RW, self.counters_R4)
        for x in (*state, *self.settings.values()):
            x[: len(rows)] = x[index]
        self.rows = len(rows)

    def take_seconds_capture(self) -> float:
        """Seconds that captures took since the last time this was asked."""
        seconds, self.seconds_capture = self.seconds_capture, 0.0
        return seconds

    def launch(self) -> Sampled:
        """Start the next step, whose inputs are what the last one sampled."""
        if not self.captures:
            return Sampled(self._step(self.rows), None)
        with self.cache.on_device():
            return self._launch()

    def _launch(self) -> Sampled:
        size = self._size(self.rows)
        which = (size, self.constants)
        self.uses[which] += 1
        if which not in self.graphs and self.uses[which] < CAPTURED_AT:
            results_3R = self._step(size)
        else:
            graph, results_3R = self._graph(which)
            graph.replay()
        # two copies on the host: one is read while the other is written
        if not self.hosts:
            self.hosts = [
                torch.empty(3 * self.max_rows, dtype=torch.float64, pin_memory=True)
                for _ in range(2)
            ]
        self.hosts.reverse()
        # whole and contiguous, or the copy would wait for the GPU
        host_3R = self.hosts[0][: 3 * size].view(3, size)
        host_3R.copy_(results_3R, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        return Sampled(host_3R[:, : self.rows], copied)

    def _step(self, size: int) -> Tensor:
        """One forward, a token of each row, and the inputs of the step after: [3, size]."""
        tokens_R, positions_R = self.tokens_R[:size], self.positions_R[:size]
        counters_R4 = self.counters_R4[:size]
        context = PagedAttention(
            self.cache, self.tables_RW[:size], self.own_R[:size], positions_R,
            backends=self.backends, layers=self.layers,
        )  # fmt: skip
        hidden_RD = self.model(tokens_R, positions_R.clamp(min=0), context)
        settings: dict[str, Any] = dict(self.constants)
        if not settings:
            settings = {name: values[:size] for name, values in self.settings.items()}
        logits_RV = head_logits(self.model, hidden_RD)
        found = ops.sample(logits_RV, counters_R4, self.key, **settings)
        results_3R = torch.stack(
            [x.double() for x in (found.tokens, found.logprobs, found.log_kept_mass)]
        )
        tokens_R.copy_(found.tokens.clamp(min=0))
        positions_R.add_(positions_R >= 0)
        counters_R4[:, 0].add_(1 << RESPONSE_BITS)
        return results_3R

    def _graph(self, which: tuple) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """The graph of a number of rows and the settings of now, and its results."""
        if which not in self.graphs:
            started = time.perf_counter()
            state = (self.tokens_R, self.positions_R, self.counters_R4)
            before = [x.clone() for x in state]
            # once outside: kernels are compiled, libraries take their workspaces
            assert self.stream is not None
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self._step(which[0])
            torch.cuda.current_stream().wait_stream(self.stream)
            for x, value in zip(state, before, strict=True):
                x.copy_(value)
            if self.pool is None:
                self.pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # another thread may allocate meanwhile
            with torch.cuda.graph(
                graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
            ):
                results_3R = self._step(which[0])
            self.graphs[which] = graph, results_3R
            self.seconds_capture += time.perf_counter() - started
        return self.graphs[which]


def _addresses(model: Decoder) -> tuple[int, ...]:
    """Where the parameters are, which a graph holds."""
    return tuple(p.data_ptr() for p in model.parameters())


def head_logits(model: Decoder, hidden_RD: Tensor) -> Tensor:
    """Logits [R, V] in fp32 (fp64 for fp64), as the trainer's loss takes them.

    A logit in bf16 would be of another distribution.
    """
    weight_VD = model.head_weight[: model.valid_vocab]
    wide = torch.promote_types(weight_VD.dtype, torch.float32)
    backend = "cpu" if fits_cpu(weight_VD) else "torch"
    return dense(hidden_RD, weight_VD, dtype=wide, backend=backend)
