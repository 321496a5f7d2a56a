"""Which way of differentiating a network is right, found by plain backward passes."""

from __future__ import annotations

from collections.abc import Iterable
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


def terms_by(
    way: Way,
    f: ParameterFunction,
    theta_0: Parameters,
    delta: Parameters,
    order: int,
    written_out: bool = False,
) -> tuple[Tensor, ...]:
    """`d^k/dt^k f(θ_0 + t δ)` at t = 0 for k = 0 … order, by one of the ways.

    Normalizations are written out for orders above 1, and with `written_out`, when the result is
    to be differentiated by inputs: both differentiate their forward-mode rules once more.
    """
    if way is row_by_row:
        return row_by_row(f, theta_0, delta, order)
    with PlainOperations(norms=order > 1 or written_out):
        return way(f, theta_0, delta, order)


class Probe:
    """Numbers that plain backward passes give, to compare the ways of differentiating with.

    A linearized network is to be that whose gradients train the network itself: those of plain
    backward passes. Forward mode has no rule for some operations (`weight_norm`, an
    `autograd.Function` with no `jvp`), does not stop where a forward stops its gradients by
    `torch.no_grad()`, and some rules are wrong, at once or when they are applied twice.

    The first order is compared by `⟨u, J v⟩ = ⟨Jᵀu, v⟩` for random signs u, where Jᵀu is one
    plain backward pass. The direction v has two parts for each parameter: its part of Jᵀu, in
    which nothing cancels, and a random one, for the case that Jᵀu vanishes where it should not.
    """

    def __init__(self, f: ParameterFunction, theta_0: Parameters, order: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._f, self._theta_0, self._order = f, theta_0, order
        leaves = leaves_of(theta_0)
        with torch.enable_grad(), f.evaluated(leaves) as out:
            signs = torch.randint(2, out.shape, generator=generator) * 2 - 1
            self._u = signs.to(out.device, out.dtype)
            gradient = transposed_product(out, leaves, self._u, keep_graph=False)
        self._v = {k: _unit(g) + _unit(_random(g, generator)) for k, g in gradient.items()}
        self._plain = _Sum.of(g.conj() * self._v[k] for k, g in gradient.items())
        self._eps = torch.finfo(out.dtype).eps ** 0.5

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

    def _sums(self, way: Way, theta: Parameters) -> list[_Sum]:
        """`⟨u, d^k/dt^k f(θ + t v)⟩` for k = 1 … order."""
        with torch.no_grad():
            terms = terms_by(way, self._f, theta, self._v, self._order)
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
            leaves = leaves_of(theta)
            with torch.enable_grad(), self._f.evaluated(leaves) as out:
                gradient = transposed_product(out, leaves, self._u, keep_graph=False)
            plain = _Sum.of(g.conj() * self._v[k] for k, g in gradient.items())
            sums.append([plain, *self._sums(way, theta)[1:]])
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
    return value_error(
        "model",
        "a module with the same derivatives in forward mode as in its backward pass",
        f"{found.value:.6g} and {expected.value:.6g} for the derivative of order {order}",
        "Its forward may use torch.no_grad(), which forward mode ignores (x.detach() works in both)"
        + (
            "."
            if order == 1
            else ", or an operation for which torch's derivatives are not right at higher orders: "
            "try order=1."
        ),
    )


def _random(like: Tensor, generator: torch.Generator) -> Tensor:
    """Normal numbers that do not depend on the device."""
    real = torch.float64 if like.dtype.itemsize >= 8 else torch.float32
    kind = real.to_complex() if like.is_complex() else real
    return torch.randn(like.shape, generator=generator, dtype=kind).to(like)


def _unit(v: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(v)
    return v / norm if bool(norm > 0) else v
