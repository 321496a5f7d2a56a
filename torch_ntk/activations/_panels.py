"""Interpolation of functions of a variance, by one Chebyshev series for each octave."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Components = tuple[Tensor, ...]
"""The components of a function of variances `[M]`: tensors `[M, W]` of different widths W."""

# The number of variances in a panel at which the function is computed.
_POINTS = 24
# A panel is halved until the last terms of its series are below this share of the largest term, but
# at most `_HALVINGS` times: the series of functions with small jumps do not converge.
_TOLERANCE = 2e-14
_LAST_TERMS = 3
_HALVINGS = 4
# The number of values that are computed at once, so that they stay in the cache.
_NUMBERS_AT_ONCE = 1 << 15


class Panels:
    """Functions of a variance, interpolated by a Chebyshev series in each panel.

    A panel is an octave of variances, or a half, quarter, … of one. Panels do not depend on the
    variances of a call, and each variance goes through the same sums and products. So the value at
    a variance has the same digits whatever other variances are in the call.

    Args:
        exact: The function: it returns the components at positive variances `[M]` of one panel,
            in float64. Their widths may differ between panels.
    """

    def __init__(self, exact: Callable[[Tensor], Components]) -> None:
        self._exact = exact
        # The series of a panel, by octave, number of halvings, and index among the panels of this
        # size in the octave; None if the panel has been halved.
        self._kept: dict[tuple[int, int, int], Components | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy or a pickle, which does not contain the series."""
        return {**self.__dict__, "_kept": {}}

    def widths(self, q: Tensor) -> tuple[int, ...]:
        """Return the largest width of each component among the panels of the variances `[M]`.

        Without positive finite variances these are the widths at a variance of 1.
        """
        some = q[_positive_and_finite(q)].cpu()
        found = [tuple(p.shape[1] for p in series) for _, _, series in self._panels_of(some)]
        if not found:
            found = [tuple(p.shape[1] for p in self._series(1, 0, 0))]
        return tuple(max(w) for w in zip(*found, strict=True))

    def __call__(self, q: Tensor, component: int, width: int) -> Tensor:
        """Return a component at variances `[M]` as `[M, width]`, cut off or padded with zeros.

        It is 0 at variances of 0, and NaN at variances that are NaN or infinite. It is computed on
        the CPU, since there is only one variance for each sample and position.
        """
        return self._on_cpu(q.cpu(), component, width).to(q.device)

    def _on_cpu(self, q: Tensor, component: int, width: int) -> Tensor:
        ordinary = _positive_and_finite(q)
        made = q.new_zeros(len(q), width, dtype=torch.float64)
        made[~ordinary & ~(q <= 0)] = torch.nan
        places = ordinary.nonzero()[:, 0]
        for chosen, x, series in self._panels_of(q[places]):
            coefficients = series[component][:, :width]
            columns = coefficients.shape[1]
            rows = max(1, _NUMBERS_AT_ONCE // max(1, columns))
            for at, some in zip(
                torch.split(places[chosen], rows), torch.split(x, rows), strict=True
            ):
                made[at, :columns] = _chebyshev_sum(some, coefficients)
        return made

    def _panels_of(self, q: Tensor) -> Iterator[tuple[Tensor, Tensor, Components]]:
        """Yield indices of the variances in a panel, their places in [-1, 1), and its series."""
        fraction, octave = torch.frexp(q.to(torch.float64))
        pending = [(int(e), 0, 0) for e in torch.unique(octave)]
        while pending:
            key = pending.pop()
            e, halvings, n = key
            parts = 1 << halvings
            # The fraction is in [1/2, 1): all of this is exact.
            place = (2 * fraction - 1) * parts - n
            chosen = ((octave == e) & (place >= 0) & (place < 1)).nonzero()[:, 0]
            if not len(chosen):
                continue
            series = self._kept_series(key)
            if series is None:
                pending += [(e, halvings + 1, 2 * n), (e, halvings + 1, 2 * n + 1)]
            else:
                yield chosen, 2 * place[chosen] - 1, series

    def _kept_series(self, key: tuple[int, int, int]) -> Components | None:
        if key not in self._kept:
            # Tensors of a caller's inference mode must not be kept for later.
            with torch.inference_mode(False), torch.no_grad():
                series = self._series(*key)
                self._kept[key] = series if key[1] == _HALVINGS or _converged(series) else None
        return self._kept[key]

    def _series(self, octave: int, halvings: int, n: int) -> Components:
        """Return the Chebyshev coefficients `[points, W]` of each component in a panel."""
        at = torch.arange(_POINTS, dtype=torch.float64)
        angle = (at + 0.5) * (math.pi / _POINTS)
        transform = torch.cos(at[:, None] * angle) * (2 / _POINTS)
        transform[0] /= 2
        fraction = ((angle.cos() + 1) / 2 + n) / (1 << halvings)
        # The power of two is split into two factors, since 2.0**octave may be out of range.
        values = self._exact((1 + fraction) * 2.0 ** (octave - 2) * 2)
        return tuple(transform @ v for v in values)


def _positive_and_finite(q: Tensor) -> Tensor:
    return (q > 0) & torch.isfinite(q)


def _converged(series: Components) -> bool:
    size = torch.cat(series, 1).square().sum(1).sqrt()
    return not bool(size[-_LAST_TERMS:].amax() > _TOLERANCE * size.amax())


def _chebyshev_sum(x: Tensor, coefficients: Tensor) -> Tensor:
    """Return Σ_k c_k T_k(x) `[M, W]` for `x` `[M]` and c `[K, W]`, by Clenshaw's recurrence."""
    x = x[:, None]
    one = coefficients[-1].expand(len(x), -1)
    two = torch.zeros_like(one)
    for c in reversed(coefficients[1:-1]):
        one, two = (one * (2 * x)).sub_(two).add_(c), one
    return (one * x).sub_(two).add_(coefficients[0])
