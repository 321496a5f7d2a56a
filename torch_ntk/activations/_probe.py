"""What a function given as an activation is: elementwise, continuous, and where it bends."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._checks import describe, type_error, value_error

# Kinks are looked for on a grid of this spacing, over [-_REACH, _REACH].
_SPACING = 1 / 64
_REACH = 32.0
# Halvings of an interval of the grid; its width is then 1e-11, over which a smooth function does
# not change by _JUMP.
_HALVINGS = 30
_JUMP = 1e-6
# How much steeper than anywhere on the grid it is beside a point where f' has no limit.
_STEEP = 1e3

_REMEDY = (
    "Give an elementwise, deterministic function of one tensor, a name such as 'relu', or a "
    "DualActivation."
)


def value_and_derivative(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Values and derivatives by autograd at every entry of `x`, which is left as it is."""
    # The caller may work in inference mode or without gradients; this needs them.
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        value = f(leaf.clone())
        (derivative,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach().to(x.dtype), derivative


def check_elementwise(f: Callable[[Tensor], Tensor]) -> None:
    """Make sure that `f` acts on every entry alone and gives the same each time.

    Raises:
        TypeError: `f` gives no tensor of the same shape.
        ValueError: `f` mixes entries, depends on their place, is random, or is not finite.
    """
    # A random function is refused, but must not have moved the caller's generator either.
    with torch.random.fork_rng(devices=[]):
        _check_elementwise(f)


def _check_elementwise(f: Callable[[Tensor], Tensor]) -> None:
    x = torch.linspace(-3, 3, 24, dtype=torch.float64)
    order = torch.arange(24).roll(7).flip(0)
    first = _apply(f, x)
    if not bool(torch.isfinite(first).all()):
        raise value_error("activation", "finite on [-3, 3]", _came(f), _REMEDY)
    if not torch.equal(first, _apply(f, x)):
        what = f"{_came(f)}, which gives two results for one input"
        raise value_error("activation", "deterministic", what, _REMEDY)
    shaped = (x[order], x.view(2, 3, 4), x.view(1, 4, 6), x[:5])
    wanted = (first[order], first.view(2, 3, 4), first.view(1, 4, 6), first[:5])
    for given, expected in zip(shaped, wanted, strict=True):
        # Vectorized and scalar code may round differently.
        if not torch.allclose(_apply(f, given), expected, rtol=1e-12, atol=1e-14):
            what = f"{_came(f)}, whose value at an entry depends on the others or on its place"
            raise value_error("activation", "an elementwise function", what, _REMEDY)


def find_kinks(f: Callable[[Tensor], Tensor]) -> Tensor:
    """Where f' jumps, in [-32, 32], found by bisection; 0 is left out if f is smooth there.

    Raises:
        ValueError: `f` itself jumps: it has no κ̇.
    """
    half = round(_REACH / _SPACING)
    # Shifted, so that a kink at a round number lies inside an interval.
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
            what = f"{_came(f)}, which jumps near x = {_place(kinks[0])}"
            remedy = "A function with a jump has no derivative dual κ̇; smooth the jump."
            raise value_error("activation", "continuous", what, remedy)
    steep = kinks[torch.maximum(at_high.abs(), at_low.abs())[persists] > _STEEP * scale]
    if len(steep):
        what = f"{_came(f)}, whose derivative grows without bound near x = {_place(steep[0])}"
        raise value_error("activation", "of bounded slope", what, _REMEDY)
    return kinks


def half_lines(f: Callable[[Tensor], Tensor]) -> tuple[float, float] | None:
    """The slopes (a₊, a₋) if f(x) is a₊ x for positive and a₋ x for negative x, else None.

    Judged by its values at some hundred sizes of x from 1e-6 to 1e6.
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
        what = f"{_came(f)}, which fails on {describe(x)} ({error})"
        raise type_error("activation", "an elementwise function", what, _REMEDY) from error
    if not isinstance(value, Tensor) or value.shape != x.shape or value.is_complex():
        what = f"{_came(f)}, which makes {describe(value)} of {describe(x)}"
        raise type_error("activation", "an elementwise function", what, _REMEDY)
    if not value.requires_grad:
        what = f"{_came(f)}, whose result does not depend on its input for autograd"
        raise value_error("activation", "differentiable by autograd", what, _REMEDY)
    return value.detach().to(x.dtype)


def name_of(f: object) -> str:
    """The name of a function, or of the class of anything else."""
    name = getattr(f, "__name__", None)
    return name if isinstance(name, str) else type(f).__name__


def _came(f: object) -> str:
    name = getattr(f, "__name__", None)
    return name if isinstance(name, str) else describe(f)


def _place(x: Tensor) -> str:
    return f"{round(float(x), 9) + 0.0:g}"
