"""A batch that is one input: its outputs may depend on all of it, and their rows are the samples.

The nodes of a graph, the rows of a batch that batch normalization sees together, the elements of a
set. The whole batch is then one sample of N·O outputs, whose kernel `[1, 1, N·O, N·O]` is that
between all pairs of rows and outputs. Two batches, each coupled in itself, are one sample too, with
the outputs of both.
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
    """Two batches, each coupled in itself, as one sample."""

    x1: Any
    x2: Any


@dataclass
class CoupledBatches:
    """One or two batches as one sample.

    Attributes:
        x1: The batch of the rows.
        x2: The batch of the columns; None is `x1`.
        output: What is kept of the output indices.
        probes, seed: See `empirical_ntk`.
        only: The only output of a row that is taken; None takes all.
        rows: The numbers of samples in what was evaluated last.
        outputs: O, once a batch has been evaluated.
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
        """What the model is evaluated on: every tensor has a first axis of length one."""
        sides = self.sides
        return sides[0] if len(sides) == 1 else Pair(*sides)

    @property
    def sides(self) -> tuple[Any, ...]:
        """The same of each batch by itself, once if both are the same."""
        x2 = [] if self.x2 is None or self.x2 is self.x1 else [("x2", self.x2)]
        named = [("x1", self.x1), *x2]
        return tuple(
            Batch.coupled(name, x).map(lambda t: t.unsqueeze(0)).value for name, x in named
        )

    def model(self, model: ModelLike, forward_fn: ForwardFn | None) -> tuple[ModelLike, Any]:
        """Model and `forward_fn` that take the sample and return all outputs in one row."""
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
        """`[1, ΣN·O']`, with the outputs O' that are left of O."""
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
        """`[N, O']` of the outputs `[N, O]`."""
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
        """The outputs `[N, O]` of both batches from those of the sample `[1, ΣN·O]`."""
        rows = whole.view(-1, self.outputs)
        return rows[: self.rows[0]], rows[-self.rows[-1] :]

    def kernel(self, whole: Tensor) -> Tensor:
        """The kernel of the output from that of the sample `[1, 1, ΣN·O', ΣN·O']`.

        `[N1, N2, K]` of an estimate by K directions.
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
