"""What the NTK layers refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from torch_ntk.nn import NTKConv1d, NTKConv2d, NTKConv3d, NTKConvTranspose2d, NTKLinear

LAYERS = {
    "linear": lambda **options: NTKLinear(4, 3, **options),
    "conv1d": lambda **options: NTKConv1d(4, 3, 2, **options),
    "conv2d": lambda **options: NTKConv2d(4, 3, 2, **options),
    "conv3d": lambda **options: NTKConv3d(4, 3, 2, **options),
    "transpose2d": lambda **options: NTKConvTranspose2d(4, 3, 2, **options),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"sigma_w": 0.0}, ValueError, r"`sigma_w` must be a finite number greater than 0; got 0"),
        ({"sigma_w": -1.0}, ValueError, r"`sigma_w` .* got -1\.0"),
        ({"sigma_w": math.nan}, ValueError, r"`sigma_w` .* got nan"),
        ({"sigma_w": math.inf}, ValueError, r"`sigma_w` .* got inf"),
        ({"sigma_w": "gain"}, TypeError, r"`sigma_w` .* got 'gain'"),
        ({"sigma_w": torch.tensor(1.0)}, TypeError, r"`sigma_w` .* tensor"),
        ({"sigma_b": -0.1}, ValueError, r"`sigma_b` must be a finite number, at least 0"),
        ({"sigma_b": math.inf}, ValueError, r"`sigma_b` .* got inf"),
        ({"sigma_b": None}, TypeError, r"`sigma_b` .* got None"),
        ({"bias": 1.4}, TypeError, r"`bias` must be True or False; got 1\.4"),
    ],
)
def test_refuses_bad_arguments(
    make: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        make(**options)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((-1, 3), ValueError, "`in_features` must be an integer, at least 1; got -1"),
        ((0, 3), ValueError, "`in_features` .*; got 0. Without inputs there is no scale"),
        ((3, -1), ValueError, "`out_features` must be an integer, at least 0; got -1"),
        ((2.5, 3), TypeError, r"`in_features` .* got 2\.5"),
        ((True, 3), TypeError, "`in_features`"),
    ],
)
def test_refuses_bad_sizes(arguments: tuple[Any, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        NTKLinear(*arguments)
    with pytest.raises(error, match=words.replace("features", "channels")):
        NTKConv2d(*arguments, 3)


def test_refuses_what_the_base_refuses() -> None:
    with pytest.raises(ValueError, match="divisible by groups"):
        NTKConv2d(3, 4, 3, groups=2)
    with pytest.raises(ValueError, match="strided"):
        NTKConv1d(3, 4, 3, stride=2, padding="same")
    with pytest.raises(ValueError, match="zeros"):
        NTKConvTranspose2d(3, 4, 3, padding_mode="circular")


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("value", ["x", None, True, math.nan, -math.inf, -1, 0, 0.0, -1e-300])
def test_sigma_w_is_asked_for_in_one_way(make: Any, value: Any) -> None:
    words = f"^`sigma_w` must be a finite number greater than 0; got {value!r}\\. "
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        make(sigma_w=value)
    assert issubclass(caught.type, ValueError if type(value) in (int, float) else TypeError)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize(
    ("dtype", "got"),
    [
        (torch.complex64, "torch.complex64"),
        (torch.int64, "torch.int64"),
        (torch.bool, "torch.bool"),
        ("float32", "'float32'"),
        (float, "a type"),
    ],
)
def test_refuses_types_that_are_not_real_floating_point(make: Any, dtype: Any, got: str) -> None:
    words = f"^`dtype` must be a real floating-point torch.dtype; got {got}\\. .*torch.float32"
    with pytest.raises(TypeError, match=words):
        make(dtype=dtype)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_takes_floating_point_types(make: Any, dtype: torch.dtype) -> None:
    assert make(dtype=dtype).weight.dtype is dtype
