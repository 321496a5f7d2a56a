"""Recurrent layers: the same weights at every time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...activations import DualActivation
from ._operation import Operation
from ._state import IdenticalImages, State, Variances, at_same_positions

_Pair = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Recurrence(Operation):
    """`z_t = W φ(z_{t-1}) + u_t` with one matrix W for all times, `z_0 = u_0`.

    As the width grows, W times a state that depends on W has the law that it would have if W were
    drawn anew (Alemohammad et al. 2021), so between the times t of one sequence and t' of another

        K_z[t, t'] = a E φ(z_{t-1}) φ(z'_{t'-1}) + K_u[t, t']
        Θ_z[t, t'] = a Θ_z[t-1, t'-1] E φ'φ' + c E φφ + Θ_u[t, t'].

    Only pairs of times of the same distance t' - t are connected. The times are the first axis of
    positions.

    Attributes:
        dual: E φφ and E φ'φ'.
        weight_variance: a.
        weight_gradient: c; 0 if W is not among the parameters of Θ.
        backwards: Whether it goes through the times from the last to the first.
    """

    dual: DualActivation
    weight_variance: float
    weight_gradient: float
    backwards: bool = False
    needs_variances = True

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Time by time, at the same time in both or along all distances at once."""
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
        """`q_t = a E φ(z_{t-1})² + q_u`."""
        (q,) = inputs
        found = self._variances(q.flatten(1))
        return (found.flip(-1) if self.backwards else found).reshape(q.shape)

    def with_identical(
        self, made: State, inputs: Sequence[State], identical: IdenticalImages
    ) -> State:
        """The recursion with the one-dimensional formulas at the same time."""
        (s,), (q,) = inputs, identical.variances
        assert q is not None
        at = identical.rows, identical.columns
        exact = self.variance([q])
        nngp, ntk = made.nngp.clone(), made.ntk
        _same(nngp, s.full)[at] = exact
        if ntk is not None:
            assert s.ntk is not None
            ntk = ntk.clone()
            wanted = torch.zeros_like(exact) if not s.ntk.ndim else _same(s.ntk, s.full)[at]
            driven, variances = self._in_order(wanted.flatten(1)), self._in_order(exact.flatten(1))
            thetas = [driven[..., 0]]
            for t in range(1, driven.shape[-1]):
                kappa, slope = self.dual.diagonal(variances[..., t - 1])
                memory = self.weight_variance * thetas[-1] * slope + self.weight_gradient * kappa
                thetas.append(memory + driven[..., t])
            _same(ntk, s.full)[at] = self._in_order(torch.stack(thetas, -1)).reshape(exact.shape)
        return State(nngp, ntk, made.distance, made.full)

    @property
    def cost(self) -> float:
        """An activation and a few sums."""
        return 30.0

    # -- times ---------------------------------------------------------------------------

    def _in_order(self, a: Tensor) -> Tensor:
        """Times on the last axis in the order in which they are gone through; and back again."""
        return a.flip(-1) if self.backwards else a

    def _times(self, s: State, a: Tensor) -> Tensor:
        """`[n1, n2, T]`, or `[n1, n2, T, T']` of all pairs, in order."""
        a = a.flatten(-4, -3).flatten(-2) if s.full else a.flatten(-2)
        return a if not self.backwards else a.flip((-2, -1) if s.full else -1)

    def _back(self, s: State, a: Tensor) -> Tensor:
        """The positions as they were."""
        if self.backwards:
            a = a.flip((-2, -1) if s.full else -1)
        return a.reshape(s.nngp.shape)

    def _variances(self, q: Tensor) -> Tensor:
        """Of z, from those of u, with the times on the last axis; both in their order."""
        q = self._in_order(q)
        found = [q[..., 0]]
        for t in range(1, q.shape[-1]):
            found.append(self.weight_variance * self.dual.diagonal(found[-1])[0] + q[..., t])
        return torch.stack(found, -1)

    # -- the recursion -------------------------------------------------------------------

    def _step(self, before: _Pair, driven: _Pair, q1: Tensor, q2: Tensor, distance: bool) -> _Pair:
        """K and Θ of z at some pairs of times, from those one step earlier and those of u."""
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
        """Of step k, the pairs whose earlier time is k: a strip of row k and one of column k."""
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
    """Without the last pair, after which there is none of the same distance."""
    return strip[0][..., :-1], None if strip[1] is None else strip[1][..., :-1]


def _same(a: Tensor, full: bool) -> Tensor:
    return at_same_positions(a) if full else a
