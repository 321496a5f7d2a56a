"""Check products with a Jacobian and with its transpose, each by a few inner products.

Two pairs of vectors are computed once, by plain backward passes of the user's own module over all
samples: `g = Jᵀ u` for random u, and `z = J w` for random w. Then every product with the
transpose must satisfy `⟨Jᵀ v, w⟩ = ⟨v, z⟩`, and every product `⟨J t, u⟩ = ⟨t, g⟩`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ..._functional import Batch, ModelFunction, PlainPass, RightOperations, agree
from ..._types import Parameters
from ...memory import Backoff, is_out_of_memory
from ..checksum import depends_on_batch, signs
from ..inspect import Inspection

T = TypeVar("T")


class ProductCheck:
    """The check of all products of a model and its samples.

    A model is refused if the gradient of all samples is not the sum of the gradients of two halves,
    because the outputs of a sample depend on other samples. `step` samples are in a pass.
    """

    def __init__(self, fn: ModelFunction, x: Batch, forward: Inspection, step: int) -> None:
        self._fn, self._x, self._forward = fn, x, forward
        like = torch.zeros((), dtype=fn.dtype, device=fn.device)
        self._u = signs(len(x), forward.outputs, like=like)
        self._w = {n: signs(*p.shape, like=p) for n, p in fn.params.items()}
        self._g: Parameters = {}
        products: dict[int, Tensor | None] = {}  # by the first sample

        def block(start: int, stop: int) -> None:
            gradient, halves, product = self._of_block(start, stop)
            finite = all(bool(g.isfinite().all()) for g in gradient.values())
            if finite and not agree(
                gradient.values(), (halves[k] for k in gradient), precision=forward.precision
            ):
                raise depends_on_batch(fn.exact_plain, x[start:stop], "derivatives")
            products[start] = product
            for k, g in gradient.items():
                self._g[k] = self._g[k] + g if k in self._g else g

        Backoff(len(x), max(2, step)).run(block)
        found = [product for product in products.values() if product is not None]
        self._z = torch.cat(found) if len(found) == len(products) else None
        # A custom backward pass may lack a second derivative without raising an error.
        if self._z is not None and not self.is_product(
            {k: w[None] for k, w in self._w.items()}, self._z[None]
        ):
            self._z = None

    def _of_block(self, a: int, b: int) -> tuple[Parameters, Parameters, Tensor | None]:
        """Return the gradient of `Σ u·f`, the sum of those of two halves, and `J w` or None."""
        x, u = self._x[a:b], self._u[a:b]

        def both(found: PlainPass) -> tuple[Parameters, Tensor | None]:
            product: Tensor | None = None
            gradient = found.gradients(u)
            try:
                product = found.along(self._w).detach()
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
            return gradient, product

        gradient, product = self._pass(x, both)
        # In a random half the samples have other neighbours in the batch.
        order = signs(b - a, like=u) > 0
        if b - a > 1 and (bool(order.all()) or not bool(order.any())):
            order[0] = ~order[0]
        halves: Parameters = {}
        for half in (order, ~order):
            if bool(half.any()):
                part = self._gradient(x[half], u[half])
                halves = {k: g + halves[k] if halves else g for k, g in part.items()}
        return gradient, halves, product

    def _gradient(self, x: Batch, u: Tensor) -> Parameters:
        def of_pass(found: PlainPass) -> Parameters:
            return found.gradients(u)

        return self._pass(x, of_pass)

    def _pass(self, x: Batch, use: Callable[[PlainPass], T]) -> T:
        # Some operations of torch are wrong for single samples: the gradient of instance_norm for
        # one image, if the gradient that it receives has its channels innermost in memory.
        around = (lambda leaves: RightOperations()) if len(x) == 1 else None
        return self._fn.exact_plain.run(x, use, around)

    def is_transpose(self, v: Tensor, total: Parameters) -> bool:
        """Whether `total` `{name: [c, ...]}` is `Jᵀ v` for v `[c, N, O]`."""
        terms = {k: t.reshape(len(v), -1) * self._w[k].reshape(1, -1) for k, t in total.items()}
        found = torch.stack([t.sum(1) for t in terms.values()]).sum(0)
        if self._z is None:
            flip = signs(v.shape[0], like=v)
            one = self._gradient(self._x, torch.tensordot(flip, v, dims=1))
            own = {k: torch.tensordot(flip, t, dims=1) for k, t in total.items()}
            same = agree(own.values(), (one[k] for k in own), precision=self._forward.precision)
            return same or not bool(found.isfinite().all())
        squares = torch.stack([t.square().sum(1) for t in terms.values()]).sum(0)
        products = v * self._z
        scale = squares.sqrt() + products.square().sum((1, 2)).sqrt()
        return self._close(found, products.sum((1, 2)), scale)

    def is_product(self, t: Parameters, result: Tensor) -> bool:
        """Whether `result` `[c, N, O]` is `J t` for t `{name: [c, ...]}`."""
        terms = [d.reshape(len(result), -1) * self._g[k].reshape(1, -1) for k, d in t.items()]
        expected = torch.stack([e.sum(1) for e in terms]).sum(0)
        scale = torch.stack([e.abs().sum(1) for e in terms]).sum(0)
        found = (result * self._u).sum((1, 2))
        norms = result.square().sum((1, 2)).sqrt() * result[0].numel() ** 0.5
        return self._close(found, expected, scale + norms)

    def _close(self, a: Tensor, b: Tensor, scale: Tensor) -> bool:
        eps = self._forward.eps(self._fn.dtype)
        close = (a - b).abs() <= eps**0.5 * scale
        return bool((close | ~a.isfinite()).all())
