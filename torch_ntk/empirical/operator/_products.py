"""Θ times vectors, `J (Jᵀ v)`, in blocks of samples and of vectors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..._checks import value_error
from ..._functional import Batch, CannotTransformError, ModelFunction, agree, failure
from ..._types import Parameters
from ...memory import Backoff, budget, check_enough, ranges
from ..inspect import Inspection
from ._product_check import ProductCheck
from ._ways import WAYS

# A CPU gains nothing from larger blocks, and the operator is there to save memory.
_CPU_BYTES = 1024**3
# Blocks below this many samples leave the machine idle: rather take fewer vectors at once.
_FEW = 16


T = TypeVar("T")


class Products:
    """The Jacobian of all samples as a linear map, never formed.

    Args:
        fn: The function of the parameters.
        x: All samples.
        forward: What one sample costs.
        batch_size: Samples per block; None follows from the memory.
        check: Whether every product is compared with plain backward passes.
    """

    def __init__(
        self,
        fn: ModelFunction,
        x: Batch,
        forward: Inspection,
        batch_size: int | None,
        check: bool,
    ) -> None:
        self._fn, self._x, self._forward = fn, x, forward
        self._batch_size = batch_size
        self._ways = [way() for way in WAYS]
        self._check = ProductCheck(fn, x, forward, self.sizes(1)[1]) if check else None
        self._first = fn.exact_plain.run(x[:1], lambda found: found.outputs.detach())

    @contextlib.contextmanager
    def bar(self, count: int, passes: int, show: bool) -> Iterator[Callable[[int], None]]:
        """A progress bar over the samples of `passes` for `count` vectors; advance it."""
        vectors, _ = self.sizes(max(1, count))
        total = passes * len(self._x) * -(-count // vectors)
        with tqdm(
            total=total, desc="NTK operator", unit="sample", disable=not show, leave=False
        ) as bar:

            def advance(samples: int) -> None:
                bar.update(samples)

            yield advance

    def with_kernel(self, v: Tensor, advance: Callable[[int], None]) -> Tensor:
        """`J (Jᵀ v)` as `[c, N, O]`, of `v` `[c, N, O]`."""
        result = torch.empty_like(v)
        vectors, _ = self.sizes(v.shape[0])
        for a, b in ranges(0, v.shape[0], vectors):
            total = self.transpose(v[a:b], advance)
            result[a:b] = self.product(total, advance)
        return result

    def transpose(self, v: Tensor, advance: Callable[[int], None]) -> Parameters:
        """`Jᵀ v` as `{name: [c, ...]}`, of `v` `[c, N, O]`, checked."""

        def attempt() -> Parameters:
            return self._pull(v, self.sizes(v.shape[0])[1], advance)

        check = self._check
        return self._first_right(attempt, lambda t: check is None or check.is_transpose(v, t))

    def product(self, t: Parameters, advance: Callable[[int], None]) -> Tensor:
        """`J t` as `[c, N, O]`, of `t` `{name: [c, ...]}`, checked."""

        def attempt() -> Tensor:
            count = next(iter(t.values())).shape[0]
            return self._push(t, count, self.sizes(count)[1], advance)

        check = self._check
        return self._first_right(attempt, lambda r: check is None or check.is_product(t, r))

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

    def with_traced_kernel(self, v: Tensor, advance: Callable[[int], None]) -> Tensor:
        """`Σ_i J_i (J_iᵀ v)` as `[N, c]`, of `v` `[N, c]`, J_i the Jacobian of output i."""
        (n, count), o = v.shape, self._forward.outputs
        result = torch.zeros_like(v)
        vectors, _ = self.sizes(count * o)
        for a, b in ranges(0, count * o, vectors):
            index = torch.arange(a, b, device=v.device)
            column, output, row = index // o, index % o, index - a
            one_hot = v.new_zeros(b - a, n, o)
            one_hot[row, :, output] = v.T[column]
            products = self.with_kernel(one_hot, advance)[row, :, output]
            result.index_add_(1, column, products.T)
        return result

    def squared_norms(self, v: Tensor, advance: Callable[[int], None]) -> Tensor:
        """`vᵀ Θ v = ‖Jᵀ v‖²` as `[c]`, for half of the price of a product."""
        vectors, _ = self.sizes(v.shape[0])
        rows = []
        for a, b in ranges(0, v.shape[0], vectors):
            total = self.transpose(v[a:b], advance)
            rows.append(sum(g.reshape(b - a, -1).double().square().sum(1) for g in total.values()))
        return torch.cat([r for r in rows if isinstance(r, Tensor)])

    def sizes(self, count: int) -> tuple[int, int]:
        """How many of `count` vectors, and how many samples, are in memory at once.

        A vector takes its gradient about three times over, and every sample of a block once more
        for each vector.
        """
        n = len(self._x)
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

    def _pull(self, v: Tensor, samples: int, advance: Callable[[int], None]) -> Parameters:
        total = {k: p.new_zeros(v.shape[0], *p.shape) for k, p in self._fn.params.items()}

        def block(start: int, stop: int) -> None:
            out, gradients = self._ways[0].pull(self._fn, self._x[start:stop], v[:, start:stop])
            if start == 0:
                self._check_unchanged(out[:1])
            for k, g in gradients.items():
                total[k] += g
            advance(stop - start)

        Backoff(v.shape[1], samples).run(block)
        return total

    def _push(
        self, total: Parameters, count: int, samples: int, advance: Callable[[int], None]
    ) -> Tensor:
        n = len(self._x)
        result = torch.empty(
            count, n, self._forward.outputs, dtype=self._fn.dtype, device=self._fn.device
        )

        def block(start: int, stop: int) -> None:
            result[:, start:stop] = self._ways[0].push(self._fn, self._x[start:stop], total)
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
