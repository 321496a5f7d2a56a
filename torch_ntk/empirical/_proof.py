"""Prove that a plan covers every parameter, and keep what was proved.

The gradient that the plan implies for one sample and a random output direction is compared with
that of automatic differentiation, parameter by parameter.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import vjp

from .._functional import ModelFunction, agree
from .._types import Output, Parameters
from ._backward import of_sample
from ._known import Proof, known
from ._uses import Plan, PlanChangedError, record
from .rules import Use

# Gradients that are compared at once.
_PORTION_BYTES = 16 * 1024**2


def proved(
    fn: ModelFunction, x: Tensor, outputs: int, output: Output, signature: Hashable
) -> tuple[Plan, Proof]:
    """The plan for the sample `x`, and what its proof found.

    With the `signature` of the forward pass, neither is made again for the same module.

    Raises:
        RuntimeError: Parameters that no rule covers are wrong.
    """
    try:
        return _proved(fn, _planned(fn, x, signature), x, outputs, output, signature)
    except PlanChangedError:  # the plan was that of another pass
        if known(fn).plans.pop(signature, None) is None:
            raise
    return _proved(fn, _planned(fn, x, signature), x, outputs, output, signature)


def _proved(
    fn: ModelFunction, found: Plan, x: Tensor, outputs: int, output: Output, signature: Hashable
) -> tuple[Plan, Proof]:
    proofs, key = known(fn).proofs, (signature, output, outputs, *found.description())
    proof = proofs.get(key) if signature is not None else None
    if proof is None:
        proof = _prove(fn, found, x, outputs)
        if signature is not None:
            proofs[key] = proof
    return found, proof


def _planned(fn: ModelFunction, x: Tensor, signature: Hashable) -> Plan:
    """The plan; that of an equal forward pass of the same module, if there was one.

    Should the calls be others all the same, the first pass that follows the plan says so.
    """
    plans = known(fn).plans
    found = None if signature is None else plans.get(signature)
    if found is not None:
        return found.of(fn.params)
    found = record(fn, x)
    if signature is not None:
        plans[signature] = found.of({n: p.to("meta") for n, p in fn.params.items()})
    return found


def _prove(fn: ModelFunction, found: Plan, x: Tensor, o: int) -> Proof:
    """Compare all gradients in a fixed direction with what the plan implies.

    Raises:
        RuntimeError: Not even the parameters that it leaves to automatic differentiation agree.
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
            fn.params.update(laid.params)  # every pass of the plan wants them so
            return Proof(frozenset(), plan.channels_last)
        if best is not None and len(wrong) >= len(best.wrong):
            continue
        rest = plan.without(wrong, fn.params)
        laid = replace(fn, params={**fn.params, **rest.laid(fn.params)})
        if not _disagreeing(fn, laid, rest, x, u):
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
    groups = found.groups()
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
