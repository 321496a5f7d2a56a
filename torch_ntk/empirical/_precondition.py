"""The kernel of an optimizer: J P Jᵀ with a positive diagonal matrix P.

If a step is θ ← θ - lr P g, the outputs change by -lr J P Jᵀ ∂L/∂f to first order. With θ = P^½ φ,
J P Jᵀ is the kernel of the same function of φ, whose Jacobian is J P^½. So every method computes
it, if its factors are multiplied by √P, and it is symmetric and positive semi-definite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from .._checks import check_finite, check_tensor, describe, listed, type_error, value_error
from .._functional import ModelFunction, plain_name
from .._optimizers import Scale, step_scales
from .._types import Parameters, PreconditionLike

_NAME = "precondition"


@dataclass(frozen=True)
class Precondition:
    """The square root √P of a diagonal matrix P, by names of parameters.

    Attributes:
        roots: A number for each parameter, or a tensor in its shape (`[..., 2]` for a complex one);
            a parameter without a root has 1.
    """

    roots: Mapping[str, Scale] = field(default_factory=dict)

    def root(self, name: str) -> Scale:
        """Return √P of a parameter."""
        return self.roots.get(name, 1.0)

    def varies(self, name: str) -> bool:
        """Whether the entries of a parameter have different P."""
        return isinstance(self.root(name), Tensor)

    def columns(self, name: str, j: Tensor) -> Tensor:
        """Return the Jacobian `[..., p]` of a parameter times √P."""
        root = self.root(name)
        if isinstance(root, Tensor):
            return j * root.reshape(-1)
        return j if root == 1.0 else j * root

    def times(self, directions: Parameters) -> Parameters:
        """Return P w for directions w `{name: [c, ...]}`."""
        found = {}
        for name, w in directions.items():
            root = self.root(name)
            is_one = not isinstance(root, Tensor) and root == 1.0
            found[name] = w if is_one else w * (root * root)
        return found

    def in_dtype(self, dtype: torch.dtype) -> Precondition:
        """Return the same √P in another dtype."""
        roots = {n: r.to(dtype) if isinstance(r, Tensor) else r for n, r in self.roots.items()}
        return replace(self, roots=roots)

    @property
    def bytes(self) -> int:
        """The bytes of the roots."""
        tensors = [r for r in self.roots.values() if isinstance(r, Tensor)]
        return sum(r.numel() * r.element_size() for r in tensors)


def precondition_of(given: PreconditionLike, fn: ModelFunction) -> Precondition:
    """Return √P of the parameters of a function, in its dtype.

    The state of an optimizer is found by the identity of the caller's own parameters.
    """
    if given is None:
        return Precondition()
    own = {n: fn.plain.own[n] for n in fn.params}
    if isinstance(given, Optimizer):
        scales = step_scales(_NAME, given, {plain_name(n): p for n, p in own.items()})
    elif isinstance(given, Mapping):
        scales = _checked(given, {plain_name(n): p for n, p in own.items()}, fn)
    else:
        raise type_error(
            _NAME,
            "None, a torch.optim.Optimizer or a mapping from names of parameters to tensors",
            describe(given),
            "Pass the optimizer whose steps are meant, or {name: P}.",
        )
    values = fn.params.items()
    return Precondition({n: _root(p, v) for (n, v), (_, p) in zip(values, scales, strict=True)})


def _checked(
    given: Mapping[str, Tensor], known: Parameters, fn: ModelFunction
) -> Iterator[tuple[str, Scale]]:
    """Yield P of each of the `known` parameters, in float64."""
    every = {plain_name(n) for n in fn.plain.own}
    remedy = "It needs an entry for every selected parameter."
    lacking = [n for n in known if n not in given]
    if lacking:
        raise value_error(_NAME, "given for all parameters", f"none for {listed(lacking)}", remedy)
    unknown = [n for n in given if n not in every]
    if unknown:
        came = f"also {listed(unknown)}"
        raise value_error(_NAME, "given by the names of the model's parameters", came, remedy)
    for n, parameter in known.items():
        name = f"{_NAME}[{n!r}]"
        p = check_tensor(name, given[n])
        if not p.is_floating_point():
            raise type_error(name, "of real floating-point numbers", p)
        if p.shape != parameter.shape:
            expected = f"of the parameter's shape {tuple(parameter.shape)}"
            raise value_error(name, expected, p, "Write P.expand_as(parameter) for one number.")
        if p.device != parameter.device:
            raise value_error(name, f"on the parameter's device {parameter.device}", p)
        check_finite(name, p)
        if p.numel() and not bool((p > 0).all()):
            least = float(p.min())
            raise value_error(name, "positive in every entry", f"a smallest entry of {least:g}")
        p = p.detach().double()
        # Of a complex number P multiplies the real and the imaginary part.
        yield n, torch.stack([p, p], dim=-1) if parameter.is_complex() else p


def _root(p: Scale, parameter: Tensor) -> Scale:
    """Return √P in the parameter's dtype; a single number if several entries are all the same."""
    if not isinstance(p, Tensor):
        return math.sqrt(p)
    if not p.numel():
        return 1.0
    least, most = p.aminmax()
    if p.numel() > 1 and bool(least == most):
        return math.sqrt(float(least))
    return p.sqrt().to(parameter)
