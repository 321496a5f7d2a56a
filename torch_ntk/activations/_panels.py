"""Functions of a variance by interpolation, computed once for all variances of an octave."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Parts = tuple[Tensor, ...]
"""Values of a function at variances `[M]`, each `[M, W]` with a W of its own."""

# At how many variances a panel takes a function.
_POINTS = 24
# A panel is halved until the last terms of its series are this share of the largest values; some
# functions, which jump a little, never come so far.
_ENOUGH = 2e-14
_LAST = 3
_HALVINGS = 4
# Numbers that are worked on at once, so that they stay in the cache.
_AT_ONCE = 1 << 15


class Panels:
    """Functions of a variance as Chebyshev series, one for each octave or part of one.

    A panel does not depend on which variances are asked for, and each of these goes through the
    same sums and products. So no digit depends on what else is asked for.

    Args:
        exact: The values at positive variances `[M]` in float64, all from one panel. Their widths
            may differ between panels.
    """

    def __init__(self, exact: Callable[[Tensor], Parts]) -> None:
        self._exact = exact
        # By octave, halvings, and number among the parts: a series, or None where it is halved.
        self._kept: dict[tuple[int, int, int], Parts | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What is kept is no part of a copy or a pickle."""
        return {**self.__dict__, "_kept": {}}

    def widths(self, q: Tensor) -> tuple[int, ...]:
        """The largest widths at some of the variances `[M]`; of 1 where there are none."""
        some = q[_ordinary(q)]
        found = [tuple(p.shape[1] for p in series) for _, _, series in self._panels(some)]
        if not found:
            found = [tuple(p.shape[1] for p in self._series(1, 0, 0))]
        return tuple(max(w) for w in zip(*found, strict=True))

    def __call__(self, q: Tensor, part: int, width: int) -> Tensor:
        """A part of the values at variances `[M]`, `[M, width]`: cut, or filled up with zeros.

        It is 0 at variances of 0, and not a number at those that are none. Panels are on the CPU:
        there is one number for each sample and position.
        """
        return self._on_cpu(q.cpu(), part, width).to(q.device)

    def _on_cpu(self, q: Tensor, part: int, width: int) -> Tensor:
        ordinary = _ordinary(q)
        made = q.new_zeros(len(q), width, dtype=torch.float64)
        made[~ordinary & ~(q <= 0)] = torch.nan
        places = ordinary.nonzero()[:, 0]
        for chosen, x, series in self._panels(q[places]):
            coefficients = series[part][:, :width]
            columns = coefficients.shape[1]
            rows = max(1, _AT_ONCE // max(1, columns))
            for at, some in zip(
                torch.split(places[chosen], rows), torch.split(x, rows), strict=True
            ):
                made[at, :columns] = _sum(some, coefficients)
        return made

    def _panels(self, q: Tensor) -> Iterator[tuple[Tensor, Tensor, Parts]]:
        """The panels of variances: which of them are in it, where in [-1, 1), and its series."""
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

    def _kept_series(self, key: tuple[int, int, int]) -> Parts | None:
        if key not in self._kept:
            # Tensors of a caller's inference mode must not be kept for later.
            with torch.inference_mode(False), torch.no_grad():
                series = self._series(*key)
                self._kept[key] = series if key[1] == _HALVINGS or _converged(series) else None
        return self._kept[key]

    def _series(self, octave: int, halvings: int, n: int) -> Parts:
        """The coefficients of the series in a panel, `[points, W]` each."""
        at = torch.arange(_POINTS, dtype=torch.float64)
        angle = (at + 0.5) * (math.pi / _POINTS)
        transform = torch.cos(at[:, None] * angle) * (2 / _POINTS)
        transform[0] /= 2
        fraction = ((angle.cos() + 1) / 2 + n) / (1 << halvings)
        # In two factors, as the second alone may be out of range.
        values = self._exact((1 + fraction) * 2.0 ** (octave - 2) * 2)
        return tuple(transform @ v for v in values)


def _ordinary(q: Tensor) -> Tensor:
    return (q > 0) & torch.isfinite(q)


def _converged(series: Parts) -> bool:
    size = torch.cat(series, 1).square().sum(1).sqrt()
    return not bool(size[-_LAST:].amax() > _ENOUGH * size.amax())


def _sum(x: Tensor, coefficients: Tensor) -> Tensor:
    """Σ_k c_k T_k(x) at `x` `[M]` for coefficients `[K, W]`, by Clenshaw's recurrence."""
    x = x[:, None]
    one = coefficients[-1].expand(len(x), -1)
    two = torch.zeros_like(one)
    for c in reversed(coefficients[1:-1]):
        one, two = (one * (2 * x)).sub_(two).add_(c), one
    return (one * x).sub_(two).add_(coefficients[0])
