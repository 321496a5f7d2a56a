"""The steps of an optimizer in the form that a forecast can predict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..._checks import ArgumentError, UndefinedError, value_error
from ..._optimizers import NoStepError, step_scales
from ..._types import Parameters
from ...monitor.stability import read_optimizers

_FOLLOWED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop)
_EXPECTED = "one of torch.optim's SGD, Adam, AdamW and RMSprop, whose steps a kernel predicts"
_NOT_YET = (
    "Pass anchor_at=N, a step at which its averages of squared gradients have settled: the forecast"
    " begins there, with P held constant."
)


@dataclass(frozen=True)
class Steps:
    """Gradient descent with heavy-ball momentum, perhaps preconditioned.

    Attributes:
        lr: The largest learning rate of a parameter; with a P, that of the first group.
        groups: The names of the parameters that move, by groups, each group with the factor by
            which its kernel is to be multiplied.
        momentum: The momentum of all parameters.
        gain: The factor with which a gradient enters the momentum; 1 - β₁ for Adam's average.
        weight_decay: The largest weight decay of a parameter group, which a forecast ignores.
        preconditioner: The optimizer with the P of the kernel, or None.
        taken: The number of steps it has taken; infinite if its momentum has no bias correction.
        memory: The number of steps over which the squared gradients in P are averaged.
    """

    lr: float
    groups: list[tuple[float, list[str]]]
    momentum: float
    gain: float
    weight_decay: float
    preconditioner: Optimizer | None = None
    taken: float = math.inf
    memory: float = 0.0


def read_steps_of(
    optimizers: Sequence[Optimizer], network: nn.Module, names: Sequence[str]
) -> Steps:
    """The steps that the optimizer of these parameters takes with its present settings.

    Args:
        optimizers: The optimizers of the training.
        network: The module whose training is forecast.
        names: The names of its parameters.

    Raises:
        ValueError: A forecast cannot follow the optimizer: it is of another type, has no P before
            its first step, has dampening, Nesterov's step or momenta that differ between groups, or
            its learning rate is 0.
    """
    try:
        rule = read_optimizers(optimizers, network, names)
    except ArgumentError as error:
        raise value_error("optimizer", _EXPECTED, f"this: {error}") from error
    optimizer = rule.preconditioner
    if optimizer is not None and type(optimizer) not in _FOLLOWED:
        raise value_error("optimizer", _EXPECTED, type(optimizer).__name__)
    parameters = {n: p for n, p in network.named_parameters() if n in rule.rates}
    moved = {id(p) for p in parameters.values()}
    groups = [
        group
        for each in optimizers
        for group in each.param_groups
        if any(id(p) in moved for p in group["params"])
    ]
    momenta = {_momentum(group) for group in groups}
    odd = [
        name
        for name, is_there in (
            ("nesterov=True", any(group.get("nesterov") for group in groups)),
            ("dampening", any(_momentum(group) and group.get("dampening") for group in groups)),
            ("momentum that differs between parameter groups", len(momenta) > 1),
        )
        if is_there
    ]
    if odd:
        came = f"SGD with {' and '.join(odd)}"
        raise value_error("optimizer", _EXPECTED, came, "Leave that out to see a forecast.")
    if rule.lr <= 0.0:
        raise value_error(
            "optimizer",
            "one with a positive learning rate",
            f"lr={rule.lr:g}",
            "A learning rate that is warmed up from 0 has no forecast.",
        )
    momentum, is_average = momenta.pop(), "betas" in groups[0]
    taken, memory = math.inf, 0.0
    if optimizer is not None:
        try:
            next(
                step_scales("optimizer", optimizer, parameters), None
            )  # raises if P does not exist
        except NoStepError as error:
            raise UndefinedError(f"{error} {_NOT_YET}") from error
        taken = max(float(state.get("step", 0)) for state in optimizer.state.values())
        square = float(groups[0]["betas"][1] if is_average else groups[0]["alpha"])
        memory = min(taken, 1.0 / max(1.0 - square, 1e-12))
    return Steps(
        rule.lr,
        rule.parts(),
        momentum,
        1.0 - momentum if is_average else 1.0,
        max(float(group["weight_decay"]) for group in groups),
        optimizer,
        taken if is_average else math.inf,
        memory,
    )


def gathered(steps: Steps, network: nn.Module) -> Parameters:
    """P m for each parameter that moves, where m is the optimizer's momentum, relative to `lr`."""
    optimizer, found = steps.preconditioner, {}
    assert optimizer is not None
    names = {n for _, group in steps.groups for n in group}
    parameters = {n: p for n, p in network.named_parameters() if n in names}
    rates = {id(p): float(g["lr"]) for g in optimizer.param_groups for p in g["params"]}
    for n, scale in step_scales("optimizer", optimizer, parameters):
        p, state = parameters[n], optimizer.state[parameters[n]]
        # RMSprop's momentum buffer contains P already, but not the learning rate.
        m = state.get("exp_avg", state.get("momentum_buffer", torch.zeros_like(p)))
        factor = scale if "exp_avg" in state else rates[id(p)] / steps.lr
        found[n] = (torch.view_as_real(m) if m.is_complex() else m).detach().double() * factor
    return found


def rates_now(optimizers: Sequence[Optimizer]) -> list[list[float]]:
    """Learning rate and momentum of each parameter group, to see whether they change."""
    return [
        [float(group["lr"]), _momentum(group)]
        for optimizer in optimizers
        for group in optimizer.param_groups
    ]


def _momentum(group: Mapping[str, Any]) -> float:
    return float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0))
