"""The dual functions of affine activations a x + b, to which the identity belongs."""

from __future__ import annotations

import torch
from torch import Tensor

from ._dual import DualActivation
from ._formula import Form, Formula


class DualAffine(DualActivation):
    """φ(x) = a x + b: κ = a² k + b² and κ̇ = a².

    Args:
        slope: a.
        offset: b.
        name: The name in messages.

    Example:
        >>> k = torch.tensor([0.5])
        >>> DualAffine(2.0, 1.0).pair(k, torch.ones(1), torch.ones(1))
        (tensor([3.]), tensor([4.]))
    """

    def __init__(self, slope: float = 1.0, offset: float = 0.0, name: str = "affine") -> None:
        self.name = name
        self.slope = slope
        self.offset = offset

    def diagonal(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[φ(u)²] = a² q + b² and E[φ'(u)²] = a²."""
        return self.slope**2 * q + self.offset**2, torch.full_like(q, self.slope**2)

    def pair(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return κ and κ̇ in the broadcast shape; see `DualActivation.pair`."""
        k, _, _ = torch.broadcast_tensors(k, q1, q2)  # type: ignore[no-untyped-call]
        return self.slope**2 * k + self.offset**2, torch.full_like(k, self.slope**2)

    def pair_from_distance(self, d: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[(φ(u) - φ(v))²] = a² d, and κ̇ = a²."""
        d, _, _ = torch.broadcast_tensors(d, q1, q2)  # type: ignore[no-untyped-call]
        return self.slope**2 * d, torch.full_like(d, self.slope**2)

    def fused(self, form: Form) -> Formula:
        """Return statements for a² k + b², or for a² d, since b cancels in a distance."""
        offset = 0.0 if form.distance else self.offset**2
        return Formula(("k = p0 * k0 + p1", "t = p0 * t0"), (self.slope**2, offset))
