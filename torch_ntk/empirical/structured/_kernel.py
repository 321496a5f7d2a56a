"""The structured method: contract each weight's inputs and cotangents in the cheapest order.

The cotangents of all uses come from one batched backward pass that computes no gradient of their
weights. The same pass computes the Jacobians of parameters that no rule covers.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..._functional import Batch
from ...memory import aim, budget, check_enough, within
from .._checked_blocks import FactorMethod
from .._job import KernelJob
from .._outputs import row_bytes
from .._stages import stage
from ..checksum import BlockCheck
from ..contract import (
    SMALL,
    Call,
    Factor,
    Factors,
    GramFactor,
    JacobianFactor,
    TiedFactor,
    Unformed,
    joined_features,
    piece_sizes,
)
from ..rules import EmbeddingUse, Use
from ._cotangents import Cotangents, cotangents
from ._parameter_uses import ParameterUses
from ._plan import Plan, make_plan

# How many results of the largest size a backward pass needs in memory at once.
_AT_WORK = 4
# A backward pass of small results may read and write so many times the bytes of the caches.
_MORE = 4
_JOINED = "(joined)"
"""Replaces the names of joined parameters; a parameter's name has no parentheses."""


class StructuredMethod(FactorMethod):
    """Computes factors by the rules of the operations in which parameters are used.

    With `innermost`, convolutions on a CPU run with their channels innermost in memory.
    """

    def __init__(
        self,
        job: KernelJob,
        uses: ParameterUses,
        by_loops: frozenset[str] = frozenset(),
        innermost: bool = True,
    ) -> None:
        super().__init__(job, by_loops)
        self._uses, self._innermost = uses, innermost
        uses = uses.in_dtype(job.fn.dtype).without(set(by_loops))
        uses = replace(uses, rest=tuple(n for n in uses.rest if n not in by_loops))
        self.plan: Plan = make_plan(job, uses, innermost)
        self._fn = replace(job.fn, params=self.plan.laid_out(job.fn.params))

    def bytes_per_sample(self) -> int:
        """Return the memory of one sample's factors and of its batched backward pass."""
        job = self.job
        kept = self.plan.numbers_per_sample(job.fn.params, alone=False) * job.item
        return 2 * kept + self._backward_bytes()

    def _backward_bytes(self) -> int:
        """Return the memory of one sample's batched backward pass.

        It consists of the results that the forward pass stores, of the cotangents of calls and the
        Jacobians of the rest for every output, and of about four results of the largest size. The
        cotangents of all results, read and written, are an upper bound, which is smaller if there
        are few results.
        """
        job, uses = self.job, self.plan.uses
        kept = sum(shape.numel() for shape in uses.shapes)
        kept += sum(job.fn.params[n].numel() for n in uses.rest)
        forward = job.forward
        at_work = job.outputs * (kept * job.item + _AT_WORK * forward.largest_bytes)
        return min(at_work + 2 * forward.activation_bytes, self._passed_bytes())

    def _passed_bytes(self) -> int:
        """Return the bytes that one sample's backward pass reads and writes."""
        return 2 * (self.job.outputs + 1) * self.job.forward.activation_bytes

    def _samples_of_piece(self) -> int:
        """Return a number of samples whose backward pass, or each of its results, fits in cache.

        A pass of many small operations, such as the steps of a recurrent layer, is mostly overhead
        of calls. Then a few more samples exceed the caches, but cost less than more passes.
        """
        pieces, passed = piece_sizes(self.job.fn.device), max(1, self._passed_bytes())
        fitting = pieces.samples(passed)
        if pieces.backward is None:
            return fitting
        largest = max(1, self.job.outputs * self.job.forward.largest_bytes)
        small, sparing = min(pieces.again // largest, _MORE * pieces.backward // passed), aim()
        if sparing is not None:
            small = min(small, sparing // (3 * max(1, self._backward_bytes())))
        return max(fitting, small)

    def sizes(self) -> tuple[int, int]:
        """Choose the sizes from the free memory and from the caches."""
        job, plan, params = self.job, self.plan, self.job.fn.params
        available, longest = budget(job.fn.device), job.longest
        row = row_bytes(job.output, longest, job.outputs, job.fn.products)
        kept = plan.numbers_per_sample(params, alone=False) * job.item + row
        size = within(available, longest, 2 * kept)
        if job.x2 is None:  # all at once, if the factors of unformed Jacobians fit
            kept = plan.numbers_per_sample(params, alone=True) * job.item + row
            kept += plan.largest_features() * (torch.finfo(job.fn.products).bits // 8)
            size = longest if within(available, longest, 2 * kept) == longest else size
        at_once = self.bytes_per_sample()
        check_enough(at_once)
        step = within(available, longest, 4 * at_once)
        step = min(step, self._samples_of_piece())
        return job.batch_size or size, job.batch_size or step

    def without(self, names: frozenset[str]) -> StructuredMethod | None:
        """Return the method with the usual layout, or then with plain loops for these parameters.

        Some operations of torch are wrong if channels are innermost in memory: instance_norm
        returns wrong gradients for a single image with that layout.
        """
        names = frozenset() if self.plan.channels_last else names
        return self._with(self.job, self.by_loops | names, innermost=False)

    def of_job(self, job: KernelJob) -> StructuredMethod:
        """Return the method for another job with the same uses."""
        return self._with(job, self.by_loops, self._innermost)

    def _with(self, job: KernelJob, by_loops: frozenset[str], innermost: bool) -> StructuredMethod:
        return StructuredMethod(job, self._uses, by_loops, innermost)

    def factors(self, x: Batch, start: int, alone: bool, check: BlockCheck | None) -> Factors:
        """Return the factors, from the cotangents of all uses; see `FactorMethod.factors`.

        `UsesChangedError` is raised if the model uses its parameters in another way than planned.
        """
        plan, job = self.plan, self.job
        keys, o = job.keys, job.outputs
        found = self.backward(x, start, check)
        b: list[Tensor | None] = list(found.of_calls)
        sources, of_rest = found.sources, found.of_rest
        del found
        factors: Factors = {}
        joined: dict[str, list[Tensor]] = {}  # small Jacobians by key, multiplied by one product

        def add(name: str, jacobian: Tensor) -> None:
            if jacobian.shape[2] <= SMALL or name in of_rest:
                joined.setdefault(keys[name], []).append(jacobian)
            else:
                factors[keys[name], name] = JacobianFactor.of(jacobian)

        for name in plan.groups:
            if plan.is_joined(name):
                continue
            rows = self._cotangents_of(name, b)
            calls = [(use, sources[i]) for use, i in self._indexed(name)]
            for call in plan.done_after(name):
                b[call] = None  # freed as soon as possible, because cotangents are large
            made = self._factor(name, calls, rows, alone)
            if isinstance(made, Tensor):
                add(name, made)
            else:
                factors[keys[name], name] = made
        for name, jacobian in of_rest.items():
            add(name, job.precondition.columns(name, jacobian.reshape(len(x), o, -1)))
        for key, jacobians in joined.items():
            one = jacobians[0] if len(jacobians) == 1 else torch.cat(jacobians, dim=2)
            factors[key, _JOINED] = JacobianFactor.of(one)
        return factors

    def backward(self, x: Batch, start: int, check: BlockCheck | None) -> Cotangents:
        """Return the cotangents of a piece of a block, and add them to the check."""
        with stage("backward"):
            found = cotangents(self._fn, self.plan.uses, x, self.job.outputs)
        if check is not None:
            check.add_outputs(found.outputs)
            with stage("check"):
                self._check_uses(check, start, found)
        return found

    def _check_uses(self, check: BlockCheck, start: int, found: Cotangents) -> None:
        """Add all parameters, for the samples from `start` on, to the check."""
        for name, jacobian in found.of_rest.items():
            flat = jacobian.reshape(len(jacobian), self.job.outputs, -1)
            check.sums.add_jacobian(name, start, flat)
        signed = [check.sums.signed(start, b) for b in found.of_calls]
        for name, indices in self.plan.groups.items():
            calls = [(use, found.sources[i]) for use, i in self._indexed(name)]
            check.sums.add_uses(name, calls, [signed[self.plan.call_of(i)] for i in indices])

    def _indexed(self, name: str) -> list[tuple[Use, int]]:
        """Return the uses of a parameter and their indices."""
        return list(zip(self.plan.uses_of(name), self.plan.groups[name], strict=True))

    def _cotangents_of(self, name: str, b: list[Tensor | None]) -> list[Tensor]:
        """Return the cotangents `[N, O, G, T, b]` of every use of a parameter."""
        of_calls = [(use, b[self.plan.call_of(i)]) for use, i in self._indexed(name)]
        return [use.cotangents(c) for use, c in of_calls if c is not None]

    def _factor(
        self, name: str, calls: list[Call], rows: list[Tensor], alone: bool
    ) -> Factor | Tensor:
        """Return the factor of one weight, or its Jacobian `[N, O, p]`.

        `rows` are the cotangents of the uses; the list is emptied. For `alone` see `factors`.
        """
        plan, precondition = self.plan, self.job.precondition
        root = precondition.root(name)
        if name in plan.tied and isinstance(root, float):
            return self._tied(calls, rows, root)
        if name in plan.tied and alone and plan.is_late(name):
            ((read, c), (applied, b)) = _by_kind(calls, rows)
            held = [(use, use.held(source)) for use, source in applied]
            rows_read = joined_features(read)[:, 0, :, 0], c[:, :, 0]
            return JacobianFactor.of(Unformed(b[:, :, 0], held, root, rows_read))
        if name not in plan.costs:
            with stage("jacobian"):
                each = [u.jacobian(u.features(s), c) for (u, s), c in zip(calls, rows, strict=True)]
                return precondition.columns(name, torch.stack(each).sum(0))
        # Uses of a weight with the same kind are treated as further positions of one use.
        use = calls[0][0]
        b = rows[0] if len(rows) == 1 else torch.cat(rows, dim=3)
        rows.clear()
        p: Tensor | None = None
        if isinstance(root, Tensor) and plan.is_gram(name):
            if plan.costs[name].contraction == "pairs":
                p = use.pack(root.square())
            else:
                b = use.scaled(b, joined_features(calls), root)
        is_late = alone and plan.is_late(name)
        if is_late:
            calls = [(use, use.held(source)) for use, source in calls]
        if plan.is_gram(name):
            a = calls if is_late else joined_features(calls)
            scale = 1.0 if isinstance(root, Tensor) else root**2
            shift = 0.0
            if name in plan.biases:
                of_bias = precondition.root(plan.biases[name])
                assert isinstance(of_bias, float)
                shift = of_bias**2
            between = plan.costs[name].contraction == "features"
            factor = GramFactor.of(a, b, use, self.job.output, scale, shift, between)
            return factor if p is None else replace(factor, p=p)
        if is_late:
            scales = use.pack(root)[0] if isinstance(root, Tensor) else root
            return JacobianFactor.of(Unformed(b[:, :, 0], calls, scales))
        with stage("jacobian"):
            j = use.columns(joined_features(calls), b)
            if isinstance(root, Tensor):
                return j * use.in_columns(root).flatten()
            return j if root == 1.0 else j * root

    def _tied(self, calls: list[Call], rows: list[Tensor], root: float) -> TiedFactor:
        """Return the factor of an embedding that is also a linear layer; `rows` is emptied."""
        output = self.job.output
        both = (
            GramFactor.of(joined_features(own), b, own[0][0], output, root**2)
            for own, b in _by_kind(calls, rows)
        )
        return TiedFactor(*both)


def _by_kind(calls: list[Call], rows: list[Tensor]) -> list[tuple[list[Call], Tensor]]:
    """Return the calls and cotangents as an embedding, and those as a linear layer."""
    both = []
    for looked_up in (True, False):
        own = [k for k, (u, _) in enumerate(calls) if isinstance(u, EmbeddingUse) is looked_up]
        b = rows[own[0]] if len(own) == 1 else torch.cat([rows[k] for k in own], dim=3)
        both.append(([calls[k] for k in own], b))
    rows.clear()
    return both
