"""The loops in which a full covariance is spent: layers of weights, and activations.

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
from typing import Any

import torch
from torch import Tensor

from ...activations import DualActivation

Function = Callable[..., None]

_FEW = 16


@dataclass(frozen=True)
class Loop:
    """What a loop is made for: one set of shapes, so that nothing is compiled twice.

    Attributes:
        compile: Whether it is compiled.
        shape: Of the buffers.
        dtype: Their type.
        device: Where they are.
        distance: Whether the first of a pair of arrays holds distances instead of covariances.
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


def activation(dual: DualActivation, ntk: bool, loop: Loop) -> Function:
    """A function `(k, t, images, k_out, t_out)`: κ into `k_out`, `t · κ̇` into `t_out`.

    `images` holds `dual.images` of the variances of the first and then of the second image.
    """
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

    def with_ntk(
        k: Tensor, t: Tensor, images: tuple[Tensor, ...], k_out: Tensor, t_out: Tensor
    ) -> None:
        kappa, slope = _pair(dual, k, images, loop.distance)
        k_out.copy_(kappa)
        t_out.copy_(t * slope)

    def without(k: Tensor, t: None, images: tuple[Tensor, ...], k_out: Tensor, t_out: None) -> None:
        k_out.copy_(_pair(dual, k, images, loop.distance)[0])

    function = with_ntk if ntk else without
    return compiled(function) if loop.compile else function


def _pair(
    dual: DualActivation, k: Tensor, images: tuple[Tensor, ...], distance: bool
) -> tuple[Tensor, Tensor]:
    half = len(images) // 2
    pair = dual.distance_of_images if distance else dual.pair_of_images
    return pair(k, images[:half], images[half:])


@lru_cache(maxsize=64)
def filtering(window: Window, taken: bool, made: bool, loop: Loop) -> Function:
    """A function `(k, t, rows, columns, added, sums, k_out, t_out)`: one layer of weights.

    `rows` `[taps, ...]` and `columns` weight the taps, 0 where a tap reads padding or would cross
    from one displacement to the other that shares the image; they hold the factor of the layer.
    `added` is what is added to K, how much of the filtered K is added to Θ, and what is added to
    Θ. With distances, `sums` are the variances of the layer's value in either image; else None.

    Args:
        window: Where the taps read.
        taken: Whether there is a Θ to filter.
        made: Whether there is a Θ to make.
        loop: What it is made for.
    """

    def function(
        k: Tensor, t: Tensor | None, rows: Tensor, columns: Tensor, added: Tensor,
        sums: tuple[Tensor, Tensor] | None, k_out: Tensor, t_out: Tensor | None,
    ) -> None:  # fmt: skip
        first, second = _layer(window, taken, made, k, t, rows, columns, added, sums)
        k_out.copy_(first)
        if made:
            t_out.copy_(second)  # type: ignore[union-attr, arg-type]

    return compiled(function) if loop.compile else function


def layer(window: Window, dual: DualActivation, taken: bool, made: bool, loop: Loop) -> Function:
    """A function `(…, added, sums, images, k_out, t_out)`: weights, then activation.

    In this order both are one pass over memory: the activation reads what the taps have summed.
    """
    return _layer_of(window, _Known(dual), taken, made, loop)


@lru_cache(maxsize=64)
def _layer_of(window: Window, known: _Known, taken: bool, made: bool, loop: Loop) -> Function:
    dual = known.dual

    def function(
        k: Tensor, t: Tensor | None, rows: Tensor, columns: Tensor, added: Tensor,
        sums: tuple[Tensor, Tensor] | None, images: tuple[Tensor, ...], k_out: Tensor,
        t_out: Tensor | None,
    ) -> None:  # fmt: skip
        first, second = _layer(window, taken, made, k, t, rows, columns, added, sums)
        kappa, slope = _pair(dual, first, images, loop.distance)
        k_out.copy_(kappa)
        if made:
            t_out.copy_(second * slope)  # type: ignore[union-attr, operator]

    return compiled(function) if loop.compile else function


def _layer(
    window: Window, taken: bool, made: bool, k: Tensor, t: Tensor | None, rows: Tensor,
    columns: Tensor, added: Tensor, sums: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    first = _total(window, k, rows, columns)
    filtered = first
    if sums is None:
        first = first + added[0]
    else:  # the bias drops out of a distance; the covariance is what it is without the bias
        filtered = 0.5 * (sums[0] + sums[1] - first) - added[0]
    if not made:
        return first, None
    second = added[1] * filtered + added[2]
    if taken:
        assert t is not None
        second = _total(window, t, rows, columns) + second
    return first, second


def _total(window: Window, a: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The weighted sum over the taps.

    Compiled, one expression of all of them; otherwise one axis after the other, in fewer passes.
    """
    (p, q), (top, left) = window.size, window.margin
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

    # Written out channel by channel: for many channels that would be long to compile.
    return compiled(function) if loop.compile and channels <= _FEW else function


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
            except _COMPILER_ERRORS as error:
                usable = False
                _say_once(type(error).__name__)
            else:
                return
        function(*arguments)

    return call


def _errors() -> tuple[type[BaseException], ...]:
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    return (TorchDynamoException, InductorError)


_COMPILER_ERRORS = _errors()


@cache
def _say_once(reason: str) -> None:
    warnings.warn(
        f"torch.compile cannot be used here ({reason}: usually a C++ compiler is missing), so "
        "kernels with pooling are computed without it, about ten times slower. The results are "
        "the same. On Debian: apt-get install g++.",
        RuntimeWarning,
        stacklevel=2,
    )
