"""Dual functions of any elementwise activation, by its Hermite expansion."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._checks import check_positive_int
from ._dual import DualActivation
from ._expansion import ROUNDING, HermiteExpansion, rest_roots
from ._formula import Form, Formula
from ._hermite import hermite_moments
from ._moment_table import MomentTable
from ._panels import Panels
from ._power_series import PowerSeries
from ._probe import check_elementwise, find_kinks, name_of, value_and_derivative

# Enough for tanh, sigmoid, SiLU and softplus to reach 1e-7 for variances up to 10.
_TERMS = 512
_STEP = 32
# Of E[f(u)²], to divide by where f is 0.
_LEAST = 1e-300


class DualQuadrature(DualActivation):
    """φ = f for any function f of one variable that is continuous and differentiable by autograd.

    With the orthonormal Hermite polynomials h_j, c = k / √(q1 q2), a_j(q) = E[f(√q z) h_j(z)] and
    b_j(q) = E[f'(√q z) h_j(z)] for a standard Gaussian z, Mehler's formula gives

        κ = Σ_j a_j(q1) a_j(q2) c^j,    κ̇ = Σ_j b_j(q1) b_j(q2) c^j.

    The coefficients are integrals in one dimension, one set per variance and none per pair; the
    panels of the quadrature end at the kinks of f, which are found at construction. Both sums are
    positive semidefinite matrices wherever they are cut. `diagonal` integrates f² and f'² instead
    of summing. All is computed in float64; fused loops sum in the precision of a network, with
    coefficients interpolated between variances (`HermiteExpansion`).

    For smooth f the sums converge geometrically, faster for smaller variances; with a kink the
    n-th remainder of κ̇ at c = 1 falls only as n^(-1/2), and `error` says what it is. Away from
    |c| = 1 both converge fast for every f. The derivative by a variance that is 0 is given as 0.

    Args:
        f: Elementwise; maps a float64 tensor to one of the same shape.
        name: For messages; default the name of `f`.
        terms: How many terms of the sums are used at most.

    Raises:
        TypeError: `f` does not map a tensor to one of its shape, or `terms` is no integer.
        ValueError: `f` mixes entries, is random, is not finite on [-3, 3] or jumps.

    Example:
        >>> tanh = DualQuadrature(torch.tanh)
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> kappa, slope = tanh.pair(one / 2, one, one)
        >>> f"{kappa.item():.6f} {slope.item():.6f}"
        '0.186324 0.384747'
    """

    def __init__(
        self, f: Callable[[Tensor], Tensor], name: str | None = None, *, terms: int = _TERMS
    ) -> None:
        self.terms = check_positive_int("terms", terms)
        check_elementwise(f)
        self._f = f
        self.name = name if name is not None else name_of(f)
        self._kinks = find_kinks(f)
        # The one-sided derivatives at 0 differ if f has a kink there.
        around = torch.tensor([0.0, 1e-30, -1e-30], dtype=torch.float64)
        values, slopes = value_and_derivative(f, around)
        self._at_zero = torch.stack([values[0], slopes[1:].mean()])
        self._tables = {
            kind: MomentTable(moments, self._kinks)
            for kind, moments in (
                ("values", self._values),
                ("ends", self._values),  # apart, since it has all terms
                ("squares", self._squares),
                ("mirrored", self._mirrored),
            )
        }

        self._expansion = HermiteExpansion(
            self._values, self._kinks, self._at_zero, self.terms, self._rests
        )
        self._diagonals = Panels(self._both_squares)

    def diagonal(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """E[f(u)²] and E[f'(u)²] by quadrature."""
        flat = q.flatten().to(torch.float64)
        if torch.is_grad_enabled():
            table = self._coefficients("squares", flat, 1)[..., 0]
        else:
            table = self._diagonals(flat, 0, 2).T
            at_zero = self._at_zero.square().to(q.device).unsqueeze(-1)
            table = torch.where(flat <= 0, at_zero, table)
        table = table.reshape(2, *q.shape).to(q.dtype)
        return table[0], table[1]

    def fused(self, form: Form) -> Formula | None:
        """The sums up to what matters in the precision of the loop."""
        return self._expansion.formula(form, self.diagonal)

    def pair(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """κ and κ̇; see `DualActivation.pair`. Costs some `terms` passes over `k`."""
        both = torch.cat([q1.flatten(), q2.flatten()]).to(torch.float64)
        first, second = torch.split(self._series(both), [q1.numel(), q2.numel()], dim=1)
        c = _correlation(k, q1, q2)
        length = first.shape[-1]
        value, slope = (
            PowerSeries.apply(c, a.reshape(*q1.shape, length), b.reshape(*q2.shape, length))
            for a, b in zip(first, second, strict=True)
        )
        return value.to(k.dtype), slope.to(k.dtype)

    def error(self, q: float | Tensor) -> float:
        """How far `pair` may be from the truth, relative to κ and κ̇ of equal arguments.

        It is the larger of Σ_{j ≥ terms} a_j² / E[f(u)²] and the same of f', from integrals of f²
        and f'² by a finer and wider rule, so that it holds the error of the quadrature as well.
        For q1 = q2 neither κ nor κ̇ is further away than this share of its value in `diagonal`,
        for q1 ≠ q2 not further than twice that share of the geometric mean of both; for |c| < 1
        that shrinks by |c|^terms.

        Args:
            q: A variance, or a tensor of variances, of which the worst counts.
        """
        flat = torch.as_tensor(q, dtype=torch.float64).detach().flatten()
        flat = torch.unique(flat[flat > 0])
        if not len(flat):
            return 0.0
        sums = hermite_moments(flat, self._values, self._kinks, self.terms).square().sum(-1)
        exact = hermite_moments(flat, self._squares, self._kinks, 1, finer=True)[..., 0]
        return float(((sums - exact).abs() / exact.clamp(min=_LEAST)).max())

    def _series(self, q: Tensor) -> Tensor:
        """a_j and b_j for variances `[M]`, `[2, M, J]`, the last two of which stand for the rest.

        The rest Σ_{j ≥ J} a_j² is known from E[f(u)²] and E[f(u) f(-u)], for even and odd j
        apart. Put on the next even and odd j, it makes the sums exact for u = ±v, and for any
        other c it errs by no more than leaving it out may.
        """
        squares = self._coefficients("squares", q, 1)[..., 0]
        mirrored = self._coefficients("mirrored", q, 1)[..., 0]
        for terms in (self._enough(q), self.terms):
            table = self._coefficients("values", q, terms)
            root = rest_roots(_rest(table, squares, mirrored), squares)
            if bool((root == 0).all()):
                break
        return torch.cat([table, root], dim=-1)

    def _enough(self, q: Tensor) -> int:
        """How many terms the smallest and the largest variance need; others rarely need more."""
        positive = q.detach()[q.detach() > 0]
        if not len(positive):
            return min(self.terms, _STEP)
        ends = torch.stack([positive.min(), positive.max()])
        share = self._coefficients("ends", ends, self.terms).square()
        rest = share.flip(-1).cumsum(-1).flip(-1) / share.sum(-1, keepdim=True).clamp(min=_LEAST)
        needed = int((rest > ROUNDING / 4).any(0).any(0).sum())
        # In steps, so that blocks with nearly the same variances share their coefficients.
        return min(self.terms, _STEP * (needed // _STEP + 1))

    def _coefficients(self, kind: str, q: Tensor, terms: int) -> Tensor:
        """`[2, M, terms]` of what belongs to f and to f', for variances `[M]`."""
        zero = q <= 0
        found = self._tables[kind](q.masked_fill(zero, 1.0), terms)
        at_zero = found.new_zeros(2, 1, terms)
        constant = self._at_zero if kind == "values" else self._at_zero.square()
        at_zero[..., 0] = constant.to(q.device).unsqueeze(-1)
        return torch.where(zero.unsqueeze(-1), at_zero, found)

    def _both_squares(self, q: Tensor) -> tuple[Tensor]:
        return (hermite_moments(q, self._squares, self._kinks, 1)[..., 0].T,)

    def _rests(self, q: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """What `table` `[2, M, terms]` lacks of E f² and E f'², and these; see `_series`."""
        squares, mirrored = (
            hermite_moments(q, moments, self._kinks, 1)[..., 0]
            for moments in (self._squares, self._mirrored)
        )
        return _rest(table, squares, mirrored), squares

    def _values(self, x: Tensor) -> Tensor:
        return torch.stack(value_and_derivative(self._f, x))

    def _squares(self, x: Tensor) -> Tensor:
        return self._values(x).square()

    def _mirrored(self, x: Tensor) -> Tensor:
        return self._values(x) * self._values(-x)


def _rest(table: Tensor, squares: Tensor, mirrored: Tensor) -> Tensor:
    """What the squares of coefficients `[..., J]` lack, for j = J and the next."""
    return torch.stack(
        [
            (squares + sign * mirrored) / 2 - table[..., parity::2].square().sum(-1)
            for parity, sign in _parities(table.shape[-1])
        ],
        dim=-1,
    )


def _parities(first: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Whether j is even (0, sign 1) or odd (1, sign -1), for j = `first` and the next."""
    even, odd = (0, 1), (1, -1)
    return (odd, even) if first % 2 else (even, odd)


def _correlation(k: Tensor, q1: Tensor, q2: Tensor) -> Tensor:
    """The correlation k / √(q1 q2); it is 0 where a variance is 0, since k is."""
    variances = [q.to(torch.float64) for q in (q1, q2)]
    safe1, safe2 = (q.masked_fill(q <= 0, 1.0) for q in variances)
    return (k.to(torch.float64) / (safe1 * safe2).sqrt()).clamp(-1.0, 1.0)
