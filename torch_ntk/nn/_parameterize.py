"""Conversion of a standard network to NTK parameterization."""

from __future__ import annotations

import warnings
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .._checks import check_choice, message, value_error
from .._functional import faithful_copy, refuse_closures
from ._follow import Uses, find_uses
from ._gain import DEFAULT_GAIN, recurrent_gain
from ._inventory import (
    NTK_TYPE_OF,
    NTK_TYPES,
    Inventory,
    check_is_module,
    parameter_places,
    scales_of,
    take_inventory,
    weights_and_biases,
    where,
)
from ._rnn import NTKRNN
from ._scaling import check_sigma_b, check_sigma_w_or_gain, draw_normal_

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_DRAWN_ALIKE = (nn.Embedding, nn.EmbeddingBag)
"""Modules that draw N(0, 1) like NTK layers: `"reinit"` can keep a weight that is tied to them."""

_UNTIE = (
    "Untie them by giving the layer a copy of its own: "
    "layer.weight = nn.Parameter(layer.weight.detach().clone()), or its bias likewise."
)
_REINIT = 'Or convert with mode="reinit", which keeps the tie and draws the parameter again.'


def ntk_parameterize(
    model: ModuleT,
    *,
    mode: Literal["reinit", "preserve"] = "reinit",
    sigma_w: float | Literal["gain"] = "gain",
    sigma_b: float = 0.1,
    generator: torch.Generator | None = None,
) -> ModuleT:
    """A copy of `model` with its linear layers and convolutions in NTK parameterization.

    Each `nn.Linear`, `nn.ConvNd` and `nn.ConvTransposeNd`, `W * x + b`, becomes
    `sigma_w / sqrt(fan_in) · (W' * x) + sigma_b · b'`, and each `nn.RNN` an `NTKRNN`, whose
    `sigma_u` is `sigma_w`. Source: Jacot et al. 2018, "Neural Tangent Kernel"; Lee et al. 2019,
    "Wide Neural Networks of Any Depth Evolve as Linear Models".

    - `mode="reinit"` draws `W', b' ~ N(0, 1)`: a new random network. Existing NTK layers are drawn
      again too and keep their own scales.
    - `mode="preserve"` keeps the function: `W' = W · sqrt(fan_in) / sigma_w`, `b' = b / sigma_b`.
      With one learning rate the two networks then train differently;
      `torch_ntk.ntk_param_groups(model, lr)` gives the rates with which they train alike. Existing
      NTK layers are not changed. Layers with no NTK counterpart (`nn.Bilinear`, LSTM, GRU) keep the
      standard parameterization, and so does everything inside of `nn.MultiheadAttention` and
      `nn.TransformerEncoderLayer`, which use their layers' weights without calling the layers.

    `model` itself is never changed, and shares no tensor with the result. Names, state-dict
    keys, shapes, dtypes, devices, `requires_grad`, training flags and hooks (as `copy.deepcopy`
    copies them) are carried over; shared modules stay shared and tied weights stay tied. Parameters
    of other modules (normalizations, embeddings) keep their values. An optimizer of the old model
    does not train the new one.

    Args:
        model: The network; it may be a single layer.
        mode: `"reinit"` or `"preserve"`.
        sigma_w: The scale of the weights. `"gain"` chooses it by the activation that follows a
            layer, as `torch.nn.init.calculate_gain` does: √2 before ReLU, √(2/(1+a²)) before leaky
            ReLU, 5/3 before tanh, 3/4 before SELU, and 1 before any other activation, before a sum,
            before another layer and at the end. The network is traced with `torch.fx` to find what
            follows (a module, function or method) after normalization, dropout, pooling, padding,
            joining and reshaping; an `nn.RNN` has the scale for its own nonlinearity. Layers for
            which this cannot be found, or that are used before different activations, get 1 with a
            warning.
        sigma_b: The scale of the biases, at least 0.
        generator: The random generator for `"reinit"`.

    Returns:
        The converted copy, of the same class as `model` (a single `nn.Linear` gives an
        `NTKLinear`).

    Raises:
        TypeError: `model` is not an eager module, or a scale not a number.
        ValueError: A layer cannot be converted correctly, because it is an instance of a subclass,
            has a replaced forward, is lazy, has a computed weight (weight norm, spectral norm,
            pruning), has a weight that the model's own code reads (`F.linear(x, self.fc.weight)`),
            is reached by a closure of a function among the attributes, has tied weights that need
            different scales (a layer tied to an embedding with `"preserve"`), or has a bias that
            `"preserve"` would have to divide by `sigma_b=0`. With `"reinit"`, a layer would stay in
            standard parameterization. Or there is no layer. The message names the layer.

    Warns:
        UserWarning: `sigma_w="gain"` could not find what follows a layer.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 50), nn.ReLU(), nn.Linear(50, 1))
        >>> [layer.sigma_w for layer in ntk_parameterize(net) if hasattr(layer, "sigma_w")]
        [1.4142135623730951, 1.0]
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(ntk_parameterize(net, mode="preserve")(x), net(x), atol=1e-5)
        True
    """
    check_is_module(model)
    refuse_closures(model)
    check_choice("mode", mode, ("reinit", "preserve"))
    scale_w = check_sigma_w_or_gain(sigma_w)
    sigma_b = check_sigma_b(sigma_b)
    inventory = take_inventory(model, whole=mode == "reinit")
    uses = find_uses(model)
    _check_not_read(inventory, uses)
    scales = (
        _scales_by_gain(inventory, uses)
        if scale_w == "gain"
        else dict.fromkeys(inventory.standard, scale_w)
    )
    _check_no_views(model, inventory)
    if mode == "preserve":
        factors = _preserving_factors(inventory, scales, sigma_b)
        _check_ties_keep(model, inventory, factors)
    else:
        _check_ties_draw(model, inventory)

    converted, _ = faithful_copy(model)
    modules = dict(converted.named_modules())  # the copy's modules have the same names
    for name in inventory.standard:
        _convert_(modules[name], scales[name], sigma_b)
    if mode == "preserve":
        copy_of: dict[Tensor, Tensor] = dict(
            zip(model.parameters(), converted.parameters(), strict=True)
        )
        for parameter, (factor, name) in factors.items():
            _divide_(copy_of[parameter], factor, name)
    else:
        layers = [m for n, m in modules.items() if n in inventory.standard or n in inventory.ntk]
        for parameter in dict.fromkeys(p for layer in layers for p in weights_and_biases(layer)):
            draw_normal_(parameter, generator=generator)
    return converted


