"""The learning rates of an optimizer, and the largest curvature for which its steps are stable.

On a quadratic with the Hessian H, and with a constant P, the steps of an optimizer are those of
gradient descent, with or without momentum, in the coordinates P^-½ θ. There each eigenvector of
P^½ H P^½ with eigenvalue λ is a mode that evolves independently, and the modes decay if a = lr·λ is
below a limit (Cohen et al. 2021 and 2022). The averages of Adam are assumed to have settled, and
their bias corrections to be 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..._checks import UndefinedError
from ..._optimizers import owner

_OTHER = "the stability limit of {} is not known, only that of torch.optim's {}."


@dataclass(frozen=True)
class StepRule:
    """Gradient descent with momentum, which may be preconditioned.

    Attributes:
        rates: The learning rate of each parameter that the optimizer changes, by name.
        limit: The largest lr·λ for which steps on a quadratic of curvature λ do not diverge.
        preconditioner: The optimizer whose P preconditions the gradient, or None for SGD.
    """

    rates: dict[str, float]
    limit: float
    preconditioner: Optimizer | None = None

    @property
    def lr(self) -> float:
        """The rate to which others are relative: the largest, or with a P the first group's."""
        if self.preconditioner is None:
            return max(self.rates.values())
        return float(self.preconditioner.param_groups[0]["lr"])

    def groups(self) -> dict[float, list[str]]:
        """The names of parameters by their learning rate."""
        found: dict[float, list[str]] = {}
        for name, rate in self.rates.items():
            found.setdefault(rate, []).append(name)
        return found

    def parts(self) -> list[tuple[float, list[str]]]:
        """The groups of parameters with positive learning rates, each with a factor of its kernel.

        Θ is the sum of the kernels of the groups times these factors. With a P the factors are 1,
        as P contains the learning rates.
        """
        groups, largest = self.groups(), self.lr
        if self.preconditioner is not None:
            return [(1.0, [n for n, rate in self.rates.items() if rate > 0.0 or len(groups) == 1])]
        shares = {rate: rate / largest if largest > 0.0 else 1.0 for rate in groups}
        return [(share, groups[rate]) for rate, share in shares.items() if share > 0.0]


def read_optimizers(
    optimizers: Sequence[Optimizer], network: nn.Module, names: Sequence[str]
) -> StepRule:
    """Read the present rates and the stability limit of the parameters of these names.

    Raises:
        ValueError: The parameters have no optimizer or several ones, or one whose limit is not
            known, or groups with different limits.
    """
    chosen = set(names)
    parameters = {n: p for n, p in network.named_parameters() if n in chosen}
    by_id = {id(p): n for n, p in parameters.items()}
    optimizer = owner(optimizers, parameters)
    if type(optimizer) not in _LIMITS:
        known = ", ".join(kind.__name__ for kind in _LIMITS)
        raise UndefinedError(_OTHER.format(type(optimizer).__name__, known))
    limit = _LIMITS[type(optimizer)]
    rates: dict[str, float] = {}
    limits: set[float] = set()
    decays: list[float] = []
    for group in optimizer.param_groups:
        own = [by_id[id(p)] for p in group["params"] if id(p) in by_id]
        if own:
            if group["maximize"]:
                raise UndefinedError("the optimizer maximizes, for which there is no limit.")
            limits.add(limit(group))
            decays.append(float(group["lr"]) * float(group["weight_decay"]))
            rates.update(dict.fromkeys(own, float(group["lr"])))
    if len(limits) > 1:
        raise UndefinedError("the optimizer's parameter groups differ in momentum.")
    largest, decay = limits.pop(), max(decays)
    if type(optimizer) is torch.optim.SGD:
        # Weight decay is a part of the gradient and adds weight_decay to every curvature λ.
        return StepRule(rates, largest - decay)
    if optimizer.param_groups[0].get("decoupled_weight_decay"):
        # θ ← (1 - c) θ - lr P m with c = lr·weight_decay and m ← β m + (1 - β) g: a mode obeys
        # z² - (1 - c + β - a (1 - β)) z + β (1 - c) = 0, which has the root -1, and beyond it an
        # unstable one, at a = (1 + β) (2 - c) / (1 - β).
        largest *= 1.0 - 0.5 * decay
    return StepRule(rates, largest, optimizer)


def _of_sgd(group: Mapping[str, Any]) -> float:
    r"""The largest stable a = lr·λ of one mode under `torch.optim.SGD`.

    With momentum μ and dampening τ the mode obeys z² - (1 + μ - a(1 - τ)) z + μ = 0, whose roots
    leave the unit circle at a = 2(1 + μ)/(1 - τ). With Nesterov's step the trace is
    1 + μ - a(1 + μ) and the determinant μ(1 - a), which gives a = 2(1 + μ)/(1 + 2μ).
    """
    momentum, dampening = float(group["momentum"]), float(group["dampening"])
    _check_momentum(momentum)
    if group["nesterov"]:
        return 2.0 * (1.0 + momentum) / (1.0 + 2.0 * momentum)
    if momentum == 0.0:  # torch applies no dampening then
        return 2.0
    if dampening >= 1.0:
        raise UndefinedError(f"dampening {dampening:g} leaves nothing of the gradient.")
    return 2.0 * (1.0 + momentum) / (1.0 - dampening)


def _of_adam(group: Mapping[str, Any]) -> float:
    """The limit of Adam: an average of gradients is momentum β₁ with dampening β₁."""
    beta = float(group["betas"][0])
    return 2.0 * (1.0 + beta) / (1.0 - beta)


def _of_rmsprop(group: Mapping[str, Any]) -> float:
    """The limit of RMSprop, which has momentum without dampening."""
    momentum = float(group["momentum"])
    _check_momentum(momentum)
    return 2.0 * (1.0 + momentum)


def _check_momentum(momentum: float) -> None:
    """Raise an `UndefinedError`, so that the metric is left out, for momentum outside of [0, 1)."""
    if not 0.0 <= momentum < 1.0:
        raise UndefinedError(f"momentum {momentum:g} is not in [0, 1): no step is stable.")


_LIMITS: dict[type[Optimizer], Callable[[Mapping[str, Any]], float]] = {
    torch.optim.SGD: _of_sgd,
    torch.optim.Adam: _of_adam,
    torch.optim.AdamW: _of_adam,
    torch.optim.RMSprop: _of_rmsprop,
    torch.optim.Adagrad: lambda group: 2.0,
}
"""Functions of a parameter group that return the limit without weight decay, by exact type."""
