"""The rotary embedding, and the protocol of attention contexts.

Legend: N: packed rows (tokens), H: query heads, K: key/value heads, h: head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fastrl.ops.layer_rows import rotate


@dataclass(frozen=True)
class Rotary:
    """The rotary embedding of rows at their positions (Su et al. 2021), halves as in GPT-NeoX."""

    cos_Na: Tensor  # [N, h / 2], fp32 at least
    sin_Na: Tensor

    @classmethod
    def at(cls, positions_N: Tensor, frequencies_a: Tensor) -> Rotary:
        """`frequencies_a`: radians a position, fp32 at least.

        In fp64 and rounded: torch's vectorised cosine and its scalar one, which takes what is left
        of the rows, differ in the last bit.
        """
        angles_Na = (positions_N.to(frequencies_a.dtype)[:, None] * frequencies_a).double()
        cos_Na, sin_Na = (x.to(frequencies_a.dtype) for x in (angles_Na.cos(), angles_Na.sin()))
        return cls(cos_Na, sin_Na)

    def __call__(self, x_NHh: Tensor) -> Tensor:
        """Every head rotated, rounded once to x's dtype."""
        return rotate(x_NHh, self.cos_Na, self.sin_Na)


class AttentionContext(Protocol):
    """Where a layer's keys and values live, and which of them each row sees."""

    def layer(self, layer: int, hidden_ND: Tensor, rotary: Rotary) -> Tensor | None:
        """A layer's output as a whole [N, D], by kernels without gradient; None: not here."""
        ...

    def attend(
        self, layer: int, q_NHh: Tensor, k_NKh: Tensor, v_NKh: Tensor, rotary: Rotary | None = None
    ) -> Tensor:
        """Causal attention inside each sequence, scale h ** -0.5: [N, H, h].

        `q_NHh` and `k_NKh` come after their norms; `rotary` is applied to them.
        """
        ...


@dataclass(frozen=True)
class LayerAttention:
    """What a layer is given: the context, and the rotary embedding of its rows."""

    context: AttentionContext
    rotary: Rotary

    def layer(self, layer: int, hidden_ND: Tensor) -> Tensor | None:
        """The layer's output [N, D] where the context computes whole layers, else None."""
        return self.context.layer(layer, hidden_ND, self.rotary)

    def attend(self, layer: int, q_NHh: Tensor, k_NKh: Tensor, v_NKh: Tensor) -> Tensor:
        """The context's attention [N, H, h]; q and k come after their norms."""
        return self.context.attend(layer, q_NHh, k_NKh, v_NKh, self.rotary)
