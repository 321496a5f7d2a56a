"""Products with the Jacobian of a batch and with its transpose, in four ways.

All but the last evaluate a batch as a batch: the sum over samples in Jᵀv is then part of the
backward pass, and no gradient of a single sample is ever formed. Which way a model allows is
found out once, on its first samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from ..._checks import ArgumentError, value_error
from ..._functional import (
    CANNOT_TRANSFORM,
    ModelFunction,
    agree,
    check_batching,
    failure,
    is_checkpointing,
)
from ..._types import Parameters
from ...memory import ONE_SAMPLE, is_out_of_memory
from .. import _jacobian
from .._trial import Trial


class Way(ABC):
    """How a batch is differentiated."""

    def bytes_per_sample(self, fn: ModelFunction, trial: Trial) -> int:
        """Memory of one sample while one direction is multiplied."""
        return 4 * trial.activation_bytes

    @abstractmethod
    def pull(self, fn: ModelFunction, x: Tensor, v: Tensor) -> tuple[Tensor, Parameters]:
        """Outputs `[n, O]`, and `Σ_n J[n]ᵀ v[c, n]` as `{name: [c, ...]}`, of `v` `[c, n, O]`."""

    @abstractmethod
    def push(self, fn: ModelFunction, x: Tensor, w: Parameters) -> Tensor:
        """`J[n] w[c]` as `[c, n, O]`, of `w` `{name: [c, ...]}`."""


class _Transformed(Way):
    """Backward passes by torch.func; several directions at once where vmap is right."""

    def __init__(self) -> None:
        self._right: set[tuple[str, int, int]] = set()  # numbers of directions and samples
        self._one_by_one: set[str] = set()

    def pull(self, fn: ModelFunction, x: Tensor, v: Tensor) -> tuple[Tensor, Parameters]:
        """One forward pass, and a backward pass for each direction."""
        transformed = vjp(lambda p: fn.batch(p, x), fn.params)
        out, pull = transformed[0], transformed[1]
        rows = self._directions("pull", lambda d: pull(d["v"])[0], {"v": v}, x.shape[0])
        return out.detach(), rows

    def _directions(
        self,
        kind: str,
        one: Callable[[Parameters], Parameters],
        directions: Parameters,
        samples: int,
    ) -> Parameters:
        """`one` for every direction; the result of vmap is checked once for each size of it."""
        count = next(iter(directions.values())).shape[0]
        if count > 1 and kind not in self._one_by_one:
            try:
                return self._at_once(kind, one, directions, (kind, count, samples))
            except CANNOT_TRANSFORM as error:
                if is_out_of_memory(error):
                    raise
                self._one_by_one.add(kind)
        rows = [one({k: d[c] for k, d in directions.items()}) for c in range(count)]
        return {k: torch.stack([row[k] for row in rows]) for k in rows[0]}

    def _at_once(
        self,
        kind: str,
        one: Callable[[Parameters], Parameters],
        directions: Parameters,
        size: tuple[str, int, int],
    ) -> Parameters:
        rows: Parameters = vmap(one)(directions)
        if size not in self._right:
            weights = _weights(next(iter(directions.values())), 1)
            together = {k: torch.tensordot(weights, d, dims=1) for k, d in directions.items()}
            check_batching(
                {k: torch.tensordot(weights, r, dims=1) for k, r in rows.items()}, one(together)
            )
            self._right.add(size)
        return rows


class Forward(_Transformed):
    """Jw in forward mode: about a forward pass and a half, and no graph."""

    def push(self, fn: ModelFunction, x: Tensor, w: Parameters) -> Tensor:
        """One jvp for each direction."""

        def one(direction: Parameters) -> Parameters:
            return {"f": jvp(lambda p: fn.batch(p, x), (fn.params,), (direction,))[1]}

        return self._directions("push", one, w, x.shape[0])["f"]


class Twice(_Transformed):
    """Jw as the derivative of `u ↦ ⟨Jᵀu, w⟩`, for operations without a forward-mode derivative."""

    def push(self, fn: ModelFunction, x: Tensor, w: Parameters) -> Tensor:
        """A backward pass through a backward pass."""
        out = vjp(lambda p: fn.batch(p, x), fn.params)[0]

        def back(u: Tensor) -> Parameters:
            pull = vjp(lambda p: fn.batch(p, x), fn.params)[1]
            gradients: Parameters = pull(u)[0]
            return gradients

        again = vjp(back, torch.zeros_like(out))[1]
        return self._directions("push", lambda d: {"f": again(d)[0]}, w, x.shape[0])["f"]


class Plain(Way):
    """The same without torch.func, for autograd.Functions of the old kind."""

    def pull(self, fn: ModelFunction, x: Tensor, v: Tensor) -> tuple[Tensor, Parameters]:
        """One backward pass for each direction."""
        with torch.enable_grad(), _jacobian.no_stray_gradients(fn.module):
            leaves = {k: p.detach().requires_grad_() for k, p in fn.params.items()}
            out = fn.batch(leaves, x)
            rows = [_gradients(out, leaves, direction) for direction in v]
        return out.detach(), {k: torch.stack([r[k].detach() for r in rows]) for k in leaves}

    def push(self, fn: ModelFunction, x: Tensor, w: Parameters) -> Tensor:
        """A backward pass through a backward pass for each direction."""
        with torch.enable_grad(), _jacobian.no_stray_gradients(fn.module):
            leaves = {k: p.detach().requires_grad_() for k, p in fn.params.items()}
            out = fn.batch(leaves, x)
            u = torch.zeros_like(out, requires_grad=True)
            gradients = _gradients(out, leaves, u, create_graph=True)
            used = [k for k, g in gradients.items() if g.requires_grad]
            count = next(iter(w.values())).shape[0]
            if not used:
                return torch.zeros(count, *out.shape, dtype=out.dtype, device=out.device)
            rows = [
                torch.autograd.grad(
                    [gradients[k] for k in used],
                    u,
                    [w[k][c] for k in used],
                    retain_graph=True,
                    materialize_grads=True,
                )[0]
                for c in range(count)
            ]
        return torch.stack(rows).detach()


class Formed(Way):
    """Jacobians of the samples of a block, for operations with first derivatives only."""

    def bytes_per_sample(self, fn: ModelFunction, trial: Trial) -> int:
        """Those of the Jacobian, whatever the number of directions."""
        return _jacobian.bytes_per_sample(fn, trial)

    def pull(self, fn: ModelFunction, x: Tensor, v: Tensor) -> tuple[Tensor, Parameters]:
        """Rows of the Jacobians, weighted and summed."""
        rows = v.reshape(v.shape[0], -1)
        return fn.batch(fn.params, x), {
            k: (rows @ j.reshape(rows.shape[1], -1)).reshape(-1, *fn.params[k].shape)
            for k, j in _jacobian.jacobians(fn, x).items()
        }

    def push(self, fn: ModelFunction, x: Tensor, w: Parameters) -> Tensor:
        """The Jacobians times each direction."""
        products = [
            (j @ w[k].reshape(-1, j.shape[2]).T).permute(2, 0, 1)
            for k, j in _jacobian.jacobians(fn, x).items()
        ]
        return torch.stack(products).sum(0)


def _gradients(
    out: Tensor, leaves: Parameters, u: Tensor, create_graph: bool = False
) -> Parameters:
    if not out.requires_grad:
        return {k: torch.zeros_like(p) for k, p in leaves.items()}
    gradients = torch.autograd.grad(
        out,
        list(leaves.values()),
        u,
        retain_graph=True,
        create_graph=create_graph,
        materialize_grads=True,
    )
    return dict(zip(leaves, gradients, strict=True))


def choose(fn: ModelFunction, x: Tensor) -> Way:
    """The first way in which the derivatives of the samples `x` are right.

    Right means that the batch has the derivatives of its samples alone, and that the product
    with J is the transpose of the product with Jᵀ: with g = Jᵀu, `⟨u, J g⟩ = ‖g‖²`, a sum without
    cancellation. It is not in forward mode where a forward stops gradients with
    `torch.no_grad()`, which forward mode ignores.

    Raises:
        ValueError: No way is right.
        MemoryError: The samples do not fit.
    """
    first: Exception | None = None
    for way in (Forward(), Twice(), Plain(), Formed()):
        try:
            if _is_right(way, fn, x):
                return way
        except CANNOT_TRANSFORM as error:
            if is_out_of_memory(error):
                raise MemoryError(ONE_SAMPLE) from error
            if is_checkpointing(error):
                # Plain autograd would run, with the recomputation at other parameters.
                raise failure(error, "differentiate the outputs of the model") from error
            if isinstance(error, ArgumentError):
                raise
            first = first or error
    if first is not None:
        raise failure(first, "multiply by the Jacobian of the model") from first
    raise value_error(
        "model",
        "a function with one derivative",
        "one whose backward pass on a batch is not that on its samples",
        "Look for an autograd.Function with an inconsistent backward.",
    )


def _is_right(way: Way, fn: ModelFunction, x: Tensor) -> bool:
    outputs = fn.batch(fn.params, x)
    u = _weights(outputs, 2)
    _, together = way.pull(fn, x, u[None])
    total = {k: torch.zeros_like(g) for k, g in together.items()}
    for n in range(x.shape[0]):
        for k, g in way.pull(fn, x[n : n + 1], u[None, n : n + 1])[1].items():
            total[k] += g
    squared = sum(float(g.square().sum()) for g in together.values())
    if not torch.isfinite(torch.tensor(squared)):
        return True  # no product will be finite either, and says more about it
    if not agree(together.values(), (total[k] for k in together)):
        raise value_error(
            "model",
            "a function of one sample at a time",
            "derivatives of a sample that change with the other samples of its batch",
            "Replace what is computed over the batch by what is computed over a sample.",
        )
    forwards = float((way.push(fn, x, together)[0] * u).sum())
    eps = torch.finfo(fn.dtype).eps
    return bool(abs(forwards - squared) <= 100 * eps**0.5 * squared)


def _weights(like: Tensor, dims: int) -> Tensor:
    """Weights of a sum over the first `dims` dimensions; no two are equal."""
    shape = like.shape[:dims]
    flat = torch.linspace(1.0, 0.5, shape.numel(), dtype=like.dtype, device=like.device)
    return flat.reshape(shape)
