"""The operations that a network is made of once it is infinitely wide.

A step takes and gives a *value*: the features of every image at every position. For a pair of
images x, x' and positions p, p' it has the covariance K (NNGP) and the tangent kernel Θ, both
averages over channels. Vectors are images of one position. Each operation below says what it
does to both; `engine/` does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..activations import DualActivation
from ._axis import Taps


@dataclass(frozen=True)
class Input:
    """Known features `[N, C, P, Q]`: `K = (1/C) Σ_c x_c(p) x'_c(p')`, `Θ = 0`.

    Attributes:
        x1: Of the first images.
        x2: Of the second; None if they are the first.
    """

    x1: Tensor
    x2: Tensor | None


@dataclass(frozen=True)
class Affine:
    """A layer of independent weights: dense (one tap) or convolutional (`rows × columns` taps).

    `y = sigma_w/√fan_in · W ⋆ x + sigma_b · b` gives, with the mean over the taps `⟨·⟩`,
    `K ← sigma_w²⟨K⟩ + sigma_b²` and `Θ ← sigma_w²⟨Θ + [W trained] K⟩ + [b trained] sigma_b²`.

    Attributes:
        rows: The taps along the first axis of positions.
        columns: And along the second.
        sigma_w: Scale of the weights.
        sigma_b: Scale of the biases; 0 without.
        weight_trained: Whether the weights are among the parameters of Θ.
        bias_trained: Whether the biases are.
    """

    rows: Taps
    columns: Taps
    sigma_w: float
    sigma_b: float
    weight_trained: bool = True
    bias_trained: bool = True


@dataclass(frozen=True)
class Activation:
    """An elementwise φ of a Gaussian value: `K ← E φ(u)φ(v)`, `Θ ← Θ · E φ'(u)φ'(v)`."""

    dual: DualActivation


@dataclass(frozen=True)
class Gained:
    """φ(g u) of a Gaussian value, with a trained gain g = 1: `K = K₁`, `Θ = Θ₁ + K₂`.

    The first input is φ(u), the second u φ'(u), the derivative by the gain.
    """


@dataclass(frozen=True)
class Scale:
    """A constant factor: `K ← c²K`, `Θ ← c²Θ`."""

    factor: float


@dataclass(frozen=True)
class Sum:
    """A sum of independent values: K and Θ add."""


@dataclass(frozen=True)
class Concatenation:
    """Channels side by side: the mean of K and of Θ by the shares of the channels."""

    shares: tuple[float, ...]


@dataclass(frozen=True)
class Pool:
    """Averages over positions, `y(p) = Σ_s M[p, s] x(s)` along either axis.

    `K[p, p'] ← Σ M[p, s] M[p', s'] K[s, s']`: the covariance between *different* positions is
    needed.

    Attributes:
        rows: `[P_out, P_in]`, float64.
        columns: `[Q_out, Q_in]`.
    """

    rows: Tensor
    columns: Tensor

    @property
    def to_one_position(self) -> bool:
        """Whether all positions end in one, each with the same weight."""
        return all(
            m.shape[0] == 1 and bool(torch.all(m == m[0, 0])) for m in (self.rows, self.columns)
        )


@dataclass(frozen=True)
class Flatten:
    """Positions become features: the mean over `p = p'` of K and of Θ."""


@dataclass(frozen=True)
class Normalization:
    """Division by the standard deviation over all features, as of layer normalization.

    With `s² = ⟨K(x, x)⟩ + eps`, the mean over positions: `K ← K/(s s')`, `Θ ← Θ/(s s')`; the mean
    of Gaussian features is 0 in the limit. A trained gain of 1 adds K to Θ, a trained shift 1.

    Attributes:
        eps: Added to the variance.
        gain_trained: Whether there is a gain per channel, and it is trained.
        shift_trained: The same for the shift.
    """

    eps: float
    gain_trained: bool = False
    shift_trained: bool = False


Operation: TypeAlias = (
    Input
    | Affine
    | Activation
    | Gained
    | Scale
    | Sum
    | Concatenation
    | Pool
    | Flatten
    | Normalization
)


@dataclass(frozen=True)
class Step:
    """One operation in a program.

    Attributes:
        operation: What is done.
        inputs: The numbers of the steps whose values it takes.
        positions: `(P, Q)` of its value; (1, 1) for a vector.
        name: Where it came from, for messages.
    """

    operation: Operation
    inputs: tuple[int, ...]
    positions: tuple[int, int]
    name: str = ""


@dataclass(frozen=True)
class Program:
    """Steps in an order in which they can be done; the value of the last is the network's."""

    steps: tuple[Step, ...]
