"""Initialize networks in standard parameterization, with the scale in the random weights."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from .._checks import value_error
from ._inventory import (
    NTK_TYPES,
    STANDARD_TYPES,
    check_is_module,
    check_own_weights,
    scales_of,
    where,
)
from ._scaling import check_sigma_b, check_sigma_w, draw_normal_

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def standard_init_(
    model: ModuleT,
    sigma_w: float = 1.0,
    sigma_b: float = 0.1,
    *,
    generator: torch.Generator | None = None,
) -> ModuleT:
    """Draw every plain linear and convolution layer in standard parameterization, in place.

    Weights are drawn from N(0, sigma_w² / fan_in) and biases from N(0, sigma_b²), in `nn.Linear`,
    `nn.ConvNd`, `nn.ConvTransposeNd`, `nn.RNN` (each of whose two biases is drawn from
    N(0, sigma_b² / 2)) and their subclasses. At the start the network is then the same random
    function as one of NTK layers with these scales, but it has another tangent kernel (Lee et al.
    2019, "Wide Neural Networks of Any Depth Evolve as Linear Models").

    Every other parameter keeps its values, without a warning: those of `nn.Bilinear`, LSTM, GRU,
    embeddings and normalizations, the `in_proj_weight` and `in_proj_bias` of
    `nn.MultiheadAttention` (its `out_proj` is an `nn.Linear` and is drawn), and parameters that
    your own modules register themselves. Draw these by hand with `torch.nn.init`.

    Args:
        model: The network. A weight that several layers share is drawn once.
        sigma_w: Standard deviation of the weights times `sqrt(fan_in)`; above 0.
        sigma_b: Standard deviation of the biases; at least 0.
        generator: The random generator; None is torch's default generator.

    Returns:
        `model` itself.

    Raises:
        TypeError: `model` is not an eager module.
        ValueError: The model has an NTK layer (whose forward has the scale already), a lazy layer
            without a shape, a layer whose weight or bias is computed (a parametrization), a weight
            that is shared by layers with different scales; or it has no layer at all. Nothing is
            drawn then.

    Example:
        >>> net = standard_init_(nn.Sequential(nn.Linear(100, 50), nn.ReLU()), 2**0.5, 0.0)
        >>> bool(net[0].bias.any())
        False
    """
    check_is_module(model)
    sigma_w, sigma_b = check_sigma_w(sigma_w), check_sigma_b(sigma_b)
    wanted: dict[Tensor, float] = {}
    for name, layer in model.named_modules():
        _check_not_ntk(name, layer)
        if not isinstance(layer, STANDARD_TYPES):
            continue
        check_own_weights(name, layer)
        for role, std in scales_of(layer, sigma_w, sigma_b).items():
            _want(wanted, getattr(layer, role), std, name)
    if not wanted:
        remedy = "There is nothing to draw."
        raise value_error("model", "a module with an nn.Linear or nn.ConvNd layer", model, remedy)
    for parameter, std in wanted.items():
        draw_normal_(parameter, std, generator)
    return model


def _check_not_ntk(name: str, layer: nn.Module) -> None:
    if isinstance(layer, NTK_TYPES):
        raise value_error(
            "model",
            "in standard parameterization",
            f"one with {where(name, layer)}",
            "Call its reset_parameters() for N(0, 1), or build it with nn.Linear or nn.ConvNd.",
        )


def _want(wanted: dict[Tensor, float], parameter: Tensor, std: float, name: str) -> None:
    if wanted.setdefault(parameter, std) != std:
        raise value_error(
            "model",
            "a module whose shared parameters have one scale",
            f"one whose layer {name!r} shares a parameter that needs the standard deviation "
            f"{wanted[parameter]:g} in another layer and {std:g} in this one",
            "Untie the layers, or draw them by hand.",
        )
