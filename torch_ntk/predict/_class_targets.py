"""Check and convert the targets of torch's cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import value_error

_NOT_COUNTED = -100  # the `ignore_index` of torch's cross-entropy


def class_targets(loss: object, y: Tensor, shape: Sequence[int]) -> Tensor:
    """`y` in the form that torch's cross-entropy takes; targets of any other loss are unchanged.

    Without this check, torch raises an IndexError for labels that are not a class and a
    RuntimeError for labels in another dtype than int64; neither names the argument. Cross-entropy
    is `F.cross_entropy`, a `functools.partial` of it or an `nn.CrossEntropyLoss`. Its targets are
    class labels `[N]`, in int64 afterwards, or probabilities `[N, C]`, for outputs of this shape.

    Raises:
        ValueError: `y` is neither labels nor probabilities for these outputs, a label is not the
            index of an output, or every label is the ignored one.
    """
    if isinstance(loss, nn.CrossEntropyLoss):
        ignored = loss.ignore_index
    elif isinstance(loss, partial) and loss.func is F.cross_entropy:
        ignored = loss.keywords.get("ignore_index", _NOT_COUNTED)
    elif loss is F.cross_entropy:
        ignored = _NOT_COUNTED
    else:
        return y
    samples, classes = shape[0], shape[1] if len(shape) == 2 else None
    if classes is not None and y.is_floating_point() and tuple(y.shape) == (samples, classes):
        return y
    if classes is None or y.is_floating_point() or tuple(y.shape) != (samples,):
        raise value_error(
            "y",
            f"class labels [{samples}] in an integer dtype, or probabilities "
            f"[{samples}, {'C' if classes is None else classes}] in a floating-point one",
            y,
            "Labels that are whole numbers are converted with y.long().",
        )
    labels = y.to(torch.int64)
    counted = labels[labels != ignored]
    outside = (counted < 0) | (counted >= classes)
    if bool(outside.any()) or not counted.numel():
        raise value_error(
            "y",
            f"labels from 0 to {classes - 1}, as there are {classes} outputs",
            f"{int(counted[outside][0])} among them" if counted.numel() else "only ignored labels",
            "Number the classes from 0, or give the network an output for each class.",
        )
    return labels
