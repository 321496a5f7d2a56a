"""The dual of u φ'(u): what a trained gain in front of an activation adds to the kernel."""

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
    E[u φ'(u) v φ'(v)], which is κ of ψ. The second of the two functions is E[f'(u) f'(v)], not
    that of ψ', which nothing asks for and which does not exist where f has a kink.

    Args:
        f: As in `DualQuadrature`.
        name: For messages.

    Raises:
        TypeError, ValueError: As `DualQuadrature`.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], name: str | None = None) -> None:
        super().__init__(f, f"the gain before {name_of(f) if name is None else name}")
        self._at_zero[0] = 0.0

    def _values(self, x: Tensor) -> Tensor:
        _, slope = super()._values(x)
        return torch.stack([x * slope, slope])

    def fused(self, form: Form) -> None:
        """None: the second function is not the derivative of the first."""
        return


def gain_dual(dual: DualActivation, f: Callable[[Tensor], Tensor]) -> DualActivation:
    """The dual of ψ(u) = u f'(u).

    Args:
        dual: The dual of f.
        f: The function itself.
    """
    if isinstance(dual, DualRectifier):
        return dual  # on either half-line u φ'(u) = φ(u)
    if isinstance(dual, DualAffine):
        return DualAffine(dual.slope, name=dual.name)
    return DualGain(f, dual.name)
