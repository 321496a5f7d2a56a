"""Coupled batches, in which the outputs of a row may depend on all rows.

Examples are the nodes of a graph, a batch under batch normalization, and the elements of a set. The
whole batch is evaluated as one sample with N·O outputs, whose kernel `[1, 1, N·O, N·O]` contains
all pairs of rows and outputs. Two coupled batches are one sample, too, with the outputs of both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .._checks import value_error
from .._functional import Batch, call_model, coupled_rows_of
from .._types import ForwardFn, ModelLike, Output
from ._probed import along, random_signs


class Pair(NamedTuple):
    """Two coupled batches as one sample."""

    x1: Any
    x2: Any


@dataclass
class CoupledBatches:
    """One or two coupled batches as one sample.

    Attributes:
        x1: The batch of the kernel's rows.
        x2: The batch of the kernel's columns; None is `x1`.
        output: The kernel's output.
        probes, seed: See `empirical_ntk`.
        only: The index of the only output of a row that is used; None uses all.
        rows: The numbers of rows of the batches in the last evaluation.
        outputs: The number O of outputs of a row; 0 before the first evaluation.
    """

    x1: object
    x2: object
    output: Output | Literal["probed"]
    probes: int = 8
    seed: int = 0
    only: int | None = None
    rows: tuple[int, ...] = ()
    outputs: int = 0
    _signs: dict[int, Tensor] = field(default_factory=dict)

    @property
    def sample(self) -> Any:
        """The sample on which the model is evaluated, whose tensors have a first axis of 1."""
        sides = self.sides
        return sides[0] if len(sides) == 1 else Pair(*sides)

    @property
    def sides(self) -> tuple[Any, ...]:
        """Each of the batches as a sample; one of them if both are the same."""
        x2 = [] if self.x2 is None or self.x2 is self.x1 else [("x2", self.x2)]
        named = [("x1", self.x1), *x2]
        return tuple(
            Batch.coupled(name, x).map(lambda t: t.unsqueeze(0)).value for name, x in named
        )

    def model(self, model: ModelLike, forward_fn: ForwardFn | None) -> tuple[ModelLike, Any]:
        """Return a model and a `forward_fn` that take the sample and return outputs in one row."""
        if isinstance(model, nn.Module):
            return model, lambda net, sample: self._outputs(
                lambda batch: call_model(net, batch, forward_fn), sample, forward_fn
            )
        function: Any = model
        of_sample = lambda params, sample: self._outputs(  # noqa: E731
            lambda batch: function(params, batch), sample, None
        )
        return (of_sample, forward_fn) if callable(model) else (model, forward_fn)

    def _outputs(
        self, call: Callable[[Any], Any], sample: Any, forward_fn: ForwardFn | None
    ) -> Tensor:
        """Return `[1, ΣN·O']`, where O' is the number of outputs after `_left`."""
        each = []
        for one in sample if isinstance(sample, Pair) else (sample,):
            batch = Batch.coupled("batch", one).map(lambda t: t.squeeze(0))
            each.append(coupled_rows_of(call(batch.value), batch, forward_fn))
        self.rows, self.outputs = tuple(len(f) for f in each), self.outputs or each[0].shape[1]
        for f in each:
            if f.shape[1] != self.outputs:
                raise value_error(
                    "x2",
                    f"a batch for which the model returns {self.outputs} outputs a row, as for "
                    "`x1`",
                    f"one for which it returns {f.shape[1]}",
                )
        return torch.cat([self._left(f).reshape(-1) for f in each]).unsqueeze(0)

    @property
    def _is_estimate(self) -> bool:
        return self.output == "probed" and self.probes < self.outputs

    def _left(self, f: Tensor) -> Tensor:
        """Return the outputs or combinations that the kernel needs, `[N, O']`, from `[N, O]`."""
        if self.only is not None:
            return f[:, self.only].unsqueeze(1)
        if self.output == "pseudo":
            return along(f, f.new_ones(1, self.outputs))
        if not self._is_estimate:
            return f
        if self.outputs not in self._signs:
            self._signs[self.outputs] = random_signs(self.outputs, self.probes, self.seed)
        return along(f, self._signs[self.outputs])

    def outputs_of(self, whole: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs `[N, O]` of both batches, from those of the sample `[1, ΣN·O]`."""
        rows = whole.view(-1, self.outputs)
        return rows[: self.rows[0]], rows[-self.rows[-1] :]

    def kernel(self, whole: Tensor) -> Tensor:
        """Return the kernel for this output, from that of the sample `[1, 1, ΣN·O', ΣN·O']`.

        For an estimate by K directions it is `[N1, N2, K]`.
        """
        left = whole.shape[2] // sum(self.rows)
        n1, n2 = self.rows[0], self.rows[-1]
        block = whole[0, 0][: n1 * left, -n2 * left :]
        pairs = block.view(n1, left, n2, left).permute(0, 2, 1, 3)
        if self.output == "full":
            return pairs.contiguous()
        diagonal = pairs.diagonal(dim1=2, dim2=3)
        if self.output == "diagonal" or self._is_estimate:
            return diagonal.contiguous()
        kernel: Tensor = diagonal.sum(2)
        return kernel / self.outputs if self.output in ("mean", "probed") else kernel
