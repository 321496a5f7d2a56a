"""How an optimizer moves a network, as far as a forecast can follow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from ..._checks import value_error
from ...monitor.stability import read_optimizers

_REMEDY = "Train with torch.optim.SGD, or without this callback."


@dataclass(frozen=True)
class Steps:
    """Gradient descent with heavy-ball momentum.

    Attributes:
        lr: The largest learning rate of a parameter.
        groups: Names of the parameters that move, by their learning rate in units of it.
        momentum: Of all of them.
        weight_decay: The largest of a parameter group; a forecast does not count it.
    """

    lr: float
    groups: dict[float, list[str]]
    momentum: float
    weight_decay: float


def read_steps_of(
    optimizers: Sequence[Optimizer], network: nn.Module, names: Sequence[str]
) -> Steps:
    """What the optimizer of these parameters does now.

    Args:
        optimizers: Those of the training.
        network: The module whose training is forecast.
        names: Parameters of it.

    Raises:
        ValueError: It is not one SGD with one momentum, without dampening and Nesterov's step, or
            its learning rate is 0.
    """
    expected = "one torch.optim.SGD, whose steps a constant kernel predicts"
    try:
        rule = read_optimizers(optimizers, network, names)
    except ValueError as error:
        raise value_error("optimizer", expected, f"this: {error}", _REMEDY) from error
    if rule.preconditioner is not None:
        came = type(rule.preconditioner).__name__
        raise value_error("optimizer", expected, came, _REMEDY)
    moved = {id(p) for n, p in network.named_parameters() if n in rule.rates}
    groups = [
        group
        for optimizer in optimizers
        for group in optimizer.param_groups
        if any(id(p) in moved for p in group["params"])
    ]
    momenta = {float(group["momentum"]) for group in groups}
    odd = [
        name
        for name, is_there in (
            ("nesterov=True", any(group["nesterov"] for group in groups)),
            ("dampening", any(group["momentum"] and group["dampening"] for group in groups)),
            ("momentum that differs between parameter groups", len(momenta) > 1),
        )
        if is_there
    ]
    if odd:
        came = f"SGD with {' and '.join(odd)}"
        raise value_error("optimizer", expected, came, "Leave that out to see a forecast.")
    if rule.lr <= 0.0:
        raise value_error(
            "optimizer",
            "one with a positive learning rate",
            f"lr={rule.lr:g}",
            "A rate that is warmed up from 0 has no forecast.",
        )
    return Steps(
        rule.lr,
        {rate / rule.lr: names for rate, names in rule.groups().items() if rate > 0.0},
        momenta.pop(),
        max(float(group["weight_decay"]) for group in groups),
    )


def rates_now(optimizers: Sequence[Optimizer]) -> list[list[float]]:
    """Learning rate and momentum of each parameter group, to see whether they change."""
    return [
        [float(group["lr"]), float(group.get("momentum", 0.0))]
        for optimizer in optimizers
        for group in optimizer.param_groups
    ]
