"""The sums over Hermite coefficients of `DualQuadrature`, as statements for fused loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ._formula import Form, Formula, Series, by_covariance
from ._hermite import Moments, hermite_moments
from ._panels import Components, Panels
from ._rectifier import roots

# The number of coefficients that is tried first.
_FIRST_TERMS = 64
# The last coefficients are left out if together they contribute less than this share of κ̇ of equal
# arguments; `True` stands for float64. As the other image, with a larger variance, may have large
# coefficients there, the relative error of κ̇ may be the square root of this share.
_NEGLIGIBLE = {True: 1e-20, False: 1e-12}
# A remainder below this share of the whole sum is rounding error.
ROUNDING = 1e-14
# The number of last coefficients that must be negligible for a table to be long enough.
_LAST_TERMS = 16
# The components that are interpolated, by their index; see `_interpolated_values`.
_FIRST_AND_LAST, _ODD, _EVEN, _REMAINDERS = 0, 1, 2, 3


class HermiteExpansion:
    """The sums of `DualQuadrature` as a `Formula`, with coefficients interpolated by variance.

    By E[g'(z) h_j(z)] = √(j+1) E[g(z) h_{j+1}(z)] the coefficients of κ̇ are those of the derivative
    of κ. So κ and κ̇ share one set of coefficients α_j = a_j / √q, which are finite for q = 0:

        κ = a_0 a_0' + √(q q') S(c),    κ̇ = S'(c),    S(c) = Σ_{j ≥ 1} α_j α_j' c^j,

    where a' and α' belong to the variance q'. The coefficients are computed at few variances and
    interpolated between them (`Panels`). Where they fall too slowly to be cut off, all `terms`
    of them are used, together with the remainders of both sums as in `DualQuadrature`.

    Args:
        values: A function that returns f and f', `[2, ...]`, at the entries of a tensor.
        kinks: The points where f' jumps.
        at_zero: f(0) and f'(0).
        terms: The largest number of terms of the sums.
        remainders: A function of variances `[M]` and coefficients `[2, M, terms]` of f and of f'.
            It returns the remainders `[2, M, 2]` of both sums of squares over the degrees of the
            parity of j = `terms`, and of the next j, and the whole sums `[2, M]`.
    """

    def __init__(
        self,
        values: Moments,
        kinks: Tensor,
        at_zero: Tensor,
        terms: int,
        remainders: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> None:
        self._values, self._kinks, self._at_zero = values, kinks, at_zero
        self._terms, self._remainders = terms, remainders
        self._panels = {
            double: Panels(partial(self._interpolated_values, negligible=negligible))
            for double, negligible in _NEGLIGIBLE.items()
        }

    def formula(self, form: Form, diagonal: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Formula:
        """Return the formula that sums κ and κ̇.

        Args:
            form: The kind of loop for which the statements are written.
            diagonal: The method `DualActivation.diagonal` of the activation.
        """
        panels = self._panels[form.double]

        def scalars(variances: Sequence[Tensor]) -> tuple[Tensor, ...]:
            (q,) = variances
            flat = q.flatten().to(torch.float64)
            head, remainders = panels(flat, _FIRST_AND_LAST, 2), panels(flat, _REMAINDERS, 6)
            head[flat <= 0, 0] = self._at_zero[0]
            whole = remainders[:, 4:].repeat_interleave(2, 1)
            missing = torch.where(
                remainders[:, :4] > ROUNDING, remainders[:, :4] * whole, 0.0
            ).sqrt()
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

    def _interpolated_values(self, q: Tensor, negligible: float) -> Components:
        """Return the values that `Panels` interpolates, at variances `[M]` of one panel.

        The four components are a_0 and α_J `[M, 2]`; α_j of all odd j; α_j of all even j > 0; and
        `[M, 6]`: the remainders of κ for the parities of j = J and of the next j, the same two of
        κ̇, each as a share of the whole sum, and the whole sums of κ and of κ̇.
        """
        ends, remainders = q.new_zeros(len(q), 2), q.new_zeros(len(q), 6)
        terms = min(_FIRST_TERMS, self._terms)
        while True:
            table = hermite_moments(q, self._values, self._kinks, terms + 1)
            share = table[0].square() * torch.arange(terms + 1, dtype=q.dtype)
            share = share / share.sum(-1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
            # For each parity and each j: the sum of the shares of j and of all higher degrees.
            rest = [share[:, n::2].flip(1).cumsum(1).flip(1).amax(0) for n in (1, 2)]
            enough = (
                bool(share[:, -_LAST_TERMS:].sum(1).amax() <= negligible) and terms > _LAST_TERMS
            )
            if enough or terms == self._terms:
                break
            terms = min(2 * terms, self._terms)
        scaled = table[0] / q.sqrt().unsqueeze(-1)
        ends[:, 0] = table[0, :, 0]
        if not enough:
            ends[:, 1] = scaled[:, -1]
            missing, whole = self._remainders(q, table[..., :-1])
            shares = missing / whole.clamp(min=torch.finfo(q.dtype).tiny).unsqueeze(-1)
            remainders[:, :2], remainders[:, 2:4] = shares
            remainders[:, 4:] = whole.T
        odd, even = (
            scaled[:, n::2][:, : int((r > negligible).sum())]
            for n, r in zip((1, 2), rest, strict=True)
        )
        return ends, odd, even, remainders


def remainder_roots(rest: Tensor, whole: Tensor) -> Tensor:
    """Return the roots of remainders `[..., 2]`, with 0 in place of rounding errors of `whole`."""
    nothing = rest <= ROUNDING * whole.unsqueeze(-1)
    return rest.masked_fill(nothing, 1.0).sqrt().masked_fill(nothing, 0.0)


def _power(n: int) -> tuple[str, ...]:
    """Return statements that assign cⁿ to `power`, by repeated squaring."""
    lines = ["square = c", "power = 1.0"]
    while n:
        if n % 2:
            lines.append("power = power * square")
        n //= 2
        if n:
            lines.append("square = square * square")
    return tuple(lines)
