"""AdamW over fp32 masters, with clipping and a warm-up; the parameters are written in `step`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from fastrl.config import OptimConfig
from fastrl.distributed import ALONE, World
from fastrl.errors import UsageError
from fastrl.offload import Piece, host_like, through_device
from fastrl.sharding import assemble, piece, piece_of

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, for each parameter, in torch's names
PIECE_NUMBERS = 1 << 24  # of a parameter that are updated together


class Optimizer:
    """One optimiser step: clip by global norm, set the learning rate, AdamW, round into the model.

    Parameters in fp32 or fp64 are stepped themselves; those of a narrower dtype have fp32 masters,
    kept here, that round into the model's tensors at the end of `step`. Of a sharded model
    (`sharding.py`) all this is the piece of this process, and every process takes each step.
    With `config.state` "host" masters and moments lie in host memory and pass through the device
    in each step (`offload.py`), to the same bits.
    """

    def __init__(
        self,
        model: nn.Module,
        config: OptimConfig,
        total_steps: int = 0,
        world: World = ALONE,
    ) -> None:
        """`total_steps`: steps of the whole run, which the linear schedule falls over; `world`:
        the processes that a sharded model lies on.
        """
        if len(config.betas) != 2 or not all(0 <= b < 1 for b in config.betas):
            raise UsageError(
                f"optim.betas is {config.betas}; give two numbers from 0 up to below 1"
            )
        if not (config.lr >= 0 and config.warmup_steps >= 0 and config.grad_clip >= 0):
            raise UsageError(
                f"optim.lr {config.lr}, warmup_steps {config.warmup_steps} and grad_clip "
                f"{config.grad_clip} must not be negative"
            )
        if config.schedule == "linear" and total_steps < 1:
            raise UsageError(f"the linear schedule falls over the run's steps, not {total_steps}")
        self.config, self.total_steps, self.world = config, total_steps, world
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.pieces = [piece(p) for p in self.params]
        self.device = self.pieces[0].device if self.pieces else torch.device("cpu")
        self.masters = [
            x if x.dtype in (torch.float32, torch.float64) else self._kept(x.detach().float())
            for x in self.pieces
        ]
        # none before the first step
        self.moments: list[tuple[Tensor, Tensor] | None] = [None] * len(self.params)
        self.counts = [0] * len(self.params)  # of updates

    def _kept(self, x: Tensor) -> Tensor:
        """A copy of `x` where the state lies."""
        return self._memory(x).copy_(x)

    def _zeros(self, like: Tensor) -> Tensor:
        return self._memory(like).zero_()

    def _memory(self, like: Tensor) -> Tensor:
        if self.config.state == "host":
            return host_like(like, self.device)
        return torch.empty(like.shape, dtype=like.dtype, device=self.device)

    def lr_at(self, step: int) -> float:
        """The learning rate of step `step` (from 0): linear warm-up, then constant or falling."""
        config = self.config
        if step < config.warmup_steps:
            share = config.warmup_from + (1 - config.warmup_from) * step / config.warmup_steps
        elif config.schedule == "linear":
            left = self.total_steps - step
            share = max(0, left) / max(1, self.total_steps - config.warmup_steps)
        else:
            share = 1.0
        return config.lr * share

    def step(self, step: int) -> float:
        """Apply the accumulated gradients as step number `step`; returns the norm before clipping.

        A gradient that is not finite changes nothing and returns the norm as it is.
        """
        norm = self._norm([piece(p.grad) for p in self.params if p.grad is not None])
        if not math.isfinite(norm):
            self.zero_grad()
            return norm
        clip = self.config.grad_clip
        scale = clip / norm if clip and norm > clip else 1.0
        updates = self._updates(scale, self.lr_at(step))
        if self.config.state == "host":
            through_device([*updates], self.device)
        else:
            for update in updates:
                update.work(*update.tensors)
        self.zero_grad()
        return norm

    def _updates(self, scale: float, lr: float) -> Iterator[Piece]:
        """The state of parameters with a gradient in pieces, and the update of each."""
        for number, p in enumerate(self.params):
            if p.grad is None:
                continue
            master = self.masters[number]
            # made when their turn comes: the gradients of those before are gone then
            moments = self.moments[number] or (self._zeros(master), self._zeros(master))
            self.moments[number] = moments
            self.counts[number] += 1
            narrow = () if master is self.pieces[number] else (master,)
            state = [x.view(-1) for x in (*moments, *narrow)]
            for first in range(0, master.numel(), PIECE_NUMBERS):
                part = slice(first, first + PIECE_NUMBERS)
                work = partial(self._update, number, part, scale, lr)
                yield Piece([x[part] for x in state], work)

    def _update(
        self,
        number: int,
        part: slice,
        scale: float,
        lr: float,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        master: Tensor | None = None,
    ) -> None:
        """AdamW of a piece of a parameter, with its state; the last piece drops the gradient."""
        p, config = self.params[number], self.config
        assert p.grad is not None
        x = self.pieces[number].detach().view(-1)[part]
        # one piece at a time: the gradients in fp32 never are in memory together
        grad = piece(p.grad).reshape(-1)[part].to(exp_avg.dtype)
        if scale != 1.0:
            grad.mul_(scale)
        adamw(
            [x if master is None else master], [grad], [exp_avg], [exp_avg_sq], [],
            [torch.full((), self.counts[number] - 1.0, device=self.device)], fused=True,
            amsgrad=False, beta1=config.betas[0], beta2=config.betas[1], lr=lr,
            weight_decay=config.weight_decay, eps=config.eps, maximize=False,
        )  # fmt: skip
        if master is not None:
            x.copy_(master)
        if part.stop >= self.pieces[number].numel():
            p.grad = None

    def _norm(self, grads: list[torch.Tensor]) -> float:
        # at least in fp32: the norm of a bf16 gradient as a bf16 number is off by up to 0.4 %
        wide = torch.promote_types(grads[0].dtype, torch.float32) if grads else torch.float32
        each = torch._foreach_norm(grads, 2.0, wide) if grads else ()
        norm = float(torch.linalg.vector_norm(torch.stack(each))) if each else 0.0
        return norm if self.world.size == 1 else math.sqrt(self.world.sum(norm**2)[0])

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for p in self.params:
            p.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """The state as named tensors: masters of narrow parameters, both moments, step counts.

        Every process calls it; the pieces are put together one tensor at a time, for the first
        process, and the others get nothing.
        """
        tensors: dict[str, Tensor] = {}
        for number, (name, p) in enumerate(zip(self.names, self.params, strict=True)):
            parts, moments = {}, self.moments[number]
            if moments is not None:
                parts = dict(zip(MOMENTS, moments, strict=True))
            if self.masters[number] is not self.pieces[number]:
                parts["master"] = self.masters[number]
            for key, part in parts.items():  # in one order on every process
                whole = assemble(part, p)
                if self.world.is_first:
                    tensors[f"{key}.{name}"] = whole
            if self.world.is_first and moments is not None:
                tensors[f"step.{name}"] = torch.tensor(float(self.counts[number]))
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state_tensors` gave; raises UsageError when it is another model's."""
        used = set()
        for number, (name, p) in enumerate(zip(self.names, self.params, strict=True)):
            keys = [f"{key}.{name}" for key in (*MOMENTS, "step")]
            found = {key: tensors[key] for key in keys if key in tensors}
            if found and (len(found) < len(keys) or found[keys[0]].shape != p.shape):
                raise UsageError(
                    f"the optimiser state of {name} does not fit the model's parameter"
                )
            used |= {*found}
            if found:
                first, second, count = found.values()
                self.moments[number] = (
                    self._kept(piece_of(first, p)), self._kept(piece_of(second, p)),
                )  # fmt: skip
                self.counts[number] = int(count)
            if self.masters[number] is not self.pieces[number]:
                if f"master.{name}" not in tensors:
                    raise UsageError(f"the optimiser state has no master weights of {name}")
                used.add(f"master.{name}")
                self.masters[number].copy_(piece_of(tensors[f"master.{name}"], p))
        if extra := sorted(set(tensors) - used):
            raise UsageError(f"the optimiser state holds {extra[0]!r}, which the model has not")
