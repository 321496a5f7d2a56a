"""Which way of differentiating a network is right, found by plain backward passes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import ArgumentError, value_error
from .._functional import failure
from .._types import Parameters
from ..memory import is_out_of_memory
from ._derivatives import (
    ParameterFunction,
    Way,
    backwards,
    forwards,
    leaves_of,
    row_by_row,
    transposed_product,
)
from ._plain_operations import PlainOperations

WAYS: tuple[Way, ...] = (forwards, backwards, row_by_row)
"""From the fastest to the one that knows most."""


class Choice:
    """The way in which a network is differentiated, and where it has been seen to be right.

    It is compared with plain backward passes for the first batch of each shape, and where a
    forward calls a function that it had not called then. The choice moves on to slower ways, and
    never back.
    """

    def __init__(self, order: int) -> None:
        self.order = order
        self._ways = tuple(way for way in WAYS if order == 1 or way is not row_by_row)
        self._shapes: set[Hashable] = set()
        self._called: set[str] = set()
        self._seed = 0
        # Of some operations the derivative in forward mode has none itself.
        self._forwards_is_differentiable = True

    @property
    def way(self) -> Way:
        """The one in use."""
        return self._ways[0]

    @property
    def is_differentiable(self) -> bool:
        """Whether forward mode is in use, and can be differentiated by the displacement."""
        return self.way is forwards and self._forwards_is_differentiable

    def compare(self, f: ParameterFunction, theta_0: Parameters, x: Tensor) -> None:
        """Choose the fastest way that is right, if the batch is the first of its shape."""
        shape = x.dtype, x.shape
        if shape not in self._shapes:
            self._compare(f, theta_0)
            self._shapes.add(shape)

    def terms(
        self,
        f: ParameterFunction,
        theta_0: Parameters,
        delta: Parameters,
        *,
        written_out: bool = False,
        to_compare: ParameterFunction | None = None,
    ) -> tuple[Tensor, ...]:
        """`d^k/dt^k f(θ_0 + t δ)` at t = 0 for k = 0 … order.

        Args:
            f: The function, by which the result may be differentiated further.
            theta_0: The point of expansion.
            delta: The displacement.
            written_out: Whether the result is to be differentiated by inputs.
            to_compare: The same function without a history, or None where it cannot be
                compared because someone else transforms it.
        """
        if to_compare is None and self.way is not forwards:
            raise RuntimeError(
                "it takes backward passes of its own, which torch.func does not transform"
            )
        called: set[str] = set()
        terms = terms_by(self.way, f, theta_0, delta, self.order, called, written_out)
        if to_compare is None or called <= self._called:
            return terms
        self._called |= called
        self._compare(to_compare, theta_0)
        return terms_by(self.way, f, theta_0, delta, self.order, called, written_out)

    def is_proven(
        self, f: ParameterFunction, theta_0: Parameters, delta: Parameters, slope: Tensor
    ) -> bool:
        """Whether `slope` is J δ, by one plain backward pass; if not, the way is given up.

        Raises:
            ValueError: It is not, and there is no other way.
        """
        u, gradient = plain_gradient(f, theta_0, self._generator())
        error = contradiction(u, slope, gradient, delta)
        if error is not None:
            self.give_up(self.way, error)
        return error is None

    def give_up(self, way: Way, error: Exception) -> None:
        """Do without a way that was wrong; raise `error` if it is the last one."""
        if way is self._ways[-1]:
            raise error
        self._ways = tuple(other for other in self._ways if other is not way)

    def _compare(self, f: ParameterFunction, theta_0: Parameters) -> None:
        probe = Probe(f, theta_0, self.order, self._generator())
        way = probe.right_way(self._ways)
        self._ways = self._ways[self._ways.index(way) :]
        self._called |= probe.called
        if self.order == 1 and self.is_differentiable:
            self._forwards_is_differentiable = probe.is_differentiable()

    def _generator(self) -> torch.Generator:
        """Of other random numbers each time, which are not the caller's."""
        self._seed += 1
        return torch.Generator().manual_seed(self._seed)


