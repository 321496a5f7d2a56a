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
from ._known import Proof, known
from ._parts import WHOLE, Keys
from ._uses import Plan, record
from ._weights import Cost, cost
from .rules import Use
from .rules._bias import BiasUse

# What an operation of a product in float64 takes, in those of float32.
_DOUBLE = 2.0


@dataclass(frozen=True)
class Structure:
    """A checked plan: what `factors` and `contract` need to know.

    Attributes:
        plan: The uses, and the rest.
        groups: By weight name the indices of its uses.
        costs: By weight name the counts of operations; absent where the uses of one weight are of
            different kinds, which only its Jacobian joins.
        biases: By weight name that of the bias which is contracted with it.
        right: Sizes of the batches for which the batched backward pass was seen to be right.
    """

    plan: Plan
    groups: dict[str, list[int]]
    costs: dict[str, Cost]
    biases: dict[str, str]
    right: set[int]

    def by_gram(self, name: str) -> bool:
        """Whether this weight is contracted by Gram matrices."""
        return name in self.costs and self.costs[name].by_gram

    def is_joined(self, name: str) -> bool:
        """Whether this is a bias that is contracted with its weight."""
        return name in self.biases.values()

    def positions(self, name: str) -> int:
        """How many positions the uses of this weight have together."""
        plan = self.plan
        each = [(plan.uses[i], plan.shapes[plan.calls[i]]) for i in self.groups[name]]
        return sum(use.positions(shape) for use, shape in each)

    def is_left_unformed(self, name: str, o: int) -> bool:
        """Whether this weight's Jacobian is larger than what it is the product of."""
        if name not in self.costs or self.by_gram(name):
            return False
        use = self.plan.uses[self.groups[name][0]]
        return use.is_product and self._factors(name, o) < o * use.units * use.inputs

    def _factors(self, name: str, o: int) -> int:
        use = self.plan.uses[self.groups[name][0]]
        return self.positions(name) * (use.inputs + o * use.units)

    def numbers_per_sample(self, fn: ModelFunction, o: int, alone: bool = False) -> int:
        """How many numbers the factors of one sample are.

        Args:
            fn: The function.
            o: Outputs.
            alone: Whether Jacobians are left unformed where that is less.
        """
        total = o * sum(fn.params[n].numel() for n in self.plan.rest)
        for name, indices in self.groups.items():
            if self.is_joined(name):
                continue
            if self.by_gram(name):
                total += self.costs[name].gram_size
            elif alone and self.is_left_unformed(name, o):
                total += self._factors(name, o)
            else:
                total += o * self.plan.uses[indices[0]].weight.numel()
        return total


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
        found = record(fn, x1[0])
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
            costs[name] = cost(first, sum(sizes), outputs, output, samples, pairs, price)
    structure = Structure(found, groups, costs, {}, proof.right)
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


def _prove(fn: ModelFunction, found: Plan, x: Tensor, o: int) -> Proof:
    """Compare all gradients in a fixed direction with what the plan implies.

    Raises:
        RuntimeError: Parameters that the plan leaves to automatic differentiation are wrong.
    """
    u = torch.linspace(1.0, 0.5, o, dtype=fn.dtype, device=fn.device)
    u = u * torch.linspace(0.0, 12.0, o, dtype=fn.dtype, device=fn.device).cos()
    wrong = _disagreeing(fn, found, x, u)
    if wrong:
        # Some operations of torch are wrong for channels that are innermost: instance_norm
        # returns wrong gradients for a single image of that layout.
        plain = replace(found, channels_last=False)
        wrong_plain = _disagreeing(fn, plain, x, u)
        if wrong_plain != wrong:
            found, wrong = plain, wrong_plain
    if not wrong.isdisjoint(found.rest):
        raise RuntimeError("Automatic differentiation inside of a plan is not what it is outside.")
    return Proof(frozenset(wrong), found.channels_last)


def _disagreeing(fn: ModelFunction, found: Plan, x: Tensor, u: Tensor) -> set[str]:
    """Parameters whose gradient in the direction `u` is not what the plan implies."""
    # In this order, so that weights in another layout and all gradients never stand together.
    b, rest, sources = of_sample(fn, found, x, u)
    transformed = vjp(lambda p: fn.single(p, x), fn.params)
    truth: Parameters = dict(transformed[1](u)[0])
    del transformed
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(found.names):
        groups.setdefault(name, []).append(i)
    wrong = {n for n, gradient in rest.items() if not agree([gradient], [truth[n]])}
    for name, indices in groups.items():
        implied = sum(_implied(found.uses[i], sources[i], b[found.calls[i]]) for i in indices)
        assert isinstance(implied, Tensor)
        if not agree([implied], [truth.pop(name).reshape(-1)]):  # which may be large
            wrong.add(name)
    return wrong


def _implied(use: Use, source: Tensor, b: Tensor) -> Tensor:
    """The flattened gradient by one use of a weight."""
    features = use.features(source.unsqueeze(0))
    cotangents = use.cotangents(b.unsqueeze(0).unsqueeze(0))
    return use.jacobian(features, cotangents).reshape(-1)
