"""The derivatives of `⟨W, Θ⟩`, where W is the derivative of a loss with respect to the kernel.

With factors F of the parameters, such as their Jacobians, the kernel is a sum of products of the
factors of two samples, and ⟨W, Θ⟩ depends on parameters and inputs through both factors. If x2 is
x1, both dependences give the same derivative, with W and with its transpose, so that

    d⟨W, Θ(x, x)⟩ = ⟨W + Wᵀ, Σ dF(x) F(x)⟩,

in which the second factor is a constant. The same holds for blocks of rows. So the memory holds
the graph of one block of rows, and the constant factors of one block of columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..._functional import Batch, ModelFunction, RightOperations
from ...memory import Backoff, budget, even, ranges, within
from .._job import KernelJob
from .._outputs import transposed
from ..contract import Factor, Factors, JacobianFactor, in_one_piece, join, mapped, weighted
from ..structured import ParameterUses, StructuredMethod
from ._sources import Sources

Weights = Mapping[str, Tensor]
"""W `[N1, N2, ...]` by the key of a part of the kernel, for parts on which the loss depends."""

# A graph takes the memory of a pass's intermediate results, and its backward pass the same again.
_GRAPH = 2


@dataclass(frozen=True)
class KernelGradient:
    """The gradient of a kernel, which must be computed within `quiet`.

    Attributes:
        job: The kernel.
        sources: The tensors with respect to which the kernel is differentiated.
        uses: The uses of the parameters.
        by_loops: Whether Jacobians come from one backward pass per sample and output. Autograd
            can differentiate these also for models that torch.func cannot transform.
    """

    job: KernelJob
    sources: Sources
    uses: ParameterUses
    by_loops: bool = False

    def of(
        self, tensors: Sequence[Tensor], weights: Weights, create_graph: bool = False
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Return `⟨W, Θ⟩` and its gradients with respect to the sources, whose values are given.

        With `create_graph` the gradients can be differentiated with respect to these values and W.
        """
        with RightOperations(norms=True):
            return (self._in_graph if create_graph else self._by_rows)(tensors, weights)

    def _in_graph(
        self, tensors: Sequence[Tensor], weights: Weights
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Compute the gradients from one graph of all samples, so that they have a graph."""
        with torch.enable_grad():
            # W may be a function of the kernel, and so of the sources. The derivative with respect
            # to these aliases does not include that dependence.
            tensors = [t.view_as(t) for t in tensors]
            job = self.sources.placed(self.job, tensors)
            left = self._factors(job, job.x1)
            right = left if job.x2 is None else self._factors(job, job.x2)
            terms = [
                term
                for (key, name), p in left.items()
                if key in weights
                for term in weighted(p, right[key, name], weights[key], job.output)
            ]
            value = torch.stack(terms).sum()
            return value, gradients([value], tensors, create_graph=True)

    def _by_rows(
        self, tensors: Sequence[Tensor], weights: Weights
    ) -> tuple[Tensor, list[Tensor | None]]:
        job, sources = self.job, self.sources
        weights = {key: w.detach() for key, w in weights.items()}
        back = {key: transposed(w) for key, w in weights.items()}
        total = _Total(len(tensors), job)
        if job.x2 is None:
            both = {key: w + back[key] for key, w in weights.items()}
            self._side(tensors, lambda placed: placed.x1, job.x1, both, total)
            return total.value / 2, total.gradients
        # If the rows depend on no source, their factors are constants, too.
        sides = bool(sources.names or sources.first), bool(sources.names or sources.second)
        if sides[0]:
            self._side(tensors, lambda placed: placed.x1, job.x2, weights, total)
        if sides[1]:
            self._side(tensors, lambda placed: placed.columns, job.x1, back, total)
        return total.value / sum(sides), total.gradients

    def _side(
        self,
        tensors: Sequence[Tensor],
        rows_of: Callable[[KernelJob], Batch],
        columns: Batch,
        weights: Weights,
        total: _Total,
    ) -> None:
        """Add the derivatives through the factors of the rows; those of the columns are constants.

        `rows_of` returns the samples of the rows of a job, and the weights are `[rows, columns,
        ...]`.
        """
        job, n = self.job, len(rows_of(self.job))
        size, kept = self._sizes()
        is_square = rows_of(job) is columns

        def block(c: int, d: int) -> None:
            own = is_square and size >= n == d - c  # the rows' own factors are those of the columns
            right = None if own else self._constant(columns[c:d], size)

            def rows(start: int, stop: int) -> None:
                leaves = [t.detach().requires_grad_() for t in tensors]
                with torch.enable_grad():
                    placed = self.sources.placed(job, leaves)
                    factors = self._factors(placed, rows_of(placed)[start:stop])
                    left = _RowFactors(factors)
                    if right is not None:
                        others = right
                    elif stop - start == n:
                        others = {k: mapped(f, torch.detach) for k, f in factors.items()}
                    else:  # memory has run out for all rows at once
                        others = self._constant(columns[c:d], stop - start)
                    for key, w in weights.items():
                        left.add(key, others, w[start:stop, c:d], job)
                total.add(left.value, left.gradients(leaves))

            Backoff(n, size).run(rows)

        for c, d in ranges(0, len(columns), kept):
            block(c, d)

    def _sizes(self) -> tuple[int, int]:
        """Return the numbers of samples in a block of rows, which has a graph, and of columns."""
        job = self.job
        method, available = StructuredMethod(job, self.uses), budget(job.fn.device)
        kept = method.plan.numbers_per_sample(job.fn.params, alone=False) * job.item
        # Small blocks of rows cost little. For each block of columns all rows are evaluated again.
        rows = within(available // 4, job.longest, _GRAPH * method.bytes_per_sample())
        columns = within(3 * available // 4, job.longest, 2 * kept)
        return job.batch_size or rows, even(job.longest, columns)

    def _constant(self, x: Batch, step: int) -> Factors:
        """Return factors of some samples without a graph, computed in pieces of `step`."""
        with torch.no_grad():
            return self._laid_out(join([self._found(self.job, piece) for piece in x.split(step)]))

    def _factors(self, job: KernelJob, x: Batch) -> Factors:
        return self._laid_out(self._found(job, x))

    def _found(self, job: KernelJob, x: Batch) -> Factors:
        if self.by_loops:
            return _looped(job, x)
        return StructuredMethod(job, self.uses).factors(x, 0, False, None)

    def _laid_out(self, factors: Factors) -> Factors:
        job = self.job
        return {k: in_one_piece(f, job.fn.products, job.output) for k, f in factors.items()}


class _Total:
    """The sums of values and gradients over blocks of rows."""

    def __init__(self, sources: int, job: KernelJob) -> None:
        self.value = torch.zeros((), dtype=job.fn.products, device=job.fn.device)
        self.gradients: list[Tensor | None] = [None] * sources

    def add(self, value: Tensor | float, gradients: Sequence[Tensor | None]) -> None:
        """Add the value and gradients of a block at the end, since a block may be tried again."""
        self.value = self.value + value
        self.gradients = [_sum(a, b) for a, b in zip(self.gradients, gradients, strict=True)]


class _RowFactors:
    """Factors of rows that are detached from their graph.

    Blocks of columns add derivatives with respect to the detached factors. One backward pass
    through the graph then gives the gradients.

    Attributes:
        value: The sum of `⟨W, Θ⟩` over the blocks that were added.
    """

    def __init__(self, factors: Factors) -> None:
        self._ends: list[Tensor] = []
        self._cuts: list[Tensor] = []
        self._sums: list[Tensor | None] = []
        self._factors: dict[tuple[str, str], tuple[Factor, list[int]]] = {}
        for key, factor in factors.items():
            first = len(self._cuts)
            cut = mapped(factor, self._cut)
            self._factors[key] = cut, list(range(first, len(self._cuts)))
        self.value: Tensor | float = 0.0

    def _cut(self, t: Tensor) -> Tensor:
        if not t.requires_grad:
            return t
        self._ends.append(t)
        self._cuts.append(t.detach().requires_grad_())
        self._sums.append(None)
        return self._cuts[-1]

    def add(self, key: str, right: Factors, weights: Tensor, job: KernelJob) -> None:
        """Add the derivatives of a block of columns of one part of the kernel."""
        for (own, name), (p, places) in self._factors.items():
            if own != key:
                continue
            for term in weighted(p, right[key, name], weights, job.output):
                self.value = self.value + term.detach()
                found = gradients([term], [self._cuts[i] for i in places])
                for i, g in zip(places, found, strict=True):
                    self._sums[i] = _sum(self._sums[i], g)

    def gradients(self, leaves: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the gradients with respect to the tensors from which the factors were computed."""
        used = [i for i, g in enumerate(self._sums) if g is not None]
        ends = [self._ends[i] for i in used]
        return gradients(ends, leaves, [self._sums[i] for i in used])


def gradients(
    ends: Sequence[Tensor],
    leaves: Sequence[Tensor],
    weights: Sequence[Tensor | None] | None = None,
    create_graph: bool = False,
) -> list[Tensor | None]:
    """Return the gradients of the ends that have a graph; None for leaves not in it."""
    tracked = [i for i, end in enumerate(ends) if end.requires_grad]
    if not tracked or not leaves:
        return [None] * len(leaves)
    found = torch.autograd.grad(
        [ends[i] for i in tracked],
        leaves,
        None if weights is None else [weights[i] for i in tracked],
        create_graph=create_graph,
        allow_unused=True,
    )
    return list(found)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def _looped(job: KernelJob, x: Batch) -> Factors:
    """Return Jacobians by plain backward passes, with a graph if one is being recorded."""
    is_recorded, fn = torch.is_grad_enabled(), job.fn
    with torch.enable_grad():
        params = {
            n: p if p.requires_grad else p.detach().requires_grad_() for n, p in fn.params.items()
        }
        each = [_rows(replace(fn, params=params), sample) for sample in x.samples()]
    found: Factors = {}
    for i, name in enumerate(params):
        j = job.precondition.columns(name, torch.stack([rows[i] for rows in each]))
        found[job.keys[name], name] = JacobianFactor.of(j if is_recorded else j.detach())
    return found


def _rows(fn: ModelFunction, sample: Batch) -> list[Tensor]:
    """Return the Jacobians `[O, p]` of one sample."""
    out, params = fn.single(fn.params, sample), list(fn.params.values())
    rows = [gradients([one], params, create_graph=True) for one in out]
    return [
        torch.stack(
            [
                torch.zeros_like(p).reshape(-1) if g is None else g.to_dense().reshape(-1)
                for g in of_outputs
            ]
        )
        for p, of_outputs in zip(params, zip(*rows, strict=True), strict=True)
    ]
