"""The kernel of the infinitely wide network, with which the kernel in training is compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..._checks import UndefinedError
from ...analytic import ORDINARY, Scheme, analytic_ntk
from ...nn._inventory import fan_in_of
from ..probe._probe import Probe
from ._evaluation import KernelOutput

# The number of standard errors by which the mean square of weights may deviate from that of the
# default initialization.
_DEVIATIONS = 5.0


def infinite_kernel(network: nn.Module, names: Sequence[str], probe: Probe) -> Tensor:
    """The kernel `[N, N]` of the infinitely wide network, in float64.

    An ordinary layer is assumed to be drawn from PyTorch's default initialization if the mean
    squares of its weights and biases agree with it. Otherwise these are taken as variances.

    Raises:
        TypeError, ValueError: The network has no such limit, or the kernel is not by all of its
            parameters that require grad.
    """
    if probe.coupled:
        raise UndefinedError(
            "the infinite-width kernel is defined for independent samples only, and not for "
            "coupled=True."
        )
    movable = {n for n, p in network.named_parameters() if p.requires_grad}
    if movable != set(names):
        raise UndefinedError(
            "the infinite-width kernel is that of all parameters that require grad."
        )
    drawn = {n: _scheme(m) for n, m in network.named_modules() if type(m) in ORDINARY}
    return analytic_ntk(network, probe.x, standard=drawn)


def _scheme(layer: Any) -> Scheme:
    """The default initialization, or the present scales of the layer's weights and biases.

    The mean square of m uniform numbers of variance v has the standard error v √(0.8/m), since
    E w⁴ = 1.8 v².
    """
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    # torch computes the fan-in from the shape of weight[0], for transposed convolutions too.
    drawn_for = weight[0].numel()
    parameters = [p.detach() for p in (weight, bias) if isinstance(p, Tensor)]
    default = [1 / (3 * drawn_for)] * len(parameters)
    squares = [float(p.double().square().mean()) for p in parameters]
    if all(
        abs(found - v) < _DEVIATIONS * v * math.sqrt(0.8 / p.numel())
        for p, found, v in zip(parameters, squares, default, strict=True)
    ):
        return "torch"
    sigma_b = math.sqrt(squares[1]) if bias is not None else 0.0
    return math.sqrt(squares[0] * fan_in_of(layer)), sigma_b


def mean_kernel(kernel: Tensor, output: KernelOutput, outputs: int) -> Tensor:
    """The kernel `[N, N]` in the units of `output="mean"`, which converge for infinite width."""
    if output == "full":
        return kernel.diagonal(dim1=2, dim2=3).mean(-1)
    return kernel / outputs if output == "trace" else kernel
