"""The plan of the structured method: the uses of parameters, and the contraction of each weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..._types import Parameters
from .._job import KernelJob
from ..contract import SMALL
from ..rules import BiasUse, EmbeddingUse, LinearUse, Use
from ._cost import ContractionCost, cheapest, contraction_costs
from ._parameter_uses import ParameterUses


@dataclass(frozen=True)
class Plan:
    """How the contribution of every parameter to a kernel is computed.

    Attributes:
        uses: The uses of all parameters, and the rest.
        outputs: The number O of outputs.
        groups: The indices of each weight's uses, by its name.
        costs: The order of contraction of each weight, by its name. A weight whose uses have
            different kinds has none, because only their Jacobians can be added.
        tied: The order for a weight that is both an embedding and a linear layer: "tied", or
            "jacobian" if its P varies.
        biases: The name of the bias that is contracted together with a weight, by the weight's
            name.
        channels_last: The names of the convolutions' weights that have their channels innermost in
            memory during a pass.
    """

    uses: ParameterUses
    outputs: int
    groups: Mapping[str, list[int]]
    costs: Mapping[str, ContractionCost]
    tied: Mapping[str, ContractionCost]
    biases: Mapping[str, str]
    channels_last: frozenset[str]

    def laid_out(self, params: Parameters) -> Parameters:
        """Return the parameters, with weights of convolutions in the layout of the passes."""
        return {n: _channels_last(p) if n in self.channels_last else p for n, p in params.items()}

    def is_gram(self, name: str) -> bool:
        """Whether this weight is contracted without its Jacobian."""
        return name in self.costs and self.costs[name].contraction != "jacobian"

    def is_joined(self, name: str) -> bool:
        """Whether this is a bias that is contracted together with its weight."""
        return name in self.biases.values()

    def uses_of(self, name: str) -> list[Use]:
        """Return the uses of this weight."""
        return [self.uses.uses[i] for i in self.groups[name]]

    def call_of(self, i: int) -> int:
        """Return the index of the call of the i-th use."""
        return self.uses.calls[i]

    def _positions_of(self, i: int) -> int:
        return self.uses.uses[i].positions(self.uses.shapes[self.uses.calls[i]])

    def positions(self, name: str) -> int:
        """Return the number of positions of all uses of this weight."""
        return sum(self._positions_of(i) for i in self.groups[name])

    def is_late(self, name: str) -> bool:
        """Whether making this weight's Jacobian or features as late as possible saves memory."""
        if name not in self.costs and name not in self.tied:
            return False
        use = self.uses_of(name)[0]
        if name in self.tied:
            size = use.weight.numel()
            is_formed = self.tied[name].contraction == "jacobian" and size > SMALL
            return is_formed and self._late_size(name) < self.outputs * size
        if self.is_gram(name):
            return self._late_size(name) < self.costs[name].size
        size = use.units * use.inputs
        return use.is_product and size > SMALL and self._late_size(name) < self.outputs * size

    def _late_size(self, name: str) -> int:
        total = 0
        for i in self.groups[name]:
            use, t = self.uses.uses[i], self._positions_of(i)
            total += use.held_size(use.source.shape, t) + self.outputs * t * use.groups * use.units
        return total

    def largest_features(self) -> int:
        """Return the largest number of features per sample that are made late."""
        late = [n for n in self.groups if self.is_gram(n) and not self.is_joined(n)]
        sizes = [
            self.positions(n) * self.uses_of(n)[0].groups * self.uses_of(n)[0].inputs
            for n in late
            if self.is_late(n)
        ]
        return max(sizes, default=0)

    def done_after(self, name: str) -> set[int]:
        """Return the calls whose cotangents no weight after this one needs."""
        asking = [n for n in self.groups if not self.is_joined(n)]
        after = asking[asking.index(name) + 1 :]
        own, later = (
            {self.call_of(i) for n in ns for i in self.groups[n]} for ns in ([name], after)
        )
        return own - later

    def size(self, name: str, entries: int, alone: bool) -> int:
        """Return how many numbers of one sample are stored for a parameter with so many entries.

        With `alone` Jacobians and features are made late if that saves memory.
        """
        if self.is_joined(name):
            return 0
        if alone and self.is_late(name):
            return self._late_size(name)
        if name in self.tied:
            return self.tied[name].size
        return self.costs[name].size if self.is_gram(name) else self.outputs * entries

    def numbers_per_sample(self, params: Parameters, alone: bool) -> int:
        """Return the number of entries of all factors of one sample; see `size`."""
        return sum(self.size(n, p.numel(), alone) for n, p in params.items())


