"""Kernel columns as products with vectors: a vjp for each column, then one jvp for all rows.

Column (m, j) of the kernel is J1 (J2[m]ᵀ e_j): the vector in parentheses is a vjp of sample m, and
the product with J1 a jvp of every sample of x1 in that direction. A sample's Jacobian is never
formed (Novak et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from ..._checks import ArgumentError
from ..._functional import (
    Batch,
    CannotTransformError,
    PlainPass,
    RightOperations,
    agree,
    transforming,
)
from ..._types import Parameters
from ...memory import Backoff, check_enough, plan, ranges
from .._job import KernelJob
from .._outputs import add_columns_, symmetrize_, transposed
from .._parts import Kernels
from ..checksum import companion_of, depends_on_batch, plain_jacobians, signs
from ..inspect import not_deterministic
from ._product_methods import DenseProducts, PlainProducts


def by_vector_products(job: KernelJob) -> Kernels:
    """Return the kernels of the job."""
    products = _VectorProducts(job)
    results = job.empty_kernels()
    o, n1, n2 = job.outputs, len(job.x1), len(job.columns)
    rows, samples, outputs = products.sizes()
    basis = torch.eye(o, dtype=job.fn.dtype, device=job.fn.device)
    blocks = Backoff(n2, samples, within=max(rows, outputs))
    symmetric = job.x2 is None

    def columns(start: int, stop: int) -> None:
        top = start if symmetric else 0  # the rows above are mirrored entries
        for result in results.values():
            result[top:, start:stop] = 0
        for i, k in ranges(0, o, blocks.cut(outputs)):
            directions = products.directions(start, stop, basis[i:k])
            directions = job.precondition.times(directions)
            products.note_size(directions)
            for key, result in results.items():
                # A part of the kernel is the derivative along the direction of its parameters.
                own = {
                    n: v if job.keys[n] == key else torch.zeros_like(v)
                    for n, v in directions.items()
                }
                for a, b in ranges(top, n1, blocks.cut(rows)):
                    found = products.along(a, b, own).view(stop - start, k - i, b - a, o)
                    add_columns_(result[a:b, start:stop], found, i, job.output)
        if symmetric:
            for result in results.values():
                symmetrize_(result[start:stop, start:stop])
                result[start:stop, stop:] = transposed(result[stop:, start:stop])
        job.advance(stop - start)

    if job.check:
        Backoff(1, 1).run(products.check_determined)
    blocks.run(columns)
    return results


class _VectorProducts:
    """Directions `J2ᵀ e` of samples of x2, and products `J1 w` for samples of x1, with checks.

    The sum of directions with random weights is compared with the gradient by a plain backward
    pass. Products are compared by the identity `⟨u, J w⟩ = ⟨Jᵀ u, w⟩` with such a gradient for
    random weights u.
    """

    def __init__(self, job: KernelJob) -> None:
        self._job, self._fn = job, job.fn
        others = (partial(way.push, job.fn) for way in (PlainProducts(), DenseProducts()))
        self._ways: list[Callable[[Batch, Parameters], Tensor]] = [self._pushed, *others]
        self._largest = 0.0  # norm of a direction; rounding errors are a multiple of eps times it
        self._adjoint: tuple[int, int, Tensor, Parameters] | None = None

    def check_determined(self, start: int, stop: int) -> None:
        """Raise an error if the first sample's outputs change from call to call."""
        plain, first = self._fn.exact_plain, self._job.x1[:1]
        twice = [plain.run(first, lambda found: found.outputs.detach()) for _ in range(2)]
        if not agree(twice[:1], twice[1:], precision=self._job.forward.precision):
            raise not_deterministic()

    def sizes(self) -> tuple[int, int, int]:
        """Return how many samples of x1, samples of x2 and outputs are computed at once."""
        job, fn, o = self._job, self._fn, self._job.outputs
        activations = job.forward.activation_bytes
        # One vjp of one sample: the direction, and the activations of its backward pass.
        per_column = 2 * fn.parameter_bytes + 2 * activations
        check_enough(per_column + 4 * activations)
        # Rows and columns share the memory: as many directions as fit beside a block of rows.
        rows = job.batch_size or plan(len(job.x1), 4 * activations, fn.device)
        n2 = len(job.columns)
        at_once = plan(n2 * o, per_column + 2 * rows * activations, fn.device)
        samples = job.batch_size or max(1, at_once // o)
        return rows, samples, max(1, min(o, at_once // samples))

    def directions(self, start: int, stop: int, basis: Tensor) -> Parameters:
        """Return the vjps of samples `start … stop` with the rows of `basis` `[c, O]`.

        They are `{name: [m·c, ...]}`.
        """
        fn, x = self._fn, self._job.columns[start:stop]
        n, c = len(x), basis.shape[0]
        try:
            with transforming(), RightOperations():
                outputs, grads = fn.of_each(x, lambda s: self._pulled(s, basis))
            if all(v.shape == (n, c, *fn.params[k].shape) for k, v in grads.items()):
                found = {k: v.reshape(n * c, *fn.params[k].shape) for k, v in grads.items()}
                if self._are_right(outputs, found, x, basis):
                    return found
        except CannotTransformError:
            pass
        outputs, jacobians = plain_jacobians(fn, x, fn.params)
        found = {
            k: torch.einsum("co,nop->ncp", basis, j).reshape(n * c, *fn.params[k].shape)
            for k, j in jacobians.items()
        }
        if not self._are_right(outputs, found, x, basis):
            raise depends_on_batch(fn.exact_plain, x, "derivatives")
        return found

    def note_size(self, directions: Parameters) -> None:
        """Store the norm of the largest direction."""
        self._largest = max(self._largest, _norm(directions))

    def _pulled(self, sample: Batch, basis: Tensor) -> tuple[Tensor, Parameters]:
        transformed: tuple[Any, ...] = vjp(lambda p: self._fn.single(p, sample), self._fn.params)
        outputs, pull = transformed
        return outputs, vmap(lambda e: pull(e)[0])(basis)

    def _are_right(self, outputs: Tensor, found: Parameters, x: Batch, basis: Tensor) -> bool:
        """Whether outputs `[n, O]` and directions agree with a plain pass over all samples."""
        if not self._job.check:
            return True
        u = signs(len(x), basis.shape[0], like=basis)
        together, expected = self._plain_pass(x, u @ basis)
        flat = u.reshape(-1)
        own = {k: torch.tensordot(flat, v, dims=1) for k, v in found.items()}
        # The check of the kernel reports entries that are not finite.
        precision = self._job.forward.precision
        same = agree([outputs], [together[: len(x)].to(outputs)], precision=precision)
        same = same and agree(own.values(), (expected[k] for k in own), precision=precision)
        return same or not all(bool(g.isfinite().all()) for g in expected.values())

    def _plain_pass(self, x: Batch, u: Tensor) -> tuple[Tensor, Parameters]:
        """Return outputs, and the gradient of `Σ u·f`, of the samples in a batch with another one.

        This detects samples that depend on each other, and operations that are wrong for a single
        sample: torch's gradient of `instance_norm` is, if the gradient that it gets is not
        contiguous.
        """
        other, made_up = companion_of(self._job, x)
        if other is not None:
            try:
                return self._of_batch(x.join(other), torch.cat([u, torch.zeros_like(u[:1])]))
            except (ArgumentError, RuntimeError):
                if not made_up:
                    raise  # a model may refuse a sample that is made up
        return self._of_batch(x, u)

    def _of_batch(self, x: Batch, u: Tensor) -> tuple[Tensor, Parameters]:
        def of_pass(found: PlainPass) -> tuple[Tensor, Parameters]:
            return found.outputs.detach(), found.gradients(u)

        outputs, gradient = self._fn.exact_plain.run(x, of_pass)
        return outputs, {n: g.to(self._fn.dtype) for n, g in gradient.items()}

    def along(self, start: int, stop: int, w: Parameters) -> Tensor:
        """Return `J w` `[c, n, O]` of the samples `start … stop` of x1 in each of c directions.

        Forward mode computes it; or two plain backward passes, if forward mode has no derivative
        or a wrong one (it ignores `torch.no_grad()`); or Jacobians, if an operation has no second
        derivative. A method that was wrong is not tried again.
        """
        x = self._job.x1[start:stop]
        while True:
            way = self._ways[0]
            try:
                with transforming():
                    found = way(x, w)
                if self._are_adjoint(start, stop, x, found, w):
                    return found
            except CannotTransformError:
                pass
            if len(self._ways) == 1:
                raise depends_on_batch(self._fn.exact_plain, x, "derivatives")
            self._ways = self._ways[1:]

    def _pushed(self, x: Batch, w: Parameters) -> Tensor:
        def one(sample: Batch, direction: Parameters) -> Tensor:
            product: Tensor = jvp(
                lambda p: self._fn.single(p, sample), (self._fn.params,), (direction,)
            )[1]
            return product

        c = next(iter(w.values())).shape[0]
        with RightOperations():
            found: Tensor = vmap(lambda v: self._fn.of_each(x, lambda s: one(s, v)))(w)
        if found.shape != (c, len(x), self._job.outputs):
            raise CannotTransformError("vmap changes the shape of a product")
        return found

    def _are_adjoint(self, start: int, stop: int, x: Batch, found: Tensor, w: Parameters) -> bool:
        """Whether `⟨u, J w⟩ = ⟨Jᵀ u, w⟩` for every direction."""
        if not self._job.check:
            return True
        known = self._adjoint
        if known is None or known[:2] != (start, stop):
            u = signs(len(x), self._job.outputs, like=found)
            known = self._adjoint = (start, stop, u, self._plain_pass(x, u)[1])
        u, gradient = known[2:]
        forwards = (found * u).sum((1, 2))
        terms = [(v * gradient[k]).reshape(len(found), -1) for k, v in w.items()]
        backwards = torch.stack([t.sum(1) for t in terms]).sum(0)
        scale = torch.stack([t.abs().sum(1) for t in terms]).sum(0) + found.abs().sum((1, 2))
        eps = self._job.forward.eps(self._fn.dtype)
        rounding = 100 * eps * self._largest * _norm(gradient)
        close = (forwards - backwards).abs() <= eps**0.5 * scale + rounding
        return bool((close | ~backwards.isfinite()).all())


def _norm(tensors: Parameters) -> float:
    return math.sqrt(sum(float(t.square().sum()) for t in tensors.values()))
