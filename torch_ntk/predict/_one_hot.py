"""Class labels as regression targets."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_positive_int, check_tensor, describe, type_error, value_error

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def one_hot(
    labels: Tensor,
    num_classes: int,
    zero_centered: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Make targets for squared error from class labels.

    A target is 1 at the class and 0 elsewhere. With `zero_centered` 1/C is subtracted from all
    entries, so that they sum to 0: they are (C-1)/C at the class and -1/C elsewhere. Centered
    targets suit networks whose outputs have mean 0 at the start.

    Args:
        labels: Integers from 0 to C - 1, of any shape.
        num_classes: The number of classes C.
        zero_centered: Whether to subtract 1/C.
        dtype: The dtype of the result, by default torch's default dtype.

    Returns:
        `[*labels.shape, C]`, floating point, on the labels' device.

    Raises:
        TypeError: `labels` are not integers, or `num_classes`, `zero_centered` or `dtype` is of
            the wrong type.
        ValueError: A label is not in range, or there are none.

    Example:
        >>> import torch
        >>> from torch_ntk.predict import one_hot
        >>> one_hot(torch.tensor([0, 3]), 4, zero_centered=True)
        tensor([[ 0.7500, -0.2500, -0.2500, -0.2500],
                [-0.2500, -0.2500, -0.2500,  0.7500]])
    """
    tensor = check_tensor("labels", labels).detach()
    classes = check_positive_int("num_classes", num_classes)
    if not isinstance(zero_centered, bool):
        raise type_error("zero_centered", "True or False", describe(zero_centered))
    if dtype is None:
        dtype = torch.get_default_dtype()
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise type_error("dtype", "a floating-point torch.dtype", str(dtype))
    if tensor.dtype not in _INTEGERS:
        raise type_error(
            "labels",
            "a tensor of integers",
            tensor,
            "Labels are class indices; convert them with .long() if they are whole numbers.",
        )
    if tensor.numel() == 0:
        raise value_error("labels", "non-empty", tensor)
    low, high = int(tensor.min()), int(tensor.max())
    if low < 0 or high >= classes:
        raise value_error(
            "labels",
            f"from 0 to {classes - 1}, as `num_classes` is {classes}",
            f"labels from {low} to {high}",
        )
    eye = torch.eye(classes, dtype=torch.float64 if tensor.device.type != "mps" else dtype)
    if zero_centered:
        eye -= 1.0 / classes
    return eye.to(device=tensor.device, dtype=dtype)[tensor.long()]
