"""A random linear map of one parameter's Jacobian to `dim` numbers.

Every parameter has a projection of its own, drawn from the seed and its name alone. A weight is
read as a matrix [rows, columns] (its first axis and all others), and in most layers its gradient is
G = Σ_t b_t a_tᵀ, so that maps that are a product of one for either side need not see G:

    φ(G) = Σ_t φ(b_t, a_t).

Of `output="mean"` the Jacobian [O · rows, columns] of all outputs is projected as one matrix, with
rows drawn for each output.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from .._optimizers import Scale
from ..empirical.contract import Call, joined_features
from ..empirical.rules import EmbeddingUse, Use

Kind = Literal["sjlt", "gaussian", "rademacher"]


@dataclass(frozen=True, eq=False)
class Sides:
    """Which row and column of its weight belong to the entries of a use's cotangents and inputs.

    Attributes:
        of_units, of_inputs: Indices `[b]`, `[a]`.
        units_are_rows: Whether cotangents run over rows, and inputs over columns.
    """

    of_units: Tensor
    of_inputs: Tensor
    units_are_rows: bool


class Projection(ABC):
    """The projection of one parameter.

    Args:
        name: Of the parameter.
        shape: Of the parameter.
        dim: Numbers that it is projected to.
        seed: Of the caller.
        joint: How many consecutive outputs are projected together: O of `"mean"`, else 1.
        device: Where it is used. It is drawn on the CPU, so that it is the same everywhere.
    """

    # Jacobians of more entries are never formed, if there are uses of a weight to know it by.
    most_formed: float = math.inf

    def __init__(
        self, name: str, shape: Sequence[int], dim: int, seed: int, joint: int, device: torch.device
    ) -> None:
        self.name, self.seed = name, seed
        self.dim, self.joint, self.device = dim, joint, device
        self.rows, self.columns = (shape[0], prod(shape[1:])) if len(shape) else (1, 1)
        self._known: dict[Hashable, Sides | None] = {}

    def generator(self, part: int = 0) -> torch.Generator:
        """Random numbers of this parameter that depend on nothing but the seed and its name."""
        drawn = hashlib.blake2b(f"{self.seed} {part} {self.name}".encode(), digest_size=7)
        return torch.Generator().manual_seed(int.from_bytes(drawn.digest(), "big"))

    def of_uses(self, calls: Sequence[Call], rows: Sequence[Tensor], root: Scale = 1.0) -> Tensor:
        """Features `[N, O', dim]` of a weight from its uses.

        Args:
            calls: The uses and their stacked sources.
            rows: The cotangents `[N, O, G, T, b]` of each.
            root: √P of the weight, by which its Jacobian is multiplied first.
        """
        if not isinstance(root, Tensor):
            found = self._of_uses(calls, rows, None)
            return found if root == 1.0 else found * root
        return self._of_uses(calls, rows, root)

    def _of_uses(
        self, calls: Sequence[Call], rows: Sequence[Tensor], root: Tensor | None
    ) -> Tensor:
        if len({use.kind for use, _ in calls}) > 1:
            each = [self._of_uses([c], [b], root) for c, b in zip(calls, rows, strict=True)]
            return torch.stack(each).sum(0)
        # Several uses of a kind are more positions of one use.
        use, a = calls[0][0], joined_features(calls)
        b = rows[0] if len(rows) == 1 else torch.cat(list(rows), dim=3)
        if root is not None and use.has_one_feature:
            b, root = use.scaled(b, a, root), None
        if root is not None:  # in no product of a number for a row and one for a column
            return self.of_jacobian(use.columns(a, b) * use.in_columns(root), use)
        if isinstance(use, EmbeddingUse):
            return self.of_rows(a[:, 0, :, 0], b[:, :, 0])
        sides = self._sides(use)
        if sides is not None and self.by_factors(use, b):
            return self.of_factors(sides, a[:, 0], b[:, :, 0])
        return self.of_jacobian(use.columns(a, b), use)

    def _sides(self, use: Use) -> Sides | None:
        """Of a use whose entries are products of one number for its units and one for its inputs.

        None if rows and columns of the weight are mixed in either, or if outputs that are projected
        together would have inputs of their own.
        """
        if not use.is_product or use.groups > 1:
            return None
        if use.kind not in self._known:
            place = self.places(use).view(use.units, use.inputs)
            units, inputs = place[:, 0], place[0]
            found = None
            if bool((place == units.unsqueeze(1) + (inputs - inputs[0])).all()):
                # A sum of a number for each; now whether one of them is a row, the other a column.
                for of_rows, of_columns, are_rows in (
                    (units, inputs, True),
                    (inputs, units, False),
                ):
                    row, column = of_rows // self.columns, of_columns % self.columns
                    alike = bool((of_rows % self.columns == of_rows[0] % self.columns).all())
                    alike &= bool(
                        (of_columns // self.columns == of_columns[0] // self.columns).all()
                    )
                    if alike and (are_rows or self.joint == 1):
                        both = (row, column) if are_rows else (column, row)
                        found = Sides(*both, are_rows)
                        break
            self._known[use.kind] = found
        return self._known[use.kind]

    def places(self, use: Use | None) -> Tensor:
        """Indices `[p]` into the flattened weight of the columns of a use's Jacobian."""
        p = self.rows * self.columns
        kind = torch.int32 if p < 2**31 else torch.int64
        index = torch.arange(p, dtype=kind, device=self.device)
        return index if use is None else use.in_columns(index)

    @abstractmethod
    def by_factors(self, use: Use, b: Tensor) -> bool:
        """Whether `of_factors` takes less than forming the Jacobian from these cotangents."""

    @abstractmethod
    def of_factors(self, sides: Sides, a: Tensor, b: Tensor) -> Tensor:
        """Features `[N, O', dim]` from inputs A `[N, T, a]` and cotangents B `[N, O, T, b]`."""

    @abstractmethod
    def of_rows(self, index: Tensor, b: Tensor) -> Tensor:
        """The same of a weight whose rows `index` `[N, T]` have the cotangents `[N, O, T, b]`.

        Rows of index -1 have no gradient.
        """

    @abstractmethod
    def of_jacobian(self, jacobian: Tensor, use: Use | None = None) -> Tensor:
        """The same from the Jacobian `[N, O, p]`.

        Args:
            jacobian: Its columns are in the order of the weight, or in that of `use.columns`.
            use: The use.
        """
