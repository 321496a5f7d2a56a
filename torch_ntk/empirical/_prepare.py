"""Plan the structured method for a model, and prove that the plan is complete.

The gradient that the plan implies for one sample and a random output direction is compared with
that of automatic differentiation, parameter by parameter: whatever does not agree is moved to its
own Jacobian.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import vjp

from .._functional import ModelFunction, agree, is_out_of_memory
from .._types import Output, Parameters
from ._backward import of_sample
from ._blocks import ONE_SAMPLE
from ._cost import Way, cheapest, ways
from ._known import Proof, known
from ._parts import WHOLE, Keys
from ._uses import Plan, record
from .rules import Use
from .rules._bias import BiasUse

# What an operation of a product in float64 takes, in those of float32.
_DOUBLE = 2.0

# Gradients that are compared at once.
_PORTION_BYTES = 16 * 1024**2

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
        found = _planned(fn, x1[0], signature)
        proofs, key = known(fn).proofs, (signature, output, outputs, *found.description())
        proof = proofs.get(key) if signature is not None else None
        if proof is None:
            proof = _prove(fn, found, x1[0], outputs)
            if signature is not None:
                proofs[key] = proof
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise MemoryError(ONE_SAMPLE) from error
        raise
    n1, n2 = x1.shape[0], x1.shape[0] if x2 is None else x2.shape[0]
    samples, pairs = (n1, n1 * n1 / 2) if x2 is None else (n1 + n2, float(n1 * n2))
    found = replace(found, channels_last=proof.channels_last)
    if proof.wrong:
        found = found.without(set(proof.wrong), fn.params)
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(found.names):
        groups.setdefault(name, []).append(i)
    costs = {}
    price = 1.0 if fn.products == fn.dtype else _DOUBLE
    for name, indices in groups.items():
        uses = [found.uses[i] for i in indices]
        if len({u.kind for u in uses}) == 1:
            first = uses[0]
            sizes = [found.uses[i].positions(found.shapes[found.calls[i]]) for i in indices]
            found_ways = ways(first, sum(sizes), outputs, output, samples, pairs, price)
            costs[name] = cheapest(found_ways)
    structure = Structure(found, outputs, groups, costs, {}, proof.right)
    keys = dict.fromkeys(fn.params, WHOLE) if keys is None else keys
    structure.biases.update(
        (w, b) for w, b in _biases(found, groups) if structure.by_gram(w) and keys[w] == keys[b]
    )
    return structure


def _planned(fn: ModelFunction, x: Tensor, signature: Hashable) -> Plan:
    """The plan; that of an equal forward pass of the same module, if there was one.

    Should the calls be others all the same, the first pass that follows the plan says so.
    """
    plans = known(fn).plans
    if signature is None or signature not in plans:
        found = record(fn, x)
        if signature is None:
            return found
        plans[signature] = found.of({n: p.to("meta") for n, p in fn.params.items()})
    return plans[signature].of(fn.params)


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


def _prove(fn: ModelFunction, found: Plan, x: Tensor, o: int) -> Proof:
    """Compare all gradients in a fixed direction with what the plan implies.

    Raises:
        RuntimeError: Parameters that the plan leaves to automatic differentiation are wrong.
    """
    u = torch.linspace(1.0, 0.5, o, dtype=fn.dtype, device=fn.device)
    u = u * torch.linspace(0.0, 12.0, o, dtype=fn.dtype, device=fn.device).cos()
    # Some operations of torch are wrong for channels that are innermost: instance_norm returns
    # wrong gradients for a single image of that layout.
    layouts = [found, replace(found, channels_last=False)] if found.convolved() else [found]
    best: Proof | None = None
    for plan in layouts:
        laid = replace(fn, params={**fn.params, **plan.laid(fn.params)})
        wrong = _disagreeing(fn, laid, plan, x, u)
        if not wrong:
            fn.params.update(laid.params)  # every pass wants them so
            return Proof(frozenset(), plan.channels_last)
        if best is not None and len(wrong) >= len(best.wrong):
            continue
        if not _disagreeing(fn, laid, plan.without(wrong, fn.params), x, u):
            best = Proof(frozenset(wrong), plan.channels_last)
    if best is None:
        raise RuntimeError("Automatic differentiation inside of a plan is not what it is outside.")
    return best


def _disagreeing(
    fn: ModelFunction, laid: ModelFunction, found: Plan, x: Tensor, u: Tensor
) -> set[str]:
    """Parameters whose gradient in the direction `u` is not what the plan implies.

    Args:
        fn: The function with its weights as they came.
        laid: The same with its weights in the layout of the plan.
        found: The plan.
        x: A sample.
        u: The direction.
    """
    b, rest, sources = of_sample(laid, found, x, u)
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(found.names):
        groups.setdefault(name, []).append(i)
    wrong = set()
    for some in _portions(fn.params):
        pull = vjp(lambda p: fn.single({**fn.params, **p}, x), some)[1]
        truth: Parameters = pull(u)[0]
        for name, gradient in truth.items():
            implied = rest.pop(name, None)
            if implied is None:
                uses = [(found.uses[i], sources[i], b[found.calls[i]]) for i in groups[name]]
                implied = torch.stack([_implied(*use) for use in uses]).sum(0)
            if not agree([implied.reshape(-1)], [gradient.reshape(-1)]):
                wrong.add(name)
        del pull, truth
    return wrong


def _portions(params: Parameters) -> Iterator[Parameters]:
    """The parameters in a few parts, where their gradients together are large."""
    sizes = {n: p.numel() * p.element_size() for n, p in params.items()}
    most = max(_PORTION_BYTES, sum(sizes.values()) // 4)
    part: Parameters = {}
    for name, p in params.items():
        if part and sum(sizes[n] for n in part) + sizes[name] > most:
            yield part
            part = {}
        part[name] = p
    yield part


def _implied(use: Use, source: Tensor, b: Tensor) -> Tensor:
    """The flattened gradient by one use of a weight."""
    features = use.features(source.unsqueeze(0))
    cotangents = use.cotangents(b.unsqueeze(0).unsqueeze(0))
    return use.jacobian(features, cotangents).reshape(-1)
