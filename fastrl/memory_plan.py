"""The peak memory of a run, planned from its shapes, and what would make it fit.

Legend: N: rows of a micro-batch, D: hidden width, F: width of the feed-forward layer, H, K: query
and key/value heads, h: head dimension, V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from fastrl.model import Decoder
from fastrl.model_config import DecoderConfig
from fastrl.ops.head import chunk_rows, joined_rows
from fastrl.optim import PIECE_NUMBERS

WIDE = 4  # bytes of fp32
HEAP_KEEPS = 0.4  # of freed activations, by the C library: 0.2 to 0.6 of SmolLM2-135M's
SHOWN = 5e6  # bytes: less is left out of what is printed
SAMPLE, SCORE, BACKWARD, UPDATE = "sampling", "scoring", "backward pass", "update"


@dataclass(frozen=True)
class Workload:
    """What the memory of one process of a run depends on."""

    config: DecoderConfig
    itemsize: int  # bytes of a parameter, an activation and a cached key: 4 or 2
    on_gpu: bool
    valid_vocab: int
    rows: int  # of a micro-batch, at most
    sequences: int  # responses of a step, over all processes
    running: int  # responses that the sampler holds at once
    longest: int  # tokens of a prompt and its response together
    longest_prompt: int
    max_batch_tokens: int  # rows of a forward of the sampler
    block_size: int
    num_blocks: int  # of the cache; 0: as many as the call needs, on a GPU as many as fit
    checkpointed: bool  # the activations of a layer are computed again in the backward pass
    processes: int = 1
    keep_gathered: bool = True  # of several processes: each has whole parameters for a whole step
    host_state: bool = False  # AdamW's state lies in host memory
    host_reference: bool = False  # the reference too, between its uses
    scores_early: bool = False  # whole groups are scored while others are sampled
    copies_checkpoint: bool = False  # what a CPU writes in the background
    multiplies_halves: bool = True  # the head's products take a narrow parameter as it is

    @property
    def micro_batch_rows(self) -> int:
        """Rows of the largest micro-batch: one sequence is never split."""
        here = -(-self.sequences // self.processes)
        return min(max(self.rows, self.longest - 1), here * (self.longest - 1))

    @property
    def several_micro_batches(self) -> bool:
        """Whether a step may have more than one, which add to gradients that are there already."""
        here = -(-self.sequences // self.processes)
        return here * (self.longest - 1) > self.micro_batch_rows


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of each part in each phase of a step; the peak is the largest sum.

    `baseline`: what the process has before any of it, outside `phases`; on a GPU nothing.
    `host`: beside them, in the memory of a GPU's machine, for good.
    `not_at_first`: what is not there yet in the first step: a checkpoint's copy, AdamW's moments
    before its update, and in it, as they are made one by one, the gradients dropped meanwhile.
    """

    workload: Workload
    baseline: int
    phases: Mapping[str, Mapping[str, int]]
    not_at_first: Mapping[str, int]
    spare_cache: int  # of the cache, what a run can do without, more slowly
    host: int = 0

    @property
    def totals(self) -> dict[str, int]:
        """Bytes at the peak of each phase, the baseline included."""
        return {name: self.baseline + sum(parts.values()) for name, parts in self.phases.items()}

    @property
    def peak(self) -> int:
        """Bytes at the peak of the run."""
        return max(self.totals.values())

    @property
    def needed(self) -> int:
        """Bytes without which the run cannot be."""
        totals = self.totals
        return max(total - self.spare_cache * (name == SAMPLE) for name, total in totals.items())

    @property
    def peak_of_first_step(self) -> int:
        """Bytes at the peak of the first step."""
        return max(total - self.not_at_first[name] for name, total in self.totals.items())

    @property
    def highest(self) -> str:
        """The phase with the peak."""
        return max(self.totals, key=lambda name: self.totals[name])

    def __str__(self) -> str:
        totals = self.totals
        parts = sorted(self.phases[self.highest].items(), key=lambda part: -part[1])
        shown = [f"{name} {gigabytes(size)}" for name, size in parts if size >= SHOWN]
        if self.baseline:
            shown.insert(0, f"process {gigabytes(self.baseline)}")
        others = [f"{name} {gigabytes(totals[name])}" for name in totals if name != self.highest]
        host = f", and {gigabytes(self.host)} GB of host memory" if self.host else ""
        again = ", layers computed again in the backward pass" if self.workload.checkpointed else ""
        return (
            f"memory: at most {gigabytes(self.peak)} GB, in the {self.highest}"
            f" ({', '.join(shown)}); {', '.join(others)}{again}{host}"
        )

    def table(self) -> list[str]:
        """Lines of a table in GB: a part a line, a phase a column."""
        names = list(dict.fromkeys(name for parts in self.phases.values() for name in parts))
        rows = [("process", [self.baseline] * len(self.phases))]
        rows += [(name, [parts.get(name, 0) for parts in self.phases.values()]) for name in names]
        rows.append(("in all", list(self.totals.values())))
        lines = [f"{'GB':<14}" + "".join(f"{phase:>15}" for phase in self.phases)]
        for name, sizes in rows:
            shown = (gigabytes(size) if size >= SHOWN else "" for size in sizes)
            lines.append((f"{name:<14}" + "".join(f"{size:>15}" for size in shown)).rstrip())
        return lines

    def compared(self, measured: int, *, with_moments: bool) -> str:
        """The measured peak of the first step beside the planned one, in words.

        `with_moments`: AdamW's were there before it, as in a resumed run.
        """
        planned = self.peak if with_moments else self.peak_of_first_step
        words = (
            f"memory: {gigabytes(measured)} GB at the peak so far, planned"
            f" {gigabytes(planned)} GB ({measured / planned - 1:+.1%})"
        )
        if planned < self.peak:
            words += f"; from the next step on {gigabytes(self.peak)} GB"
        return words