def make_plan(job: KernelJob, uses: ParameterUses, innermost: bool = True) -> Plan:
    """Choose the contraction of each weight; those with different keys are contracted separately.

    With `innermost`, convolutions on a CPU run with their channels innermost in memory.
    """
    groups = uses.groups()
    costs, tied = {}, {}
    for name, indices in groups.items():
        own = [uses.uses[i] for i in indices]
        varies = job.precondition.varies(name)
        cost = _cost_of_tied(job, own, [uses.shapes[uses.calls[i]] for i in indices], varies)
        if cost is not None:
            tied[name] = cost
        if len({use.kind for use in own}) == 1:
            positions = [uses.uses[i].positions(uses.shapes[uses.calls[i]]) for i in indices]
            found = contraction_costs(job, own[0], sum(positions))
            if varies and not own[0].has_one_feature:
                # A Gram matrix cannot contain a P that varies within the weight.
                found = {k: cost for k, cost in found.items() if k in ("jacobian", "pairs")}
            # A weight that is used at no position needs no other form.
            costs[name] = cheapest(found) if sum(positions) else found["jacobian"]
    grams = {n for n, cost in costs.items() if cost.contraction != "jacobian"}
    biases = {
        weight: bias
        for weight, bias in _biases(uses, groups)
        if weight in grams
        and job.keys[weight] == job.keys[bias]
        # They share their cotangents, which cannot be multiplied by the P of one of them.
        and not job.precondition.varies(weight)
        and not job.precondition.varies(bias)
    }
    layout = frozenset(uses.convolutions()) if innermost else frozenset()
    return Plan(uses, job.outputs, groups, costs, tied, biases, layout)


def _cost_of_tied(
    job: KernelJob, uses: list[Use], shapes: list[torch.Size], varies: bool
) -> ContractionCost | None:
    """Return the cost of a weight that is both an embedding and a linear layer.

    If its P `varies`, this is the cost of its Jacobian. The result is None if the weight is used in
    any other way, or if its Jacobian costs less.
    """
    looked_up = [u for u in uses if type(u) is EmbeddingUse]
    applied = [u for u in uses if type(u) is LinearUse]
    if not looked_up or not applied or len(looked_up) + len(applied) < len(uses):
        return None
    positions = [u.positions(shape) for u, shape in zip(uses, shapes, strict=True)]
    t = sum(p for u, p in zip(uses, positions, strict=True) if type(u) is EmbeddingUse)
    s = sum(positions) - t
    if not t or not s:
        return None
    of_either = [contraction_costs(job, u, n) for u, n in ((looked_up[0], t), (applied[0], s))]
    if varies:
        return of_either[1]["jacobian"]
    each = job.outputs**2 if job.output == "full" else job.outputs
    between = 4.0 * job.pairs * t * s * (job.outputs * applied[0].inputs + each)
    grams = [found["gram"] for found in of_either]
    effort = between + sum(cost.effort for cost in grams)
    if effort >= of_either[1]["jacobian"].effort:
        return None
    operations = between + sum(cost.operations for cost in grams)
    return ContractionCost("tied", operations, sum(cost.size for cost in grams), effort)


def _biases(uses: ParameterUses, groups: Mapping[str, list[int]]) -> Iterator[tuple[str, str]]:
    """Yield pairs of a weight and a bias that are each used once in the same calls."""
    for bias, indices in groups.items():
        own = [uses.uses[i] for i in indices]
        joins = {use.joins if isinstance(use, BiasUse) else None for use in own}
        weight = joins.pop() if len(joins) == 1 else None
        if weight is None or weight not in groups:
            continue
        calls, others = ([uses.calls[i] for i in groups[n]] for n in (bias, weight))
        if calls == others and len(set(calls)) == len(calls):
            yield weight, bias


def _channels_last(weight: Tensor) -> Tensor:
    """Return the weight of a convolution with its channels innermost in memory.

    oneDNN uses the layout of the weight. With few channels it is up to five times as fast if these
    are innermost, and patches are copied in whole rows. The strides determine the layout, even if
    the weight has a single tap.
    """
    _, c, h, w = weight.shape
    if weight.stride() == (c * h * w, 1, w * c, c):
        return weight
    return torch.empty_like(weight, memory_format=torch.channels_last).copy_(weight)
