"""A random linear map of one parameter's Jacobian to `dim` numbers.

Every parameter has its own projection, which depends only on the seed and the parameter's name. A
weight is regarded as a matrix [rows, columns] (its first axis and all others). In most layers its
gradient is G = Σ_t b_t a_tᵀ, with cotangents b_t and inputs a_t. A map that is a product of a map
of rows and a map of columns can then be computed without forming G:

    φ(G) = Σ_t φ(b_t, a_t).

For `output="mean"` the Jacobian [O · rows, columns] of all outputs is projected as one matrix, with
separate random numbers for the rows of each output.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .._optimizers import Scale
from ..empirical.contract import Call, joined_features
from ..empirical.rules import EmbeddingUse, Use

Kind = Literal["sjlt", "gaussian", "rademacher"]


@dataclass(frozen=True, eq=False)
class Sides:
    """The row or column of the weight for each entry of a use's cotangents and inputs.

    Attributes:
        of_units, of_inputs: The indices `[b]` for cotangents and `[a]` for inputs.
        units_are_rows: True if the entries of cotangents are rows and those of inputs are columns,
            False for the reverse.
    """

    of_units: Tensor
    of_inputs: Tensor
    units_are_rows: bool


class ProjectionSettings(NamedTuple):
    """The properties that the projections of all parameters have in common.

    Attributes:
        dim: The number of features.
        seed: The caller's seed.
        joint: How many consecutive outputs are projected together: O for `"mean"`, else 1.
        device: The device of the computation. Random numbers are drawn on the CPU, so that they are
            the same on every device.
    """

    dim: int
    seed: int
    joint: int
    device: torch.device


def seed_of(text: str) -> int:
    """A seed that depends only on the text, and is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


class Projection(ABC):
    """The projection of one parameter, of this name and shape."""

    # Jacobians with more entries are never formed if the uses of the weight are known.
    most_formed: float = math.inf

    def __init__(self, name: str, shape: Sequence[int], settings: ProjectionSettings) -> None:
        self.name = name
        self.dim, self.seed, self.joint, self.device = settings
        self.rows, self.columns = (shape[0], prod(shape[1:])) if len(shape) else (1, 1)
        self._known: dict[Hashable, Sides | None] = {}

    def generator(self, part: int = 0) -> torch.Generator:
        """A generator that depends only on the seed, the parameter's name and `part`."""
        return torch.Generator().manual_seed(seed_of(f"{self.seed} {part} {self.name}"))

    def of_uses(self, calls: Sequence[Call], rows: Sequence[Tensor], root: Scale = 1.0) -> Tensor:
        """The features `[N, O', dim]` of a weight, from its uses and cotangents `[N, O, G, T, b]`.

        `root` is √P of the weight, by which its Jacobian is multiplied before the projection.
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
        # Several uses of one kind are treated as more positions of one use.
        use, a = calls[0][0], joined_features(calls)
        b = rows[0] if len(rows) == 1 else torch.cat(list(rows), dim=3)
        if root is not None and use.has_one_feature:
            b, root = use.scaled(b, a, root), None
        if root is not None:  # √P is not a product of a factor for rows and one for columns
            return self.of_jacobian(use.columns(a, b) * use.in_columns(root), use)
        if isinstance(use, EmbeddingUse):
            return self.of_rows(a[:, 0, :, 0], b[:, :, 0])
        sides = self._sides(use)
        if sides is not None and self.by_factors(use, b):
            return self.of_factors(sides, a[:, 0], b[:, :, 0])
        return self.of_jacobian(use.columns(a, b), use)

    def _sides(self, use: Use) -> Sides | None:
        """The sides of a use whose Jacobian is a product of its cotangents and its inputs.

        None if the entries of cotangents or of inputs mix rows and columns of the weight, or if
        outputs that are projected together would need separate random numbers for inputs.
        """
        if not use.is_product or use.groups > 1:
            return None
        if use.kind not in self._known:
            place = self.places(use).view(use.units, use.inputs)
            units, inputs = place[:, 0], place[0]
            found = None
            if bool((place == units.unsqueeze(1) + (inputs - inputs[0])).all()):
                # The index is a sum; now find whether one term is the row and the other the column.
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
        """The indices `[p]` in the flattened weight of the columns of a use's Jacobian."""
        p = self.rows * self.columns
        kind = torch.int32 if p < 2**31 else torch.int64
        index = torch.arange(p, dtype=kind, device=self.device)
        return index if use is None else use.in_columns(index)

    @abstractmethod
    def by_factors(self, use: Use, b: Tensor) -> bool:
        """Whether `of_factors` is cheaper than forming the Jacobian from these cotangents."""

    @abstractmethod
    def of_factors(self, sides: Sides, a: Tensor, b: Tensor) -> Tensor:
        """The features `[N, O', dim]` from inputs A `[N, T, a]` and cotangents B `[N, O, T, b]`."""

    @abstractmethod
    def of_rows(self, index: Tensor, b: Tensor) -> Tensor:
        """The features of a weight whose rows `index` `[N, T]` have cotangents `[N, O, T, b]`.

        Index -1 stands for a row without a gradient.
        """

    @abstractmethod
    def of_jacobian(self, jacobian: Tensor, use: Use | None = None) -> Tensor:
        """The features from the Jacobian `[N, O, p]`.

        Its columns are in the order of the weight, or of `use.columns` if a use is given.
        """
