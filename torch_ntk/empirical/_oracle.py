"""The kernel by a plain loop over samples and outputs, which shares no code with the methods."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import ArgumentError
from .._functional import (
    Batch,
    call_model,
    coupled_rows_of,
    evaluating,
    evaluating_on,
    leaves_reached,
    rows_of,
    select_parameters,
    unwrap,
)
from .._types import ForwardFn, ModelLike, Output, ParameterSelection


@dataclass(frozen=True)
class Loop:
    """The samples of the loop, and how the model is evaluated on them.

    Attributes:
        x: The samples.
        forward_fn, coupled, training: As in `torch_ntk.empirical_ntk`.
    """

    x: Batch
    forward_fn: ForwardFn | None = None
    coupled: bool = False
    training: bool = False

    def batches(self) -> Iterable[Batch]:
        """Return the inputs of the calls: each sample alone, or a whole coupled batch."""
        return (self.x,) if self.coupled else self.x.split(1)

    def rows(self, call: Callable[[Any], Any], x: Batch, dtype: torch.dtype) -> Tensor:
        """Return the outputs `[n, O]` of one of the batches.

        A sample is evaluated as a batch of two copies, of which the first is used: for a single
        image torch's gradient of `instance_norm` is wrong if the gradient that it receives has its
        channels innermost in memory. Models that accept only one sample get it alone.
        """
        if self.coupled:
            return coupled_rows_of(call(x.value), x, self.forward_fn)
        pair = x.join(x)
        try:
            return rows_of(call(pair.value), pair, dtype, self.forward_fn)[:1]
        except (RuntimeError, ArgumentError):
            return rows_of(call(x.value), x, dtype, self.forward_fn)

    def evaluating(self, module: nn.Module) -> AbstractContextManager[None]:
        """A context in which the module is in the requested mode."""
        return evaluating_on(module, None, self.forward_fn, training=self.training)


def kernel_by_loops(
    model: ModelLike,
    loop: Loop,
    output: Output,
    params: ParameterSelection,
    roots: Iterable[Tensor],
) -> tuple[Tensor, int]:
    """Return the kernel of the samples, in float64 if the model allows it, and O.

    `roots` are √P of each parameter, in its shape.
    """
    if isinstance(model, nn.Module):
        module = unwrap(model)
        names = select_parameters(module, params)
        twin = _in_double(module, loop)
        with loop.evaluating(twin), torch.enable_grad():
            jacobian = _of_module(twin, names, loop)
    else:
        assert isinstance(params, Mapping)
        with evaluating(None, loop.x.tensors[0]), torch.enable_grad():
            leaves = {n: p.detach().double().requires_grad_() for n, p in params.items()}
            rows = []
            for s in loop.batches():
                one = s.map(Tensor.detach).to(torch.float64).clone()
                out = loop.rows(lambda value: model(dict(leaves), value), one, torch.float64)
                rows.append(_rows(out, leaves))
            jacobian = torch.cat(rows)
    jacobian = jacobian * torch.cat([r.reshape(-1) for r in roots]).to(jacobian)
    return _contracted(jacobian, output), jacobian.shape[1]


def _of_module(module: nn.Module, names: list[str], loop: Loop) -> Tensor:
    """Return Jacobians `[N, O, P]` by the module's own parameters, whose values are restored."""
    own = dict(module.named_parameters())
    saved = [(t, t.detach().clone()) for t in (*own.values(), *module.buffers())]
    flags = {n: p.requires_grad for n, p in own.items()}
    kind = next((p.dtype for p in own.values() if p.is_floating_point()), torch.float64)
    rows = []
    try:
        for n, p in own.items():
            if p.is_floating_point() or p.is_complex():
                p.requires_grad_(n in names)
        for s in loop.batches():
            one = s.to(kind).map(lambda t: _copied(t, t.requires_grad))
            out = loop.rows(lambda value: call_model(module, value, loop.forward_fn), one, kind)
            rows.append(_rows(out, {n: own[n] for n in names}))
            for t, value in saved:  # a forward may write to its parameters and buffers
                t.data.copy_(value)
    finally:
        for t, value in saved:
            t.data.copy_(value)
        for n, p in own.items():
            p.requires_grad_(flags[n])
    return torch.cat(rows)


def _rows(out: Tensor, leaves: Mapping[str, Tensor]) -> Tensor:
    """Return the Jacobians `[n, O, P]` of the outputs `[n, O]` of one call."""
    rows = []
    for f in out.reshape(-1):
        found: tuple[Tensor | None, ...] = (None,) * len(leaves)
        if f.requires_grad:
            found = torch.autograd.grad(
                f, list(leaves.values()), retain_graph=True, allow_unused=True
            )
        row = []
        for p, g in zip(leaves.values(), found, strict=True):
            dense = torch.zeros_like(p) if g is None else g.to_dense()
            row.append((torch.view_as_real(dense) if dense.is_complex() else dense).reshape(-1))
        rows.append(torch.cat(row).detach())
    return torch.stack(rows).view(*out.shape, -1)


def _contracted(j: Tensor, output: Output) -> Tensor:
    if output == "full":
        return torch.einsum("nip,mjp->nmij", j, j)
    if output == "diagonal":
        return torch.einsum("nip,mip->nmi", j, j)
    if output == "pseudo":
        total = j.sum(1) / math.sqrt(j.shape[1])
        return total @ total.T
    trace = torch.einsum("nip,mip->nm", j, j)
    return trace / j.shape[1] if output == "mean" else trace


def _copied(t: Tensor, tracked: bool) -> Tensor:
    """Return a copy of an input, with a graph if the forward may differentiate by it."""
    return t.detach().requires_grad_().clone() if tracked else t.detach().clone()


def _in_double(module: nn.Module, loop: Loop) -> nn.Module:
    """Return a copy of the module in float64, or the module itself if it cannot be copied.

    A copy is not usable if it still uses parameters of the original, through a closure or a list.
    """
    kinds = {p.dtype for p in module.parameters() if p.is_floating_point()}
    if kinds <= {torch.float64} and not any(p.is_inference() for p in module.parameters()):
        return module
    try:
        with torch.inference_mode(False):  # tensors made in inference mode have no derivatives
            twin = copy.deepcopy(module).double()
    except (RuntimeError, TypeError):
        return module
    quiet = evaluating(twin, None, training=loop.training)
    with loop.evaluating(module), quiet, torch.enable_grad():
        one = next(iter(loop.batches())).map(lambda t: _copied(t, False)).to(torch.float64)
        try:
            out = loop.rows(
                lambda value: call_model(twin, value, loop.forward_fn), one, torch.float64
            )
        except RuntimeError:
            return module
        reached = leaves_reached(out)
    return module if any(id(p) in reached for p in module.parameters()) else twin
