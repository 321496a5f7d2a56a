"""Hermite coefficients of an activation as a fused loop sums them, by variance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ._formula import Form, Formula, Series, by_covariance
from ._hermite import Moments, hermite_moments
from ._panels import Panels, Parts
from ._rectifier import roots

# Coefficients that are tried first.
_FIRST = 64
# Coefficients whose squares together are below these shares, by their part of κ̇, are left out. The
# other image may have large ones if its variance is larger: roots of these are what κ̇ may miss.
_NEGLIGIBLE = {True: 1e-20, False: 1e-12}
# A rest of this share of the whole is rounding.
ROUNDING = 1e-14
# The last coefficients, by which it is judged whether there are enough.
_LAST = 16
_FIRST_AND_LAST, _ODD, _EVEN, _RESTS = 0, 1, 2, 3


class HermiteExpansion:
    """The sums of `DualQuadrature` for fused loops.

    By E[g'(z) h_j(z)] = √(j+1) E[g(z) h_{j+1}(z)] the coefficients of κ̇ are those of the derivative
    of κ. So with α_j = a_j / √q, which stay finite for q = 0, there is one set for both:

        κ = a_0 a_0' + √(q q') S(c),    κ̇ = S'(c),    S(c) = Σ_{j ≥ 1} α_j α_j' c^j,

    taken at few variances and interpolated between them (`Panels`). Where the coefficients fall too
    slowly, all `terms` of them are there, and the rests of both sums as in `DualQuadrature`.

    Args:
        values: Of f and f', `[2, ...]` at the entries of a tensor.
        kinks: Where f bends.
        at_zero: f(0) and f'(0).
        terms: How many terms the sums have at most.
        rests: From variances `[M]` and coefficients `[2, M, terms]` of f and of f' to what is
            missing from both sums of squares, `[2, M, 2]`, for j = `terms` and the next, and to
            the whole sums `[2, M]`.
    """

    def __init__(
        self,
        values: Moments,
        kinks: Tensor,
        at_zero: Tensor,
        terms: int,
        rests: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> None:
        self._values, self._kinks, self._at_zero = values, kinks, at_zero
        self._terms, self._rests = terms, rests
        self._panels = {True: Panels(self._of_double), False: Panels(self._of_single)}

    def formula(self, form: Form, diagonal: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Formula:
        """Both sums for a fused loop.

        Args:
            form: For which loop.
            diagonal: `DualActivation.diagonal`.
        """
        panels = self._panels[form.double]

        def scalars(variances: Sequence[Tensor]) -> tuple[Tensor, ...]:
            (q,) = variances
            flat = q.flatten().to(torch.float64)
            head, rests = panels(flat, _FIRST_AND_LAST, 2), panels(flat, _RESTS, 6)
            head[flat <= 0, 0] = self._at_zero[0]
            whole = rests[:, 4:].repeat_interleave(2, 1)
            missing = torch.where(rests[:, :4] > ROUNDING, rests[:, :4] * whole, 0.0).sqrt()
            others = torch.cat([head, missing], 1).to(q.dtype).T.reshape(6, *q.shape)
            return (*roots(variances), *others.unbind(0))

        def lengths(q: Tensor) -> tuple[int, int]:
            _, odd, even, _ = panels.widths(q.flatten().to(torch.float64))
            return max(odd, 1), even

        def coefficients(q: Tensor, lengths: tuple[int, int]) -> Tensor:
            flat = q.flatten().to(torch.float64)
            odd, even = panels(flat, _ODD, lengths[0]), panels(flat, _EVEN, lengths[1])
            odd[flat <= 0, 0] = self._at_zero[1]
            falling = torch.cat([odd.flip(1), even.flip(1)], 1).to(q.dtype)
            return falling.T.reshape(sum(lengths), *q.shape)

        after = (
            *_power(self._terms),
            "value = (a0 * b0) * (value - a3 * b3 * power) + (a4 * b4 + a5 * b5 * c) * power",
            "slope = slope + (a6 * b6 + a7 * b7 * c) * power",
        )
        lines = ("k = a2 * b2 + value", "t = t0 * slope")
        before = ("c = min(max(k0 * (a1 * b1), -1.0), 1.0)",)
        series = Series(before, after, self._terms + 1, lengths, coefficients)
        formula = Formula(lines, (), scalars, series)
        return by_covariance(formula, diagonal) if form.distance else formula

    def _of_double(self, q: Tensor) -> Parts:
        return self._parts(q, _NEGLIGIBLE[True])

    def _of_single(self, q: Tensor) -> Parts:
        return self._parts(q, _NEGLIGIBLE[False])

    def _parts(self, q: Tensor, negligible: float) -> Parts:
        """What is interpolated, for variances `[M]` of one panel.

        These are a_0 and α_J; α_j of odd and of even j > 0; the rests of κ at j = J and the next
        and of κ̇, as shares of κ and κ̇ of equal values, and these.
        """
        ends, rests = q.new_zeros(len(q), 2), q.new_zeros(len(q), 6)
        terms = min(_FIRST, self._terms)
        while True:
            table = hermite_moments(q, self._values, self._kinks, terms + 1)
            share = table[0].square() * torch.arange(terms + 1, dtype=q.dtype)
            share = share / share.sum(-1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
            # One for each parity: what it and all higher ones add.
            rest = [share[:, n::2].flip(1).cumsum(1).flip(1).amax(0) for n in (1, 2)]
            enough = bool(share[:, -_LAST:].sum(1).amax() <= negligible) and terms > _LAST
            if enough or terms == self._terms:
                break
            terms = min(2 * terms, self._terms)
        scaled = table[0] / q.sqrt().unsqueeze(-1)
        ends[:, 0] = table[0, :, 0]
        if not enough:
            ends[:, 1] = scaled[:, -1]
            missing, whole = self._rests(q, table[..., :-1])
            shares = missing / whole.clamp(min=torch.finfo(q.dtype).tiny).unsqueeze(-1)
            rests[:, :2], rests[:, 2:4] = shares
            rests[:, 4:] = whole.T
        odd, even = (
            scaled[:, n::2][:, : int((r > negligible).sum())]
            for n, r in zip((1, 2), rest, strict=True)
        )
        return ends, odd, even, rests


def rest_roots(rest: Tensor, whole: Tensor) -> Tensor:
    """The roots of what a sum of squares lacks, `[..., 2]`; 0 where that is rounding."""
    nothing = rest <= ROUNDING * whole.unsqueeze(-1)
    return rest.masked_fill(nothing, 1.0).sqrt().masked_fill(nothing, 0.0)


def _power(n: int) -> tuple[str, ...]:
    """Statements for `power`, the n-th power of c, by squares."""
    lines = ["square = c", "power = 1.0"]
    while n:
        if n % 2:
            lines.append("power = power * square")
        n //= 2
        if n:
            lines.append("square = square * square")
    return tuple(lines)
