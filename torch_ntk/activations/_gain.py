"""The dual of u φ'(u), by which a trained gain before an activation contributes to the kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._affine import DualAffine
from ._dual import DualActivation
from ._formula import Form
from ._probe import name_of
from ._quadrature import DualQuadrature
from ._rectifier import DualRectifier


class DualGain(DualQuadrature):
    """ψ(u) = u f'(u), the derivative of f(g u) by a gain g = 1.

    For features y_c = φ(g_c u_c) the tangent kernel by the gains g, averaged over channels, is
    E[u φ'(u) v φ'(v)], which is κ of ψ. In place of E[ψ'(u) ψ'(v)], which is
    not needed and does not exist if f has a kink, the second function is E[f'(u) f'(v)].

    Args:
        f: The activation, as in `DualQuadrature`.
        name: The name of f in messages.

    Raises:
        TypeError, ValueError: `f` is refused for the reasons that `DualQuadrature` names.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], name: str | None = None) -> None:
        super().__init__(f, f"the gain before {name_of(f) if name is None else name}")
        self._at_zero[0] = 0.0

    def _values(self, x: Tensor) -> Tensor:
        _, slope = super()._values(x)
        return torch.stack([x * slope, slope])

    def fused(self, form: Form) -> None:
        """Return None: fused sums require that the second function is the dual of ψ'."""
        return


def gain_dual(dual: DualActivation, f: Callable[[Tensor], Tensor]) -> DualActivation:
    """Return the dual functions of ψ(u) = u f'(u).

    Args:
        dual: The dual functions of f.
        f: The activation itself.
    """
    if isinstance(dual, DualRectifier):
        return dual  # u f'(u) = f(u) for both signs of u
    if isinstance(dual, DualAffine):
        return DualAffine(dual.slope, name=dual.name)
    return DualGain(f, dual.name)
