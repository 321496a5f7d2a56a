"""A Jacobian and its transpose times vectors, in blocks of samples and of vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from ..._checks import value_error
from ..._functional import Batch, CannotTransformError, ModelFunction, agree, failure
from ..._types import Parameters
from ...memory import Backoff, budget, check_enough, ranges
from .._precondition import Precondition
from ..inspect import Inspection
from ._product_check import ProductCheck
from ._ways import WAYS

# A CPU gains nothing from larger blocks, and the operator is there to save memory.
_CPU_BYTES = 1024**3
# Blocks below this many samples leave the machine idle: rather take fewer vectors at once.
_FEW = 16

T = TypeVar("T")
Advance: TypeAlias = Callable[[int], None]
"""Told of every number of samples that is done."""


class Products:
    """The Jacobian of all samples as a linear map, never formed.

    Args:
        fn: The function of the parameters.
        x: All samples.
        forward: What one sample costs.
        batch_size: Samples per block; None follows from the memory.
        check: Whether every product is compared with plain backward passes.

    Attributes:
        x: The samples.
        size: N·O, the number of its rows; entry `n·O + i` of a vector is output i of sample n.
    """

    def __init__(
        self,
        fn: ModelFunction,
        x: Batch,
        forward: Inspection,
        batch_size: int | None,
        check: bool,
    ) -> None:
        self.x, self.size = x, len(x) * forward.outputs
        self._fn, self._forward = fn, forward
        self._batch_size = batch_size
        self._ways = [way() for way in WAYS]
        self._check = ProductCheck(fn, x, forward, self.sizes(1)[1]) if check else None
        self._first = fn.exact_plain.run(x[:1], lambda found: found.outputs.detach())

    def transpose(self, v: Tensor, advance: Advance) -> Parameters:
        """`Jᵀ v` as `{name: [c, ...]}`, of `v` `[c, N·O]`, checked."""
        v = v.reshape(len(v), len(self.x), self._forward.outputs)

        def attempt() -> Parameters:
            return self._pull(v, self.sizes(v.shape[0])[1], advance)

        check = self._check
        return self._first_right(attempt, lambda t: check is None or check.is_transpose(v, t))

    def product(self, t: Parameters, advance: Advance) -> Tensor:
        """`J t` as `[c, N·O]`, of `t` `{name: [c, ...]}`, checked."""

        def attempt() -> Tensor:
            count = next(iter(t.values())).shape[0]
            return self._push(t, count, self.sizes(count)[1], advance)

        check = self._check
        found = self._first_right(attempt, lambda r: check is None or check.is_product(t, r))
        return found.reshape(len(found), self.size)

    def _first_right(self, attempt: Callable[[], T], is_right: Callable[[T], bool]) -> T:
        """By the first way that gives the right result; those before it are not tried again.

        Forward mode is not right where a forward stops gradients with `torch.no_grad()`, which
        forward mode ignores.
        """
        failed: CannotTransformError | None = None
        while True:
            try:
                found = attempt()
                if is_right(found):
                    return found
            except CannotTransformError as error:
                failed = failed or error
            if len(self._ways) == 1:
                break
            self._ways = self._ways[1:]
        if failed is not None and isinstance(failed.__cause__, Exception):
            raise failure(failed.__cause__, "multiply by the Jacobian of the model") from failed
        raise value_error(
            "model",
            "a function with one derivative",
            "one whose backward pass on a batch is not that on its samples",
            "Look for an autograd.Function with an inconsistent backward.",
        )

    def squared_norms(self, v: Tensor, precondition: Precondition, advance: Advance) -> Tensor:
        """`‖P^½ Jᵀ v‖²` as `[c]`, of `v` `[c, N·O]`."""
        vectors, _ = self.sizes(v.shape[0])
        rows = []
        for a, b in ranges(0, v.shape[0], vectors):
            total = self.transpose(v[a:b], advance)
            parts = (precondition.columns(n, g.reshape(b - a, -1)) for n, g in total.items())
            rows.append(sum(part.double().square().sum(1) for part in parts))
        return torch.cat([r for r in rows if isinstance(r, Tensor)])

    def sizes(self, count: int) -> tuple[int, int]:
        """How many of `count` vectors, and how many samples, are in memory at once.

        A vector takes its gradient about three times over, and every sample of a block once more
        for each vector.
        """
        n = len(self.x)
        free = budget(self._fn.device)
        if self._fn.device.type == "cpu":
            free = min(free, _CPU_BYTES)
        item = torch.finfo(self._fn.dtype).bits // 8
        gradient = 3 * item * sum(p.numel() for p in self._fn.params.values())
        sample = max(1, self._ways[0].bytes_per_sample(self._fn, self._forward))
        check_enough(gradient + sample)
        block = min(n, self._batch_size or _FEW)
        vectors = min(count, free // (2 * gradient), free // (2 * sample * block))
        vectors = max(1, vectors)
        samples = self._batch_size or free // (2 * sample * vectors)
        return vectors, max(1, min(n, samples))

    def _pull(self, v: Tensor, samples: int, advance: Advance) -> Parameters:
        total = {k: p.new_zeros(v.shape[0], *p.shape) for k, p in self._fn.params.items()}

        def block(start: int, stop: int) -> None:
            out, gradients = self._ways[0].pull(self._fn, self.x[start:stop], v[:, start:stop])
            if start == 0:
                self._check_unchanged(out[:1])
            for k, g in gradients.items():
                total[k] += g
            advance(stop - start)

        Backoff(v.shape[1], samples).run(block)
        return total

    def _push(self, total: Parameters, count: int, samples: int, advance: Advance) -> Tensor:
        n = len(self.x)
        result = torch.empty(
            count, n, self._forward.outputs, dtype=self._fn.dtype, device=self._fn.device
        )

        def block(start: int, stop: int) -> None:
            result[:, start:stop] = self._ways[0].push(self._fn, self.x[start:stop], total)
            advance(stop - start)

        Backoff(n, samples).run(block)
        return result

    def _check_unchanged(self, out: Tensor) -> None:
        """Parameters and buffers are copies, but the forward and its settings are the caller's."""
        if bool(self._first.isfinite().all()) and not agree([out], [self._first]):
            raise RuntimeError(
                "The module computes something else than when this NTKOperator was made, with "
                "the same parameters and buffers: an attribute or a submodule was changed. "
                "Make a new operator."
            )
