"""Gradient flow under any loss."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import (
    check_choice,
    check_finite,
    check_finite_number,
    check_positive_int,
    describe,
    type_error,
    value_error,
)
from ._class_targets import class_targets
from ._flow_predictor import FlowPredictor
from ._layout import check_train_kernel
from ._loss import Loss, read_loss_targets
from ._modes import read_modes
from ._ode import METHODS, Method, Tolerances


def gradient_flow(
    loss: Loss,
    k_train_train: Tensor,
    y: Tensor,
    *,
    num_outputs: int | None = None,
    diag_reg: float = 0.0,
    method: Method = "BDF",
    rtol: float = 1e-8,
    atol: float = 1e-8,
    max_evaluations: int = 100_000,
    progress: bool = False,
) -> FlowPredictor:
    """Gradient flow of any smooth loss with a constant kernel: training by infinitely small steps.

    The outputs obey ḟ = -Θ ∂loss/∂f on the training samples and ḟ_test = -Θ_st ∂loss/∂f on test
    samples. For cross-entropy ∂loss/∂f = softmax(f) - y, and there is no closed form. The equation
    is solved by a stiff solver with the exact Jacobian -Θ ∂²loss/∂f², from `torch.func`, in the
    eigenmodes of Θ scaled by √λ. These are coordinates of the parameters, in which neither large
    nor vanishing eigenvalues distort the error estimate, and which determine the outputs on
    training and test samples exactly. A solution takes memory of order (N·O)² and time of order
    (N·O)³ per factorization. (Lee et al. 2019, "Wide Neural Networks of Any Depth Evolve as Linear
    Models Under Gradient Descent".)

    Args:
        loss: `loss(f, y) -> scalar`, twice differentiable. f is `[N]` or `[N, O]` in float64, and y
            are the targets, in float64 if they are floating point. Other tensors of the loss, such
            as weights of classes, must be in float64 too. Any reduction is part of the loss:
            `torch.nn.functional.cross_entropy` averages over samples by default.
        k_train_train: Θ of the training samples, `[N, N]` or `[N, N, O, O]`.
        y: The second argument of the loss, with one row per sample: floating-point targets or
            probabilities `[N]` or `[N, O]`, or class indices `[N]`.
        num_outputs: The number of outputs O. It is needed for class indices with a kernel `[N, N]`,
            where neither the kernel nor y shows it; by default it is then that of `f0_train`.
        diag_reg: Regularization of the diagonal of Θ in units of the diagonal's mean; see
            `gradient_flow_mse`.
        method: The solver: `"BDF"`, `"Radau"` (for tight tolerances) or `"LSODA"`.
        rtol: The relative error per step that the solver allows.
        atol: The absolute error per step, in the units of f.
        max_evaluations: The number of evaluations of the gradient after which the solver gives up.
        progress: Whether to show a progress bar.

    Returns:
        A predictor `p(t, f0_train=None, f0_test=None, k_test_train=None) -> (f_train, f_test)`.

    Raises:
        TypeError: `loss` is not callable, or an argument is of the wrong type or dtype.
        ValueError: Shapes do not fit, something is not finite or out of range, a label of
            cross-entropy is not a class, or the kernel is not symmetric or not positive
            semi-definite beyond its precision.

    Example:
        >>> import torch
        >>> import torch.nn.functional as F
        >>> from torch_ntk.predict import gradient_flow
        >>> k = torch.eye(2, dtype=torch.float64)
        >>> p = gradient_flow(F.cross_entropy, k, torch.tensor([0, 2]), num_outputs=3)
        >>> f_train, _ = p(torch.tensor([0.0, 10.0]))
        >>> f_train.shape, f_train[1].argmax(1)
        (torch.Size([2, 2, 3]), tensor([0, 2]))
    """
    if not callable(loss):
        raise type_error("loss", "a function (f, y) -> scalar", describe(loss))
    check_choice("method", method, METHODS, "They are solvers of scipy.integrate.")
    options = Tolerances(
        method,
        _check_tolerance("rtol", rtol, 1e-13),
        _check_tolerance("atol", atol, 0.0),
        check_positive_int("max_evaluations", max_evaluations),
    )
    kernel = check_train_kernel("k_train_train", k_train_train)
    with torch.inference_mode(False), torch.no_grad():
        targets = read_loss_targets(y, kernel.device)
        of, shape = _shape_of_outputs(kernel, targets, num_outputs)
        any_shape = (kernel.shape[0],) if shape is None else shape
        modes = read_modes("k_train_train", kernel, any_shape, of, diag_reg)
        if targets.shape[0] != modes.layout.samples:
            raise value_error(
                "y",
                f"of shape [{modes.layout.samples}, ...], one row per sample of the kernel",
                targets,
            )
        for_loss = targets.to(modes.layout.work_device)
        if for_loss.dtype.is_floating_point:
            for_loss = check_finite("y", for_loss.to(torch.float64))
        if shape is not None:
            for_loss = class_targets(loss, for_loss, shape)
    known = shape is not None
    return FlowPredictor(loss, targets, options, bool(progress), modes, for_loss, known)


def _shape_of_outputs(
    kernel: Tensor, y: Tensor, num_outputs: int | None
) -> tuple[str, tuple[int, ...] | None]:
    """The argument that decides on the shape of f, and the shape, if it can be known yet."""
    samples = kernel.shape[0]
    if num_outputs is not None:
        return "num_outputs", (samples, check_positive_int("num_outputs", num_outputs))
    if y.dtype.is_floating_point and y.ndim <= 2:
        return "y", tuple(y.shape)
    if kernel.ndim == 4:
        return "k_train_train", (samples, kernel.shape[2])
    return "y", None


def _check_tolerance(name: str, value: object, above: float) -> float:
    number = check_finite_number(name, value)
    if not above < number < 1.0:
        raise value_error(
            name, f"above {above:g} and below 1", f"{number:g}", "1e-8 is a good choice."
        )
    return number
