"""The loops in which most of the time is spent: layers of weights, and activations.

Each is written once as plain torch expressions; `torch.compile` makes one pass over memory of
each, on a CPU through C++ and on a GPU through Triton. A layer and the activation after it are one
pass. An activation and the layer after *it* are two on purpose: in one, the activation would be
computed again for every tap.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....activations import DualActivation
from ...operations import FEW_CHANNELS, Buffers

Function = Callable[..., None]
ImageTerms = tuple[Tensor, ...]
"""`dual.images` of the variances of the first and then of the second image."""
Sums = tuple[Tensor, Tensor] | None
"""With distances, the variances of a layer's value in either image."""

# Channels whose products are written out one by one: for more that would be long to compile.
_MOST_WRITTEN_OUT = 2 * FEW_CHANNELS


@dataclass(frozen=True)
class Loop:
    """What a loop is made for: one set of shapes, so that nothing is compiled twice.

    Attributes:
        compile: Whether it is compiled.
        shape: Of the buffers.
        dtype: Their type.
        device: Where they are.
        distance: Whether the first of a pair of arrays contains distances instead of covariances.
    """

    compile: bool
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    distance: bool = False


@dataclass(frozen=True)
class Window:
    """How a filter reads a buffer: per tap the shift along either axis, and the margins.

    Attributes:
        rows: The shifts along the first axis.
        columns: Along the second.
        size: Positions `(P, Q)` inside the margins.
        margin: Rows above and columns left of them.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    size: tuple[int, int]
    margin: tuple[int, int]


class Weights(NamedTuple):
    """The numbers of a layer of weights, as tensors.

    Attributes:
        rows: Per tap along the first axis its weight, `[taps, ...]`: 0 where it reads padding or
            would cross from one displacement to the other that shares the image, else
            the layer's a over the number of taps.
        columns: The same along the second axis, but 1.
        added: What is added to K, how much of the filtered K is added to Θ, and what is added to
            Θ: b, c/a and d of the layer.
    """

    rows: Tensor
    columns: Tensor
    added: Tensor


def activation(dual: DualActivation, ntk: bool, loop: Loop) -> Function:
    """A function `(taken, images, made)`: κ and Θ κ̇ of the buffers `taken` into `made`."""
    return _activation(_Known(dual), ntk, loop)


class _Known:
    """A dual activation that equals others of the same settings."""

    def __init__(self, dual: DualActivation) -> None:
        self.dual = dual
        self._key = (type(dual), tuple(sorted(vars(dual).items())))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Known) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@lru_cache(maxsize=64)
def _activation(known: _Known, ntk: bool, loop: Loop) -> Function:
    dual = known.dual

    def function(taken: Buffers, images: ImageTerms, made: Buffers) -> None:
        kappa, slope = _pair(dual, taken[0], images, loop.distance)
        made[0].copy_(kappa)
        if ntk:
            made[1].copy_(taken[1] * slope)  # type: ignore[union-attr, operator]

    return compiled(function) if loop.compile else function


def _pair(
    dual: DualActivation, k: Tensor, images: ImageTerms, distance: bool
) -> tuple[Tensor, Tensor]:
    half = len(images) // 2
    pair = dual.distance_of_images if distance else dual.pair_of_images
    return pair(k, images[:half], images[half:])


@lru_cache(maxsize=64)
def filtering(window: Window, taken_ntk: bool, made_ntk: bool, loop: Loop) -> Function:
    """A function `(taken, weights, sums, made)`: one layer of weights.

    Args:
        window: Where the taps read.
        taken_ntk: Whether there is a Θ to filter.
        made_ntk: Whether there is a Θ to make.
        loop: What it is made for.
    """

    def function(taken: Buffers, weights: Weights, sums: Sums, made: Buffers) -> None:
        k, filtered = _layer(window, taken[0], weights, sums)
        made[0].copy_(k)
        if made_ntk:
            t = taken[1] if taken_ntk else None
            made[1].copy_(_layer_ntk(window, t, filtered, weights))  # type: ignore[union-attr]

    return compiled(function) if loop.compile else function


def layer(
    window: Window, dual: DualActivation, taken_ntk: bool, made_ntk: bool, loop: Loop
) -> Function:
    """A function `(taken, weights, sums, images, made)`: weights, then activation.

    In this order both are one pass over memory: the activation reads what the taps have summed.
    """
    return _layer_of(window, _Known(dual), taken_ntk, made_ntk, loop)


@lru_cache(maxsize=64)
def _layer_of(
    window: Window, known: _Known, taken_ntk: bool, made_ntk: bool, loop: Loop
) -> Function:
    dual = known.dual

    def function(
        taken: Buffers, weights: Weights, sums: Sums, images: ImageTerms, made: Buffers
    ) -> None:
        k, filtered = _layer(window, taken[0], weights, sums)
        kappa, slope = _pair(dual, k, images, loop.distance)
        made[0].copy_(kappa)
        if made_ntk:
            t = _layer_ntk(window, taken[1] if taken_ntk else None, filtered, weights)
            made[1].copy_(t * slope)  # type: ignore[union-attr]

    return compiled(function) if loop.compile else function


def _layer(window: Window, k: Tensor, weights: Weights, sums: Sums) -> tuple[Tensor, Tensor]:
    """K (or distances) after a layer, and the filtered K, a⟨K⟩, of which Θ gets its part."""
    filtered = _total(window, k, weights)
    if sums is None:
        return filtered + weights.added[0], filtered
    # The bias drops out of a distance d; the covariance (q + q' - d) / 2 has it.
    return filtered, 0.5 * (sums[0] + sums[1] - filtered) - weights.added[0]


def _layer_ntk(window: Window, t: Tensor | None, filtered: Tensor, weights: Weights) -> Tensor:
    """Θ ← a⟨Θ⟩ + c⟨K⟩ + d."""
    own = weights.added[1] * filtered + weights.added[2]
    return own if t is None else _total(window, t, weights) + own


def _total(window: Window, a: Tensor, weights: Weights) -> Tensor:
    """The weighted sum over the taps.

    Compiled, one expression of all of them; otherwise one axis after the other, in fewer passes.
    """
    (p, q), (top, left) = window.size, window.margin
    rows, columns = weights.rows, weights.columns
    if not torch.compiler.is_compiling():
        part = columns[0] * a[..., left + window.columns[0] :][..., :q]
        for j, c in enumerate(window.columns[1:], 1):
            part = torch.addcmul(part, columns[j], a[..., left + c : left + c + q])
        total = rows[0] * part[..., top + window.rows[0] :, :][..., :p, :]
        for i, r in enumerate(window.rows[1:], 1):
            total = torch.addcmul(total, rows[i], part[..., top + r : top + r + p, :])
        return total
    result: Any = 0
    for i, r in enumerate(window.rows):
        line: Any = 0
        for j, c in enumerate(window.columns):
            line = line + columns[j] * a[..., top + r : top + r + p, left + c : left + c + q]
        result = result + rows[i] * line
    return result  # type: ignore[no-any-return]


@lru_cache(maxsize=64)
def products(channels: int, loop: Loop) -> Function:
    """A function `(x1, x2, k_out)`: the mean over axis 1, the channels, of the products."""

    def function(x1: Tensor, x2: Tensor, k_out: Tensor) -> None:
        total = x1[:, 0] * x2[:, 0]
        for c in range(1, channels):
            total = total + x1[:, c] * x2[:, c]
        k_out.copy_(total * (1 / channels))

    return compiled(function) if loop.compile and channels <= _MOST_WRITTEN_OUT else function


@lru_cache(maxsize=64)
def differences(channels: int, loop: Loop) -> Function:
    """A function `(x1, x2, d_out)`: distances of images `[n1, C, …]` and `[n2, C, …]`."""

    def function(x1: Tensor, x2: Tensor, d_out: Tensor) -> None:
        total = (x1[:, None, 0] - x2[None, :, 0]).square()
        for c in range(1, channels):
            total = total + (x1[:, None, c] - x2[None, :, c]).square()
        d_out.copy_(total * (1 / channels))

    return compiled(function) if loop.compile else function


@lru_cache(maxsize=64)
def from_products(channels: int, loop: Loop) -> Function:
    """A function `(sums, s1, s2, d_out)`: distances from sums of products and mean squares."""

    def function(sums: Tensor, s1: Tensor, s2: Tensor, d_out: Tensor) -> None:
        d_out.copy_((s1 + s2 - sums * (2 / channels)).clamp(min=0.0))

    return compiled(function) if loop.compile else function


def compiled(function: Function) -> Function:
    """`function` through `torch.compile`; as it is where no compiler can be used.

    What one may be missing shows at the first call only. The function then runs as it is, slower
    and with the same result, and a warning says so once.
    """
    # A code object of its own: the compiler counts what it makes of one code object, and would
    # give up after a few networks.
    own = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        None,
        function.__closure__,
    )
    fast: Any = torch.compile(own, dynamic=False, fullgraph=True)
    usable = True

    def call(*arguments: Any) -> None:
        nonlocal usable
        if usable:
            try:
                fast(*arguments)
            except _compiler_errors() as error:
                usable = False
                _say_once(type(error).__name__)
            else:
                return
        function(*arguments)

    return call


@cache
def _compiler_errors() -> tuple[type[BaseException], ...]:
    from torch._dynamo.exc import TorchDynamoException  # slow to import
    from torch._inductor.exc import InductorError

    return (TorchDynamoException, InductorError)


@cache
def _say_once(reason: str) -> None:
    warnings.warn(
        f"torch.compile cannot be used here ({reason}: usually a C++ compiler is missing), so "
        "kernels with pooling are computed without it, about ten times slower. The results are "
        "the same. On Debian: apt-get install g++.",
        RuntimeWarning,
        stacklevel=2,
    )
