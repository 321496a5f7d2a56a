"""The interface of dual functions: how an activation changes covariances and tangent kernels."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ._formula import Form, Formula


class DualActivation(ABC):
    """The two dual functions of an elementwise activation φ.

    For jointly Gaussian (u, v) of zero mean, with variances q1 and q2 and covariance k,

        κ(k, q1, q2) = E[φ(u) φ(v)]    and    κ̇(k, q1, q2) = E[φ'(u) φ'(v)].

    In a network of infinite width κ carries the covariance of the pre-activations through φ, and
    κ̇ is the factor by which the tangent kernel of the layers below is multiplied (Jacot, Gabriel
    and Hongler 2018, "Neural Tangent Kernel: Convergence and Generalization in Neural Networks";
    Daniely, Frostig and Singer 2016, "Toward Deeper Understanding of Neural Networks" for the name
    *dual activation*). By Price's theorem ∂κ/∂k = κ̇.

    A variance of 0 (a zero input, zero padding) is allowed everywhere: u is then the constant 0,
    and φ'(0) is taken as the mean of the one-sided derivatives. Results have the dtype and device
    of the arguments; the arguments are not checked, since these functions are called once per
    block and layer.

    Attributes:
        name: The name in messages and reports, for example `"relu"`.
    """

    name: str

    @abstractmethod
    def diagonal(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[φ(u)²] and E[φ'(u)²] for u of variance q, both in the shape of `q`."""

    @abstractmethod
    def pair(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return κ and κ̇ from covariances.

        Args:
            k: Covariances of u and v, |k| ≤ √(q1 q2) up to rounding.
            q1: Variances of u, of any shape that broadcasts against `k`; for a kernel matrix
                `k` `[n1, n2]` most cheaply `[n1, 1]`.
            q2: Variances of v, likewise, for example `[1, n2]`.

        Returns:
            κ and κ̇ in the broadcast shape.
        """

    def pair_from_distance(self, d: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[(φ(u) - φ(v))²] and κ̇ from E[(u - v)²].

        A covariance in float64 fixes the correlation to 1e-16, and so the angle between two
        nearly equal inputs only to 1e-8. The kernels of activations with a kink depend on that
        angle, and the distance d determines it more accurately. This implementation calls `pair`,
        so its absolute error is the rounding error of κ, which is small enough for smooth
        activations; subclasses may return the distance with the relative accuracy of d.

        Args:
            d: E[(u - v)²] = q1 + q2 - 2k, computed without that subtraction.
            q1: Variances of u, as in `pair`.
            q2: Variances of v, as in `pair`.

        Returns:
            E[(φ(u) - φ(v))²] = κ(q1) + κ(q2) - 2κ, and κ̇, in the broadcast shape.
        """
        kappa, slope = self.pair((q1 + q2 - d) / 2, q1, q2)
        distance = self.diagonal(q1)[0] + self.diagonal(q2)[0] - 2 * kappa
        # The distance is exactly 0 where u = v; its derivative by d is κ̇ there as elsewhere.
        return torch.where(d > 0, distance.clamp(min=0), slope.detach() * d), slope

    def fused(self, form: Form) -> Formula | None:
        """Return the dual functions as statements for fused loops on a CPU, or None.

        Without statements, networks are evaluated by tensor operations from this activation on,
        which is slower and has the same result. The method is used only if the class that defines
        it is the one that defines `pair` and `diagonal`, or a subclass of it: a subclass with a
        `pair` of its own does not compute what its parent's statements do.

        Args:
            form: The kind of loop for which the statements are written.
        """
        return None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.name}>"