def gigabytes(size: float) -> str:
    """Bytes as GB (1e9) in three digits."""
    return f"{size / 1e9:.2f}" if size < 99.5e9 else f"{size / 1e9:.0f}"


def num_parameters(config: DecoderConfig) -> int:
    """Parameters of a decoder, a tied head counted once."""
    return sum(_numbers(config))


@lru_cache  # a plan is made for many settings of one model
def _numbers(config: DecoderConfig) -> tuple[int, ...]:
    """Of each parameter."""
    return tuple(p.numel() for p in Decoder(config, device="meta").parameters())


def cache_bytes_a_token(workload: Workload) -> int:
    """Bytes of a token's keys and values over all layers."""
    config = workload.config
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * workload.itemsize


def plan_memory(workload: Workload, baseline: int = 0, available: int | None = None) -> MemoryPlan:
    """The plan of one process's peak.

    `baseline`: bytes that it has already; `available`: bytes in all, of which the cache of a GPU
    takes what is free where it needs as much.
    """
    w, size = workload, _Sizes(workload)
    state = {"fp32 masters": size.masters, "moments": size.moments}
    host = 0
    if w.host_state:
        host, state = sum(state.values()), {}
    resting = {} if w.host_reference else {"reference": size.reference}
    host += size.reference * w.host_reference
    copied = {"checkpoint": size.checkpoint} if w.copies_checkpoint else {}
    whole = {"policy": size.whole, **resting, **state, **copied}
    sampling = whole | {"forward": size.sampler_forward}
    sampling |= {SCORE: size.scoring} if w.scores_early else {}
    cache = size.cache
    if w.on_gpu and available is not None:
        free = available - baseline - sum(sampling.values())
        cache = min(cache, max(size.least_cache, free))
    # on a CPU the cache stays while the rest of the step is done
    kept = {} if w.on_gpu else {"cache": cache}
    training = whole | {"policy": size.training} | kept
    phases = {
        SAMPLE: sampling | {"cache": cache},
        SCORE: training | {"reference": size.reference, "forward": size.scoring},
        BACKWARD: training
        | {
            "gradients": size.gathered_gradients if w.several_micro_batches else 0,
            "activations": size.activations,
            "head": size.head,
        },
        UPDATE: training | {"gradients": size.gradients, "temporary": size.update},
    }
    if not w.on_gpu:
        phases[UPDATE]["heap"] = int(HEAP_KEEPS * size.activations)
    if w.host_state:
        phases[UPDATE]["state on its way"] = size.passing
    later = sum(copied.values())  # than the first step's end
    not_at_first = dict.fromkeys(phases, later + (0 if w.host_state else size.moments))
    not_at_first[UPDATE] = later + (size.gradients if w.itemsize < WIDE else 0)
    spare = cache - min(cache, size.least_cache) if w.on_gpu else 0
    return MemoryPlan(w, baseline, phases, not_at_first, spare, host)