def terms_by(
    way: Way,
    f: ParameterFunction,
    theta_0: Parameters,
    delta: Parameters,
    order: int,
    called: set[str],
    written_out: bool = False,
) -> tuple[Tensor, ...]:
    """The derivatives by one of the ways; `called` gets the names of the functions it calls.

    Normalizations are written out for orders above 1, and with `written_out`, when the result is
    to be differentiated by inputs: both differentiate their forward-mode rules once more.
    """
    if way is row_by_row:
        return row_by_row(f, theta_0, delta, order)
    with PlainOperations(order > 1 or written_out, called):
        return way(f, theta_0, delta, order)


def plain_gradient(
    f: ParameterFunction, theta: Parameters, u: torch.Generator | Tensor
) -> tuple[Tensor, Parameters]:
    """u, or random signs u in the shape of the outputs, and Jᵀu by one plain backward pass."""
    leaves = leaves_of(theta)
    with torch.enable_grad(), f.evaluated(leaves) as out:
        if not isinstance(u, Tensor):
            u = (torch.randint(2, out.shape, generator=u) * 2 - 1).to(out.device, out.dtype)
        return u, transposed_product(out, leaves, u, keep_graph=False)


def contradiction(
    u: Tensor, slope: Tensor, gradient: Parameters, delta: Parameters
) -> Exception | None:
    """An error if `⟨u, slope⟩` and `⟨gradient, δ⟩` are numbers that differ, for gradient = Jᵀu."""
    by_way = _Sum.of([u * slope])
    plain = _Sum.of(g.conj() * delta[k] for k, g in gradient.items())
    tolerance = 100 * torch.finfo(u.dtype).eps ** 0.5
    if not (math.isfinite(by_way.size) and math.isfinite(plain.size)):
        return None
    return None if by_way.is_near(plain, tolerance) else _unlike(by_way, plain, 1)


class Probe:
    """Numbers that plain backward passes give, to compare the ways of differentiating with.

    A linearized network is to be that whose gradients train the network itself: those of plain
    backward passes. Forward mode has no rule for some operations (an `autograd.Function` with no
    `jvp`), does not stop where a forward stops its gradients by `torch.no_grad()`, and some rules
    are wrong, at once or when they are applied twice.

    The first order is compared by `⟨u, J v⟩ = ⟨Jᵀu, v⟩` for random signs u, where Jᵀu is one
    plain backward pass. The direction v has two parts for each parameter: its part of Jᵀu, in
    which nothing cancels, and a random one, for the case that Jᵀu vanishes where it should not.

    Raises:
        ValueError: Jᵀu is not finite.
    """

    def __init__(
        self, f: ParameterFunction, theta_0: Parameters, order: int, generator: torch.Generator
    ) -> None:
        self._f, self._theta_0, self._order = f, theta_0, order
        self.called: set[str] = set()
        self._u, gradient = plain_gradient(f, theta_0, generator)
        self._v = {k: _unit(g) + _unit(_random(g, generator)) for k, g in gradient.items()}
        self._plain = self._along(gradient)
        if not math.isfinite(self._plain.size):
            raise value_error(
                "x",
                "a batch at which the gradients of the network's outputs are finite",
                "one at which some are NaN or infinite",
                "Remove or impute such entries of the inputs.",
            )
        self._eps = torch.finfo(self._u.dtype).eps ** 0.5

    def right_way(self, ways: Iterable[Way]) -> Way:
        """The first of the ways that is right.

        Of an order above 1 two ways have to give the same, or one the differences of what is one
        order lower, at θ_0 ± h v.

        Raises:
            ValueError: None is right.
        """
        seen: dict[Way, list[_Sum]] = {}
        problems: list[Exception] = []
        for way in ways:
            try:
                found = self._sums(way, self._theta_0)
            except (RuntimeError, NotImplementedError) as error:
                if is_out_of_memory(error) or isinstance(error, ArgumentError):
                    raise
                problems.append(failure(error, "expand the outputs of the model"))
                continue
            # As long as there is another way, a doubt costs nothing but time.
            tolerance = self._eps * (100 if way is row_by_row or self._order > 1 else 1)
            if not found[0].is_near(self._plain, tolerance):
                problems.append(_unlike(found[0], self._plain, 1))
                continue
            if self._order == 1:
                return way
            seen[way] = found
        for way, found in seen.items():
            others = [seen[other] for other in seen if other is not way]
            if any(_differing(found, other, 100 * self._eps) is None for other in others):
                return way
        for way, found in reversed(seen.items()):
            expected = self._by_differences(way)
            k = _differing(found, expected, 0.01)
            if k is None:
                return way
            problems.append(_unlike(found[k], expected[k], k + 1))
        raise problems[-1]

    def is_differentiable(self) -> bool:
        """Whether what forward mode gives can be differentiated by the displacement."""
        v = leaves_of(self._v)
        with torch.enable_grad():
            _, slope = terms_by(forwards, self._f, self._theta_0, v, 1, self.called)
            try:
                transposed_product(slope, v, self._u, keep_graph=False)
            except (RuntimeError, NotImplementedError) as error:
                if is_out_of_memory(error):
                    raise
                return False
        return True

    def _along(self, gradient: Parameters) -> _Sum:
        return _Sum.of(g.conj() * self._v[k] for k, g in gradient.items())

    def _sums(self, way: Way, theta: Parameters) -> list[_Sum]:
        """`⟨u, d^k/dt^k f(θ + t v)⟩` for k = 1 … order."""
        with torch.no_grad():
            terms = terms_by(way, self._f, theta, self._v, self._order, self.called)
        return [_Sum.of([self._u * term]) for term in terms[1:]]

    def _by_differences(self, way: Way) -> list[_Sum]:
        """The same at θ_0, each from the order before it at θ_0 ± h v, the first by plain passes.

        h is small, so that few kinks of a piecewise linear function are in between; rounding then
        takes all digits but two or three in float32.
        """
        h = 32 * self._eps
        sums: list[list[_Sum]] = []
        for step in (-h, h):
            theta = {k: t + step * self._v[k] for k, t in self._theta_0.items()}
            _, gradient = plain_gradient(self._f, theta, self._u)
            sums.append([self._along(gradient), *self._sums(way, theta)[1:]])
        before, after = sums
        differences = [self._plain]
        for a, b in zip(before[:-1], after[:-1], strict=True):
            slope = (b.value - a.value) / (2 * h)
            differences.append(_Sum(slope, abs(slope) + 100 * self._eps * (a.size + b.size)))
        return differences


