"""The scale `sigma_w` for a layer, by the activation that follows it.

These are the gains of `torch.nn.init.calculate_gain`: √2 before ReLU, √(2/(1+a²)) before a leaky
ReLU of slope `a` (and PReLU and RReLU, which are leaky ReLUs), 5/3 before tanh, 3/4 before SELU.
ReLU6 counts as ReLU. The gain is 1 before every other activation, and without one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

RELU_GAIN = math.sqrt(2.0)
TANH_GAIN = 5.0 / 3.0
SELU_GAIN = 0.75
DEFAULT_GAIN = 1.0


def leaky_relu_gain(mean_square_slope: float) -> float:
    """√(2/(1+a²)), where a² is the mean square of the slopes for negative inputs."""
    return math.sqrt(2.0 / (1.0 + mean_square_slope))


def module_gain(module: nn.Module) -> float:
    """The gain before an activation module; 1 for a module that is not among those above.

    A subclass counts as its base: `class MyReLU(nn.ReLU)` is a ReLU.
    """
    if isinstance(module, (nn.ReLU, nn.ReLU6)):
        return RELU_GAIN
    if isinstance(module, nn.LeakyReLU):
        return leaky_relu_gain(module.negative_slope**2)
    if isinstance(module, nn.RReLU):
        # In evaluation mode RReLU is a leaky ReLU of the mean slope.
        return leaky_relu_gain(((module.lower + module.upper) / 2) ** 2)
    if isinstance(module, nn.PReLU):
        if module.weight.is_meta:
            return leaky_relu_gain(module.init**2)
        return leaky_relu_gain(float(module.weight.detach().double().square().mean()))
    if isinstance(module, nn.Tanh):
        return TANH_GAIN
    if isinstance(module, nn.SELU):
        return SELU_GAIN
    return DEFAULT_GAIN


def recurrent_gain(layer: nn.Module) -> float | None:
    """The gain for the nonlinearity inside of an `nn.RNN`; None for any other layer."""
    if not isinstance(layer, nn.RNN):
        return None
    return {"relu": RELU_GAIN, "tanh": TANH_GAIN}.get(layer.nonlinearity, DEFAULT_GAIN)


_FUNCTION_GAINS: dict[Callable[..., Any], float] = {
    **dict.fromkeys(
        (F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, torch.Tensor.relu), RELU_GAIN
    ),
    **dict.fromkeys((F.tanh, torch.tanh, torch.tanh_), TANH_GAIN),
    **dict.fromkeys((F.selu, F.selu_, torch.selu, torch.selu_), SELU_GAIN),
}
_METHOD_GAINS = {"relu": RELU_GAIN, "relu_": RELU_GAIN, "tanh": TANH_GAIN, "tanh_": TANH_GAIN}
_LEAKY_FUNCTIONS = (F.leaky_relu, F.leaky_relu_)


def function_gain(
    function: Callable[..., Any] | str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> float:
    """The gain before a call of a function, or of a tensor's method given by name."""
    if isinstance(function, str):
        return _METHOD_GAINS.get(function, DEFAULT_GAIN)
    if function in _LEAKY_FUNCTIONS:
        slope = kwargs.get("negative_slope", args[1] if len(args) > 1 else 0.01)
        return leaky_relu_gain(slope**2) if isinstance(slope, (int, float)) else DEFAULT_GAIN
    return _FUNCTION_GAINS.get(function, DEFAULT_GAIN)