class _Sizes:
    """Bytes of the parts."""

    def __init__(self, workload: Workload) -> None:
        w = self.w = workload
        c = w.config
        parameters = _numbers(c)
        count, shard = sum(parameters), -(-sum(parameters) // w.processes)
        several = w.processes > 1
        weights, piece = count * w.itemsize, shard * w.itemsize
        # of several processes each has a piece, beside it what is gathered: all, or the root's
        # parameters (embedding, norm, head) and the layer that is computed and the next
        layer = (count - c.vocab_size * c.hidden_size) // c.num_layers
        few = (c.vocab_size * c.hidden_size + 2 * layer) * w.itemsize
        self.whole = weights + several * piece
        self.training = self.whole if w.keep_gathered or not several else piece + few
        self.reference = weights if w.keep_gathered or not several else piece + few
        self.gradients = piece
        # what several processes have not added up yet is in fp32
        self.gathered_gradients = piece
        if several and w.keep_gathered:
            self.gathered_gradients = count * WIDE
        self.masters = shard * WIDE if w.itemsize < WIDE else 0
        self.moments = 2 * shard * WIDE
        # one process has those of all
        self.checkpoint = weights + w.processes * (self.masters + self.moments)
        # of a piece of a parameter at a time a gradient in fp32; two pieces of the state are on
        # their way through a GPU
        most = min(PIECE_NUMBERS, -(-max(parameters) // w.processes)) * WIDE
        self.update = most if w.itemsize < WIDE else 0
        self.passing = 2 * most * (3 if w.itemsize < WIDE else 2)

        self.heads = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
        self.attended = c.num_heads * c.head_dim
        a_block = cache_bytes_a_token(w) * w.block_size
        least = -(-w.longest // w.block_size)
        self.least_cache = (least + 2) * a_block
        self.cache = ((w.num_blocks or (w.running + 1) * (least + 1)) + 2) * a_block

    @property
    def sampler_forward(self) -> int:
        """A prefill's rows in one layer, and the logits of all that run with what sampling adds."""
        w, c = self.w, self.w.config
        rows = min(w.max_batch_tokens, w.running * w.longest_prompt)
        widths = 3 * c.hidden_size + self.heads + self.attended + c.intermediate_size
        logits = 2 * w.running * w.valid_vocab * WIDE
        return rows * widths * w.itemsize + logits

    @property
    def scoring(self) -> int:
        """One layer's rows without gradient, and the head's."""
        rows = self.w.micro_batch_rows * (self._layer + self.w.config.hidden_size * WIDE)
        return rows + self._logits + self._head_weight

    @property
    def activations(self) -> int:
        """What the layers of a micro-batch keep for the backward pass, and one layer's gradients,
        which are about as much as it keeps.

        With layers that are computed again: the inputs of all, and all that one keeps.
        """
        w, c = self.w, self.w.config
        # the first layer's input, the last norm, the rotation
        ends = 3 * c.hidden_size * w.itemsize + 2 * c.head_dim * WIDE
        layers = self._layer + (c.num_layers - 1) * (
            c.hidden_size * w.itemsize if w.checkpointed else self._layer
        )
        return w.micro_batch_rows * (ends + layers + self._layer)

    @property
    def _layer(self) -> int:
        """Bytes that a layer keeps of a row.

        Inputs and outputs of norms; queries, keys and values; attention's output; gate and up and
        their product. A GPU keeps queries and keys after the rotation too; the norms of heads in
        C++ keep copies of what they are given, and attention what they give.
        """
        w, c = self.w, self.w.config
        numbers = 4 * c.hidden_size + self.heads + self.attended + 3 * c.intermediate_size
        turned = self.heads - c.num_kv_heads * c.head_dim
        if w.on_gpu:
            numbers += turned
        elif c.qk_norm:
            numbers += 2 * turned
        return numbers * w.itemsize

    @property
    def head(self) -> int:
        """The logits of a chunk, the gradients of weight and hidden states; on a CPU the weight in
        fp32, or the rows of gradients that wait for one product.
        """
        w, c = self.w, self.w.config
        rows, numbers = w.micro_batch_rows, w.valid_vocab * c.hidden_size
        narrow = numbers * w.itemsize if w.itemsize < WIDE else 0  # of the weight's gradient
        wide, waiting = numbers * WIDE, 0
        if narrow and w.multiplies_halves and not w.on_gpu:
            row = w.valid_vocab * w.itemsize
            joined = joined_rows(rows, row)
            wide, waiting = wide if joined < rows else 0, joined * row
        hidden = 2 * rows * c.hidden_size * WIDE
        return self._logits + self._head_weight + wide + waiting + narrow + hidden

    @property
    def _logits(self) -> int:
        """A chunk's; beside them a GPU has their gradient in half precision."""
        w = self.w
        row = w.valid_vocab * (WIDE + (w.itemsize if w.on_gpu and w.itemsize < WIDE else 0))
        return chunk_rows(w.micro_batch_rows, row, w.on_gpu) * row

    @property
    def _head_weight(self) -> int:
        """The head's weight in fp32, where a narrower one is made wide."""
        w = self.w
        wide = not w.multiplies_halves and w.itemsize < WIDE
        return w.valid_vocab * w.config.hidden_size * WIDE if wide else 0
