"""The loop of every method that is made of factors: compute, compare, multiply, block by block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from .._functional import Batch
from ..memory import Backoff, even, ranges
from ._job import KernelJob
from ._parts import Kernels
from .checksum import CLOSE, BlockCheck, MismatchError, compared_together, plain_jacobians
from .contract import Factor, Factors, JacobianFactor, PairBlocks, join


class FactorMethod(ABC):
    """A kernel from factors of its parameters for blocks of samples.

    Rows are taken in blocks whose factors are kept, and columns are streamed past them in smaller
    ones, so that the factors of a sample are computed about N/(2·size) + 1 times. Whatever is
    computed is compared with a plain backward pass; parameters whose factors are wrong have their
    Jacobians taken by plain loops instead, and the kernel is computed anew.

    Attributes:
        job: The kernel.
        by_loops: Names of the parameters whose Jacobians are taken by plain loops.
        close: See `BlockCheck`.
    """

    close: float = CLOSE

    def __init__(self, job: KernelJob, by_loops: frozenset[str] = frozenset()) -> None:
        self.job = job
        self.by_loops = by_loops
        self._roundings: dict[str, float] = {}

    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """Samples in a block of rows, and in a piece that is computed at once."""

    @abstractmethod
    def factors(self, x: Batch, start: int, alone: bool, check: BlockCheck | None) -> Factors:
        """Factors of the parameters that are not taken by loops.

        Args:
            x: Consecutive samples of a block.
            start: Index of the first one in the block.
            alone: Whether the samples meet only those of their own block: what is large need not
                be made before it is multiplied.
            check: Told what is found out.
        """

    @abstractmethod
    def without(self, names: frozenset[str]) -> FactorMethod | None:
        """The method that does these parameters in another way; None if there is none left."""

    @abstractmethod
    def in_dtype(self, dtype: torch.dtype) -> FactorMethod:
        """The same method in another precision."""

    def kernel(self) -> Kernels:
        """The kernels of the job.

        Raises:
            ValueError: The model is no function of one sample at a time.
            MemoryError: Not even one sample fits.
        """
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
        job = self.job
        results = PairBlocks(job)
        size, small = self.sizes()
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
        """Factors of the samples `start … stop`, computed in pieces and compared.

        Raises:
            MismatchError: They are wrong, which another method may mend; see `without`.
        """
        found: list[Factors] = []
        for pieces in compared_together(self.job, list(ranges(start, stop, step))):
            found += self._compared(side, pieces, alone)
        return join(found)

    def _compared(
        self, side: Batch, pieces: Sequence[tuple[int, int]], alone: bool
    ) -> list[Factors]:
        """Factors of consecutive pieces of samples, compared together."""
        job, start, stop = self.job, pieces[0][0], pieces[-1][1]
        check = None
        if job.check:
            check = BlockCheck(job, side, start, stop, self.close, self._roundings)
        found = [self._all(side[a:b], a - start, alone, check) for a, b in pieces]
        if check is not None:

            def in_double() -> BlockCheck:
                double = self.in_dtype(torch.float64)
                again = check.again(double.job)
                for a, b in pieces:
                    double._all(again.x[a - start : b - start], a - start, False, again)
                return again

            try:
                check.verify(in_double)
            except MismatchError as error:
                if error.names <= self.by_loops:
                    raise check.refuse(error.names) from None
                raise
        return found

    def _all(self, x: Batch, start: int, alone: bool, check: BlockCheck | None) -> Factors:
        """Factors of all parameters."""
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
        """The factor of a parameter with this Jacobian `[N, O, p]`."""
        return JacobianFactor.of(jacobian)
