"""A use of a weight: one call of an operation that is linear in the weight.

In `y = op(x, W)` with positions t (pixels, tokens, …) and groups g, entry (b, a) of the weight
multiplies input feature a for output unit b. With the input features A and B = ∂f/∂y

    ∂f_i/∂W[g, b, a] = Σ_t B[i, g, t, b] · A[g, t, a].
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Products sample by sample begin at so many positions, and multiplications for a sample.
_LONG, _LARGE = 128, 4 * 1024**2
# Matrices whose number of columns is no multiple, such as 27, are multiplied at half the speed.
_MULTIPLE = 8


class RuleError(Exception):
    """The rule of an operation failed, which is a mistake in this package."""


class Use(ABC):
    """A call in which a parameter is the weight of an operation that is linear in it.

    Attributes:
        name: The parameter's name; empty before `found`.
        weight: The parameter itself, whose identity gives its name; after `found` a meta tensor
            with its shape and dtype.
        source: The input of the call, for one sample.
        groups, inputs, units: The sizes of g, a and b.
    """

    name: str = ""
    weight: Tensor
    source: Tensor
    groups: int
    inputs: int
    units: int

    def found(self, name: str) -> None:
        """Store the name of the weight, and release its values."""
        self.name = name
        self.weight = torch.empty_like(self.weight, device="meta")

    def without_source(self) -> Use:
        """Return the use without the values of its input."""
        use = copy.copy(self)
        use.source = self.source.to("meta")
        return use

    def in_dtype(self, dtype: torch.dtype) -> Use:
        """Return the use with a weight of that dtype."""
        use = copy.copy(self)
        use.weight = self.weight.to(dtype)
        return use

    def is_like(self, other: Use) -> bool:
        """Whether the other use has the same weight, operation and geometry."""
        if type(self) is not type(other) or self.source.shape != other.source.shape:
            return False
        mine, others = vars(self), vars(other)
        fixed = (k for k, v in mine.items() if k[0] != "_" and not isinstance(v, Tensor))
        return all(mine[k] == others[k] for k in fixed if k != "joins")

    @property
    def kind(self) -> Hashable:
        """Uses of one weight with equal kinds may be joined along their positions."""
        return (type(self), self.groups, self.inputs, self.units)

    @abstractmethod
    def features(self, source: Tensor) -> Tensor:
        """Return the features A `[N, G, T, a]` of stacked sources `[N, *source.shape]`."""

    @abstractmethod
    def cotangents(self, b: Tensor) -> Tensor:
        """Return B `[N, O, G, T, b]` for stacked cotangents `[N, O, *y.shape]`."""

    def positions(self, result: torch.Size) -> int:
        """Return the number of positions of a sample, from the shape of the call's result."""
        return result.numel() // max(1, self.groups * self.units)

    def gram(self, a1: Tensor, a2: Tensor) -> Tensor:
        """Return inner products of `[G, n1·T, a]` and `[G, n2·T, a]`, `[G, n1·T, n2·T]`."""
        return torch.bmm(a1, a2.transpose(1, 2))

    def held(self, source: Tensor) -> Tensor:
        """Return the part of stacked sources that factors store, for `narrowed`."""
        return self.features(source)

    def held_size(self, source: torch.Size, positions: int) -> int:
        """Return the number of entries that are `held` of one source of that shape."""
        return positions * self.groups * self.inputs

    @property
    def steps(self) -> int:
        """The number of equal steps into which `narrowed` divides the features of a position."""
        return self.inputs

    def narrowed(self, kept: Tensor, start: int, stop: int) -> Tensor:
        """Return the features of the steps `start … stop`, `[N, G, T, columns]`."""
        return kept[..., start:stop]

    def narrowed_entries(self, packed: Tensor, start: int, stop: int) -> Tensor:
        """Return those entries of `[b, a]` that belong to the features of `narrowed`."""
        each = self.inputs // self.steps
        return packed[:, start * each : stop * each]

    def jacobian(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the Jacobian `[N, O, p]` with respect to the flattened weight."""
        return self.unpack(self._product(a, b))

    def columns(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the Jacobian with its columns in an order that all uses of one kind have."""
        is_product = type(self).jacobian is Use.jacobian
        return self._product(a, b).flatten(2) if is_product else self.jacobian(a, b)

    def in_columns(self, entries: Tensor) -> Tensor:
        """Return entries of the weight in the order of `columns`, `[p]`."""
        is_product = type(self).jacobian is Use.jacobian
        return self.pack(entries).flatten() if is_product else entries.flatten()

    @property
    def has_one_feature(self) -> bool:
        """Whether a unit has a single feature, so that cotangents can be `scaled`."""
        return self.inputs == 1

    def scaled(self, b: Tensor, a: Tensor, entries: Tensor) -> Tensor:
        """Return cotangents `[N, O, G, T, b]` that multiply the columns of the Jacobian by numbers.

        This is possible with one feature, since J[(g, b)] = Σ_t B[g, t, b] A[g, t]. The numbers
        `entries` have the shape of the weight.
        """
        return b * self.pack(entries).reshape(self.groups, 1, self.units)

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        n, o, g, t, units = b.shape
        if g == 1:
            return product(b[:, :, 0], a[:, 0]).unsqueeze(2)
        left = b.permute(0, 2, 1, 4, 3).reshape(n * g, o * units, t)
        right = a.reshape(n * g, t, -1)
        return torch.bmm(left, right).view(n, g, o, units, -1).transpose(1, 2)

    @property
    def is_product(self) -> bool:
        """Whether the Jacobian of all outputs is a single product of matrices."""
        return self.groups == 1 and type(self).jacobian is Use.jacobian

    def forming(self, t: int) -> int:
        """Return the operations to form one row of the Jacobian from `t` positions, halved."""
        return t * int(self.weight.numel())

    def unpack(self, jacobian: Tensor) -> Tensor:
        """Reorder `[N, O, G, b, a]` to `[N, O, p]` in the weight's own layout."""
        return jacobian.flatten(2)

    def pack(self, gradient: Tensor) -> Tensor:
        """Undo `unpack`, for a gradient `[p]` in the weight's own layout: `[G, b, a]`."""
        return gradient.reshape(self.groups, self.units, self.inputs)

    @property
    def is_matrix(self) -> bool:
        """Whether the gradient is a product of matrices in every group."""
        return type(self).jacobian is Use.jacobian

    def applied(self, source: Tensor, vectors: Tensor) -> Tensor:
        """Return the features of stacked sources times `vectors` `[G, a, k]`: `[N, G, T, k]`."""
        return self.features(source) @ vectors

    @property
    def packed(self) -> Hashable | None:
        """A key that is equal for uses whose packed gradients have the same layout.

        It is None if a gradient cannot be `multiplied`.
        """
        return self.kind if self.is_matrix else None

    @property
    def columns_packed(self) -> int:
        """The number of columns of a packed gradient."""
        return self.inputs

    def multiplied(self, source: Tensor, b: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the packed gradient times `vectors`, and the norm of the terms of the sum.

        `(Σ_t B[t] A[t]ᵀ) r = Σ_t B[t] ⟨A[t], r⟩` is computed without the gradient, for cotangents
        `[N, G, T, b]` and vectors r, `[G, columns, k]`.
        """
        right = self.applied(source, vectors)
        # The positions of all samples, `[G, n·T, …]`.
        right, left = (t.transpose(0, 1).flatten(1, 2) for t in (right, b))
        noise = torch.linalg.vector_norm(left) * torch.linalg.vector_norm(right)
        return torch.bmm(left.transpose(1, 2), right), noise

    @property
    def gram_width(self) -> int:
        """The operations per entry of the feature Gram matrix, halved."""
        return self.inputs


Rule = Callable[[Sequence[Any], Mapping[str, Any]], Use | Sequence[Use] | None]
"""Returns the uses in a call, from its positional and its keyword arguments."""


def product(b: Tensor, a: Tensor, out: Tensor | None = None) -> Tensor:
    """Return `J[n, o, b, a] = Σ_t B[n, o, t, b] A[n, t, a]`; see `laid_out` for the layout of B."""
    n, o, t, units = b.shape
    if out is None and (b.requires_grad or a.requires_grad):  # autograd does not follow `out=`
        return torch.bmm(b.transpose(2, 3).reshape(n, o * units, t), a).view(n, o, units, -1)
    out = b.new_empty(n, o, units, a.shape[2]) if out is None else out
    if b.stride() == (t * o * units, units, o * units, 1) and o > 1:
        rows = b.transpose(1, 2).reshape(n, t, o * units)
        torch.bmm(rows.transpose(1, 2), a, out=out.view(n, o * units, -1))
    elif _is_long(b) and o * t * units * a.shape[2] >= _LARGE:
        for one_b, one_a, one in zip(b, a, out, strict=True):
            if a.shape[2] % _MULTIPLE == 0:
                torch.bmm(one_b.transpose(1, 2), one_a.expand(o, -1, -1), out=one)
            else:  # the number of rows does not matter for the speed
                one.copy_(torch.bmm(one_a.T.expand(o, -1, -1), one_b).transpose(1, 2))
    else:
        left = b.transpose(2, 3).reshape(n, o * units, t)
        torch.bmm(left, a, out=out.view(n, o * units, -1))
    return out


def laid_out(b: Tensor) -> Tensor:
    """Return cotangents `[N, O, T, b]` in the memory layout that is best for several products.

    A few positions are the last axis in memory. Many positions precede the outputs; the product
    over positions is then one of whole matrices for each sample.
    """
    axes = (1, 2) if _is_long(b) else (2, 3)
    return b.transpose(*axes).contiguous().transpose(*axes)


def _is_long(b: Tensor) -> bool:
    """Whether products sample by sample cost less than laying out all samples for one product."""
    return b.shape[2] >= _LONG and b.stride(3) == 1 and b.device.type == "cpu"


def argument(args: Sequence[Any], kwargs: Mapping[str, Any], index: int, name: str) -> Any:
    """Return an argument of an intercepted call, by position or by name; None if left out."""
    return args[index] if len(args) > index else kwargs.get(name)
