"""How an optimizer moves the parameters, and which curvature its steps can bear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..._optimizers import owner

_ONLY_SGD = (
    "{} gives each parameter a step size of its own, so that no single one stands against the "
    "loss's curvature; the stability limit is known for torch.optim.SGD."
)


@dataclass(frozen=True)
class StepRule:
    """Gradient descent with momentum.

    Attributes:
        rates: The learning rate of each parameter that the optimizer moves, by name.
        limit: The largest lr·λ under which a step along curvature λ does not diverge.
    """

    rates: dict[str, float]
    limit: float

    @property
    def lr(self) -> float:
        """The largest learning rate."""
        return max(self.rates.values())

    def groups(self) -> dict[float, list[str]]:
        """Names of parameters by their learning rate."""
        found: dict[float, list[str]] = {}
        for name, rate in self.rates.items():
            found.setdefault(rate, []).append(name)
        return found


def read_optimizers(
    optimizers: Sequence[Optimizer], network: nn.Module, names: Sequence[str]
) -> StepRule:
    """Learning rates and momentum, as they stand now in the parameter groups.

    Args:
        optimizers: Those of the training.
        network: The module that is measured.
        names: Parameters of it that count.

    Raises:
        ValueError: There is not one optimizer that is SGD with one momentum.
    """
    chosen = set(names)
    parameters = {n: p for n, p in network.named_parameters() if n in chosen}
    by_id = {id(p): n for n, p in parameters.items()}
    optimizer = owner(optimizers, parameters)
    if type(optimizer) is not torch.optim.SGD:
        raise ValueError(_ONLY_SGD.format(type(optimizer).__name__))
    rates: dict[str, float] = {}
    limits: set[float] = set()
    for group in optimizer.param_groups:
        own = [by_id[id(p)] for p in group["params"] if id(p) in by_id]
        if own:
            limits.add(_limit(group))
            rates.update(dict.fromkeys(own, float(group["lr"])))
    if len(limits) > 1:
        raise ValueError("the optimizer's parameter groups differ in momentum.")
    return StepRule(rates, limits.pop())


def _limit(group: dict[str, Any]) -> float:
    r"""The largest stable a = lr·λ of one mode under `torch.optim.SGD`.

    With momentum μ and dampening τ the mode obeys z² - (1 + μ - a(1 - τ)) z + μ = 0, whose roots
    leave the unit circle at a = 2(1 + μ)/(1 - τ). With Nesterov's step the trace is
    1 + μ - a(1 + μ) and the determinant μ(1 - a), which gives a = 2(1 + μ)/(1 + 2μ).
    """
    momentum, dampening = float(group["momentum"]), float(group["dampening"])
    if group["maximize"]:
        raise ValueError("the optimizer maximizes: there is no limit to stay below.")
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum {momentum:g} is not in [0, 1): no step is stable.")
    if group["nesterov"]:
        return 2.0 * (1.0 + momentum) / (1.0 + 2.0 * momentum)
    if momentum == 0.0:  # torch applies no dampening then
        return 2.0
    if dampening >= 1.0:
        raise ValueError(f"dampening {dampening:g} leaves nothing of the gradient.")
    return 2.0 * (1.0 + momentum) / (1.0 - dampening)
