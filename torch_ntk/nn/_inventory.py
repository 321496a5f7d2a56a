"""Find the layers of a model that can be converted or drawn, and refuse those that cannot be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from .._checks import type_error, value_error
from ._attention import NTKSelfAttention
from ._conv import NTKConv1d, NTKConv2d, NTKConv3d
from ._conv_local import NTKConvLocal2d
from ._conv_transpose import NTKConvTranspose1d, NTKConvTranspose2d, NTKConvTranspose3d
from ._linear import NTKLinear
from ._rnn import NTKRNN, rnn_scales
from ._scaling import weight_scale

NTKConv = NTKConv1d | NTKConv2d | NTKConv3d
NTKConvTranspose = NTKConvTranspose1d | NTKConvTranspose2d | NTKConvTranspose3d
NTKLayer = NTKLinear | NTKConv | NTKConvTranspose | NTKConvLocal2d | NTKSelfAttention | NTKRNN
StandardConvTranspose = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
StandardAffine = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | StandardConvTranspose
StandardLayer = StandardAffine | nn.RNN

NTK_TYPE_OF: dict[type[nn.Module], type[NTKLayer]] = {
    nn.Linear: NTKLinear,
    nn.Conv1d: NTKConv1d,
    nn.Conv2d: NTKConv2d,
    nn.Conv3d: NTKConv3d,
    nn.ConvTranspose1d: NTKConvTranspose1d,
    nn.ConvTranspose2d: NTKConvTranspose2d,
    nn.ConvTranspose3d: NTKConvTranspose3d,
    nn.RNN: NTKRNN,
}
"""For exact types only, because a subclass may compute something else."""

STANDARD_TYPES: tuple[type[StandardLayer], ...] = get_args(StandardLayer)
NTK_TYPES: tuple[type[NTKLayer], ...] = get_args(NTKLayer)
_LAYER_TYPES: tuple[type[nn.Module], ...] = (*STANDARD_TYPES, *NTK_TYPES)

READS_WEIGHTS_ITSELF = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Modules that pass their layers' weights to a fused function without calling the layers.

`nn.MultiheadAttention` does so always (`out_proj`), `nn.TransformerEncoderLayer` on its fast path
in evaluation mode (`linear1`, `linear2`): a scale inside these layers would be lost there.
"""

NO_NTK_LAYER = (
    nn.Bilinear,
    nn.RNNBase,
    nn.RNNCellBase,
    *READS_WEIGHTS_ITSELF,
)
"""Types of layers with dense weights that have no counterpart in NTK parameterization.

`nn.RNN` is a subclass of `nn.RNNBase` that has one.
"""


def where(name: str, module: nn.Module) -> str:
    """The name of a module of the model in error messages."""
    kind = type(module).__name__
    return f"the module {name!r} ({kind})" if name else f"the {kind} itself"


def fan_in_of(layer: StandardAffine) -> int:
    """The number of inputs over which each output of a layer sums.

    A weight is `[out, in / groups, *kernel_size]`; of a transposed convolution
    `[in, out / groups, *kernel_size]`.
    """
    weight = layer.weight
    if isinstance(layer, StandardConvTranspose):
        return weight.shape[0] // layer.groups * math.prod(weight.shape[2:])
    return weight[0].numel() if weight.shape[0] else 0


def weights_and_biases(layer: nn.Module) -> list[Tensor]:
    """The parameters of a layer that are converted or drawn."""
    return list(layer.parameters(recurse=False))


def scales_of(layer: StandardLayer, sigma_w: float, sigma_b: float) -> dict[str, float]:
    """The factors by which a layer with these scales multiplies its parameters, by name."""
    if isinstance(layer, nn.RNN):
        return rnn_scales(layer, sigma_w, sigma_w, sigma_b)
    scales = {"weight": weight_scale(sigma_w, fan_in_of(layer))}
    return scales if layer.bias is None else {**scales, "bias": sigma_b}


def own_scales(layer: NTKLayer) -> dict[str, float]:
    """The factors by which an NTK layer multiplies its parameters, by name."""
    if isinstance(layer, (NTKRNN, NTKSelfAttention)):
        return layer.parameter_scales()
    return {"weight": layer.weight_scale, "bias": layer.sigma_b}


def _roles(layer: nn.Module) -> tuple[str, ...]:
    """The names of the parameters that a layer's class may have."""
    if isinstance(layer, nn.RNN):
        return tuple(layer._flat_weights_names)
    if isinstance(layer, NTKSelfAttention):
        return ("query_weight", "key_weight", "value_weight", "out_weight", "bias")
    return ("weight", "bias")