def _convert_(layer: nn.Module, sigma_w: float, sigma_b: float) -> None:
    # An NTK layer has the attributes of its base class and two more. Changing the class preserves
    # what a new object would lose: hooks, and all other references to the layer (in a list, say).
    layer.__class__ = NTK_TYPE_OF[type(layer)]
    vars(layer).update(sigma_w=sigma_w, sigma_b=sigma_b)
    if isinstance(layer, NTKRNN):
        layer.sigma_u = sigma_w


@torch.no_grad()
def _divide_(parameter: Tensor, factor: float, name: str) -> None:
    if parameter.is_meta:
        return
    before = parameter.isfinite()
    parameter.div_(factor)
    if bool((parameter.isfinite() != before).any()):
        dtype = str(parameter.dtype).removeprefix("torch.")
        raise value_error(
            "model",
            f"one whose weights divided by their scale stay finite in {dtype}",
            f"one whose layer {name!r} divided by {factor:g} does not",
            "Convert it in float32.",
        )


def _scales_by_gain(inventory: Inventory, uses: Uses) -> dict[str, float]:
    """`sigma_w` of each layer by what follows it; layers that share a weight get the same scale."""
    by_weight: dict[Tensor, set[float | None]] = {}
    for layer in inventory.standard.values():
        inside = recurrent_gain(layer)
        gains = uses.gains.get(layer, {None}) if inside is None else {inside}
        for weight in _weights(layer):
            by_weight.setdefault(weight, set()).update(gains)
    scales: dict[str, float] = {}
    unknown: list[str] = []
    for name, layer in inventory.standard.items():
        gains = set().union(*(by_weight[w] for w in _weights(layer))) or {DEFAULT_GAIN}
        only = next(iter(gains)) if len(gains) == 1 else None
        scales[name] = DEFAULT_GAIN if only is None else only
        if only is None:
            unknown.append(name)
    if unknown:
        warnings.warn(
            f'sigma_w="gain" gives 1 to {", ".join(map(repr, unknown))}: the activation that '
            "follows cannot be seen by tracing the model, or differs between uses of the layer. "
            "Give `sigma_w` as a number, or set the attribute sigma_w of these layers.",
            UserWarning,
            stacklevel=3,
        )
    return scales


