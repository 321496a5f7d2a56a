"""Dual functions as statements of a compiled loop, in place of operations on tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor


class Form(NamedTuple):
    """The kind of loop for which a formula is written.

    Attributes:
        distance: Whether the loop computes distances `d = E(u - v)²` in place of covariances; see
            `State`.
        double: Whether numbers are float64. Otherwise they are float32.
    """

    distance: bool
    double: bool


def without_terms(*_: object) -> tuple[Tensor, ...]:
    """Return the terms of an image for a formula that uses none: an empty tuple."""
    return ()


@dataclass(frozen=True)
class Series:
    """A power series Σ_{j ≥ 1} a_j b_j c^j and its derivative by c, summed in a loop over j.

    Image 1 has coefficients a_j and image 2 has coefficients b_j, at each position. As there may be
    hundreds of them, they are not written out as statements: the code of a formula is `before`,
    the loop over the coefficients, `after`, and then the formula's own statements.

    Attributes:
        before: Statements that assign `c`, in [-1, 1]. They may use what those of a formula may.
        after: Statements that may change the results of the loop: the sum `value` and its
            derivative `slope`. These statements may read `c`, too. Any other name that is assigned
            in `before` has to be assigned again before it is used.
        most: The largest number of coefficients.
        lengths: A function of the variances of some images. It returns the number of coefficients
            with odd j, and with even j ≥ 2, that are needed for all of these images.
        coefficients: A function of variances `[n, P, Q]` and of two lengths that are at least
            those. It returns the coefficients `[odd + even, n, P, Q]`: those of odd j in
            descending order, then those of even j ≥ 2 in descending order.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    most: int
    lengths: Callable[[Tensor], tuple[int, int]]
    coefficients: Callable[[Tensor, tuple[int, int]], Tensor]


@dataclass(frozen=True)
class Formula:
    """The dual functions for one entry of a covariance and a tangent kernel, as statements.

    A fused loop executes the statements for each entry: each pair of positions of two images. An
    image is a sample with P × Q positions.

    The statements assign `k` and `t`, the new covariance (or distance) and tangent kernel, from
    `k0` and `t0`. They may use any names of their own; `p0`, `p1`, … for `numbers`; `a0`, `a1`, …
    for the terms of the first image and `b0`, `b1`, … for those of the second, at the entry's two
    positions; `sqrt`, `abs`, `min`, `max`, `floor`, `power_of_two` (2ⁿ of an integral number) and
    expressions `x if condition else y`, which become selections. Every number is written as a
    float ("2.0"), because integers would lead to float64. Functions of libraries cannot be
    used: they would keep the compiler from computing several entries at once.

    Loops are compiled once for each set of statements. What differs between layers of a network,
    such as scales, belongs in `numbers`.

    Attributes:
        lines: The statements.
        numbers: The values of `p0`, `p1`, ….
        terms: A function of the variances of the operation's inputs, `[n, P, Q]` each. It returns
            the terms of n images, `[n, P', Q']` each. Positions outside of an image have terms of
            0, for which the statements must give finite numbers for every `k0` and `t0`.
        series: The series that is summed before the statements; None if there is none.
    """

    lines: tuple[str, ...]
    numbers: tuple[float, ...] = ()
    terms: Callable[[Sequence[Tensor]], tuple[Tensor, ...]] = without_terms
    series: Series | None = None

    @property
    def term_count(self) -> int:
        """The number of terms of an image that the statements use, without those of a series."""
        around = () if self.series is None else (*self.series.before, *self.series.after)
        found = re.findall(r"\b[ab](\d+)\b", "\n".join([*around, *self.lines]))
        return 1 + max((int(i) for i in found), default=-1)


def polynomial(target: str, coefficients: Sequence[float], x: str) -> tuple[str, ...]:
    """Return statements that assign Σ_i coefficients[i] xⁱ to `target`.

    Even and odd powers are summed separately, by two chains of products that a processor computes
    at the same time.
    """
    even, odd, square = f"{target}_even", f"{target}_odd", f"{target}_square"
    lines = [f"{square} = {x} * {x}"]
    for name, part in ((even, coefficients[0::2]), (odd, coefficients[1::2])):
        lines.append(f"{name} = {part[-1]!r}")
        lines += [f"{name} = {name} * {square} + {c!r}" for c in reversed(part[:-1])]
    return (*lines, f"{target} = {even} + {x} * {odd}")


def by_covariance(formula: Formula, diagonal: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Formula:
    """Return a formula for distances that applies one for covariances to k = (q1 + q2 - d)/2.

    It computes the same as `DualActivation.pair_from_distance`.

    Args:
        formula: The formula for covariances.
        diagonal: The method `DualActivation.diagonal` of the activation.
    """
    n = formula.term_count

    def terms(variances: Sequence[Tensor]) -> tuple[Tensor, ...]:
        (q,) = variances
        return (*formula.terms(variances), q, diagonal(q)[0])

    before = ("d = k0", f"k0 = 0.5 * (a{n} + b{n} - d)")
    # The result is exactly 0 where d = 0. A bound that is a multiple of d achieves this without a
    # selection by d, which the compiler would turn into a branch: it does not vectorize these.
    after = (f"gap = (a{n + 1} + b{n + 1}) - 2.0 * k", "k = min(max(gap, 0.0), 1e30 * d)")
    series = formula.series
    if series is not None:
        series = replace(series, before=(*before, *series.before))
    return Formula((*before, *formula.lines, *after), formula.numbers, terms, series)
