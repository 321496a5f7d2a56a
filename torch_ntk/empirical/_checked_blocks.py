"""The loop of methods with factors: compute, check and multiply factors, block by block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .._functional import Batch
from ..memory import Backoff, even, ranges
from ._job import KernelJob
from ._outputs import joined
from ._parts import Kernels
from ._recorder import is_recording, note, unrecorded
from .checksum import CLOSE, BlockCheck, MismatchError, compared_together, plain_jacobians
from .contract import Factor, Factors, JacobianFactor, PairBlocks, join


class FactorMethod(ABC):
    """A method that computes a kernel from factors of its parameters for blocks of samples.

    The factors of a block of rows are stored while those of smaller blocks of columns are computed
    one after the other, so that the factors of a sample are computed about N/(2·size) + 1 times.
    All factors are compared with a plain backward pass. If factors of some parameters are wrong,
    plain loops compute their Jacobians, and the kernel is computed again.

    If outputs are divided into groups, each group has its own method. Only the check is for all
    outputs together, since a plain pass for some outputs takes as long as for all.

    Attributes:
        job: The kernel.
        by_loops: The names of the parameters whose Jacobians plain loops compute.
        close: See `BlockCheck`.
    """

    close: float = CLOSE

    def __init__(self, job: KernelJob, by_loops: frozenset[str] = frozenset()) -> None:
        self.job = job
        self.by_loops = by_loops
        self._roundings: dict[str, float] = {}
        self._waiting: _Waiting | None = None
        self._part = slice(None)

    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """Return the samples in a block of rows, and in a piece that is computed at once."""

    @abstractmethod
    def factors(self, x: Batch, start: int, alone: bool, check: BlockCheck | None) -> Factors:
        """Return the factors of the parameters that plain loops do not compute.

        Args:
            x: Consecutive samples of a block.
            start: The index of the first one in the block.
            alone: Whether the samples are multiplied only with those of their own block, so that
                large factors need not be made before they are multiplied.
            check: The check to which outputs and factors are added, or None.
        """

    @abstractmethod
    def without(self, names: frozenset[str]) -> FactorMethod | None:
        """Return the method that computes these parameters in another way, or None."""

    @abstractmethod
    def of_job(self, job: KernelJob) -> FactorMethod:
        """Return the method for another job of the same function, perhaps in another dtype."""

    def kernel(self) -> Kernels:
        """Return the kernels of the job."""
        method: FactorMethod = self
        while True:
            try:
                return method._computed()
            except MismatchError as error:
                other = method.without(error.names)
                if other is None:
                    raise
                method = other

    def _computed(self) -> Kernels:
        parts = self.job.parts
        if not parts:
            return self._of_blocks(*self.sizes())
        waiting = _Waiting(self)
        own = [self._of_outputs(part, waiting) for part in parts]
        sizes = own[0].sizes()  # those of the largest group, which all groups use
        own[-1].job = replace(own[-1].job, advance=self.job.advance)
        found = [method._of_blocks(*sizes) for method in own]
        for check, pieces in waiting.checks.values():
            self._verify(check, pieces)
        return joined(found, self.job.output)

    def _of_outputs(self, part: slice, waiting: _Waiting) -> FactorMethod:
        """Return the method for some outputs, whose checks wait for the other groups."""
        job = replace(self.job.of_outputs(part), advance=lambda samples: None)
        own = self.of_job(job)
        own._waiting, own._part = waiting, part
        return own

    def _of_blocks(self, size: int, small: int) -> Kernels:
        job = self.job
        results = PairBlocks(job)
        n1, n2 = len(job.x1), len(job.columns)
        symmetric = job.x2 is None
        backoff = Backoff(n1, size, within=small)

        def rows(start: int, stop: int) -> None:
            step = even(stop - start, backoff.cut(small))
            alone = symmetric and (start, stop) == (0, n1)
            left = self.checked(job.x1, start, stop, step, alone)
            left = {k: f.kept(job.fn.products, job.output, alone) for k, f in left.items()}
            if symmetric:
                results.add_square(start, stop, left)
            for a, b in ranges(stop if symmetric else 0, n2, step):
                right = self.checked(job.columns, a, b, step, False)
                results.add_block((start, stop), (a, b), left, right)
            job.advance(stop - start)

        backoff.run(rows)
        return results.kernels

    def checked(self, side: Batch, start: int, stop: int, step: int, alone: bool) -> Factors:
        """Return the factors of the samples `start … stop`, computed in pieces and checked.

        `MismatchError` is raised if they are wrong and another method (`without`) may be right.
        """
        found: list[Factors] = []
        for pieces in compared_together(self.job, list(ranges(start, stop, step))):
            found += self._compared(side, pieces, alone)
        return join(found)

    def _compared(
        self, side: Batch, pieces: Sequence[tuple[int, int]], alone: bool
    ) -> list[Factors]:
        """Return the factors of consecutive pieces of samples, after checking them together."""
        start, waiting = pieces[0][0], self._waiting
        check = None
        if self.job.check and waiting is not None:
            check = waiting.check(self._part, side, pieces)
        elif self.job.check or is_recording():
            with unrecorded():
                check = self._new_check(side, pieces)
        found = [self._all(side[a:b], a - start, alone, check) for a, b in pieces]
        if check is not None and waiting is None:
            if self.job.check:
                with unrecorded():
                    self._verify(check, pieces)
            note(check)
        return found

    def _new_check(self, side: Batch, pieces: Sequence[tuple[int, int]]) -> BlockCheck:
        """Return an empty check of these pieces."""
        start, stop = pieces[0][0], pieces[-1][1]
        return BlockCheck(self.job, side, start, stop, self.close, self._roundings)

    def _verify(self, check: BlockCheck, pieces: Sequence[tuple[int, int]]) -> None:
        """Check the outputs and factors of these pieces of samples.

        `MismatchError` is raised if they are wrong and another method may be right. If plain loops
        have computed them, samples depend on each other, which is a `ValueError`.
        """
        start = pieces[0][0]

        def in_double() -> BlockCheck:
            double = self.of_job(self.job.in_dtype(torch.float64))
            again = check.again(double.job)
            each: list[FactorMethod] = [] if check.parts else [double]
            each += [double.of_job(double.job.of_outputs(part)) for part in check.parts]
            for k, method in enumerate(each):
                if check.parts:
                    again.begin(check.parts[k])
                for a, b in pieces:
                    method._all(again.x[a - start : b - start], a - start, False, again)
            return again

        try:
            check.verify(in_double)
        except MismatchError as error:
            if error.names <= self.by_loops:
                raise check.refuse(error.names) from None
            raise

    def _all(self, x: Batch, start: int, alone: bool, check: BlockCheck | None) -> Factors:
        """Return the factors of all parameters."""
        if self.by_loops >= set(self.job.fn.params):
            found: Factors = {}
        else:
            found = self.factors(x, start, alone, check)
        if self.by_loops:
            outputs, jacobians = plain_jacobians(self.job.fn, x, sorted(self.by_loops))
            if check is not None and not found:
                check.add_outputs(outputs)
            for name, j in jacobians.items():
                if check is not None:
                    check.sums.add_jacobian(name, start, j)
                j = self.job.precondition.columns(name, j)
                found[self.job.keys[name], name] = self.of_jacobian(name, j)
        return found

    def of_jacobian(self, name: str, jacobian: Tensor) -> Factor:
        """Return the factor of a parameter with this Jacobian `[N, O, p]`."""
        return JacobianFactor.of(jacobian)


class _Waiting:
    """Checks of blocks of samples that wait until all groups of outputs have been computed.

    Args:
        method: The method for all outputs.

    Attributes:
        checks: The check and the pieces of each block, by the side and the pieces. Blocks change
            when memory runs out; each check compares the outputs that were added to it.
    """

    def __init__(self, method: FactorMethod) -> None:
        self._method = method
        self.checks: dict[
            tuple[bool, tuple[tuple[int, int], ...]],
            tuple[BlockCheck, Sequence[tuple[int, int]]],
        ] = {}

    def check(self, part: slice, side: Batch, pieces: Sequence[tuple[int, int]]) -> BlockCheck:
        """Return the check of these pieces, to which the outputs `part` are added next."""
        key = (side is self._method.job.x1, tuple(pieces))
        if key not in self.checks:
            self.checks[key] = self._method._new_check(side, pieces), pieces
        check = self.checks[key][0]
        check.begin(part)
        return check
