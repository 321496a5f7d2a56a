"""Labels as targets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torch_ntk.predict import gradient_flow_mse, one_hot


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_values(dtype: torch.dtype) -> None:
    labels = torch.tensor([2, 0, 1], dtype=dtype)
    expected = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert torch.equal(one_hot(labels, 3), expected)
    assert torch.equal(one_hot(labels, 4)[:, 3], torch.zeros(3))


def test_zero_centered_rows_sum_to_zero() -> None:
    targets = one_hot(torch.tensor([0, 4, 2]), 5, zero_centered=True, dtype=torch.float64)
    expected = torch.full((3, 5), -0.2, dtype=torch.float64)
    for row, label in enumerate((0, 4, 2)):
        expected[row, label] = 0.8
    torch.testing.assert_close(targets, expected, rtol=1e-15, atol=1e-15)
    assert float(targets.sum(1).abs().max()) < 1e-15


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    labels = torch.randint(0, 4, shape)
    targets = one_hot(labels, 4)
    assert targets.shape == (*shape, 4)
    assert torch.equal(targets.argmax(-1), labels)


def test_dtypes() -> None:
    labels = torch.tensor([0, 1])
    assert one_hot(labels, 2).dtype == torch.get_default_dtype()
    assert one_hot(labels, 2, dtype=torch.float16).dtype == torch.float16
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert one_hot(labels, 3, True)[0, 1].item() == -1.0 / 3.0  # in full precision
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    ("labels", "classes", "error", "text"),
    [
        (torch.tensor([0, 3]), 3, ValueError, "from 0 to 2, as `num_classes` is 3; got .* 0 to 3"),
        (torch.tensor([-1, 1]), 3, ValueError, "got labels from -1 to 1"),
        (torch.tensor([0.0, 1.0]), 3, TypeError, "`labels` must be a tensor of integers"),
        (torch.tensor([True, False]), 2, TypeError, "`labels` must be a tensor of integers"),
        (torch.zeros(0, dtype=torch.int64), 3, ValueError, "`labels` must be non-empty"),
        ([0, 1], 2, TypeError, r"`labels` must be a torch\.Tensor"),
        (torch.tensor([0]), 0, ValueError, "`num_classes` must be a positive integer"),
        (torch.tensor([0]), 2.0, TypeError, "`num_classes` must be a positive integer"),
    ],
)
def test_bad_labels(labels: Tensor, classes: int, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        one_hot(labels, classes)


def test_bad_options() -> None:
    labels = torch.tensor([0, 1])
    with pytest.raises(TypeError, match="`zero_centered` must be True or False; got 1"):
        one_hot(labels, 2, 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`dtype` must be a floating-point torch\.dtype"):
        one_hot(labels, 2, dtype=torch.int64)


def test_it_is_the_remedy_for_labels_as_targets() -> None:
    labels, k = torch.tensor([1, 0]), torch.eye(2)
    with pytest.raises(TypeError, match=r"`y` must be .*torch_ntk\.predict\.one_hot"):
        gradient_flow_mse(k, labels)
    f_train, _ = gradient_flow_mse(k, one_hot(labels, 2))(None)
    assert torch.equal(f_train.argmax(1), labels)
