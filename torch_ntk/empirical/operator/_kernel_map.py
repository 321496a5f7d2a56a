"""The kernel between two sets of samples as a linear map, `Θ v = J(x1) P (J(x2)ᵀ v)`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeVar

import torch
from torch import Tensor

from ..._checks import check_finite
from ..._functional import ModelFunction, evaluating_on
from ..._types import Parameters
from ...memory import budget, limited, ranges
from .._computation import NOT_FINITE
from .._coupled import Pair
from .._job import KernelJob
from .._outputs import finish
from .._parts import WHOLE, keys_of
from .._precondition import Precondition
from .._result_size import check_fits
from ..inspect import Inspection, forward_operations, inspect_forward
from ..methods import METHODS
from ..structured import StructuredMethod, UseRecorder
from ._products import Advance, Products

T = TypeVar("T")
Form = Literal["full", "trace", "mean", "pseudo"]
_TOGETHER = 32  # samples in a block of which the kernel is formed to read its diagonal


@dataclass(frozen=True)
class Settings:
    """The caller's settings for every evaluation; see `NTKOperator`. `memory` is in bytes."""

    memory: int | None
    batch_size: int | None
    check: bool
    progress: bool
    training: bool


@dataclass(frozen=True)
class KernelMap:
    """The kernel `Θ(x1, x2)`, given by products with the Jacobians of both sets of samples.

    Attributes:
        fn: The function whose kernel it is.
        forward: The shapes and costs of one forward pass.
        recorder: The uses of the parameters in that pass.
        left: The Jacobian of the samples of the rows.
        right: The Jacobian of the samples of the columns; the same object if the kernel is
            symmetric.
        outputs: O, the number of outputs of a sample, or of a row of a coupled batch.
        form: Which of the outputs' indices the matrix has, as `output` of `empirical_ntk`.
        settings: The caller's settings.
        precondition: √P of the kernel `J(x1) P J(x2)ᵀ`.
    """

    fn: ModelFunction
    forward: Inspection
    recorder: UseRecorder
    left: Products
    right: Products
    outputs: int
    form: Form
    settings: Settings
    precondition: Precondition

    @property
    def is_symmetric(self) -> bool:
        """Whether x1 and x2 are the same samples."""
        return self.left is self.right

    @property
    def is_sum(self) -> bool:
        """Whether the matrix is a sum of the kernels of the single outputs."""
        return self.form in ("trace", "mean")

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the matrix."""
        return self._samples if self.is_sum else (self.left.size, self.right.size)

    @property
    def transposed(self) -> KernelMap:
        """The kernel `Θ(x2, x1)`."""
        return replace(self, left=self.right, right=self.left)

    @contextmanager
    def evaluating(self, held: int = 0) -> Iterator[None]:
        """A context in which the model can be evaluated while `held` bytes are in use."""
        fn, memory = self.fn, self.settings.memory
        batch = self.left.x.value
        with (
            evaluating_on(
                fn.model,
                batch,
                fn.forward_fn,
                self.forward.keeps_hooks,
                self.settings.training,
            ),
            limited(None if memory is None else memory - held),
        ):
            yield

    @contextmanager
    def bar(self, samples: int) -> Iterator[Advance]:
        """Show a progress bar; the function that it gives takes numbers of finished samples."""
        from tqdm.auto import tqdm  # slow to import

        hide = not self.settings.progress
        with tqdm(
            total=samples, desc="NTK operator", unit="sample", disable=hide, leave=False
        ) as bar:

            def advance(done: int) -> None:
                bar.update(done)

            yield advance

    def multiply(self, matrix: Tensor) -> Tensor:
        """Return the product `[D1, M]` with a matrix `[D2, M]`."""
        passes = matrix.shape[1] * (self.outputs if self.is_sum else 1)
        with self.evaluating():
            turns = -(-passes // self._vectors(passes))
            with self.bar(turns * (len(self.left.x) + len(self.right.x))) as advance:
                if self.is_sum:
                    result = self._summed(matrix, advance)
                else:
                    result = self._one_by_one(matrix.T, advance).T
            result = result / self.outputs if self.form == "mean" else result.contiguous()
            return check_finite("product", result, NOT_FINITE)

    def _vectors(self, count: int) -> int:
        """Return how many of `count` vectors are in memory at once."""
        return min(side.sizes(count)[0] for side in (self.left, self.right))

    def _one_by_one(self, v: Tensor, advance: Advance) -> Tensor:
        """Return `J1 P (J2ᵀ v)` as `[c, N1·O]`, for `v` `[c, N2·O]`."""
        result = v.new_empty(len(v), self.left.size)
        for a, b in ranges(0, len(v), self._vectors(len(v))):
            total = self.right.transpose(v[a:b], advance)
            result[a:b] = self.left.product(self.precondition.times(total), advance)
        return result

    def _summed(self, v: Tensor, advance: Advance) -> Tensor:
        """Return `Σ_i J1_i P (J2_iᵀ v)` as `[N1, c]`, for v `[N2, c]`.

        J_i is the Jacobian of output i.
        """
        (n1, n2), count, o = self.shape, v.shape[1], self.outputs
        result = v.new_zeros(n1, count)
        for a, b in ranges(0, count * o, self._vectors(count * o)):
            index = torch.arange(a, b, device=v.device)
            column, output, row = index // o, index % o, index - a
            one_hot = v.new_zeros(b - a, n2, o)
            one_hot[row, :, output] = v.T[column]
            products = self._one_by_one(one_hot.view(b - a, n2 * o), advance)
            products = products.view(b - a, n1, o)[row, :, output]
            result.index_add_(1, column, products.T)
        return result

    def _by_blocks(self, count: int, block: Callable[[int, int, Advance], T]) -> list[T]:
        """Return `block` of ranges of `count` vectors, each of which meets all samples of x1."""
        with self.evaluating():
            size, _ = self.left.sizes(count)
            with self.bar(-(-count // size) * len(self.left.x)) as advance:
                return [block(a, b, advance) for a, b in ranges(0, count, size)]

    def pull(self, v: Tensor) -> Parameters:
        """Return `J1ᵀ v` as `{name: [c, ...]}`, for `v` `[c, N1·O]`."""
        parts = self._by_blocks(len(v), lambda a, b, done: self.left.transpose(v[a:b], done))
        found = {n: torch.cat([part[n] for part in parts]) for n in self.fn.params}
        return {n: check_finite("product", g, NOT_FINITE) for n, g in found.items()}

    def push(self, w: Parameters) -> Tensor:
        """Return `J1 w` as `[c, N1·O]`, for `w` `{name: [c, ...]}`."""

        def block(a: int, b: int, advance: Advance) -> Tensor:
            return self.left.product({n: t[a:b] for n, t in w.items()}, advance)

        parts = self._by_blocks(len(next(iter(w.values()))), block)
        return check_finite("product", torch.cat(parts), NOT_FINITE)

    def squared_norms(self, v: Tensor) -> Tensor:
        """Return `‖P^½ J1ᵀ v‖²`, `[c]`, for v `[c, N1·O]`, at half the cost of a product."""

        def block(a: int, b: int, advance: Advance) -> Tensor:
            total = self.left.transpose(v[a:b], advance)
            found = torch.zeros(b - a, dtype=torch.float64, device=v.device)
            for name, g in total.items():
                rows = self.precondition.columns(name, g.reshape(b - a, -1))
                found += rows.double().square().sum(1)
            return found

        return check_finite("trace", torch.cat(self._by_blocks(len(v), block)), NOT_FINITE)

    @cached_property
    def diagonal(self) -> Tensor:
        """The diagonal `[D]`, by a backward pass for each output of each sample.

        It is read from the kernels of blocks of a few samples. A coupled batch is a single sample,
        for which the squared norm of the gradient of each output is computed.
        """
        if self.fn.coupled:
            rows = ranges(0, self.left.size, _TOGETHER)
            found = torch.cat([self._squared_norms_of_rows(a, b) for a, b in rows])
            if self.is_sum:
                found = found.view(self.shape[0], self.outputs).sum(1)
            return finish(found, self.form, self.outputs)
        form, blocks = self.form, []
        with self.evaluating(), self.bar(len(self.left.x)) as advance:
            for x in self.left.x.split(self.settings.batch_size or _TOGETHER):
                job = replace(self._job()[0], x1=x, batch_size=None, advance=advance)
                job = replace(job, output="diagonal" if form == "full" else form)
                kernel = METHODS["auto"](job, self.recorder)[WHOLE]
                blocks.append(kernel.diagonal(dim1=0, dim2=1).movedim(-1, 0).reshape(-1))
        found = finish(torch.cat(blocks), form, self.outputs)
        return check_finite("diagonal", found, NOT_FINITE)

    def _squared_norms_of_rows(self, start: int, stop: int) -> Tensor:
        """Return `‖P^½ J1ᵀ e‖²` for the unit vectors e from `start` to `stop`."""
        e = torch.zeros(stop - start, self.left.size, dtype=self.fn.dtype, device=self.fn.device)
        e[:, start:stop].fill_diagonal_(1.0)
        return self.squared_norms(e)

    def dense(self) -> Tensor:
        """Return the matrix."""
        fn, o, form = self.fn, self.outputs, self.form
        (n1, n2), allowed = self._samples, self.settings.memory
        if fn.coupled:
            both = self.left.size + (0 if self.is_symmetric else self.right.size)
            held = check_fits(fn, "full", 1, 1, both, 1, allowed)
        else:
            held = check_fits(fn, form, n1, n2, o, 1, allowed)
        with self.evaluating(held), self.bar(len(self.left.x)) as advance:
            job, recorder = self._job()
            kernel = METHODS["auto"](replace(job, advance=advance), recorder)[WHOLE]
            if fn.coupled:
                pairs = kernel[0, 0, : self.left.size, -self.right.size :].view(n1, o, n2, o)
                kernel = pairs.permute(0, 2, 1, 3)
                kernel = kernel.diagonal(dim1=2, dim2=3).sum(2) if self.is_sum else kernel
            kernel = check_finite("kernel", finish(kernel, form, o), NOT_FINITE)
            if kernel.ndim == 4:
                kernel = kernel.permute(0, 2, 1, 3)
            return kernel.reshape(self.shape)

    @property
    def _samples(self) -> tuple[int, int]:
        """N1 and N2; for coupled batches, their numbers of rows."""
        return self.left.size // self.outputs, self.right.size // self.outputs

    def _job(self) -> tuple[KernelJob, UseRecorder]:
        """Return the job of the dense kernel; coupled batches are joined to one sample."""
        fn, settings, form = self.fn, self.settings, self.form
        x1, forward, recorder = self.left.x, self.forward, self.recorder
        x2 = None if self.is_symmetric else self.right.x
        if fn.coupled:
            form = "full"
            if x2 is not None:
                x1, x2, recorder = fn.input("x1", Pair(x1.value, x2.value)), None, UseRecorder()
                forward = inspect_forward(fn, "x1", x1, recorder)
        keys, size, check = keys_of(fn.params, None), settings.batch_size, settings.check
        job = KernelJob(fn, x1, x2, form, forward, keys, size, check, self.precondition)
        return job, recorder

    def is_dense_cheaper(self) -> bool:
        """Whether forming the matrix takes fewer operations than the products of a Lanczos method.

        With F the operations of a forward pass, a product takes about 5 F N operations, O times as
        many if outputs are summed, and the method needs about 40 products. The matrix takes 2 F N
        operations for each output, and those that the plan counts for its contractions. A coupled
        batch is one sample with N·O outputs.
        """
        size, n, o = self.shape[0], len(self.left.x), self.forward.outputs
        if 3 * 8 * size**2 > budget(self.fn.device):
            return False
        with self.evaluating():
            forward = forward_operations(self.fn, self.left.x)
            job, recorder = self._job()
            plan = StructuredMethod(job, recorder.recorded()).plan
        passes = 40 * 5 * (self.outputs if self.is_sum else 1)
        contraction = sum(cost.operations for cost in plan.costs.values())
        rest = sum(self.fn.params[name].numel() for name in plan.uses.rest)
        contraction += float(rest) * size**2
        return 2 * forward * n * (o + 1) + contraction <= passes * forward * n
