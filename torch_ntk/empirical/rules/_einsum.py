"""`torch.einsum` of a parameter and one other operand.

Letters of the parameter that the other operand has, too, are features if they are summed over, and
groups otherwise. The parameter's other letters are units, and those of the other operand positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ._rule import Rule, Use

_MORE_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class EinsumUse(Use):
    """`y = einsum("x,w->y")`, where each of x, w and y has no repeated letters."""

    def __init__(self, source: Tensor, weight: Tensor, x: str, w: str, y: str) -> None:
        self.source, self.weight = source, weight
        self.x, self.w, self.y = x, w, y
        self.sizes = dict(zip((*x, *w), (*source.shape, *weight.shape), strict=True))
        self.over_groups = [c for c in w if c in x and c in y]
        self.over_features = [c for c in w if c in x and c not in y]
        self.over_units = [c for c in w if c not in x]
        self.over_positions = [c for c in y if c not in w]
        self.groups = self._size(self.over_groups)
        self.inputs = self._size(self.over_features)
        self.units = self._size(self.over_units)

    @property
    def kind(self) -> tuple[object, ...]:
        """Uses are joined only if their groups, features and units are the same axes."""
        places = [self.w.index(c) for c in (*self.over_groups, *self.over_features)]
        return (type(self), self.groups, self.inputs, self.units, *places)

    def _size(self, letters: Sequence[str]) -> int:
        return prod(self.sizes[c] for c in letters)

    def features(self, source: Tensor) -> Tensor:
        """Return A `[N, G, T, a]`, summed over the letters that only x has."""
        kept = "".join([*self.over_groups, *self.over_positions, *self.over_features])
        # An ellipsis stands for the axis of samples, because all letters may be in use.
        a = torch.einsum(f"...{self.x}->...{kept}", source)
        return a.reshape(source.shape[0], self.groups, -1, self.inputs)

    def cotangents(self, b: Tensor) -> Tensor:
        """Return B `[N, O, G, T, b]`."""
        order = "".join([*self.over_groups, *self.over_positions, *self.over_units])
        b = torch.einsum(f"...{self.y}->...{order}", b)
        return b.reshape(*b.shape[:2], self.groups, -1, self.units)

    def unpack(self, jacobian: Tensor) -> Tensor:
        """Reorder `[N, O, G, b, a]` to the order of the weight's letters."""
        order = "".join([*self.over_groups, *self.over_units, *self.over_features])
        sizes = [self.sizes[c] for c in order]
        split = jacobian.reshape(*jacobian.shape[:2], *sizes)
        return torch.einsum(f"...{order}->...{self.w}", split).flatten(2)

    def pack(self, gradient: Tensor) -> Tensor:
        """Undo `unpack`, for a gradient `[p]`."""
        order = "".join([*self.over_groups, *self.over_units, *self.over_features])
        found = torch.einsum(f"{self.w}->{order}", gradient.reshape(self.weight.shape))
        return found.reshape(self.groups, self.units, self.inputs)


def einsum(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Use]:
    """Return the uses in `torch.einsum(equation, x, w)`; each operand may be the parameter."""
    equation, operands = args[0], args[1:]
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or len(operands) != 2:
        return ()
    words = _words(equation, [t.ndim for t in operands])
    if words is None:
        return ()
    a, b, y = words
    uses = []
    for x, w, source, weight in ((b, a, operands[1], operands[0]), (a, b, *operands)):
        only_in_w = any(c not in x and c not in y for c in w)
        repeated = any(len(set(word)) < len(word) for word in (x, w, y))
        sizes = dict(zip(x, source.shape, strict=True))
        broadcast = any(sizes.get(c, s) != s for c, s in zip(w, weight.shape, strict=True))
        if not (only_in_w or repeated or broadcast):
            uses.append(EinsumUse(source, weight, x, w, y))
    return uses


def _words(equation: str, dims: Sequence[int]) -> tuple[str, str, str] | None:
    """Return the letters of both operands and the result, with letters for an ellipsis; or None."""
    left, arrow, y = equation.replace(" ", "").partition("->")
    words = left.split(",")
    if len(words) != 2:
        return None
    if not arrow:
        letters = [c for c in left if c.isalpha()]
        dots = "..." if "..." in left else ""
        y = dots + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    free = [c for c in _MORE_LETTERS if c not in equation]
    with_dots = [i for i, word in enumerate(words) if "..." in word]
    if len(with_dots) > 1:
        return None  # ellipses are broadcast against each other
    if with_dots:
        index = with_dots[0]
        count = dims[index] - len(words[index].replace("...", ""))
        letters_for_dots = "".join(free[:count])
        words = [word.replace("...", letters_for_dots) for word in words]
        y = y.replace("...", letters_for_dots)
    fits = all(len(word) == d for word, d in zip(words, dims, strict=True))
    return (words[0], words[1], y) if fits and all(c.isalpha() for c in y) else None


CALLS: dict[Any, Rule] = {torch.einsum: einsum}
