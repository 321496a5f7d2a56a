r"""The diagonal matrix P by which an optimizer multiplies a gradient.

The step of an optimizer without momentum is θ ← θ - lr P g with P diagonal. With momentum the same
P multiplies an average of gradients instead. For SGD P = 1, and

    Adam, AdamW, NAdam   P = 1 / (√v̂ + ε)           v̂ = v / (1 - β₂ᵗ), v the average of g²
    RMSprop              P = 1 / (√v + ε)           centered: v minus the squared average of g
    Adagrad              P = 1 / ((√s + ε) (1 + (t - 1) lr_decay))         s the sum of g²

with the moments of the last step, whose number is t (Kingma, Ba 2015; Loshchilov, Hutter 2019;
Dozat 2016; Tieleman, Hinton 2012; Duchi, Hazan, Singer 2011). lr is the learning rate of the first
group of parameters. P of another group is multiplied by the ratio of its learning rate to lr.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._checks import (
    ArgumentValueError,
    UndefinedError,
    describe,
    listed,
    message,
    type_error,
    value_error,
)

Scale: TypeAlias = float | Tensor
"""The entries of P for one parameter: a number if they are all equal, or a tensor of its shape."""

_State: TypeAlias = Mapping[str, Any]

# Wrappers that delegate each step to `.optimizer`, by the package and the name of their class.
# Other optimizers with such an attribute, Lookahead for one, take steps of their own.
_WRAPPERS = {
    ("lightning", "LightningOptimizer"),
    ("lightning", "_FabricOptimizer"),
    ("pytorch_lightning", "LightningOptimizer"),
    ("lightning_fabric", "_FabricOptimizer"),
    ("accelerate", "AcceleratedOptimizer"),
}


class NoScalesError(ArgumentValueError):
    """P of an optimizer is not defined at this step of a training, but may be at others."""


class NoStepError(NoScalesError):
    """P is not defined because the optimizer has not taken a step."""


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside of the wrappers of Lightning and Accelerate."""
    kinds = {(c.__module__.partition(".")[0], c.__name__) for c in type(optimizer).__mro__}
    if not kinds & _WRAPPERS:
        return optimizer
    inner: Any = optimizer
    return unwrapped(inner.optimizer)


def owner(optimizers: Sequence[Optimizer], parameters: Mapping[str, Tensor]) -> Optimizer:
    """The only optimizer of a training that has any of the parameters.

    Raises:
        ValueError: No optimizer has one of them, or several have.
    """
    if not optimizers:
        raise UndefinedError("no optimizer is known. Pass it to the monitor's step.")
    own = {id(p) for p in parameters.values()}
    owners = [o for o in optimizers if own & set(_groups(o))]
    if not owners:
        raise UndefinedError("no optimizer holds a parameter of the network that is measured.")
    if len(owners) > 1:
        raise UndefinedError(
            f"{len(owners)} optimizers move the network in turn, each with steps of its own. "
            "Measure one optimizer's part with network='...'."
        )
    return unwrapped(owners[0])


def has_scales(optimizer: Optimizer) -> bool:
    """Whether P is known for an optimizer of this kind."""
    return type(unwrapped(optimizer)) in _SCALES


