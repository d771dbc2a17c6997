"""A model in pieces on several processes (FSDP2), and whole while it samples.

Each process keeps a piece of every parameter, the piece's gradient and its optimiser state. The
gradient is the sum over the processes: a loss is divided by the step's own denominator. A model
that is not sharded passes through every function here as it is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    from fastrl.model import Decoder

# FSDP is imported where there is something to shard: half a second that one process does not need


def shard(model: Decoder, *, keep_gathered: bool, device: torch.device | str | None = None) -> None:
    """Leave this process its piece of every parameter. Every process.

    `device`: of the processes, where the model is on "meta", without memory yet.
    `keep_gathered`: forward and backward leave the parameters whole and gradients unreduced, until
    `scatter`; otherwise a layer is gathered when it is computed, and its gradient reduced at once.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    device = torch.device(device or model.embed.device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    narrow = model.embed.dtype.itemsize < 4
    precision = MixedPrecisionPolicy(reduce_dtype=torch.float32 if narrow else None)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=precision, reshard_after_forward=not keep_gathered)
    # the embedding, the last norm and the head, which is read after the forward
    fully_shard(model, mesh=mesh, mp_policy=precision, reshard_after_forward=False)
    for part in _parts(model):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo has no other
        part.set_reshard_after_backward(not keep_gathered, recurse=False)


def _parts(model: object) -> list[FSDPModule]:
    if not _is_sharded(model):
        return []
    return [part for part in cast(nn.Module, model).modules() if _is_sharded(part)]


def _is_sharded(module: object) -> TypeGuard[FSDPModule]:
    return hasattr(module, "unshard")


def _is_piece(tensor: Tensor) -> TypeGuard[DTensor]:
    return hasattr(tensor, "to_local")


def gather(model: object) -> None:
    """Make every parameter a whole plain tensor. Every process."""
    for part in _parts(model):
        part.unshard()


def scatter(model: object) -> None:
    """Free what was gathered: due after a change of the pieces."""
    for part in _parts(model):
        part.reshard()


@contextmanager
def gathered(model: object, *, keep: bool) -> Iterator[None]:
    """A context in which the model is a plain one with whole parameters. Every process.

    Their order of calls is free then: no forward communicates, so that one may sample longer than
    another. `keep` leaves the parameters whole at the end.
    """
    gather(model)
    parts = [cast(nn.Module, part) for part in _parts(model)]
    hooks = [(part._forward_pre_hooks, part._forward_hooks) for part in parts]
    try:
        for part in parts:
            part._forward_pre_hooks, part._forward_hooks = OrderedDict(), OrderedDict()
        yield
    finally:
        for part, (before, after) in zip(parts, hooks, strict=True):
            part._forward_pre_hooks, part._forward_hooks = before, after
    if not keep:
        scatter(model)


def reduce_gradients(model: object, on: bool) -> None:
    """Whether the next backward pass adds up the gradients of all processes, or keeps its own."""
    if _is_sharded(model):
        model.set_requires_gradient_sync(on)


def piece(tensor: Tensor) -> Tensor:
    """This process's part, which shares the memory; a tensor that is not sharded, itself."""
    return cast("DTensor", tensor.detach()).to_local() if _is_piece(tensor) else tensor


def piece_rows(like: Tensor) -> range:
    """The rows of the parameter `like` that this process has."""
    if not _is_piece(like):
        return range(len(like))
    rows = like.to_local().shape[0]
    first = -(-len(like) // like.device_mesh.size()) * like.device_mesh.get_local_rank()
    first = min(first, len(like) - rows)
    return range(first, first + rows)


def piece_of(whole: Tensor, like: Tensor) -> Tensor:
    """The part of `whole` that corresponds to this process's of the parameter `like`."""
    rows = piece_rows(like)
    return whole[rows.start : rows.stop]


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Set the parameters of `target` to those of its twin `source`, which is whole or sharded too.

    No process asks another.
    """
    for x, p in zip(source.parameters(), target.parameters(), strict=True):
        piece(p).copy_(piece(x) if _is_piece(x) else piece_of(x, p))


def assemble(part: Tensor, like: Tensor) -> Tensor:
    """The whole tensor of which every process has the `part` that it has of `like`. Every process.

    It is on the CPU where it was put together.
    """
    if not _is_piece(like):
        return part
    from torch.distributed.tensor import DTensor

    whole = DTensor.from_local(
        part.to(like.device),
        like.device_mesh,
        like.placements,
        shape=like.shape,
        stride=like.stride(),
    )
    return whole.full_tensor().cpu()
