"""Learning rates with which an NTK network trains like its standard parameterization."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .._checks import check_finite_number, describe, type_error, value_error
from ._inventory import (
    NTK_TYPES,
    check_is_module,
    check_own_weights,
    own_scales,
    parameter_places,
    where,
)

_SGD_OPTIONS = frozenset(
    ("momentum", "dampening", "nesterov", "maximize", "foreach", "differentiable", "fused")
)


def ntk_param_groups(
    model: nn.Module, lr: float, *, weight_decay: float | None = None, **options: Any
) -> list[dict[str, Any]]:
    """Parameter groups for `torch.optim.SGD` that undo the scales of the NTK layers.

    SGD with these groups changes the function exactly as SGD with one learning rate `lr` changes
    the function of the standard network `W = c · W'`, `b = sigma_b · b'`, where
    `c = sigma_w / sqrt(fan_in)`. After `ntk_parameterize(model, mode="preserve")` this is the
    original model.

    The gradient by `W'` is `c` times that by `W`, and the step of `W'` must be `1/c` times that
    of `W`. So the learning rate is `lr / c² = lr · fan_in / sigma_w²` for weights, `lr / sigma_b²`
    for biases and `lr` for every other parameter. Weight decay adds `wd · W` to the gradient by
    `W`, and `wd' · W' = wd' · W / c` must be `c · wd · W`: the decay is `c² · wd` for weights,
    `sigma_b² · wd` for biases. Momentum, dampening, Nesterov and maximize are linear in the
    gradient and stay as they are, as do schedulers that multiply each group's rate.

    Give a weight decay here, not to the optimizer, which would apply it unscaled.

    Args:
        model: A network with NTK layers.
        lr: Learning rate of the standard network, at least 0.
        weight_decay: Weight decay of the standard network, at least 0.
        **options: Other options of `torch.optim.SGD`, which are the same for every group.

    Returns:
        One group per pair of rate and decay, in the order of `model.parameters()`; every
        parameter with `requires_grad` is in exactly one.

    Raises:
        TypeError: `model` is not an eager module, or an option is not one of SGD's. Adam and
            similar optimizers are not linear in the gradient: with them, no learning rates make the
            two networks train alike.
        ValueError: A parameter is shared by layers that scale it differently, an NTK layer has a
            computed weight or a trainable bias with `sigma_b=0` (it cannot change the function),
            `lr` or `weight_decay` is out of range, or nothing is trainable.

    Example:
        >>> import torch
        >>> from torch_ntk.nn import MLP
        >>> net = MLP([100, 50, 1], sigma_w=1.0, sigma_b=0.1)
        >>> optimizer = torch.optim.SGD(ntk_param_groups(net, lr=0.01, momentum=0.9))
        >>> [round(group["lr"], 6) for group in optimizer.param_groups]
        [1.0, 0.5]
    """
    check_is_module(model)
    lr = check_finite_number("lr", lr, minimum=0.0)
    if weight_decay is not None:
        weight_decay = check_finite_number("weight_decay", weight_decay, minimum=0.0)
    for option in options:
        if option not in _SGD_OPTIONS:
            raise type_error(
                "options",
                f"options of torch.optim.SGD ({', '.join(sorted(_SGD_OPTIONS))})",
                repr(option),
                "These learning rates are exact for SGD only.",
            )
    groups: dict[tuple[float, float | None], dict[str, Any]] = {}
    for parameter, (rate, decay) in _square_scales(model).items():
        key = (lr * rate, None if weight_decay is None else weight_decay * decay)
        if key not in groups:
            groups[key] = {"params": [], "lr": key[0], **options}
            if weight_decay is not None:
                groups[key]["weight_decay"] = key[1]
        groups[key]["params"].append(parameter)
    if not groups:
        raise value_error("model", "a module with a trainable parameter", describe(model))
    return list(groups.values())


def _square_scales(model: nn.Module) -> dict[Tensor, tuple[float, float]]:
    """The factors of learning rate and weight decay for each trainable parameter."""
    for name, module in model.named_modules():
        if isinstance(module, NTK_TYPES):
            check_own_weights(name, module)
    found: dict[Tensor, tuple[float, float]] = {}
    holders: dict[Tensor, str] = {}
    for name, module, role, parameter in parameter_places(model):
        if not parameter.requires_grad:
            continue
        factors = (1.0, 1.0)
        if isinstance(module, NTK_TYPES):
            scale = own_scales(module).get(role, 1.0)
            if scale:
                factors = (scale**-2, scale**2)
            elif parameter.numel():
                raise _error_of_bias(name, module)
        if found.setdefault(parameter, factors) != factors:
            raise value_error(
                "model",
                "one whose shared parameters have one scale",
                f"one where {where(name, module)} and {holders[parameter]} share a parameter "
                "and scale it differently",
                "Untie them, or give them equal scales.",
            )
        holders.setdefault(parameter, where(name, module))
    return found


def _error_of_bias(name: str, layer: nn.Module) -> ValueError:
    return value_error(
        "model",
        "one whose trainable biases act on the function",
        f"one with {where(name, layer)} with sigma_b=0",
        "Freeze it, layer.bias.requires_grad_(False), or build the layer with bias=False.",
    )