def step_scales(
    name: str, optimizer: Optimizer, parameters: Mapping[str, Tensor]
) -> Iterator[tuple[str, Scale]]:
    """Yield P of each parameter in float64; it is 0 where a group's learning rate is 0.

    For a complex parameter, P has an entry for each real and imaginary part, `[..., 2]`.

    Args:
        name: The name of the argument, for errors.
        optimizer: One of the optimizers above, but not of a subclass, which may step differently.
        parameters: The parameters by name; they must be the tensors that the optimizer has.

    Raises:
        TypeError: P is not known for this type of optimizer.
        NoStepError: The optimizer has not taken a step.
        NoScalesError: The learning rate of the first group is 0, so that no ratios to it exist.
        ValueError: The optimizer does not have every parameter; a parameter has never had a
            gradient; a learning rate or P is not finite.
    """
    optimizer = unwrapped(optimizer)
    if not has_scales(optimizer):
        raise type_error(
            name,
            f"one of torch.optim's {KNOWN} itself, or a mapping from names to tensors",
            describe(optimizer),
            "How it steps is not known. If its steps are θ - lr·P·g with a positive P for each "
            f"entry of a parameter, pass {name}={{name: P}}.",
        )
    groups = _groups(optimizer)
    lacking = [n for n, p in parameters.items() if id(p) not in groups]
    if lacking:
        raise value_error(
            name,
            "an optimizer that holds every parameter of the kernel",
            f"one that does not hold {listed(lacking)}",
            "Pass the optimizer that was made of this model's own parameters, or select what it "
            "holds with params=[...].",
        )
    first = optimizer.param_groups[0]
    used = [groups[id(p)] for p in parameters.values()]
    # Where a schedule begins or ends at 0 in all groups alike, their ratios are those of the
    # learning rates that it multiplies.
    all_rest = all(_rate(name, g) == 0.0 and g.get("initial_lr") for g in (first, *used))
    key = "initial_lr" if all_rest else "lr"
    if _rate(name, first, key) == 0.0 and any(group is not first for group in used):
        raise NoScalesError(
            message(
                name,
                "an optimizer whose first group of parameters has a learning rate above 0",
                "one with the learning rate 0",
                "The learning rates of its other groups count relative to that.",
            )
        )

    def relative(group: Mapping[str, Any]) -> float:
        return 1.0 if group is first else _rate(name, group, key) / _rate(name, first, key)

    scale = _SCALES[type(optimizer)]
    if scale is None:
        for n, p in parameters.items():
            yield n, relative(groups[id(p)])
        return
    steps = {p: float(state.get("step", 0)) for p, state in optimizer.state.items()}
    if not any(steps.values()):
        raise NoStepError(
            message(
                name,
                "an optimizer that has taken a step",
                f"a {type(optimizer).__name__} before its first",
                "Until then there are no second moments from which P follows.",
            )
        )
    unmoved = [n for n, p in parameters.items() if not steps.get(p)]
    if unmoved:
        raise value_error(
            name,
            "an optimizer that has moved every parameter of the kernel",
            f"one that has no state for {listed(unmoved)}, which never had a gradient in a step",
            "Leave out what is not trained with params=[...].",
        )
    for n, p in parameters.items():
        group = groups[id(p)]
        entries = scale(optimizer.state[p], group) * relative(group)
        if not bool(entries.isfinite().all()):
            raise value_error(
                name,
                "an optimizer with a finite P",
                f"1 / (√v + ε) that is not finite for {n!r}",
                "Entries that never had a gradient need an ε (eps) above 0; a state that is NaN is "
                "one of a training that has diverged.",
            )
        yield n, entries


def _groups(optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    """The group of each parameter, by the parameter's id."""
    return {id(p): group for group in optimizer.param_groups for p in group["params"]}


def _rate(name: str, group: Mapping[str, Any], key: str = "lr") -> float:
    rate = float(group[key])
    if not math.isfinite(rate) or rate < 0.0:
        expected = "an optimizer with finite learning rates of at least 0"
        raise value_error(name, expected, f"one with {rate}")
    return rate


def _real(t: Tensor) -> Tensor:
    """A moment in float64; a complex one as those of the real and imaginary parts `[..., 2]`."""
    parts = torch.view_as_real(t) if t.is_complex() else t
    return parts.detach().to(torch.float64)


def _of_adam(state: _State, group: _State) -> Tensor:
    v = _real(state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"])
    correction = 1.0 - math.pow(float(group["betas"][1]), float(state["step"]))
    return 1.0 / ((v / correction).sqrt() + float(group["eps"]))


def _of_rmsprop(state: _State, group: _State) -> Tensor:
    v = _real(state["square_avg"])
    if group["centered"]:  # this is a variance, which rounding may make negative
        v = (v - _real(state["grad_avg"]).square()).clamp_min(0.0)
    return 1.0 / (v.sqrt() + float(group["eps"]))


def _of_adagrad(state: _State, group: _State) -> Tensor:
    decay = 1.0 + (float(state["step"]) - 1.0) * float(group["lr_decay"])
    return 1.0 / ((_real(state["sum"]).sqrt() + float(group["eps"])) * decay)


_SCALES: dict[type[Optimizer], Callable[[_State, _State], Tensor] | None] = {
    torch.optim.SGD: None,
    torch.optim.Adam: _of_adam,
    torch.optim.AdamW: _of_adam,
    torch.optim.NAdam: _of_adam,
    torch.optim.RMSprop: _of_rmsprop,
    torch.optim.Adagrad: _of_adagrad,
}
"""For each exact type, P (without the learning rate) from a parameter's state and its group."""

KNOWN = ", ".join(kind.__name__ for kind in _SCALES)
"""The names of the optimizers whose P is known, for messages."""
