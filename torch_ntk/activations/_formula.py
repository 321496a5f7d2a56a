"""How a dual activation is written for a fused loop: statements in place of tensor operations."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor


class Form(NamedTuple):
    """For which loop a formula is written.

    Attributes:
        distance: Whether covariances come as distances `d = E(u - v)²`; see `State`.
        double: Whether numbers are float64; float32 otherwise.
    """

    distance: bool
    double: bool


def no_terms(*_: object) -> tuple[Tensor, ...]:
    """Nothing is needed of the images."""
    return ()


@dataclass(frozen=True)
class Series:
    """Σ_j a_j b_j c^j and its derivative, with coefficients of either image at every position.

    A loop of its own over the coefficients goes between two parts of a formula, since there may be
    hundreds of them.

    Attributes:
        before: Statements that assign `c`, in [-1, 1], as those of a formula.
        after: Statements that may change the sum, `value`, and its derivative by c, `slope`. They
            and those of the formula, which find both, have to assign what else they use anew.
        most: How many coefficients there are at most.
        lengths: From the variances of some images to how many coefficients with odd j, and with
            even j from 2 on, are not 0 for all of them.
        coefficients: From variances `[n, P, Q]` and two such numbers or larger ones to the
            coefficients `[odd + even, n, P, Q]`: those of odd j, then those of even j from 2 on,
            either with falling j.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    most: int
    lengths: Callable[[Tensor], tuple[int, int]]
    coefficients: Callable[[Tensor, tuple[int, int]], Tensor]


@dataclass(frozen=True)
class Formula:
    """One entry of a covariance and of a tangent kernel, as statements of a compiled loop.

    The statements assign `k` and `t`, the new covariance (or distance) and tangent kernel, from
    `k0` and `t0`. They may use any names of their own; `p0`, `p1`, … for `numbers`; `a0`, `a1`, …
    for the terms of the first image and `b0`, `b1`, … for those of the second, at the entry's two
    positions; `sqrt`, `abs`, `min`, `max`, `floor`, `power_of_two` (2ⁿ of an integral number) and
    expressions `x if condition else y`, which become selections. Every number is written as a
    float ("2.0"), because integers would lead to float64. Functions of a library are left out:
    they would be called for one entry after the other.

    Loops are compiled once for each set of statements. What differs between layers of a network,
    such as scales, belongs into `numbers`.

    Attributes:
        lines: The statements.
        numbers: The values of `p0`, `p1`, ….
        terms: From the variances of the values that are taken, `[n, P, Q]` each, to the terms of
            every image, `[n, P', Q']` each. What is outside of an image has terms of 0, with
            which the statements must give finite numbers for every `k0` and `t0`.
        series: What is summed first, if anything.
    """

    lines: tuple[str, ...]
    numbers: tuple[float, ...] = ()
    terms: Callable[[Sequence[Tensor]], tuple[Tensor, ...]] = no_terms
    series: Series | None = None

    @property
    def term_count(self) -> int:
        """How many terms of an image the statements use, coefficients of a series aside."""
        around = () if self.series is None else (*self.series.before, *self.series.after)
        found = re.findall(r"\b[ab](\d+)\b", "\n".join([*around, *self.lines]))
        return 1 + max((int(i) for i in found), default=-1)


def polynomial(target: str, coefficients: Sequence[float], x: str) -> tuple[str, ...]:
    """Statements for Σ_i coefficients[i] xⁱ, even and odd powers apart.

    These are two chains of products that a processor works on at once.
    """
    even, odd, square = f"{target}_even", f"{target}_odd", f"{target}_square"
    lines = [f"{square} = {x} * {x}"]
    for name, part in ((even, coefficients[0::2]), (odd, coefficients[1::2])):
        lines.append(f"{name} = {part[-1]!r}")
        lines += [f"{name} = {name} * {square} + {c!r}" for c in reversed(part[:-1])]
    return (*lines, f"{target} = {even} + {x} * {odd}")


def by_covariance(formula: Formula, diagonal: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Formula:
    """A formula for distances from one for covariances, as `DualActivation.pair_from_distance`.

    Args:
        formula: For covariances.
        diagonal: `DualActivation.diagonal`.
    """
    n = formula.term_count

    def terms(variances: Sequence[Tensor]) -> tuple[Tensor, ...]:
        (q,) = variances
        return (*formula.terms(variances), q, diagonal(q)[0])

    before = ("d = k0", f"k0 = 0.5 * (a{n} + b{n} - d)")
    # Nothing is rounded where u = v. With a selection by d, all that only the gap needs would
    # become a branch, which loops over vectors have not.
    after = (f"gap = (a{n + 1} + b{n + 1}) - 2.0 * k", "k = min(max(gap, 0.0), 1e30 * d)")
    series = formula.series
    if series is not None:
        series = replace(series, before=(*before, *series.before))
    return Formula((*before, *formula.lines, *after), formula.numbers, terms, series)
