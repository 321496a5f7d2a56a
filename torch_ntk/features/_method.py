"""Features of blocks of samples, checked against plain backward passes like kernels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from torch import Tensor

from .._functional import Batch, CannotTransformError
from ..empirical._checked_blocks import FactorMethod
from ..empirical._job import KernelJob
from ..empirical._parts import distinct
from ..empirical.checksum import CLOSE, BlockCheck, MismatchError
from ..empirical.contract import Factor, Factors, JacobianFactor, piece_sizes
from ..empirical.methods import JacobianMethod
from ..empirical.methods._jacobian import jacobian_bytes
from ..empirical.structured import ParameterUses, StructuredMethod, UsesChangedError
from ..memory import Backoff, budget, check_enough, even, within
from ._projection import Projection

Projections = Mapping[str, Projection]
"""The projection of each parameter, by name."""

# The number of pieces of a block: the check makes one plain backward pass for a whole block.
_PIECES = 4
# The check repeats larger relative differences of gradients in float64, whatever `dim` is.
_CLOSEST = 0.02
_SUM = "(sum)"
"""Stands for the names of parameters whose features have been added up."""


def _add(factors: Factors, key: str, features: Tensor) -> None:
    """Add features `[N, O', dim]` to those of a key, stored as the Jacobian of `dim` parameters."""
    known = factors.get((key, _SUM))
    if isinstance(known, JacobianFactor):
        features = features + _features(known)
    factors[key, _SUM] = JacobianFactor.of(features)


def _features(factor: JacobianFactor) -> Tensor:
    return factor.whole("diagonal").transpose(0, 1)


class StructuredFeatures(StructuredMethod):
    """The method that projects inputs and cotangents of each use of a parameter."""

    def __init__(
        self,
        job: KernelJob,
        uses: ParameterUses,
        projections: Projections,
        by_loops: frozenset[str] = frozenset(),
        innermost: bool = True,
    ) -> None:
        super().__init__(job, uses, by_loops, innermost)
        self._projections, self.close = projections, _close(projections)

    def _with(self, job: KernelJob, by_loops: frozenset[str], innermost: bool) -> StructuredMethod:
        return StructuredFeatures(job, self._uses, self._projections, by_loops, innermost)

    def sizes(self) -> tuple[int, int]:
        """Return sizes with which a backward pass and the largest Jacobian fit in memory."""
        job = self.job
        formed = max((self._formed(n, p.numel()) for n, p in job.fn.params.items()), default=0)
        each = self._backward_bytes() + 3 * job.outputs * formed * job.item
        check_enough(each)
        step = within(budget(job.fn.device), _most(job), 2 * each)
        step = min(step, piece_sizes(job.fn.device).samples(self._passed_bytes()))
        return job.batch_size or _PIECES * step, job.batch_size or step

    def _formed(self, name: str, entries: int) -> int:
        """The number of columns of a parameter's Jacobian if it may be formed, else 0."""
        groups = self.plan.groups
        if self._is_multiplied_out(name) or not groups.get(name):
            return entries
        return 0 if entries > self._projections[name].most_formed else entries

    def _is_multiplied_out(self, name: str) -> bool:
        """Whether P varies within a unit of a weight, so that its Jacobian must be formed."""
        uses = self.plan.uses_of(name) if name in self.plan.groups else []
        one = all(use.has_one_feature for use in uses)
        return self.job.precondition.varies(name) and not one

    def factors(self, x: Batch, start: int, alone: bool, check: BlockCheck | None) -> Factors:
        """The features, added up by key; see `StructuredMethod.factors` for what it raises."""
        plan, keys = self.plan, self.job.keys
        found = self.backward(x, start, check)
        of_calls: list[Tensor | None] = list(found.of_calls)
        factors: Factors = {}
        for name in plan.groups:
            calls = [(use, found.sources[i]) for use, i in self._indexed(name)]
            rows = self._cotangents_of(name, of_calls)
            root = self.job.precondition.root(name)
            _add(factors, keys[name], self._projections[name].of_uses(calls, rows, root))
        for name, jacobian in found.of_rest.items():
            flat = jacobian.reshape(len(x), self.job.outputs, -1)
            flat = self.job.precondition.columns(name, flat)
            _add(factors, keys[name], self._projections[name].of_jacobian(flat))
        return factors

    def of_jacobian(self, name: str, jacobian: Tensor) -> Factor:
        """Return the projection of a Jacobian."""
        return JacobianFactor.of(self._projections[name].of_jacobian(jacobian))


class JacobianFeatures(JacobianMethod):
    """The method that projects Jacobians, for networks whose uses of parameters are not known."""

    def __init__(
        self, job: KernelJob, projections: Projections, by_loops: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(job, by_loops)
        self._projections, self.close = projections, _close(projections)

    def sizes(self) -> tuple[int, int]:
        """Sizes that fit in memory with the Jacobians of all parameters."""
        each = jacobian_bytes(self.job)
        check_enough(each)
        step = within(budget(self.job.fn.device), _most(self.job), each)
        return self.job.batch_size or step, self.job.batch_size or step

    def _with(self, job: KernelJob, by_loops: frozenset[str]) -> JacobianMethod:
        return JacobianFeatures(job, self._projections, by_loops)

    def of_jacobian(self, name: str, jacobian: Tensor) -> Factor:
        """Return the projection of a Jacobian."""
        return JacobianFactor.of(self._projections[name].of_jacobian(jacobian))


def _close(projections: Projections) -> float:
    """The relative difference between two evaluations in float32 that is accepted as rounding.

    A ReLU that changes sides in one of them changes a gradient by up to a percent, in a quarter of
    all blocks of a ResNet of 11 million parameters; the error of a projection is larger than that.
    """
    dim = next(iter(projections.values())).dim
    return max(CLOSE, min(_CLOSEST, 1 / math.sqrt(dim)))


def _most(job: KernelJob) -> int:
    """The largest number of samples that are computed at once."""
    return 4096 if job.batch_size is None else job.batch_size


class Features:
    """Computes the features of all samples block by block, and keeps the method that worked.

    The job has the first samples, and its outputs are those to differentiate.
    """

    def __init__(self, job: KernelJob, uses: ParameterUses, projections: Projections) -> None:
        self._job, self._projections = job, projections
        self._method: FactorMethod = StructuredFeatures(job, uses, projections)
        self.size = self._method.sizes()[0]

    def of(self, block: Batch) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yield the index of the first sample and features `[n, O', dim]` by key, for each part."""
        size, small = self._method.sizes()
        backoff = Backoff(len(block), size, within=small)
        done: list[tuple[int, dict[str, Tensor]]] = []

        def piece(start: int, stop: int) -> None:
            step = even(stop - start, backoff.cut(small))
            factors = self._found(block, start, stop, step)
            found: dict[str, Tensor] = {}
            for (key, _), factor in factors.items():
                assert isinstance(factor, JacobianFactor)
                own = _features(factor)
                found[key] = found[key] + own if key in found else own
            done.append((start, {key: found[key] for key in distinct(self._job.keys)}))

        backoff.run(piece)
        return iter(done)

    def _found(self, block: Batch, start: int, stop: int, step: int) -> Factors:
        while True:
            try:
                return self._method.checked(block, start, stop, step, alone=True)
            except MismatchError as error:
                other = self._method.without(error.names)
                if other is None:
                    raise
                self._method = other
            except (CannotTransformError, UsesChangedError):
                self._method = JacobianFeatures(self._job, self._projections)
                step = min(step, self._method.sizes()[1])
