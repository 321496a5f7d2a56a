"""Products of a Jacobian and its transpose with vectors, in blocks of samples and of vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from ..._checks import value_error
from ..._functional import Batch, CannotTransformError, ModelFunction, agree, failure
from ..._types import Parameters
from ...memory import Backoff, budget, check_enough
from ..inspect import Inspection
from ..methods import PRODUCT_METHODS
from ._product_check import ProductCheck

# A CPU gains nothing from larger blocks, and the purpose of the operator is to save memory.
_CPU_BYTES = 1024**3
# Blocks of fewer samples leave the machine idle, so fewer vectors are multiplied at once instead.
_FEW = 16

T = TypeVar("T")
Advance: TypeAlias = Callable[[int], None]
"""Called with the number of samples that have been processed since the last call."""


class Products:
    """The Jacobian of all samples as a linear map, which is not formed.

    Attributes:
        x: The samples.
        size: N·O, the number of rows; entry `n·O + i` of a vector is output i of sample n.
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
        self._methods = [method() for method in PRODUCT_METHODS]
        self._check = ProductCheck(fn, x, forward, self.sizes(1)[1]) if check else None
        self._first = fn.exact_plain.run(x[:1], lambda found: found.outputs.detach())

    def transpose(self, v: Tensor, advance: Advance) -> Parameters:
        """Return `Jᵀ v` as `{name: [c, ...]}` for v `[c, N·O]`, after checking it."""
        v = v.reshape(len(v), len(self.x), self._forward.outputs)

        def attempt() -> Parameters:
            return self._pull(v, self.sizes(v.shape[0])[1], advance)

        check = self._check
        return self._first_right(attempt, lambda t: check is None or check.is_transpose(v, t))

    def product(self, t: Parameters, advance: Advance) -> Tensor:
        """Return `J t` as `[c, N·O]` for t `{name: [c, ...]}`, after checking it."""

        def attempt() -> Tensor:
            count = next(iter(t.values())).shape[0]
            return self._push(t, count, self.sizes(count)[1], advance)

        check = self._check
        found = self._first_right(attempt, lambda r: check is None or check.is_product(t, r))
        return found.reshape(len(found), self.size)

    def _first_right(self, attempt: Callable[[], T], is_right: Callable[[T], bool]) -> T:
        """Return the result of the first method that gives the right one, and use it from now on.

        Forward mode gives a wrong result if a forward stops gradients with `torch.no_grad()`,
        which forward mode ignores.
        """
        failed: CannotTransformError | None = None
        while True:
            try:
                found = attempt()
                if is_right(found):
                    return found
            except CannotTransformError as error:
                failed = failed or error
            if len(self._methods) == 1:
                break
            self._methods = self._methods[1:]
        if failed is not None and isinstance(failed.__cause__, Exception):
            raise failure(failed.__cause__, "multiply by the Jacobian of the model") from failed
        raise value_error(
            "model",
            "a function with one derivative",
            "one whose backward pass on a batch is not that on its samples",
            "Look for an autograd.Function with an inconsistent backward.",
        )

    def sizes(self, count: int) -> tuple[int, int]:
        """Return how many of `count` vectors, and how many samples, are in memory at once.

        Each vector needs the memory of about three gradients, and each pair of a vector and a
        sample of the block that of a sample.
        """
        n = len(self.x)
        free = budget(self._fn.device)
        if self._fn.device.type == "cpu":
            free = min(free, _CPU_BYTES)
        item = torch.finfo(self._fn.dtype).bits // 8
        gradient = 3 * item * sum(p.numel() for p in self._fn.params.values())
        sample = max(1, self._methods[0].bytes_per_sample(self._fn, self._forward))
        check_enough(gradient + sample)
        block = min(n, self._batch_size or _FEW)
        vectors = min(count, free // (2 * gradient), free // (2 * sample * block))
        vectors = max(1, vectors)
        samples = self._batch_size or free // (2 * sample * vectors)
        return vectors, max(1, min(n, samples))

    def _pull(self, v: Tensor, samples: int, advance: Advance) -> Parameters:
        total = {k: p.new_zeros(v.shape[0], *p.shape) for k, p in self._fn.params.items()}

        def block(start: int, stop: int) -> None:
            out, gradients = self._methods[0].pull(self._fn, self.x[start:stop], v[:, start:stop])
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
            result[:, start:stop] = self._methods[0].push(self._fn, self.x[start:stop], total)
            advance(stop - start)

        Backoff(n, samples).run(block)
        return result

    def _check_unchanged(self, out: Tensor) -> None:
        """Raise an error if the module's outputs for the first sample have changed.

        Parameters and buffers are copies, but the code and other attributes are the caller's.
        """
        if bool(self._first.isfinite().all()) and not agree([out], [self._first]):
            raise RuntimeError(
                "The module computes something else than when this NTKOperator was made, with "
                "the same parameters and buffers: an attribute or a submodule was changed. "
                "Make a new operator."
            )
