"""The two scales of NTK layers: how they are applied, and how they are checked.

A layer computes `c · (x * W) + sigma_b · b` with `c = sigma_w / sqrt(fan_in)`. The factor `c` may
multiply the output, the input or the weight; the function and its derivatives are the same.

- Scaling the **output** costs a pass over the output, saves no further tensor for the backward
  pass, and leaves the parameter itself as the argument of `F.linear` and `F.conv*d`. This is what
  the layers do.
- Scaling the input would save a second copy of every activation. Scaling the weight would cost a
  pass over `out × in` numbers in both directions, which for a wide layer on a small batch takes as
  long as the product itself.
- In **float16** the unscaled sum of `fan_in` products grows like `sqrt(fan_in)` and can exceed
  65504, while a scaled *input* can fall below the smallest normal number 6e-5. `W ~ N(0, 1)` times
  `c` does neither. Therefore the weight is scaled in float16, which is as safe as `nn.Linear`.
- In **TorchScript**, where autocast's dtype is not available, the weight is always scaled.

`weight_scale`, `sums_in_float16` and `scale_and_shift` are compiled by `torch.jit.script` with the
layers, and are therefore restricted to what TorchScript supports.
"""

from __future__ import annotations

import math
import operator
from typing import Literal, SupportsIndex

import torch
from torch import Tensor, nn

from .._checks import check_bool, check_finite_number, describe, type_error, value_error

_AUTOCAST_DEVICES = ("cuda", "cpu", "mps", "xpu")


_POSITIVE = "a finite number greater than 0"


def check_sigma_w(value: object, name: str = "sigma_w", expected: str = _POSITIVE) -> float:
    """Return `value` as a float if it is a finite number above 0."""
    remedy = "It is the standard deviation of the scaled weights."
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise type_error(name, expected, describe(value), remedy)
    if value == 0:
        remedy = "With 0 the layer would not depend on its input."
    if not (math.isfinite(value) and value > 0):
        raise value_error(name, expected, describe(value), remedy)
    return float(value)


def check_sigma_w_or_gain(value: object) -> float | Literal["gain"]:
    """Return "gain", or `value` as a float if it is a finite number above 0."""
    expected = f"'gain' or {_POSITIVE}"
    if not isinstance(value, str):
        return check_sigma_w(value, expected=expected)
    if value != "gain":
        raise value_error("sigma_w", expected, describe(value))
    return "gain"


def check_sigma_b(value: object) -> float:
    """Return `value` as a float if it is a finite number of at least 0."""
    return check_finite_number(
        "sigma_b", value, minimum=0.0, remedy="It is the standard deviation of the scaled bias."
    )


def check_size(name: str, value: SupportsIndex, least: int = 0) -> int:
    """Return `value` as an int if it is an integer of at least `least`."""
    expected = f"an integer, at least {least}"
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise type_error(name, expected, value)
    number = operator.index(value)
    if number < least:
        remedy = "Without inputs there is no scale sigma_w / sqrt(fan_in)." if number == 0 else ""
        raise value_error(name, expected, number, remedy)
    return number


def check_bias(value: object) -> bool:
    """Return `value` if it is True or False.

    A number is most likely `sigma_w` passed by position, and would be taken for True.
    """
    return check_bool("bias", value, "Write sigma_w=... and sigma_b=... by name.")


def check_dtype(dtype: object) -> None:
    """Raise unless `dtype` is a real floating-point dtype, or None for the default dtype."""
    if dtype is None:
        return
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise type_error(
            "dtype",
            "a real floating-point torch.dtype",
            str(dtype) if isinstance(dtype, torch.dtype) else describe(dtype),
            "The weights are drawn from a real normal distribution; give torch.float32, say.",
        )


def weight_scale(sigma_w: float, fan_in: int) -> float:
    """`sigma_w / sqrt(fan_in)`; an empty sum (`fan_in = 0`) has scale 0."""
    return sigma_w / math.sqrt(fan_in) if fan_in > 0 else 0.0


def sums_in_float16(weight: Tensor) -> bool:
    """Whether a product with `weight` is computed in float16, because of its dtype or of autocast.

    A traced `weight` (a `torch.fx` proxy) has no known dtype and counts as float32. Autocast is
    checked for every device, because a proxy has no known device either; a wrong yes is harmless.
    TorchScript cannot check autocast, so that the answer there is always yes.
    """
    # TorchScript does not compile a branch that this condition excludes.
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        return weight.dtype is torch.float16 or any(
            torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.float16
            for device in _AUTOCAST_DEVICES
        )
    return True


def scale_and_shift(output: Tensor, scale: float, bias: Tensor | None, sigma_b: float) -> Tensor:
    """`scale · output + sigma_b · bias`, in the dtype of `output`.

    `bias` broadcasts against the trailing axes of `output`. The cast keeps the reduced precision
    that autocast chose for the product, as a bias inside of `F.linear` would.

    `torch.add(bias, output, alpha=scale)` would save a pass, but torch.compile's inductor ignores
    `alpha` when it fuses an addition with the matrix product before it.
    """
    scaled = output * scale
    return scaled if bias is None else scaled + (bias * sigma_b).to(output.dtype)


@torch.no_grad()
def draw_normal_(
    tensor: Tensor, std: float = 1.0, generator: torch.Generator | None = None
) -> None:
    """Fill `tensor` with N(0, std²), the same numbers whatever its memory format."""
    if tensor.is_contiguous():
        tensor.normal_(0.0, std, generator=generator)
    else:
        drawn = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        tensor.copy_(drawn.normal_(0.0, std, generator=generator))


class NormalParameters(nn.Module):
    """A layer whose own parameters are drawn from N(0, 1)."""

    def reset_parameters(self) -> None:
        """Draw new weights and biases from N(0, 1)."""
        for parameter in self.parameters(recurse=False):
            draw_normal_(parameter)
