"""The alignment of a kernel with the targets that are to be learned."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_positive_int, check_tensor, type_error, value_error
from ..linalg import as_float64, float64_device
from ._kernels import (
    LOOSE_SYMMETRY,
    as_kernel,
    check_same_device,
    check_symmetric,
    cosine,
    frobenius,
    is_constant,
    sample_centered,
)

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def kernel_alignment(
    kernel: Tensor,
    targets: Tensor,
    *,
    centered: bool = False,
    zero_centered: bool = True,
    num_classes: int | None = None,
) -> Tensor:
    """The cosine between a kernel and the ideal kernel of the targets, YYᵀ.

    For a kernel `[N, N]` and targets Y `[N, C]` it is

        ⟨Θ, YYᵀ⟩_F / (‖Θ‖_F ‖YYᵀ‖_F)

    (Cristianini et al. 2001, "On kernel-target alignment", definition 1 with several target
    columns). For a full kernel `[N, N, O, O]` the ideal is the kernel that learns all outputs at
    once, vec(Y) vec(Y)ᵀ, where vec(Y) is Y `[N, O]` as one vector of length N·O:

        Σ Θ[n, m, i, j] Y[n, i] Y[m, j] / (‖Θ‖_F ‖Y‖_F²)

    and `[N, N, O]` is read as the full kernel that is block diagonal in the outputs. The two
    forms are different numbers: of a full kernel K ⊗ 1 the second is
    ⟨K, YYᵀ⟩ / (√O ‖K‖ ‖Y‖²). Compare alignments of one layout only.

    Args:
        kernel: `[N, N]`, `[N, N, O]` or `[N, N, O, O]`, symmetric up to rounding.
        targets: Real targets `[N]` or `[N, C]` in a floating-point dtype, used as they are; or
            class labels `[N]` in an integer dtype, 0 … C-1. C must equal O where the kernel has
            an output axis. On the kernel's device.
        centered: Whether to centre both kernels over the samples first, HΘH with H = 1 - 11ᵀ/N
            for each pair of outputs (Cortes, Mohri and Rostamizadeh 2012, "Algorithms for
            learning kernels based on centered alignment"). Without it, a constant part of the
            kernel, as biases make, counts for or against the alignment.
        zero_centered: For labels: whether the target of class c is e_c - 1/C (every row sums to 0)
            or e_c. Real targets are not changed by it.
        num_classes: For labels: C. By default O for a kernel with an output axis, and otherwise
            the largest label + 1. Give it where the last classes may be missing from the sample,
            since C enters the targets.

    Returns:
        A 0-dim float64 tensor in [-1, 1], and in [0, 1] for a positive semi-definite kernel.

    Raises:
        TypeError: `kernel` is not a dense tensor of real floating-point numbers, or `targets` is
            of no dtype named above (a bool is neither a label nor a number here).
        ValueError: A shape does not fit, a value is not finite, a label is out of range, all
            labels are of one class, the devices differ, or the kernel or the targets are zero
            (after centering: constant), so that no cosine exists.

    Example:
        >>> import torch
        >>> from torch_ntk.metrics import kernel_alignment
        >>> y = torch.tensor([1.0, 1.0, -1.0])
        >>> round(kernel_alignment(torch.outer(y, y), y).item(), 12)
        1.0
        >>> labels = torch.tensor([0, 0, 1])
        >>> round(kernel_alignment(torch.eye(3), labels).item(), 12)  # 1/√3
        0.57735026919
    """
    theta = check_symmetric("kernel", as_kernel("kernel", kernel), LOOSE_SYMMETRY)
    outputs = None if theta.ndim == 2 else theta.shape[2]
    y = _target_matrix(targets, theta.shape[0], outputs, zero_centered, num_classes)
    check_same_device("targets", targets.device, "kernel", kernel.device)
    _refuse_zero("kernel", frobenius(theta) == 0.0, "zero")
    _refuse_zero("targets", frobenius(y) == 0.0, "zero")
    if centered:
        given_theta, given_y = theta, y
        theta, y = sample_centered(theta), y - y.mean(0)
        y_dtype = targets.dtype if targets.is_floating_point() else torch.float64
        _refuse_zero("kernel", is_constant(theta, given_theta, kernel.dtype), "constant")
        _refuse_zero("targets", is_constant(y, given_y, y_dtype), "constant")
    # A cosine has no unit: both are scaled to norm 1, so that nothing under- or overflows.
    theta, y = theta / frobenius(theta), y / frobenius(y)
    if theta.ndim == 2:
        value = float((y * (theta @ y)).sum()) / frobenius(y.mT @ y)
    elif theta.ndim == 3:
        value = float(torch.einsum("nmi,ni,mi->", theta, y, y))
    else:
        value = float(torch.einsum("nmij,ni,mj->", theta, y, y))
    return cosine(value, theta, kernel.dtype)


def _target_matrix(
    targets: Tensor,
    samples: int,
    outputs: int | None,
    zero_centered: bool,
    num_classes: int | None,
) -> Tensor:
    """The targets as Y `[N, C]` in float64, checked against the kernel's axes."""
    given = check_tensor("targets", targets)
    labels = given.dtype in _INTEGERS
    if not labels and not given.is_floating_point():
        raise type_error(
            "targets",
            "real targets in a floating-point dtype or class labels in an integer dtype",
            given,
            "Convert with .to(torch.int64) for labels or .to(torch.float64) for real targets.",
        )
    if given.ndim not in ((1,) if labels else (1, 2)) or given.shape[0] != samples:
        raise value_error(
            "targets",
            f"of shape [{samples}] (class labels), or [{samples}] or [{samples}, C] (real "
            "targets), one row for each sample of `kernel`",
            given,
            "Integers are class labels; convert real targets with .to(torch.float64).",
        )
    if labels:
        return _class_targets(given, outputs, zero_centered, num_classes)
    if num_classes is not None:
        raise value_error(
            "num_classes", "None for real targets", num_classes, "It belongs to labels."
        )
    y = as_float64("targets", given).reshape(samples, -1)
    if outputs is not None and y.shape[1] != outputs:
        raise value_error(
            "targets",
            f"of shape [{samples}, {outputs}] for a kernel with {outputs} outputs",
            given,
            'Pass one column for each output, or a kernel of output="mean".',
        )
    return y


def _class_targets(
    labels: Tensor, outputs: int | None, zero_centered: bool, num_classes: int | None
) -> Tensor:
    """Class labels as the rows e_c, or e_c - 1/C."""
    # On the CPU after one copy: the labels are few and the checks read their values.
    classes = labels.detach().to("cpu", torch.int64)
    low, high = int(classes.min()), int(classes.max())
    if num_classes is not None:
        check_positive_int("num_classes", num_classes)
        if outputs is not None and num_classes != outputs:
            raise value_error(
                "num_classes",
                f"{outputs}, the number of outputs of `kernel`",
                num_classes,
                'Leave it out, or pass a kernel of output="mean".',
            )
    count = num_classes or outputs or high + 1
    if low < 0 or high >= count:
        raise value_error(
            "targets",
            f"class labels from 0 to {count - 1}" if high >= count else "class labels from 0",
            f"labels from {low} to {high}",
            "Number the classes from 0; real targets such as -1 and 1 must be floats.",
        )
    if low == high:
        raise value_error(
            "targets",
            "labels of at least two classes",
            f"{classes.numel()} labels that are all {low}",
            "One class gives a kernel nothing to align with; take a sample of several.",
        )
    y = torch.nn.functional.one_hot(classes, count).to(torch.float64)
    if zero_centered:
        y = y - 1.0 / count
    return y.to(float64_device(labels.device))


def _refuse_zero(name: str, is_zero: bool, what: str) -> None:
    if is_zero:
        expected = "other than zero" if what == "zero" else "not constant over the samples"
        got = "zero throughout" if what == "zero" else "nothing but rounding after centering"
        raise value_error(name, expected, got, "The angle to it is not defined.")
