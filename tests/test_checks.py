"""Entries that are not finite are found, whatever their sum is."""

from __future__ import annotations

import pytest
import torch

from torch_ntk._checks import check_finite

INFINITE = float("inf")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_finite_entries_with_an_infinite_sum_are_accepted(dtype: torch.dtype) -> None:
    value = torch.full((4,), torch.finfo(dtype).max, dtype=dtype)
    assert not torch.isfinite(value.sum())
    assert check_finite("x", value) is value


@pytest.mark.parametrize(
    ("entries", "came"),
    [
        (
            [1.0, INFINITE, -INFINITE],
            r"0 NaN and 2 infinite of 3 entries \(the first at index \(1,",
        ),
        ([float("nan"), 0.0, INFINITE], r"1 NaN and 1 infinite of 3 entries .*\(0,"),
    ],
)
def test_entries_that_are_not_finite_are_counted(entries: list[float], came: str) -> None:
    with pytest.raises(ValueError, match=rf"`x` must be finite; got {came}"):
        check_finite("x", torch.tensor(entries))


def test_integers_are_finite() -> None:
    value = torch.tensor([2**62, 2**62])  # whose sum is not theirs
    assert check_finite("x", value) is value
