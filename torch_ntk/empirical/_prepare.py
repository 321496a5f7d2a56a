"""Plan the structured method for a model: the uses, and the contraction of each weight.

Whatever the proof of the plan does not find right is moved to its own Jacobian; see `_proof`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from .._functional import ModelFunction
from .._types import Output
from ..memory import ONE_SAMPLE, is_out_of_memory
from ._cost import Way, cheapest, ways
from ._parts import WHOLE, Keys
from ._proof import proved
from ._stages import stage
from ._uses import Plan
from .rules._bias import BiasUse

# What an operation of a product in float64 takes, in those of float32.
_DOUBLE = 2.0

# Jacobians of at most so many columns are joined before they are contracted.
SMALL = 4096


@dataclass(frozen=True)
class Structure:
    """A checked plan: what `factors` and `contract` need to know.

    Attributes:
        plan: The uses, and the rest.
        outputs: O.
        groups: By weight name the indices of its uses.
        costs: By weight name the order of contraction; absent where the uses of one weight are of
            different kinds, which only its Jacobian joins.
        biases: By weight name that of the bias which is contracted with it.
        right: Sizes of the batches for which the batched backward pass was seen to be right.
    """

    plan: Plan
    outputs: int
    groups: dict[str, list[int]]
    costs: dict[str, Way]
    biases: dict[str, str]
    right: set[int]

    def by_gram(self, name: str) -> bool:
        """Whether this weight is contracted without its Jacobian."""
        return name in self.costs and self.costs[name].contraction != "jacobian"

    def is_joined(self, name: str) -> bool:
        """Whether this is a bias that is contracted with its weight."""
        return name in self.biases.values()

    def _positions(self, i: int) -> int:
        return self.plan.uses[i].positions(self.plan.shapes[self.plan.calls[i]])

    def positions(self, name: str) -> int:
        """How many positions the uses of this weight have together."""
        return sum(self._positions(i) for i in self.groups[name])

    def is_late(self, name: str) -> bool:
        """Whether less is kept of this weight if its Jacobian or its features are made last."""
        if name not in self.costs:
            return False
        use = self.plan.uses[self.groups[name][0]]
        if self.by_gram(name):
            return self._late_size(name) < self.costs[name].size
        size = use.units * use.inputs
        return use.is_product and size > SMALL and self._late_size(name) < self.outputs * size

    def _late_size(self, name: str) -> int:
        total = 0
        for i in self.groups[name]:
            use, t = self.plan.uses[i], self._positions(i)
            total += use.held_size(use.source.shape, t) + self.outputs * t * use.groups * use.units
        return total

    def passing_per_sample(self) -> int:
        """Numbers of one sample's features, where they are gathered last and for all samples."""
        found = 0
        for name, indices in self.groups.items():
            if self.by_gram(name) and not self.is_joined(name) and self.is_late(name):
                use = self.plan.uses[indices[0]]
                found = max(found, self.positions(name) * use.groups * use.inputs)
        return found

    def done_after(self, name: str) -> set[int]:
        """Calls whose cotangents no weight after this one asks for."""
        asking = [n for n in self.groups if not self.is_joined(n)]
        after = asking[asking.index(name) + 1 :]
        own, later = (
            {self.plan.calls[i] for n in ns for i in self.groups[n]} for ns in ([name], after)
        )
        return own - later

    def size(self, name: str, entries: int, alone: bool) -> int:
        """How many numbers are kept of one sample for a parameter with so many entries.

        Args:
            name: Of the parameter.
            entries: Its size.
            alone: Whether Jacobians and features are made last where that is less.
        """
        if self.is_joined(name):
            return 0
        if alone and self.is_late(name):
            return self._late_size(name)
        return self.costs[name].size if self.by_gram(name) else self.outputs * entries

    def numbers_per_sample(self, fn: ModelFunction, alone: bool) -> int:
        """How many numbers all factors of one sample are; see `size`."""
        return sum(self.size(n, p.numel(), alone) for n, p in fn.params.items())


def prepare(
    fn: ModelFunction,
    x1: Tensor,
    x2: Tensor | None,
    outputs: int,
    output: Output,
    keys: Keys | None = None,
    signature: Hashable = None,
) -> Structure:
    """Plan the uses of every parameter and prove on the first sample that the plan is complete.

    Parameters with different `keys` are contracted apart. With the `signature` of the forward
    pass, a plan that was proved for the same module is not proved again.

    Raises:
        RuntimeError, ValueError: The model's operations cannot be transformed.
        MemoryError: One sample does not fit.
    """
    try:
        with stage("plan"):
            found, proof = proved(fn, x1[0], outputs, output, signature)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise MemoryError(ONE_SAMPLE) from error
        raise
    n1, n2 = x1.shape[0], x1.shape[0] if x2 is None else x2.shape[0]
    samples, pairs = (n1, n1 * n1 / 2) if x2 is None else (n1 + n2, float(n1 * n2))
    found = replace(found, channels_last=proof.channels_last)
    if proof.wrong:
        found = found.without(set(proof.wrong), fn.params)
    groups = found.groups()
    costs = {}
    price = 1.0 if fn.products == fn.dtype else _DOUBLE
    for name, indices in groups.items():
        uses = [found.uses[i] for i in indices]
        if len({u.kind for u in uses}) == 1:
            first = uses[0]
            sizes = [found.uses[i].positions(found.shapes[found.calls[i]]) for i in indices]
            found_ways = ways(first, sum(sizes), outputs, output, samples, pairs, price)
            # A contraction over no positions at all is not worth a form of its own.
            costs[name] = cheapest(found_ways) if sum(sizes) else found_ways["jacobian"]
    structure = Structure(found, outputs, groups, costs, {}, proof.right)
    keys = dict.fromkeys(fn.params, WHOLE) if keys is None else keys
    structure.biases.update(
        (w, b) for w, b in _biases(found, groups) if structure.by_gram(w) and keys[w] == keys[b]
    )
    return structure


def _biases(found: Plan, groups: dict[str, list[int]]) -> Iterator[tuple[str, str]]:
    """Pairs of a weight and a bias that are used together, once in every call of either."""
    names = {id(use.weight): name for use, name in zip(found.uses, found.names, strict=True)}
    for bias, indices in groups.items():
        uses = [found.uses[i] for i in indices]
        joins = {u.joins if isinstance(u, BiasUse) else None for u in uses}
        weight = names.get(joins.pop() or 0) if len(joins) == 1 else None
        if weight is None:
            continue
        calls, others = ([found.calls[i] for i in groups[n]] for n in (bias, weight))
        if calls == others and len(set(calls)) == len(calls):
            yield weight, bias
