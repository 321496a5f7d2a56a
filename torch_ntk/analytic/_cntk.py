"""`CNTK`: the convolutional tangent kernel of Arora et al. 2019, as a module without parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._checks import check_bool, check_choice, check_finite_number, check_positive_int, value_error
from ..activations import DualActivation
from ._api import check_dtype, evaluation_mode, inputs
from ._explanation import AnalyticExplanation, explanation
from ._program import Program
from .engine import checked_options, run
from .lift import Builder, Data, Layout, adaptive, average, resolve
from .lift import activation as activate
from .operations import ONE, Affine, Taps, taps

_PADDINGS = ("zeros", "circular", "valid")


class CNTK(nn.Module):
    """The tangent kernel of a convolutional network of infinite width.

    The network has `depth - 1` convolutions of stride 1, each followed by the activation, and a
    dense layer on the flattened features (`pooling="flatten"`, CNTK-V) or on their average over
    positions (`pooling="gap"`, CNTK-GAP). With Σ the covariance of the pre-activations, q the
    `kernel_size`, and Σ_D the sum over the q² pairs of positions that the same tap of the filter
    reads for a pair of outputs,

        K = E φ(u)φ(v),  K̇ = E φ'(u)φ'(v)     with (u, v) ~ N(0, Σ)
        Σ ← sigma_w²/q² Σ_D K + sigma_b²
        Θ ← sigma_w²/q² Σ_D (K̇ ⊙ Θ + K) + sigma_b²

    The dense layer at the end averages over equal positions, or over all pairs of positions.

    Args:
        depth: The number of layers, at least 2: the convolutions and the dense layer.
        pooling: `"flatten"` or `"gap"`.
        kernel_size: The side of the filters.
        activation: A name (`"relu"`, `"erf"`, `"gelu"`, …), a module or a function.
        sigma_w: The scale of the convolutions' weights; the dense layer has scale 1.
        sigma_b: The scale of all biases; 0 for no biases.
        padding: `"zeros"` (as `padding="same"`) and `"circular"` keep the size of the image;
            `"valid"` adds no positions.
        trained_ends: Whether the first and the last layer are trained. False gives the kernels of
            Arora's "fix" networks.
        scaling: `"mean"` averages over taps, channels and positions. To these units
            `empirical_ntk(..., output="mean")` of such a network in NTK parameterization
            converges. `"arora"` gives the units of Arora et al., which are larger by the number of
            channels, and for `"flatten"` also by the number of positions; it needs `sigma_b=0`.
        dtype: `torch.float64` (also if None) or `torch.float32`.
        max_memory: The memory for the blocks of a computation, in bytes or as `"2GB"`; None
            chooses it from the free memory.
        progress: Whether to show a progress bar.

    Shape:
        `CNTK(...)(x1, x2=None)`: images `[N1, C, P, Q]` and `[N2, C, P, Q]` to `[N1, N2]`.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of its range, or `"valid"` convolutions leave no position.

    References:
        Arora et al., "On exact computation with an infinitely wide neural net" (2019), section 4.

    Example:
        >>> import torch
        >>> kernel = CNTK(3, pooling="gap")
        >>> kernel(torch.ones(2, 3, 4, 4)).shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        depth: int,
        *,
        pooling: Literal["flatten", "gap"] = "flatten",
        kernel_size: int = 3,
        activation: str | nn.Module | Callable[[Tensor], Tensor] | DualActivation = "relu",
        sigma_w: float = 2**0.5,
        sigma_b: float = 0.0,
        padding: Literal["zeros", "circular", "valid"] = "zeros",
        trained_ends: bool = True,
        scaling: Literal["mean", "arora"] = "mean",
        dtype: torch.dtype | None = None,
        max_memory: int | str | None = None,
        progress: bool = False,
    ) -> None:
        super().__init__()
        check_positive_int("depth", depth)
        if depth < 2:
            raise value_error(
                "depth", "at least 2", depth, "It counts the convolutions and the dense layer."
            )
        self.depth = depth
        self.pooling = check_choice("pooling", pooling, ("flatten", "gap"))
        self.kernel_size = check_positive_int("kernel_size", kernel_size)
        self.activation = activation
        resolve(activation)  # raises an error for unknown ones now, not at the first call
        self.sigma_w = check_finite_number("sigma_w", sigma_w, minimum=0.0)
        if sigma_w == 0:
            raise value_error("sigma_w", "greater than 0", sigma_w)
        self.sigma_b = check_finite_number("sigma_b", sigma_b, minimum=0.0)
        self.padding = check_choice("padding", padding, _PADDINGS)
        self.trained_ends = check_bool("trained_ends", trained_ends)
        self.scaling = check_choice("scaling", scaling, ("mean", "arora"))
        if scaling == "arora" and sigma_b != 0:
            raise value_error(
                "sigma_b",
                "0 with scaling='arora'",
                sigma_b,
                "Their kernel has no biases; use scaling='mean'.",
            )
        checked_options(max_memory, progress)
        self.dtype = check_dtype(dtype)
        self.max_memory = max_memory
        self.progress = progress

    def forward(self, x1: Tensor, x2: Tensor | None = None) -> Tensor:
        """Return Θ between the images, `[N1, N2]`."""
        a, b = self._images(x1, x2)
        options = checked_options(self.max_memory, self.progress)
        with evaluation_mode(a, b, None):
            theta = run(self.program(a, b), options, ntk=True)[1]
        assert theta is not None
        return theta * self._units(a)

    def explain(self, x1: Tensor, x2: Tensor | None = None) -> AnalyticExplanation:
        """Explain how the kernel between the images is evaluated; see `analytic_explain`."""
        a, b = self._images(x1, x2)
        with evaluation_mode(a, b, None):
            return explanation(self.program(a, b), a)

    def _images(self, x1: Tensor, x2: Tensor | None) -> tuple[Tensor, Tensor | None]:
        a, b = inputs(x1, x2, self.dtype)
        for name, x in (("x1", a), ("x2", b)):
            if x is not None and x.ndim != 4:
                raise value_error(
                    name, "images [N, C, P, Q]", x, "Add the axis of channels: x[:, None]."
                )
        return a, b

    def program(self, x1: Tensor, x2: Tensor | None) -> Program:
        """Return the network as a program of operations on covariances."""
        second = x1 if x2 is None else x2
        b = Builder(x1.dtype, (len(x1), len(second)), x2 is None)
        x: Any = Data(x1, second)
        sizes, spatial = (x1.shape[2], x1.shape[3]), (x1.shape[2], x1.shape[3])
        for i in range(self.depth - 1):
            b.node = f"convolution {i + 1} of {self.depth - 1}"
            rows, columns = (self._taps(n) for n in spatial)
            spatial = (rows.size_out, columns.size_out)
            if min(spatial) < 1:
                raise value_error(
                    "x1",
                    "larger images",
                    f"{sizes[0]}×{sizes[1]} positions, none of which is left after {b.node}",
                    "Use padding='zeros', fewer layers, or a smaller kernel_size.",
                )
            trained = self.trained_ends or i > 0
            operation = Affine.ntk(rows, columns, self.sigma_w, self.sigma_b, trained, trained)
            x = b.affine(x, operation, i + 1, Layout(1, spatial), "a convolution")
            lookup, function = resolve(self.activation)
            x = activate(b, x, function, lookup)
        b.node = "the dense layer"
        x = average(b, x, adaptive(1, 2)) if self.pooling == "gap" else b.value(x)
        ends = self.trained_ends
        operation = Affine.ntk(ONE, ONE, 1.0, self.sigma_b, ends, ends)
        x = b.affine(b.flatten(x), operation, self.depth, Layout(1), "the dense layer")
        return b.program(x)

    def _taps(self, size: int) -> Taps:
        total = self.kernel_size - 1
        if self.padding == "valid":
            return taps(size, self.kernel_size)
        mode = self.padding
        return taps(size, self.kernel_size, padding=(total // 2, total - total // 2), mode=mode)

    def _units(self, x: Tensor) -> float:
        if self.scaling == "mean":
            return 1.0
        channels, rows, columns = x.shape[1:]
        if self.pooling == "gap":
            return float(channels)
        if self.padding == "valid":
            rows, columns = (n - (self.depth - 1) * (self.kernel_size - 1) for n in (rows, columns))
        return float(channels * rows * columns)

    def extra_repr(self) -> str:
        """Return the arguments, which `repr` shows."""
        return (
            f"{self.depth}, pooling={self.pooling!r}, kernel_size={self.kernel_size}, "
            f"activation={self.activation!r}, sigma_w={self.sigma_w:g}, sigma_b={self.sigma_b:g}, "
            f"padding={self.padding!r}, trained_ends={self.trained_ends}, scaling={self.scaling!r}"
        )
