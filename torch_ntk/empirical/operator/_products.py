"""Θ times vectors, `J (Jᵀ v)`, in blocks of samples and of vectors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..._functional import ModelFunction, agree
from ..._types import Parameters
from ...memory import Backoff, budget, check_enough, ranges
from .._trial import Trial
from ._differentiate import Way, choose

# A CPU gains nothing from larger blocks, and the operator is there to save memory.
_CPU_BYTES = 1024**3
# Blocks below this many samples leave the machine idle: rather take fewer vectors at once.
_FEW = 16


class Products:
    """The Jacobian of all samples as a linear map, never formed.

    Args:
        fn: The function of the parameters.
        x: All samples.
        trial: What one sample costs.
        batch_size: Samples per block; None follows from the memory.
    """

    def __init__(self, fn: ModelFunction, x: Tensor, trial: Trial, batch_size: int | None) -> None:
        self._fn, self._x, self._trial = fn, x, trial
        self._batch_size = batch_size
        self._way: Way = choose(fn, x[:3])
        self._first = fn.batch(fn.params, x[:1])

    @contextlib.contextmanager
    def bar(self, count: int, passes: int, show: bool) -> Iterator[Callable[[int], None]]:
        """A progress bar over the samples of `passes` for `count` vectors; advance it."""
        vectors, _ = self.sizes(max(1, count))
        total = passes * self._x.shape[0] * -(-count // vectors)
        with tqdm(
            total=total, desc="NTK operator", unit="sample", disable=not show, leave=False
        ) as bar:

            def advance(samples: int) -> None:
                bar.update(samples)

            yield advance

    def with_kernel(self, v: Tensor, advance: Callable[[int], None]) -> Tensor:
        """`J (Jᵀ v)` as `[c, N, O]`, of `v` `[c, N, O]`."""
        result = torch.empty_like(v)
        vectors, samples = self.sizes(v.shape[0])
        for a, b in ranges(0, v.shape[0], vectors):
            total = self._pull(v[a:b], samples, advance)
            self._push(total, result[a:b], samples, advance)
        return result

    def with_traced_kernel(self, v: Tensor, advance: Callable[[int], None]) -> Tensor:
        """`Σ_i J_i (J_iᵀ v)` as `[N, c]`, of `v` `[N, c]`, J_i the Jacobian of output i."""
        (n, count), o = v.shape, self._trial.outputs
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
        vectors, samples = self.sizes(v.shape[0])
        rows = []
        for a, b in ranges(0, v.shape[0], vectors):
            total = self._pull(v[a:b], samples, advance)
            rows.append(sum(g.reshape(b - a, -1).double().square().sum(1) for g in total.values()))
        return torch.cat([r for r in rows if isinstance(r, Tensor)])

    def sizes(self, count: int) -> tuple[int, int]:
        """How many of `count` vectors, and how many samples, are in memory at once.

        A vector takes its gradient about three times over, and every sample of a block once more
        for each vector.
        """
        n = self._x.shape[0]
        free = budget(self._fn.device)
        if self._fn.device.type == "cpu":
            free = min(free, _CPU_BYTES)
        item = torch.finfo(self._fn.dtype).bits // 8
        gradient = 3 * item * sum(p.numel() for p in self._fn.params.values())
        sample = max(1, self._way.bytes_per_sample(self._fn, self._trial))
        check_enough(gradient + sample)
        block = min(n, self._batch_size or _FEW)
        vectors = min(count, free // (2 * gradient), free // (2 * sample * block))
        vectors = max(1, vectors)
        samples = self._batch_size or free // (2 * sample * vectors)
        return vectors, max(1, min(n, samples))

    def _pull(self, v: Tensor, samples: int, advance: Callable[[int], None]) -> Parameters:
        total = {k: p.new_zeros(v.shape[0], *p.shape) for k, p in self._fn.params.items()}

        def block(start: int, stop: int) -> None:
            out, gradients = self._way.pull(self._fn, self._x[start:stop], v[:, start:stop])
            if start == 0:
                self._check_unchanged(out[:1])
            for k, g in gradients.items():
                total[k] += g
            advance(stop - start)

        Backoff(v.shape[1], samples).run(block)
        return total

    def _push(
        self, total: Parameters, result: Tensor, samples: int, advance: Callable[[int], None]
    ) -> None:
        def block(start: int, stop: int) -> None:
            result[:, start:stop] = self._way.push(self._fn, self._x[start:stop], total)
            advance(stop - start)

        Backoff(result.shape[1], samples).run(block)

    def _check_unchanged(self, out: Tensor) -> None:
        """Parameters and buffers are copies, but the forward and its settings are the caller's."""
        if bool(self._first.isfinite().all()) and not agree([out], [self._first]):
            raise RuntimeError(
                "The module computes something else than when this NTKOperator was made, with "
                "the same parameters and buffers: an attribute or a submodule was changed. "
                "Make a new operator."
            )
