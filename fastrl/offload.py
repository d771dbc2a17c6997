"""Tensors in host memory that pass through a device in pieces, copied while others are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Piece:
    """Flat tensors of one length in host memory, and what changes their copies in place."""

    tensors: Sequence[Tensor]
    work: Callable[..., None]


def host_like(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor in host memory that copies to and from `device` need not wait for."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=device.type == "cuda")


def through_device(pieces: Sequence[Piece], device: torch.device) -> None:
    """Bring each piece to the device, do its work there, bring it back; in order.

    On a GPU the next piece is on its way in and the last on its way out meanwhile, on streams of
    their own, and all are back when this returns.
    """
    pieces = [piece for piece in pieces if piece.tensors[0].numel()]
    if not pieces:
        return
    gpu = device.type == "cuda"
    streams = (torch.cuda.Stream(device), torch.cuda.Stream(device)) if gpu else None
    lanes = [_Lane(pieces, device, streams) for _ in range(min(2, len(pieces)))]
    lanes[0].fetch(pieces[0])
    for number in range(len(pieces)):
        if number + 1 < len(pieces):
            lanes[(number + 1) % 2].fetch(pieces[number + 1])
        lanes[number % 2].work()
    for lane in lanes:
        lane.wait()


class _Lane:
    """Memory on the device for one piece after another."""

    def __init__(
        self,
        pieces: Sequence[Piece],
        device: torch.device,
        streams: tuple[torch.cuda.Stream, torch.cuda.Stream] | None,
    ) -> None:
        slots = max(len(piece.tensors) for piece in pieces)
        longest = max(piece.tensors[0].numel() for piece in pieces)
        dtype = pieces[0].tensors[0].dtype
        self._memory = torch.empty(slots, longest, dtype=dtype, device=device)
        self._streams = streams
        self._back: torch.cuda.Event | None = None
        if streams is not None:  # what had this memory before may still be at work
            streams[0].wait_stream(torch.cuda.current_stream(device))

    def fetch(self, piece: Piece) -> None:
        self._piece = piece
        self._copies = [x[: t.numel()] for x, t in zip(self._memory, piece.tensors, strict=False)]
        if self._streams is None:
            self._copy_in()
            return
        coming, _ = self._streams
        if self._back is not None:
            coming.wait_event(self._back)
        with torch.cuda.stream(coming):
            self._copy_in()
        self._here = coming.record_event()

    def work(self) -> None:
        if self._streams is None:
            self._piece.work(*self._copies)
            self._copy_out()
            return
        _, going = self._streams
        current = torch.cuda.current_stream(self._memory.device)
        current.wait_event(self._here)
        self._piece.work(*self._copies)
        going.wait_event(current.record_event())
        with torch.cuda.stream(going):
            self._copy_out()
        self._back = going.record_event()

    def wait(self) -> None:
        if self._back is not None:
            self._back.synchronize()

    def _copy_in(self) -> None:
        for copy, tensor in zip(self._copies, self._piece.tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)

    def _copy_out(self) -> None:
        for copy, tensor in zip(self._copies, self._piece.tensors, strict=True):
            tensor.copy_(copy, non_blocking=True)


class Resting:
    """A frozen model whose parameters are on their device only while they are used.

    Its parameters lie in host memory otherwise. They are never changed, so that nothing is brought
    back.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = list(model.parameters())
        self._device = self._parameters[0].device
        self._kept = []
        for p in self._parameters:
            kept = host_like(p, self._device)
            kept.copy_(p.detach())
            p.data = kept
            self._kept.append(kept)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """A context in which the parameters are on the device."""
        for p, kept in zip(self._parameters, self._kept, strict=True):
            p.data = kept.to(self._device, non_blocking=True, copy=True)
        try:
            yield
        finally:
            for p, kept in zip(self._parameters, self._kept, strict=True):
                p.data = kept