@dataclass(frozen=True)
class _Sum:
    """A sum of numbers, and that of their absolute values."""

    value: float
    size: float

    @staticmethod
    def of(parts: Iterable[Tensor]) -> _Sum:
        """The sum of the real parts of all entries."""
        real = [part.real for part in parts]
        return _Sum(sum(float(p.sum()) for p in real), sum(float(p.abs().sum()) for p in real))

    def is_near(self, other: _Sum, tolerance: float) -> bool:
        """Whether the two differ by no more than that part of the larger size; NaN does not."""
        return abs(self.value - other.value) <= tolerance * max(self.size, other.size)


def _differing(a: list[_Sum], b: list[_Sum], tolerance: float) -> int | None:
    """The first index at which they differ, or None."""
    near = [one.is_near(other, tolerance) for one, other in zip(a, b, strict=True)]
    return None if all(near) else near.index(False)


def _unlike(found: _Sum, expected: _Sum, order: int) -> Exception:
    if order == 1:
        remedy = "Its forward may use torch.no_grad(), which forward mode ignores (x.detach() works"
        remedy += " in both), or an autograd.Function that is wrong or depends on who calls it."
    else:
        remedy = "It may stop gradients by torch.no_grad() (x.detach() works), or use an operation "
        remedy += "that torch differentiates wrongly at higher orders: try order=1."
    return value_error(
        "model",
        "a module with the same derivatives in forward mode as in its backward pass",
        f"{found.value:.6g} and {expected.value:.6g} for the derivative of order {order}",
        remedy,
    )


def _random(like: Tensor, generator: torch.Generator) -> Tensor:
    """Normal numbers that do not depend on the device."""
    real = torch.float64 if like.dtype.itemsize >= 8 else torch.float32
    kind = real.to_complex() if like.is_complex() else real
    return torch.randn(like.shape, generator=generator, dtype=kind).to(like)


def _unit(v: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(v)
    return v / norm if bool(norm > 0) else v