def check_is_module(model: object) -> None:
    """Raise unless `model` is an eager `nn.Module`."""
    if not isinstance(model, nn.Module):
        raise type_error("model", "a torch.nn.Module", model)
    if isinstance(model, torch.jit.ScriptModule):
        raise type_error(
            "model", "an eager torch.nn.Module", model, "Convert it before scripting it."
        )
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise type_error(
            "model",
            "an eager torch.nn.Module",
            model,
            "Pass the original module, and call torch.compile on the result.",
        )


def check_own_weights(name: str, layer: nn.Module) -> None:
    """Refuse a layer whose weight or bias is not a parameter of its own with a shape."""
    if isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params():
        raise value_error(
            "model",
            "a module whose parameters have shapes",
            f"one with {where(name, layer)}",
            "Run one batch through the model first.",
        )
    # Parametrizations move the parameter elsewhere and change the layer's type; the older hooks of
    # nn.utils.weight_norm, spectral_norm and prune keep the type and set a plain tensor.
    own = layer._parameters
    if parametrize.is_parametrized(layer) or any(
        role not in own or (role == "weight" and own[role] is None) for role in _roles(layer)
    ):
        raise value_error(
            "model",
            "a module whose weights and biases are parameters of their layers",
            f"one with {where(name, layer)} whose weight or bias is computed",
            "Remove the parametrization, weight norm, spectral norm or pruning first.",
        )


@dataclass(frozen=True)
class Inventory:
    """A model's layers in standard and in NTK parameterization; shared ones are listed once."""

    standard: dict[str, StandardLayer]
    ntk: dict[str, NTKLayer]


def take_inventory(model: nn.Module, *, whole: bool) -> Inventory:
    """Collect the layers of `model`, and refuse by name the first that cannot be handled.

    Layers without an NTK counterpart are refused if the `whole` model is converted, and left out
    otherwise.
    """
    standard: dict[str, StandardLayer] = {}
    ntk: dict[str, NTKLayer] = {}
    untouched = {
        id(inner)
        for module in model.modules()
        if isinstance(module, READS_WEIGHTS_ITSELF)
        for inner in module.modules()
    }
    staying = ""
    for name, module in model.named_modules():
        stays = isinstance(module, NO_NTK_LAYER) and not isinstance(module, nn.RNN)
        if stays and not staying:
            staying = where(name, module)
        if staying and whole:
            raise value_error(
                "model",
                "made of layers that have an NTK counterpart, nn.Linear, nn.ConvNd and "
                "nn.ConvTransposeNd",
                f"one with {staying}",
                "It would stay in standard parameterization. Replace it, or use "
                'mode="preserve", which leaves it as it is.',
            )
        if id(module) in untouched or not isinstance(module, _LAYER_TYPES):
            continue
        check_own_weights(name, module)
        _check_own_forward(name, module)
        if isinstance(module, NTK_TYPES):
            ntk[name] = module
        elif isinstance(module, STANDARD_TYPES):
            standard[name] = module
    if not standard and not ntk:
        raise value_error(
            "model",
            "a module with an nn.Linear or nn.ConvNd layer",
            f"one whose layers belong to {staying}" if staying else model,
            f"There is nothing to convert{': that has no NTK counterpart' if staying else ''}.",
        )
    return Inventory(standard, ntk)


def _check_own_forward(name: str, layer: nn.Module) -> None:
    if not isinstance(layer, NTK_TYPES) and type(layer) not in NTK_TYPE_OF:
        base = next(kind for kind in STANDARD_TYPES if isinstance(layer, kind))
        raise value_error(
            "model",
            "made of plain nn.Linear and nn.ConvNd layers",
            f"one with {where(name, layer)}",
            f"A subclass of nn.{base.__name__} may compute something else. Use the base "
            "class, or build the network with NTK layers.",
        )
    if "forward" in vars(layer):
        raise value_error(
            "model",
            "made of layers with their class's forward",
            f"one with {where(name, layer)} whose forward was replaced on the instance",
            "Remove the replacement first.",
        )


def parameter_places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Module name, module, parameter name and parameter; a shared parameter occurs repeatedly."""
    for name, module in model.named_modules():
        for role, parameter in module._parameters.items():
            if parameter is not None:
                yield name, module, role, parameter
