"""Recurrent layers, which have the same weights at every time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...activations import DualActivation
from ._operation import Operation
from ._state import IdenticalImages, State, Variances, joined_positions, same_positions

_Pair = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Recurrence(Operation):
    """`z_t = W φ(z_{t-1}) + u_t` with one matrix W for all times, `z_0 = u_0`.

    In the limit of infinite width, W times a state that depends on W has the distribution that it
    would have with a W drawn anew at each time (Alemohammad et al. 2021). So between time t of one
    sequence and time t' of another

        K_z[t, t'] = a E φ(z_{t-1}) φ(z'_{t'-1}) + K_u[t, t']
        Θ_z[t, t'] = a Θ_z[t-1, t'-1] E φ'φ' + c E φφ + Θ_u[t, t'].

    The recursion connects only pairs of times with the same difference t' - t. The times are the
    first axis of positions.

    Attributes:
        dual: The dual functions E φφ and E φ'φ'.
        weight_variance: The number a.
        weight_gradient: The number c, which is 0 if W is not among the parameters of Θ.
        backwards: Whether the recursion begins at the last time and ends at the first.
    """

    dual: DualActivation
    weight_variance: float
    weight_gradient: float
    backwards: bool = False
    needs_variances = True

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Iterate over the times, with p = p' only or with all differences t' - t at once."""
        (s,), (q,) = inputs, variances
        assert q is not None
        u, theta = self._times(s, s.nngp), None
        if s.ntk is not None:
            theta = self._times(s, s.ntk) if s.ntk.ndim else torch.zeros_like(u)
        q1, q2 = (self._variances(v.flatten(2)) for v in q)
        run = self._all_pairs if s.full else self._same_times
        z, theta = run(u, theta, q1, q2, s.distance)
        ntk = None if theta is None else self._back(s, theta)
        return State(self._back(s, z), ntk, s.distance, s.full)

    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return `q_t = a E φ(z_{t-1})² + q_u`."""
        (q,) = inputs
        found = self._variances(q.flatten(1))
        return (found.flip(-1) if self.backwards else found).reshape(q.shape)

    def with_identical(
        self, made: State, inputs: Sequence[State], identical: IdenticalImages
    ) -> State:
        """Put in the recursion's values at t = t' for a correlation of exactly 1."""
        (s,), (q,) = inputs, identical.variances
        assert q is not None
        at = identical.rows, identical.columns
        exact = self.variance([q])
        nngp, ntk = made.nngp.clone(), made.ntk
        same_positions(nngp, s.full)[at] = exact
        if ntk is not None:
            assert s.ntk is not None
            ntk = ntk.clone()
            wanted = (
                torch.zeros_like(exact) if not s.ntk.ndim else same_positions(s.ntk, s.full)[at]
            )
            driven, variances = self._in_order(wanted.flatten(1)), self._in_order(exact.flatten(1))
            thetas = [driven[..., 0]]
            for t in range(1, driven.shape[-1]):
                kappa, slope = self.dual.diagonal(variances[..., t - 1])
                memory = self.weight_variance * thetas[-1] * slope + self.weight_gradient * kappa
                thetas.append(memory + driven[..., t])
            same_positions(ntk, s.full)[at] = self._in_order(torch.stack(thetas, -1)).reshape(
                exact.shape
            )
        return State(nngp, ntk, made.distance, made.full)

    @property
    def cost(self) -> float:
        """An activation and a few sums."""
        return 30.0

    # -- times ---------------------------------------------------------------------------

    def _in_order(self, a: Tensor) -> Tensor:
        """Sort the times, the last axis, in the order of the recursion, or back again."""
        return a.flip(-1) if self.backwards else a

    def _times(self, s: State, a: Tensor) -> Tensor:
        """Return K or Θ as `[n1, n2, T]`, with all pairs `[n1, n2, T, T']`, in that order."""
        a = joined_positions(a) if s.full else a.flatten(-2)
        return a if not self.backwards else a.flip((-2, -1) if s.full else -1)

    def _back(self, s: State, a: Tensor) -> Tensor:
        """Undo `_times`: the original order and shape of the positions."""
        if self.backwards:
            a = a.flip((-2, -1) if s.full else -1)
        return a.reshape(s.nngp.shape)

    def _variances(self, q: Tensor) -> Tensor:
        """Return the variances of z, in the recursion's order, from those of u; times are last."""
        q = self._in_order(q)
        found = [q[..., 0]]
        for t in range(1, q.shape[-1]):
            found.append(self.weight_variance * self.dual.diagonal(found[-1])[0] + q[..., t])
        return torch.stack(found, -1)

    # -- the recursion -------------------------------------------------------------------

    def _step(self, before: _Pair, driven: _Pair, q1: Tensor, q2: Tensor, distance: bool) -> _Pair:
        """Return K and Θ of z at some pairs of times, from those one step earlier and u's."""
        k, theta = before
        pair: Callable[..., tuple[Tensor, Tensor]]
        pair = self.dual.pair_from_distance if distance else self.dual.pair
        kappa, slope = pair(k, q1, q2)
        z = self.weight_variance * kappa + driven[0]
        if theta is None or driven[1] is None:
            return z, None
        theta = self.weight_variance * theta * slope + driven[1]
        if self.weight_gradient:
            if distance:
                kappa = (self.dual.diagonal(q1)[0] + self.dual.diagonal(q2)[0] - kappa) / 2
            theta = theta + self.weight_gradient * kappa
        return z, theta

    def _same_times(
        self, u: Tensor, theta: Tensor | None, q1: Tensor, q2: Tensor, distance: bool
    ) -> _Pair:
        found = [_take(u, theta, (..., 0))]
        for t in range(1, u.shape[-1]):
            driven = _take(u, theta, (..., t))
            before = q1[..., t - 1], q2[..., t - 1]
            found.append(self._step(found[-1], driven, *before, distance))
        z = torch.stack([k for k, _ in found], -1)
        thetas = [t for _, t in found if t is not None]
        return z, torch.stack(thetas, -1) if thetas else None

    def _all_pairs(
        self, u: Tensor, theta: Tensor | None, q1: Tensor, q2: Tensor, distance: bool
    ) -> _Pair:
        """Return K and Θ of z at all pairs of times.

        Step k computes the pairs whose earlier time is k: the part of row k from the diagonal on,
        and the part of column k below the diagonal.
        """
        assert not distance
        size = u.shape[-1]
        z, t = torch.empty_like(u), None if theta is None else torch.empty_like(theta)
        row, column = (
            _take(u, theta, (..., 0, slice(None))),
            _take(u, theta, (..., slice(1, None), 0)),
        )
        for k in range(size):
            if k > 0:
                one, two = q1[..., k - 1, None], q2[..., k - 1, None]
                driven = _take(u, theta, (..., k, slice(k, None)))
                row = self._step(_cut(row), driven, one, q2[..., k - 1 : -1], False)
                driven = _take(u, theta, (..., slice(k + 1, None), k))
                column = self._step(_cut(column), driven, q1[..., k : size - 1], two, False)
            for whole, first, second in zip((z, t), row, column, strict=True):
                if whole is not None and first is not None and second is not None:
                    whole[..., k, k:] = first
                    whole[..., k + 1 :, k] = second
        return z, t


def _take(u: Tensor, theta: Tensor | None, index: tuple[object, ...]) -> _Pair:
    return u[index], None if theta is None else theta[index]  # type: ignore[index]


def _cut(strip: _Pair) -> _Pair:
    """Return the strip without its last pair, which has no successor with the same t' - t."""
    return strip[0][..., :-1], None if strip[1] is None else strip[1][..., :-1]
