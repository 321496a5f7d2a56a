"""What a rule knows about one use of a weight in a bilinear operation.

In `y = op(x, W)` with positions t (pixels, tokens, …) and groups g, entry (b, a) of the weight
multiplies input feature a for output unit b, so with A the input features and B = ∂f/∂y

    ∂f_i/∂W[g, b, a] = Σ_t B[i, g, t, b] · A[g, t, a].
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._inner_products import inner_products

# From so many positions, and multiplications for a sample, on.
_LONG, _LARGE = 128, 4 * 1024**2
# Other numbers of columns, such as the 27 of a first convolution, are multiplied at half the speed.
_MULTIPLE = 8


class RuleError(Exception):
    """The rule of an operation fails, which is a mistake of this package."""


class Use(ABC):
    """One call in which a tracked parameter is the weight of a bilinear operation.

    Attributes:
        name: The parameter's name, once its identity has told it.
        weight: The parameter itself at first, by whose identity it is found; then a tensor without
            data, of its shape and kind.
        source: The input of the call, for one sample.
        groups, inputs, units: Sizes of g, a and b.
    """

    name: str = ""
    weight: Tensor
    source: Tensor
    groups: int
    inputs: int
    units: int

    def found(self, name: str) -> None:
        """Take the name of the weight, and let go of its values."""
        self.name = name
        self.weight = torch.empty_like(self.weight, device="meta")

    def without_source(self) -> Use:
        """The same without the values of its input."""
        use = copy.copy(self)
        use.source = self.source.to("meta")
        return use

    def in_dtype(self, dtype: torch.dtype) -> Use:
        """The same with a weight of that type."""
        use = copy.copy(self)
        use.weight = self.weight.to(dtype)
        return use

    def is_like(self, other: Use) -> bool:
        """Whether it is made in the same way and geometry, of the same weight."""
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
        """A `[N, G, T, a]` of stacked sources `[N, *source.shape]`."""

    @abstractmethod
    def cotangents(self, b: Tensor) -> Tensor:
        """B `[N, O, G, T, b]` of stacked cotangents `[N, O, *y.shape]`."""

    def positions(self, result: torch.Size) -> int:
        """How many positions one sample has, from the shape of what the call returns."""
        return result.numel() // max(1, self.groups * self.units)

    def gram(self, a1: Tensor, a2: Tensor) -> Tensor:
        """Inner products of features `[G, n1·T, a]`, `[G, n2·T, a]`: `[G, n1·T, n2·T]`."""
        if len(a1) == 1:
            return inner_products(a1[0], a2[0]).unsqueeze(0)
        return torch.bmm(a1, a2.transpose(1, 2))

    def for_gram(self) -> Use:
        """The use with features whose inner products take less, where it is the only call."""
        return self

    def held(self, source: Tensor) -> Tensor:
        """What `narrowed` needs of stacked sources."""
        return self.features(source)

    def held_size(self, source: torch.Size, positions: int) -> int:
        """Numbers that are `held` of one source of that shape."""
        return positions * self.groups * self.inputs

    @property
    def steps(self) -> int:
        """In how many equal steps `narrowed` divides the features of a position."""
        return self.inputs

    def narrowed(self, kept: Tensor, start: int, stop: int) -> Tensor:
        """The features of the steps `start … stop`, `[N, G, T, columns]`."""
        return kept[..., start:stop]

    def narrowed_entries(self, packed: Tensor, start: int, stop: int) -> Tensor:
        """Of numbers `[b, a]` those that belong to the features of `narrowed`."""
        each = self.inputs // self.steps
        return packed[:, start * each : stop * each]

    @property
    def is_direct(self) -> bool:
        """Whether Jacobians are `formed` from sources, faster than from their features."""
        return False

    def formed(self, held: Tensor, b: Tensor) -> Tensor:
        """The Jacobian by some units `[N, O, units·inputs]`, in the weight's own order.

        Args:
            held: Of the sources.
            b: Cotangents of these units `[N, O, units, T]`.
        """
        raise NotImplementedError

    def jacobian(self, a: Tensor, b: Tensor) -> Tensor:
        """The Jacobian `[N, O, p]` with respect to the flattened weight."""
        return self.unpack(self._product(a, b))

    def columns(self, a: Tensor, b: Tensor) -> Tensor:
        """The Jacobian with its columns in an order that all uses of one kind have."""
        is_product = type(self).jacobian is Use.jacobian
        return self._product(a, b).flatten(2) if is_product else self.jacobian(a, b)

    def in_columns(self, entries: Tensor) -> Tensor:
        """Numbers for the entries of the weight, in the order of `columns`: `[p]`."""
        is_product = type(self).jacobian is Use.jacobian
        return self.pack(entries).flatten() if is_product else entries.flatten()

    @property
    def has_one_feature(self) -> bool:
        """Whether a unit has a single feature, so that cotangents can be `scaled`."""
        return self.inputs == 1

    def scaled(self, b: Tensor, a: Tensor, entries: Tensor) -> Tensor:
        """Cotangents whose Jacobian is that of `b` times numbers for the entries of the weight.

        With one feature, J[(g, b)] = Σ_t B[g, t, b] A[g, t] is multiplied by multiplying B.

        Args:
            b: Cotangents `[N, O, G, T, b]`.
            a: Features `[N, G, T, a]`.
            entries: Of the weight's shape.
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
        """Whether the Jacobian of all outputs is one product of matrices, and nothing else."""
        return self.groups == 1 and type(self).jacobian is Use.jacobian

    def forming(self, t: int) -> int:
        """Operations to form one row of the Jacobian from `t` positions, halved."""
        return t * int(self.weight.numel())

    def unpack(self, jacobian: Tensor) -> Tensor:
        """From `[N, O, G, b, a]` to `[N, O, p]` in the weight's own layout."""
        return jacobian.flatten(2)

    def pack(self, gradient: Tensor) -> Tensor:
        """From a gradient in the weight's own layout `[p]` to `[G, b, a]`: undoes `unpack`."""
        return gradient.reshape(self.groups, self.units, self.inputs)

    @property
    def is_matrix(self) -> bool:
        """Whether the gradient is a product of matrices in every group."""
        return type(self).jacobian is Use.jacobian

    def applied(self, source: Tensor, vectors: Tensor) -> Tensor:
        """Features of stacked sources times `vectors` `[G, a, k]`: `[N, G, T, k]`."""
        return self.features(source) @ vectors

    @property
    def packed(self) -> Hashable | None:
        """Gradients of uses in which this is equal are the same when they are packed.

        None if a gradient cannot be `multiplied`.
        """
        return self.kind if self.is_matrix else None

    @property
    def columns_packed(self) -> int:
        """Columns of a packed gradient."""
        return self.inputs

    def multiplied(self, source: Tensor, b: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The packed gradient times `vectors` `[G, columns, k]`, and the size of its terms.

        `(Σ_t B[t] A[t]ᵀ) r = Σ_t B[t] ⟨A[t], r⟩` needs no gradient.

        Args:
            source: Stacked sources.
            b: Cotangents `[N, G, T, b]`.
            vectors: r.
        """
        right = self.applied(source, vectors)
        # The positions of all samples, `[G, n·T, …]`.
        right, left = (t.transpose(0, 1).flatten(1, 2) for t in (right, b))
        noise = torch.linalg.vector_norm(left) * torch.linalg.vector_norm(right)
        return torch.bmm(left.transpose(1, 2), right), noise

    @property
    def gram_width(self) -> int:
        """Operations per entry of the feature Gram matrix, halved."""
        return self.inputs


def product(b: Tensor, a: Tensor, out: Tensor | None = None) -> Tensor:
    """`J[n, o, b, a] = Σ_t B[n, o, t, b] A[n, t, a]`, of which `b` is best as `laid_out` has it."""
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
            else:  # rows of any number are multiplied at the full speed
                one.copy_(torch.bmm(one_a.T.expand(o, -1, -1), one_b).transpose(1, 2))
    else:
        left = b.transpose(2, 3).reshape(n, o * units, t)
        torch.bmm(left, a, out=out.view(n, o * units, -1))
    return out


def laid_out(b: Tensor) -> Tensor:
    """Cotangents `[N, O, T, b]` as several products with them want them in memory.

    Positions run last where they are few, and before the outputs where they are many; the product
    over positions is then one of whole matrices for each sample.
    """
    axes = (1, 2) if _is_long(b) else (2, 3)
    return b.transpose(*axes).contiguous().transpose(*axes)


def _is_long(b: Tensor) -> bool:
    """Whether products sample by sample take less than laying out all samples for one product."""
    return b.shape[2] >= _LONG and b.stride(3) == 1 and b.device.type == "cpu"


def argument(args: Sequence[Any], kwargs: Mapping[str, Any], index: int, name: str) -> Any:
    """An argument of an intercepted call, given by position or by name; None if left out."""
    return args[index] if len(args) > index else kwargs.get(name)