def _weights(layer: nn.Module) -> list[Tensor]:
    return [p for p in layer.parameters(recurse=False) if p.ndim > 1]


def _check_not_read(inventory: Inventory, uses: Uses) -> None:
    for name, layer in inventory.standard.items():
        if any(parameter in uses.read for parameter in weights_and_biases(layer)):
            raise value_error(
                "model",
                "one that uses its layers' weights only by calling the layers",
                f"one whose code reads the weight or bias of {name!r} itself",
                "Call the layer there, or build the network with NTK layers.",
            )


def _check_no_views(model: nn.Module, inventory: Inventory) -> None:
    """Refuse two tensors that share memory, because their copies would not."""
    holders: dict[tuple[torch.device, int], Tensor] = {}
    layers = {**inventory.standard, **inventory.ntk}
    names = {p: name for name, layer in layers.items() for p in weights_and_biases(layer)}
    for tensor in (*names, *model.parameters(), *model.buffers()):
        if is_lazy(tensor) or tensor.is_meta or tensor.layout is not torch.strided:
            continue
        if not tensor.numel():
            continue
        holder = holders.setdefault((tensor.device, tensor.data_ptr()), tensor)
        if holder is not tensor and holder in names:
            raise value_error(
                "model",
                "one whose tied weights are one and the same nn.Parameter",
                f"one where a weight of {names[holder]!r} shares memory with another tensor",
                "Tie them by assignment: a.weight = b.weight.",
            )


def _preserving_factors(
    inventory: Inventory, scales: dict[str, float], sigma_b: float
) -> dict[Tensor, tuple[float, str]]:
    """The divisor of each weight and bias, with the name of a layer that has it."""
    factors: dict[Tensor, tuple[float, str]] = {}
    for name, layer in inventory.standard.items():
        factor_of = scales_of(layer, scales[name], sigma_b)
        for role, factor in factor_of.items():
            parameter = getattr(layer, role)
            if factor == 0.0 and parameter.numel() and (parameter.is_meta or bool(parameter.any())):
                raise value_error(
                    "sigma_b",
                    'greater than 0 where mode="preserve" meets a bias other than 0',
                    f"0.0, with the bias of layer {name!r}",
                    "Give a sigma_b above 0.",
                )
            if factors.setdefault(parameter, (factor, name))[0] != factor:
                raise ValueError(_tied(name, f"{factors[parameter][1]!r}", _UNTIE))
    return {p: (factor, name) for p, (factor, name) in factors.items() if factor and p.numel()}


def _check_ties_keep(
    model: nn.Module, inventory: Inventory, factors: dict[Tensor, tuple[float, str]]
) -> None:
    converted = set(inventory.standard.values())
    for name, module, _, parameter in parameter_places(model):
        if parameter in factors and module not in converted:
            drawn_too = isinstance(module, NTK_TYPES) or type(module) in _DRAWN_ALIKE
            remedy = f"{_UNTIE} {_REINIT}" if drawn_too else _UNTIE
            raise ValueError(_tied(factors[parameter][1], where(name, module), remedy))


def _check_ties_draw(model: nn.Module, inventory: Inventory) -> None:
    layers = {**inventory.standard, **inventory.ntk}
    drawn = {p: name for name, layer in layers.items() for p in weights_and_biases(layer)}
    drawn_modules = set(layers.values())
    for name, module, _, parameter in parameter_places(model):
        apart = module not in drawn_modules and type(module) not in _DRAWN_ALIKE
        if parameter in drawn and apart:
            raise ValueError(_tied(drawn[parameter], where(name, module), _UNTIE))


def _tied(layer: str, other: str, remedy: str) -> str:
    return message(
        "model",
        "one whose tied weights can have one scale",
        f"one whose layer {layer!r} shares a parameter with {other}, which needs it unscaled "
        "or with another one",
        remedy,
    )
