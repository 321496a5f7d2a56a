"""The derivatives of `⟨W, Θ⟩`, W being the derivative of a loss by the entries of the kernel.

With factors F of the parameters, such as their Jacobians, the kernel is a sum of products of the
factors of two samples, and ⟨W, Θ⟩ depends on parameters and inputs through either of them. Where
x2 is x1 both give the same derivative, but for W in place of its transpose, so that

    d⟨W, Θ(x, x)⟩ = ⟨W + Wᵀ, Σ dF(x) F(x)⟩,

in which the second factor is a constant. The same holds for blocks of rows; what is kept at a time
is the graph of one block of rows, and constant factors of one of columns.
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
"""By the key of a part of the kernel W `[N1, N2, ...]`, of those parts that the loss depends on."""

# A graph keeps what a pass makes on its way, and its own backward pass as much again.
_GRAPH = 2


@dataclass(frozen=True)
class KernelGradient:
    """How a kernel is differentiated; use it within `quiet`.

    Attributes:
        job: The kernel.
        sources: What it is differentiated by.
        uses: Of the parameters.
        by_loops: Whether Jacobians are taken by one backward pass per sample and output, which
            autograd differentiates where torch.func cannot transform the model.
    """

    job: KernelJob
    sources: Sources
    uses: ParameterUses
    by_loops: bool = False

    def of(
        self, tensors: Sequence[Tensor], weights: Weights, create_graph: bool = False
    ) -> tuple[Tensor, list[Tensor | None]]:
        """`⟨W, Θ⟩`, and its gradients.

        Args:
            tensors: The values of the sources.
            weights: W.
            create_graph: Whether the gradients are differentiated, by `tensors` and W.
        """
        with RightOperations(norms=True):
            return (self._in_graph if create_graph else self._by_rows)(tensors, weights)

    def _in_graph(
        self, tensors: Sequence[Tensor], weights: Weights
    ) -> tuple[Tensor, list[Tensor | None]]:
        """With the graph of everything."""
        with torch.enable_grad():
            # W may itself be a function of the kernel, and so of the sources; the derivative here
            # is that by the sources alone. W does not depend on these aliases of them.
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
        # Rows that depend on no source are constants too.
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
        """Add what the rows contribute; the factors of the columns are constants.

        Args:
            tensors: The values of the sources.
            rows_of: The samples of the rows, in a job with these in their places.
            columns: The samples of the columns.
            weights: By key `[rows, columns, ...]`.
            total: To add to.
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
                    left = _Left(factors)
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
        """Samples in a block of rows, of which there is a graph, and in one of columns."""
        job = self.job
        method, available = StructuredMethod(job, self.uses), budget(job.fn.device)
        kept = method.plan.numbers_per_sample(job.fn.params, alone=False) * job.item
        # Small blocks of rows cost little; for each block of columns all rows are evaluated anew.
        rows = within(available // 4, job.longest, _GRAPH * method.bytes_per_sample())
        columns = within(3 * available // 4, job.longest, 2 * kept)
        return job.batch_size or rows, even(job.longest, columns)

    def _constant(self, x: Batch, step: int) -> Factors:
        """Factors of some samples without their graph, computed in pieces of `step`."""
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
    """The sum over blocks of rows."""

    def __init__(self, sources: int, job: KernelJob) -> None:
        self.value = torch.zeros((), dtype=job.fn.products, device=job.fn.device)
        self.gradients: list[Tensor | None] = [None] * sources

    def add(self, value: Tensor, gradients: Sequence[Tensor | None]) -> None:
        """Add those of a block, all at once: a block may be tried again."""
        self.value = self.value + value
        self.gradients = [_sum(a, b) for a, b in zip(self.gradients, gradients, strict=True)]


class _Left:
    """Factors of rows that are cut off from their graph, which one backward pass goes through.

    Attributes:
        value: `⟨W, Θ⟩` of what was added.
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
        self.value = torch.zeros(())

    def _cut(self, t: Tensor) -> Tensor:
        if not t.requires_grad:
            return t
        self._ends.append(t)
        self._cuts.append(t.detach().requires_grad_())
        self._sums.append(None)
        return self._cuts[-1]

    def add(self, key: str, right: Factors, weights: Tensor, job: KernelJob) -> None:
        """Add a block of columns of one part of the kernel."""
        for (own, name), (p, places) in self._factors.items():
            if own != key:
                continue
            for term in weighted(p, right[key, name], weights, job.output):
                self.value = self.value.to(term) + term.detach()
                found = gradients([term], [self._cuts[i] for i in places])
                for i, g in zip(places, found, strict=True):
                    self._sums[i] = _sum(self._sums[i], g)

    def gradients(self, leaves: Sequence[Tensor]) -> list[Tensor | None]:
        """By what the factors were computed from."""
        used = [i for i, g in enumerate(self._sums) if g is not None]
        ends = [self._ends[i] for i in used]
        return gradients(ends, leaves, [self._sums[i] for i in used])


def gradients(
    ends: Sequence[Tensor],
    leaves: Sequence[Tensor],
    weights: Sequence[Tensor | None] | None = None,
    create_graph: bool = False,
) -> list[Tensor | None]:
    """Of the ends that depend on anything; None where they do not depend on a leaf."""
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
    """Jacobians of all parameters by plain backward passes, with their graph if one is recorded."""
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
    """Of one sample the Jacobians `[O, p]`."""
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
