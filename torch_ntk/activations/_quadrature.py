"""The dual functions of any elementwise activation, by its Hermite expansion."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._checks import check_positive_int
from ._dual import DualActivation
from ._expansion import ROUNDING, HermiteExpansion, remainder_roots
from ._formula import Form, Formula
from ._hermite import hermite_moments
from ._moment_table import MomentTable
from ._panels import Panels
from ._power_series import PowerSeries
from ._probe import check_elementwise, find_kinks, name_of, value_and_derivative

# With this number of terms, the errors for tanh, sigmoid, SiLU and softplus are below 1e-7 up to a
# variance of 10.
_TERMS = 512
_STEP = 32
# E[f(u)²] is raised to at least this before a division by it, since f may be 0.
_SMALLEST_DIVISOR = 1e-300


class DualQuadrature(DualActivation):
    """φ = f for any function f of one variable that is continuous and differentiable by autograd.

    With the orthonormal Hermite polynomials h_j, c = k / √(q1 q2), a_j(q) = E[f(√q z) h_j(z)] and
    b_j(q) = E[f'(√q z) h_j(z)] for a standard Gaussian z, Mehler's formula gives

        κ = Σ_j a_j(q1) a_j(q2) c^j,    κ̇ = Σ_j b_j(q1) b_j(q2) c^j.

    The coefficients are integrals in one dimension that depend on one variance only; the panels of
    the quadrature end at the kinks of f, which are found at construction. Truncated sums are still
    positive semidefinite matrices. `diagonal` integrates f² and f'² instead of summing. Everything
    is computed in float64, except that fused loops sum in the precision of a network, with
    coefficients interpolated between variances (`HermiteExpansion`).

    For smooth f the sums converge geometrically, faster for smaller variances; with a kink the
    n-th remainder of κ̇ at c = 1 falls only as n^(-1/2), and `error` returns its size. For |c|
    well below 1 both converge fast for every f. The derivative by a variance of 0 is given as 0.

    Args:
        f: An elementwise function, which maps a float64 tensor to one of the same shape.
        name: The name in messages; by default that of `f`.
        terms: The largest number of terms of the sums.

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
                ("ends", self._values),  # a separate table, since it has all terms
                ("squares", self._squares),
                ("mirrored", self._mirrored),
            )
        }

        self._expansion = HermiteExpansion(
            self._values, self._kinks, self._at_zero, self.terms, self._remainders
        )
        self._diagonals = Panels(self._both_squares)

    def diagonal(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[f(u)²] and E[f'(u)²], integrated by quadrature."""
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
        """Return statements for both sums, cut off according to the precision of the loop."""
        return self._expansion.formula(form, self.diagonal)

    def pair(self, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
        """Return κ and κ̇, by up to `terms` passes over `k`; see `DualActivation.pair`."""
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
        """Return a bound of the error of `pair`, relative to κ and κ̇ of equal arguments.

        It is the larger one of Σ_{j ≥ terms} a_j² / E[f(u)²] and the same for f'. The integrals of
        f² and f'² are computed by a finer and wider rule, so the error of the quadrature is
        included. For q1 = q2 the errors of κ and κ̇ are at most this share of their values in
        `diagonal`. For q1 ≠ q2 they are at most twice this share of the geometric mean of the
        values for q1 and q2. For |c| < 1 both bounds are multiplied by |c|^terms.

        Args:
            q: A variance, or a tensor of variances; the largest error among these is returned.
        """
        flat = torch.as_tensor(q, dtype=torch.float64).detach().flatten()
        flat = torch.unique(flat[flat > 0])
        if not len(flat):
            return 0.0
        sums = hermite_moments(flat, self._values, self._kinks, self.terms).square().sum(-1)
        exact = hermite_moments(flat, self._squares, self._kinks, 1, finer=True)[..., 0]
        return float(((sums - exact).abs() / exact.clamp(min=_SMALLEST_DIVISOR)).max())

    def _series(self, q: Tensor) -> Tensor:
        """Return a_j and b_j for variances `[M]` as `[2, M, J + 2]`.

        The last two coefficients stand for all j ≥ J: the remainders Σ_{j ≥ J} a_j² over even and
        over odd j are known from E[f(u)²] and E[f(u) f(-u)], and their square roots are used as
        the coefficients of the next even and odd j. The sums are then exact for u = ±v, and for any
        other c the bound of their error is not larger than that of sums without remainders.
        """
        squares = self._coefficients("squares", q, 1)[..., 0]
        mirrored = self._coefficients("mirrored", q, 1)[..., 0]
        for terms in (self._terms_needed(q), self.terms):
            table = self._coefficients("values", q, terms)
            root = remainder_roots(_remainder(table, squares, mirrored), squares)
            if bool((root == 0).all()):
                break
        return torch.cat([table, root], dim=-1)

    def _terms_needed(self, q: Tensor) -> int:
        """Return how many terms the smallest and the largest variance need.

        Other variances rarely need more; `_series` checks this.
        """
        positive = q.detach()[q.detach() > 0]
        if not len(positive):
            return min(self.terms, _STEP)
        ends = torch.stack([positive.min(), positive.max()])
        share = self._coefficients("ends", ends, self.terms).square()
        rest = share.flip(-1).cumsum(-1).flip(-1) / share.sum(-1, keepdim=True).clamp(
            min=_SMALLEST_DIVISOR
        )
        needed = int((rest > ROUNDING / 4).any(0).any(0).sum())
        # In steps, so that blocks with nearly the same variances share their coefficients.
        return min(self.terms, _STEP * (needed // _STEP + 1))

    def _coefficients(self, kind: str, q: Tensor, terms: int) -> Tensor:
        """Return E[g(√q z) h_j(z)] for j < terms at variances `[M]`, as `[2, M, terms]`.

        The two functions g are f(x) and f'(x) for the kinds `"values"` and `"ends"`, f(x)² and
        f'(x)² for `"squares"`, and f(x) f(-x) and f'(x) f'(-x) for `"mirrored"`.
        The variances for `"ends"` have to be positive.
        """
        zero = q <= 0
        found = self._tables[kind](q.masked_fill(zero, 1.0), terms)
        at_zero = found.new_zeros(2, 1, terms)
        constant = self._at_zero if kind == "values" else self._at_zero.square()
        at_zero[..., 0] = constant.to(q.device).unsqueeze(-1)
        return torch.where(zero.unsqueeze(-1), at_zero, found)

    def _both_squares(self, q: Tensor) -> tuple[Tensor]:
        """Return E[f(u)²] and E[f'(u)²] at variances `[M]` as one component `[M, 2]`."""
        return (hermite_moments(q, self._squares, self._kinks, 1)[..., 0].T,)

    def _remainders(self, q: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Return the remainders `[2, M, 2]` of coefficients `[2, M, terms]`, and E f² and E f'²."""
        squares, mirrored = (
            hermite_moments(q, moments, self._kinks, 1)[..., 0]
            for moments in (self._squares, self._mirrored)
        )
        return _remainder(table, squares, mirrored), squares

    def _values(self, x: Tensor) -> Tensor:
        return torch.stack(value_and_derivative(self._f, x))

    def _squares(self, x: Tensor) -> Tensor:
        return self._values(x).square()

    def _mirrored(self, x: Tensor) -> Tensor:
        return self._values(x) * self._values(-x)


def _remainder(table: Tensor, squares: Tensor, mirrored: Tensor) -> Tensor:
    """Return Σ a_j² over the degrees j ≥ J of either parity, as `[..., 2]`.

    The first one is over the degrees with the parity of J.

    Args:
        table: The coefficients a_j for j < J, `[..., J]`.
        squares: E[f(u)²] `[...]`.
        mirrored: E[f(u) f(-u)] `[...]`.
    """
    return torch.stack(
        [
            (squares + sign * mirrored) / 2 - table[..., parity::2].square().sum(-1)
            for parity, sign in _parities(table.shape[-1])
        ],
        dim=-1,
    )


def _parities(first: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return j mod 2 and (-1)ʲ for j = `first` and j = `first` + 1."""
    even, odd = (0, 1), (1, -1)
    return (odd, even) if first % 2 else (even, odd)


def _correlation(k: Tensor, q1: Tensor, q2: Tensor) -> Tensor:
    """Return the correlation k / √(q1 q2), which is 0 where a variance is 0, since k is."""
    variances = [q.to(torch.float64) for q in (q1, q2)]
    safe1, safe2 = (q.masked_fill(q <= 0, 1.0) for q in variances)
    return (k.to(torch.float64) / (safe1 * safe2).sqrt()).clamp(-1.0, 1.0)
