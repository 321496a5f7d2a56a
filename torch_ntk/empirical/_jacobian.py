"""The reference method: per-sample Jacobians and their contraction.

Θ[n, m, i, j] = Σ_p J1[n, i, p] · J2[m, j, p], one parameter tensor after the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import jacrev, vjp, vmap

from .._checks import value_error
from .._functional import (
    CANNOT_TRANSFORM,
    ModelFunction,
    check_batching,
    failure,
    is_checkpointing,
)
from .._types import Output, Parameters
from ..memory import check_enough, is_out_of_memory, plan
from ._outputs import row_bytes
from ._pairs import Factors, by_blocks
from ._parts import Kernels, Keys
from ._stages import stage
from ._trial import Trial
from ._weights import of_jacobian

Jacobians = dict[str, Tensor]
"""By parameter name `[n, O, p]`, p the number of entries of the parameter."""


def jacobians(fn: ModelFunction, x: Tensor) -> Jacobians:
    """Jacobians of all samples of `x`; the fastest way that the model's operations allow.

    All samples at once under vmap; if an operation has no batching rule (GRU, data-dependent
    control flow), sample by sample; if it cannot be transformed at all (an autograd.Function of
    the old kind), by plain autograd.

    Raises:
        ValueError: None of these works.
    """
    first: Exception | None = None
    for way in (_batched, _by_sample, by_autograd):
        try:
            with stage("jacobian"):
                return way(fn, x)
        except CANNOT_TRANSFORM as error:
            if is_out_of_memory(error):
                raise
            if is_checkpointing(error):
                # Plain autograd would run, with the recomputation at other parameters.
                raise failure(error, "differentiate the outputs of the model") from error
            first = first or error
    assert first is not None
    raise failure(first, "differentiate the outputs of the model") from first


def _batched(fn: ModelFunction, x: Tensor) -> Jacobians:
    jac = vmap(jacrev(fn.single), in_dims=(None, 0))(fn.params, x)
    transformed = vjp(lambda p: fn.single(p, x[-1]), fn.params)
    n, o = x.shape[0], transformed[0].numel()
    # A wrong batching rule may also return other shapes: reshape raises then.
    rows = {k: v.reshape(n, o, fn.params[k].numel()) for k, v in jac.items()}
    u = torch.linspace(1.0, 0.5, o, dtype=fn.dtype, device=fn.device)
    alone = {k: g.reshape(-1) for k, g in transformed[1](u)[0].items()}
    check_batching({k: u @ j[-1] for k, j in rows.items()}, alone)
    return rows


def _by_sample(fn: ModelFunction, x: Tensor) -> Jacobians:
    rows = []
    for sample in x:
        transformed = vjp(lambda p, s=sample: fn.single(p, s), fn.params)
        out, pull = transformed[0], transformed[1]
        basis = torch.eye(out.numel(), dtype=out.dtype, device=out.device)
        rows.append([pull(e)[0] for e in basis])
    return _stacked(fn.params, rows)


def by_autograd(fn: ModelFunction, x: Tensor) -> Jacobians:
    """Jacobians by one plain backward pass per sample and output, without torch.func.

    Raises:
        ValueError: A backward pass runs parts of the module again.
    """
    names = list(fn.params)
    rows = []
    with torch.enable_grad(), no_stray_gradients(fn.module):
        leaves = {k: v.clone().requires_grad_() for k, v in fn.params.items()}
        for sample in x:
            out = fn.single(leaves, sample)
            rows.append([_gradients(o, leaves, names) for o in out])
    return _stacked(fn.params, rows)


@contextlib.contextmanager
def no_stray_gradients(module: nn.Module | None) -> Iterator[None]:
    """Refuse backward passes that run the module again, with its own parameters in place.

    Some autograd.Functions recompute their forward in `backward`. By then the module holds its
    own parameters again, and what should have gone to the leaves lands in their `.grad`.
    """
    own = [] if module is None else list(module.parameters())
    before = [p.grad for p in own]
    try:
        for p in own:
            p.grad = None
        yield
        if any(p.grad is not None for p in own):
            raise value_error(
                "model",
                "a function that can be differentiated without recomputation",
                "an autograd.Function whose backward runs parts of the model again",
                "Switch checkpointing off while the kernel is computed.",
            )
    finally:
        for p, grad in zip(own, before, strict=True):
            p.grad = grad


def _gradients(output: Tensor, leaves: Parameters, names: list[str]) -> Parameters:
    if not output.requires_grad:
        return {k: torch.zeros_like(v) for k, v in leaves.items()}
    grads = torch.autograd.grad(
        output, [leaves[k] for k in names], retain_graph=True, materialize_grads=True
    )
    return dict(zip(names, grads, strict=True))


def _stacked(params: Parameters, rows: list[list[Parameters]]) -> Jacobians:
    return {
        k: torch.stack([torch.stack([g[k].detach().reshape(-1) for g in row]) for row in rows])
        for k in params
    }


def bytes_per_sample(fn: ModelFunction, trial: Trial) -> int:
    """Memory that one sample's Jacobian takes while it is computed and contracted.

    The Jacobian stands twice (as it is gathered from the backward pass and as it is used), and
    the batched backward pass holds each activation once per output.
    """
    item = torch.finfo(fn.dtype).bits // 8
    size = sum(p.numel() for p in fn.params.values()) * item
    return trial.outputs * (2 * size + trial.activation_bytes) + 2 * trial.activation_bytes


def kernel(
    fn: ModelFunction,
    x1: Tensor,
    x2: Tensor | None,
    output: Output,
    trial: Trial,
    batch_size: int | None,
    advance: Callable[[int], None],
    keys: Keys,
) -> Kernels:
    """The kernels `Θ(x1, x2)`, or the exactly symmetric `Θ(x1, x1)` if `x2` is None."""
    longest = max(x1.shape[0], 0 if x2 is None else x2.shape[0])
    each = bytes_per_sample(fn, trial)
    check_enough(each + each // 2 if longest > 1 else each)  # a row is kept, a column computed
    fits = plan(longest, each + row_bytes(output, longest, trial.outputs, fn.products), fn.device)

    def factors(x: Tensor, _: bool) -> Factors:
        found = jacobians(fn, x)
        return {(keys[name], name): of_jacobian(j) for name, j in found.items()}

    return by_blocks(
        factors,
        x1,
        x2,
        output,
        trial.outputs,
        fn.products,
        batch_size or fits,
        batch_size or max(1, fits // 4),
        advance,
        keys,
    )
