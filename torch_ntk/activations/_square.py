"""The dual functions of the square."""

from __future__ import annotations

from torch import Tensor

from ._dual import DualActivation
from ._formula import Form, Formula


class DualSquare(DualActivation):
    """φ(x) = x²: κ = q1 q2 + 2 k² and κ̇ = 4 k (Isserlis' theorem)."""

    name = "square"

    def diagonal(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[φ(u)²] = 3 q² and E[φ'(u)²] = 4 q."""
        return 3 * q.square(), 4 * q

    def pair(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return κ and κ̇ in the broadcast shape; see `DualActivation.pair`."""
        value = q1 * q2 + 2 * k.square()
        return value, (4 * k).expand_as(value)

    def pair_from_distance(self, d: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[(u - v)² (u + v)²] = d (2 q1 + 2 q2 - d) + 2 (q1 - q2)², and κ̇."""
        total = 2 * (q1 + q2) - d
        distance = d * total + 2 * (q1 - q2).square()
        return distance, 2 * (total - (q1 + q2))

    def fused(self, form: Form) -> Formula:
        """Return statements for the same polynomials; the term of an image is its variance q."""
        if not form.distance:
            lines: tuple[str, ...] = ("k = a0 * b0 + 2.0 * k0 * k0", "t = t0 * (4.0 * k0)")
            return Formula(lines, terms=tuple)
        lines = (
            "both = a0 + b0",
            "whole = 2.0 * both - k0",
            "between = a0 - b0",
            "k = k0 * whole + 2.0 * between * between",
            "t = t0 * (2.0 * (whole - both))",
        )
        return Formula(lines, terms=tuple)
