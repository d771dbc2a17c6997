"""AdamW over fp32 masters, with clipping and a warm-up; the parameters are written in `step`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from fastrl.config import OptimConfig
from fastrl.distributed import ALONE, World
from fastrl.errors import UsageError
from fastrl.sharding import assemble, piece, piece_of

STATE = ("exp_avg", "exp_avg_sq", "step")  # of AdamW, for each parameter


class Optimizer:
    """One optimiser step: clip by global norm, set the learning rate, AdamW, round into the model.

    Parameters in fp32 or fp64 are stepped themselves; those of a narrower dtype have fp32 masters,
    kept here, that round into the model's tensors at the end of `step`. Of a sharded model
    (`sharding.py`) all this is the piece of this process, and every process takes each step.
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
        self.masters = [
            x if x.dtype in (torch.float32, torch.float64) else x.detach().float().clone()
            for x in self.pieces
        ]
        self.adamw = torch.optim.AdamW(
            self.masters,
            lr=config.lr,
            betas=(config.betas[0], config.betas[1]),
            eps=config.eps,
            weight_decay=config.weight_decay,
        )

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
        for master, p in zip(self.masters, self.params, strict=True):
            if p.grad is None:
                continue
            if master is not p:
                master.grad = piece(p.grad).to(master.dtype)
            assert master.grad is not None
            if scale != 1.0:
                master.grad.mul_(scale)
        for group in self.adamw.param_groups:
            group["lr"] = self.lr_at(step)
        self.adamw.step()
        with torch.no_grad():
            for master, x in zip(self.masters, self.pieces, strict=True):
                if master is not x:
                    x.copy_(master)
        self.zero_grad()
        return norm

    def _norm(self, grads: list[torch.Tensor]) -> float:
        norm = float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0
        return norm if self.world.size == 1 else math.sqrt(self.world.sum(norm**2)[0])

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for master, p in zip(self.masters, self.params, strict=True):
            p.grad = None
            master.grad = None

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """The state as named tensors: masters of narrow parameters, both moments, step counts.

        Every process calls it; the pieces are put together one tensor at a time, for the first
        process, and the others get nothing.
        """
        tensors: dict[str, torch.Tensor] = {}
        columns = zip(self.names, self.masters, self.pieces, self.params, strict=True)
        for name, master, x, p in columns:
            state = dict(self.adamw.state.get(master, {}))
            found = {"step": state.pop("step")} if state else {}
            parts = state if master is x else {"master": master, **state}
            for key, value in sorted(parts.items()):  # in one order on every process
                whole = assemble(value, p)
                if self.world.is_first:
                    found[key] = whole
            if self.world.is_first:
                tensors.update({f"{key}.{name}": value for key, value in found.items()})
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back what `state_tensors` gave; raises UsageError when it is another model's."""
        used = set()
        columns = zip(self.names, self.masters, self.pieces, self.params, strict=True)
        for name, master, x, p in columns:
            state = {k: tensors[f"{k}.{name}"] for k in STATE if f"{k}.{name}" in tensors}
            if state and (len(state) < len(STATE) or state["exp_avg"].shape != p.shape):
                raise UsageError(
                    f"the optimiser state of {name} does not fit the model's parameter"
                )
            used |= {f"{k}.{name}" for k in state}
            if state:
                self.adamw.state[master] = {
                    k: v.clone() if k == "step" else piece_of(v, p).to(master.device, copy=True)
                    for k, v in state.items()
                }
            if master is not x:
                if f"master.{name}" not in tensors:
                    raise UsageError(f"the optimiser state has no master weights of {name}")
                used.add(f"master.{name}")
                with torch.no_grad():
                    master.copy_(piece_of(tensors[f"master.{name}"], p))
        if extra := sorted(set(tensors) - used):
            raise UsageError(f"the optimiser state holds {extra[0]!r}, which the model has not")
