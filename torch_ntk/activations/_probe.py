"""Checks of a function that is given as an activation, and the search for its kinks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._checks import describe, type_error, value_error

# Kinks are searched on a grid with this spacing on [-_REACH, _REACH].
_SPACING = 1 / 64
_REACH = 32.0
# The number of bisections of an interval of the grid. Its width is then 1e-11, and a smooth
# function changes by less than _JUMP over it.
_HALVINGS = 30
_JUMP = 1e-6
# f' has no limit at a point if |f'| beside it is this many times its largest value on the grid.
_STEEP = 1e3

_REMEDY = (
    "Give an elementwise, deterministic function of one tensor, a name such as 'relu', or a "
    "DualActivation."
)


def value_and_derivative(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return f(x) and f'(x), by autograd, in the shape of `x`, which is not modified."""
    # The caller may work in inference mode or without gradients; this needs them.
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        value = f(leaf.clone())
        (derivative,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach().to(x.dtype), derivative


def check_elementwise(f: Callable[[Tensor], Tensor]) -> None:
    """Check that `f` is elementwise and deterministic, and finite on [-3, 3].

    Raises:
        TypeError: `f` does not return a tensor of the shape of its argument.
        ValueError: `f` mixes entries, depends on their position, is random, or is not finite.
    """
    # A random function is refused, and its calls must not advance the caller's generator.
    with torch.random.fork_rng(devices=[]):
        _check_elementwise(f)


def _check_elementwise(f: Callable[[Tensor], Tensor]) -> None:
    x = torch.linspace(-3, 3, 24, dtype=torch.float64)
    order = torch.arange(24).roll(7).flip(0)
    first = _apply(f, x)
    if not bool(torch.isfinite(first).all()):
        raise value_error("activation", "finite on [-3, 3]", _described(f), _REMEDY)
    if not torch.equal(first, _apply(f, x)):
        what = f"{_described(f)}, which gives two results for one input"
        raise value_error("activation", "deterministic", what, _REMEDY)
    shaped = (x[order], x.view(2, 3, 4), x.view(1, 4, 6), x[:5])
    wanted = (first[order], first.view(2, 3, 4), first.view(1, 4, 6), first[:5])
    for given, expected in zip(shaped, wanted, strict=True):
        # Vectorized and scalar code may round differently.
        if not torch.allclose(_apply(f, given), expected, rtol=1e-12, atol=1e-14):
            what = f"{_described(f)}, whose value at an entry depends on the others or on its place"
            raise value_error("activation", "an elementwise function", what, _REMEDY)


def find_kinks(f: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the points in [-32, 32] where f' jumps, found by bisection, in ascending order.

    Raises:
        ValueError: `f` itself jumps, so that κ̇ does not exist, or its slope is unbounded.
    """
    half = round(_REACH / _SPACING)
    # The grid is shifted, so that a kink at a round number is inside of an interval.
    grid = (torch.arange(-half, half + 1, dtype=torch.float64) + 0.2817) * _SPACING
    values, slopes = value_and_derivative(f, grid)
    scale = 1 + slopes.abs().max()
    for data, jump in ((values, True), (slopes, False)):
        changes = (data.diff().abs() > _JUMP * scale).nonzero().squeeze(-1)
        low, high = grid[changes], grid[changes + 1]
        at_low, at_high = data[changes], data[changes + 1]
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            at_middle = value_and_derivative(f, middle)[0 if jump else 1]
            left = (at_middle - at_low).abs() >= (at_high - at_middle).abs()
            low, high = torch.where(left, low, middle), torch.where(left, middle, high)
            at_low = torch.where(left, at_low, at_middle)
            at_high = torch.where(left, at_middle, at_high)
        persists = (at_high - at_low).abs() > _JUMP * scale
        kinks = ((low + high) / 2)[persists]
        if jump and len(kinks):
            what = f"{_described(f)}, which jumps near x = {_rounded(kinks[0])}"
            remedy = "A function with a jump has no derivative dual κ̇; smooth the jump."
            raise value_error("activation", "continuous", what, remedy)
    steep = kinks[torch.maximum(at_high.abs(), at_low.abs())[persists] > _STEEP * scale]
    if len(steep):
        what = (
            f"{_described(f)}, whose derivative grows without bound near x = {_rounded(steep[0])}"
        )
        raise value_error("activation", "of bounded slope", what, _REMEDY)
    return kinks


def half_lines(f: Callable[[Tensor], Tensor]) -> tuple[float, float] | None:
    """Return slopes (a₊, a₋) if f(x) is a₊ x for x > 0 and a₋ x for x < 0, or else None.

    The values at 301 absolute values of x from 1e-6 to 1e6 are compared.
    """
    x = torch.logspace(-6, 6, 301, dtype=torch.float64)
    slopes = []
    for signed in (x, -x):
        ratio = value_and_derivative(f, signed)[0] / signed
        if not torch.allclose(ratio, ratio[150], rtol=1e-14, atol=0.0):
            return None
        slopes.append(float(ratio[150]))
    return slopes[0], slopes[1]


def _apply(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    try:
        with torch.inference_mode(False), torch.enable_grad():
            value = f(x.clone().requires_grad_().clone())
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        what = f"{_described(f)}, which fails on {describe(x)} ({error})"
        raise type_error("activation", "an elementwise function", what, _REMEDY) from error
    if not isinstance(value, Tensor) or value.shape != x.shape or value.is_complex():
        what = f"{_described(f)}, which makes {describe(value)} of {describe(x)}"
        raise type_error("activation", "an elementwise function", what, _REMEDY)
    if not value.requires_grad:
        what = f"{_described(f)}, whose result does not depend on its input for autograd"
        raise value_error("activation", "differentiable by autograd", what, _REMEDY)
    return value.detach().to(x.dtype)


def name_of(f: object) -> str:
    """Return the name of a function, or of the class of any other object."""
    name = getattr(f, "__name__", None)
    return name if isinstance(name, str) else type(f).__name__


def _described(f: object) -> str:
    name = getattr(f, "__name__", None)
    return name if isinstance(name, str) else describe(f)


def _rounded(x: Tensor) -> str:
    return f"{round(float(x), 9) + 0.0:g}"
