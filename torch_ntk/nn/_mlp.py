"""`MLP`: fully connected networks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.nn.utils import skip_init

from .._checks import check_choice, check_positive_int, describe, type_error, value_error
from ._activations import Abs, Cos, Erf, Sin
from ._gain import DEFAULT_GAIN, module_gain
from ._init import standard_init_
from ._linear import NTKLinear
from ._scaling import check_bias, check_dtype, check_sigma_b, check_sigma_w_or_gain

Activation: TypeAlias = str | nn.Module | Callable[[], nn.Module]

_NAMED_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "erf": Erf,
    "sin": Sin,
    "cos": Cos,
    "abs": Abs,
    "identity": nn.Identity,
}


class MLP(nn.Sequential):
    """A fully connected network: layer, activation, layer, …, layer.

    It is an `nn.Sequential`: it can be iterated and indexed, and its parameters are named
    `0.weight`, `2.weight`, …; a slice is a plain `nn.Sequential`. No activation follows the last
    layer.

    Args:
        widths: The sizes from input to output, for `len(widths) - 1` layers.
        activation: A name ("relu", "leaky_relu", "elu", "selu", "gelu", "silu", "softplus",
            "tanh", "sigmoid", "erf", "sin", "cos", "abs", "identity"), a module (each place gets
            its own deep copy, so that a `PReLU` is not shared), or a class or function that makes a
            module without arguments.
        parameterization: `"ntk"` builds `NTKLinear`. `"standard"` builds `nn.Linear` drawn with
            `torch_ntk.standard_init_`; with the same seed it is the same function at the start.
        bias: Whether the layers have biases.
        sigma_w: The scale of the weights. `"gain"` is that of `torch.nn.init.calculate_gain` for
            the activation (√2 before ReLU, 1 for an unknown one), and 1 for the last layer. A
            number is the scale of every layer including the last.
        sigma_b: The scale of the biases of every layer.
        device: The device of the parameters.
        dtype: The real floating-point dtype of the parameters.

    Attributes:
        widths: The sizes, as a tuple.

    Raises:
        TypeError: An argument has the wrong type; for example, `activation` is a function of a
            tensor such as `torch.relu`.
        ValueError: There are fewer than two widths, one is below 1, a name is unknown, or a scale
            is out of range.

    Example:
        >>> net = MLP([784, 512, 512, 10])
        >>> [layer.sigma_w for layer in net if isinstance(layer, NTKLinear)]
        [1.4142135623730951, 1.4142135623730951, 1.0]
    """

    def __init__(
        self,
        widths: Sequence[int],
        activation: Activation = "relu",
        *,
        parameterization: Literal["ntk", "standard"] = "ntk",
        bias: bool = True,
        sigma_w: float | Literal["gain"] = "gain",
        sigma_b: float = 0.1,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = _check_widths(widths)
        make_activation = _activation_factory(activation)
        check_choice("parameterization", parameterization, ("ntk", "standard"))
        check_bias(bias)
        check_dtype(dtype)
        sigma_b = check_sigma_b(sigma_b)
        scale_w = check_sigma_w_or_gain(sigma_w)
        if scale_w == "gain":
            hidden, last = module_gain(make_activation()), DEFAULT_GAIN
        else:
            hidden = last = scale_w

        super().__init__()
        self.widths = sizes
        depth = len(sizes) - 1
        for index, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            ends = index == depth - 1
            scale = last if ends else hidden
            layer: nn.Linear
            if parameterization == "ntk":
                layer = NTKLinear(
                    fan_in,
                    fan_out,
                    bias,
                    sigma_w=scale,
                    sigma_b=sigma_b,
                    device=device,
                    dtype=dtype,
                )
            else:
                # Without nn.Linear's own draw, a seed gives one function in both parameterizations.
                layer = skip_init(  # type: ignore[no-untyped-call]
                    nn.Linear,
                    fan_in,
                    fan_out,
                    bias,
                    device=torch.get_default_device() if device is None else device,
                    dtype=dtype,
                )
                standard_init_(layer, scale, sigma_b)
            self.append(layer)
            if not ends:
                self.append(make_activation().to(device=device, dtype=dtype))

    def __getitem__(self, idx: slice | int) -> Any:
        """A module, or for a slice an `nn.Sequential` of the same modules."""
        if isinstance(idx, slice):
            return nn.Sequential(*list(self)[idx])
        return super().__getitem__(idx)


def _check_widths(widths: object) -> tuple[int, ...]:
    remedy = "Give the sizes from input to output, [784, 512, 10]."
    if isinstance(widths, str) or not isinstance(widths, Sequence):
        raise type_error("widths", "a sequence of integers", widths, remedy)
    if len(widths) < 2:
        raise value_error("widths", "at least two sizes", f"{len(widths)}", remedy)
    return tuple(check_positive_int(f"widths[{i}]", w, remedy) for i, w in enumerate(widths))


def _activation_factory(activation: Activation) -> Callable[[], nn.Module]:
    expected = "an activation's name, module, class or factory"
    if isinstance(activation, str):
        check_choice("activation", activation, tuple(_NAMED_ACTIVATIONS))
        return _NAMED_ACTIVATIONS[activation]
    if isinstance(activation, nn.Module):
        template = activation
        return lambda: copy.deepcopy(template)
    if not callable(activation):
        raise type_error("activation", expected, activation)
    factory = activation
    remedy = (
        "A factory takes no arguments and returns an nn.Module: nn.ReLU, or "
        "lambda: nn.LeakyReLU(0.2); not torch.relu."
    )

    def make() -> nn.Module:
        try:
            made = factory()
        except TypeError as error:
            raise type_error(
                "activation", expected, f"{describe(factory)}: {error}", remedy
            ) from error
        if not isinstance(made, nn.Module):
            raise type_error("activation", "one that makes modules", made, remedy)
        return made

    return make
