"""How far a kernel, and the parameters, have moved from where they began."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from .._checks import listed, type_error, value_error
from ..linalg import as_float64
from ._kernels import (
    check_same_device,
    check_same_shape,
    frobenius,
    scalar,
)

_KERNEL_DIMENSIONS = (2, 3, 4)


def kernel_distance(theta_t: Tensor, theta_0: Tensor) -> Tensor:
    """The change of a kernel's direction, 1 - ⟨Θ_t, Θ_0⟩_F / (‖Θ_t‖_F ‖Θ_0‖_F), whatever its norm.

    Between positive semi-definite kernels it lies in [0, 1]: 0 for a multiple of the kernel at the
    start, 1 for one that has no direction in common with it. For small changes of the direction it
    is half the square of the part of `kernel_drift` that does not lie along Θ_0 (Fort et al. 2020,
    "Deep learning versus kernel learning", who call it kernel distance).

    Args:
        theta_t: The kernel now, `[N1, N2]`, `[N1, N2, O]` or `[N1, N2, O, O]`.
        theta_0: The kernel at the start, of the same shape and on the same device.

    Returns:
        A 0-dim float64 tensor, at least 0, without unit.

    Raises:
        TypeError, ValueError: As `kernel_drift`; also if `theta_t` is zero.

    Example:
        >>> import torch
        >>> from torch_ntk.metrics import kernel_distance
        >>> grown, turned = torch.diag(torch.tensor([2.0, 0.0])), torch.ones(2, 2)
        >>> start = torch.diag(torch.tensor([1.0, 0.0]))
        >>> kernel_distance(grown, start).item(), kernel_distance(turned, start).item()
        (0.0, 0.5)
    """
    now, start = _two_kernels(theta_t, theta_0)
    # ½ ‖a - b‖² = 1 - ⟨a, b⟩ for a and b of norm 1, without cancellation.
    difference = _direction("theta_t", now) - _direction("theta_0", start)
    return scalar(0.5 * frobenius(difference) ** 2, now)


def kernel_drift(theta_t: Tensor, theta_0: Tensor) -> Tensor:
    """The relative change of a kernel, ‖Θ_t - Θ_0‖_F / ‖Θ_0‖_F.

    In the infinite-width limit in NTK parameterization it stays 0 throughout training; at width
    n it is O(1/√n) in general (Lee et al. 2019, "Wide neural networks of any depth evolve as
    linear models under gradient descent"). A value near 1 means that the kernel has changed
    completely: training is not lazy.

    Args:
        theta_t: The kernel now, `[N1, N2]`, `[N1, N2, O]` or `[N1, N2, O, O]`; the two sample
            axes may differ, so the drift of a test-train kernel is measured the same way.
        theta_0: The kernel at the start, of the same shape and on the same device.

    Returns:
        A 0-dim float64 tensor, at least 0, without unit.

    Raises:
        TypeError: An argument is not a dense tensor of real floating-point numbers.
        ValueError: An argument is empty, not finite, or no kernel by its shape; the shapes or
            devices differ; or `theta_0` is zero, so that no relative change exists.

    Example:
        >>> import torch
        >>> from torch_ntk.metrics import kernel_drift
        >>> kernel_drift(1.5 * torch.eye(3), torch.eye(3)).item()
        0.5
    """
    now, start = _two_kernels(theta_t, theta_0)
    return scalar(frobenius(now - start) / _size("theta_0", start), now)


def _two_kernels(theta_t: Tensor, theta_0: Tensor) -> tuple[Tensor, Tensor]:
    """Both kernels in float64, after their shapes have been checked."""
    now = as_float64("theta_t", theta_t)
    start = as_float64("theta_0", theta_0)
    check_same_device("theta_t", theta_t.device, "theta_0", theta_0.device)
    check_same_shape("theta_t", now, "theta_0", start)
    if start.ndim not in _KERNEL_DIMENSIONS or (
        start.ndim == 4 and start.shape[2] != start.shape[3]
    ):
        raise value_error(
            "theta_0",
            "a kernel of shape [N1, N2], [N1, N2, O] or [N1, N2, O, O]",
            theta_0,
            "Pass what empirical_ntk returned, unflattened.",
        )
    return now, start


def _direction(name: str, kernel: Tensor) -> Tensor:
    """The kernel divided by its norm, even if that norm is too large for a float64 number."""
    _size(name, kernel)
    scaled = kernel / kernel.abs().max()
    return scaled / frobenius(scaled)


def _size(name: str, kernel: Tensor) -> float:
    """The Frobenius norm of a kernel, which must not be 0."""
    size = frobenius(kernel)
    if size == 0.0:
        raise value_error(
            name,
            "a kernel other than zero",
            "a kernel whose entries are all 0",
            "A change relative to it is not defined; check that the parameters require grad "
            "and that the network is not dead on these samples.",
        )
    return size


def param_drift(
    params_t: Mapping[str, Tensor] | Iterable[Tensor],
    params_0: Mapping[str, Tensor] | Iterable[Tensor],
) -> Tensor:
    """The relative distance that the parameters have moved, ‖θ_t - θ_0‖ / ‖θ_0‖.

    The norm is the Euclidean one over all parameters together. In the lazy regime it falls with
    the width n while the function still moves by O(1): as 1/√n of networks with one hidden layer,
    and as 1/n where weights between hidden layers, n² of them, make most of ‖θ_0‖ (Chizat, Oyallon
    and Bach 2019, "On lazy training in differentiable programming").

    `params_0` must be a copy from the start: `dict(model.named_parameters())` holds the live
    parameters, which an optimizer changes in place, so their drift from themselves is always 0.
    Keep `{name: p.detach().clone() for name, p in model.named_parameters()}`.

    Args:
        params_t: The parameters now: a mapping from name to tensor, or tensors in a fixed order.
        params_0: The parameters at the start, in the same form.

    Returns:
        A 0-dim float64 tensor, at least 0, on the device of the first parameter.

    Raises:
        TypeError: An argument is neither a mapping nor an iterable of tensors, the two differ in
            kind, or an entry is not a dense tensor of real floating-point numbers.
        ValueError: An argument has no entries; names, numbers, shapes or devices differ (said by
            name); an entry is not finite; or `params_0` is zero throughout.

    Example:
        >>> import torch
        >>> from torch_ntk.metrics import param_drift
        >>> start = {"weight": torch.tensor([3.0, 0.0]), "bias": torch.tensor([4.0])}
        >>> now = {"weight": torch.tensor([3.0, 1.0]), "bias": torch.tensor([4.0])}
        >>> param_drift(now, start).item()
        0.2
    """
    if isinstance(params_t, Mapping) != isinstance(params_0, Mapping):
        raise type_error(
            "params_t",
            "a mapping if `params_0` is one, and otherwise not",
            params_t,
            "Pass both as dict(model.named_parameters()), cloned at the start.",
        )
    now = _entries("params_t", params_t)
    start = _entries("params_0", params_0)
    _check_same_names(now, start)
    moved: list[float] = []
    sizes: list[float] = []
    for key, tensor_0 in start.items():
        tensor_t = now[key]
        name_t, name_0 = f"params_t[{key!r}]", f"params_0[{key!r}]"
        value_t = as_float64(name_t, tensor_t, may_be_empty=True)
        value_0 = as_float64(name_0, tensor_0, may_be_empty=True)
        check_same_device(name_t, tensor_t.device, name_0, tensor_0.device)
        if value_t.shape != value_0.shape:
            raise value_error(
                name_t,
                f"of the shape of `{name_0}`, {tuple(value_0.shape)}",
                f"shape {tuple(value_t.shape)}",
                "Both must come from one architecture.",
            )
        moved.append(frobenius(value_t - value_0))
        sizes.append(frobenius(value_0))
    size = math.hypot(*sizes)
    if size == 0.0:
        raise value_error(
            "params_0",
            "other than zero",
            "parameters that are all 0",
            "A distance relative to them is not defined.",
        )
    return scalar(math.hypot(*moved) / size, value_t)


def _entries(name: str, params: object) -> dict[str | int, Tensor]:
    """The tensors of a mapping by name, or of an iterable by position."""
    remedy = "Pass dict(model.named_parameters()) or list(model.parameters())."
    # A tensor is an iterable of its rows, which is never what is meant here.
    if isinstance(params, (Tensor, nn.Module, str)) or not isinstance(params, Iterable):
        raise type_error(name, "a mapping from name to tensor, or tensors in order", params, remedy)
    pairs = params.items() if isinstance(params, Mapping) else enumerate(params)
    entries: dict[str | int, Tensor] = {}
    for key, value in pairs:
        if not isinstance(value, Tensor):
            raise type_error(f"{name}[{key!r}]", "a torch.Tensor", value, remedy)
        entries[key] = value
    if not entries:
        raise value_error(name, "non-empty", "no parameters", remedy)
    return entries


def _check_same_names(now: dict[str | int, Tensor], start: dict[str | int, Tensor]) -> None:
    missing = [key for key in start if key not in now]
    unexpected = [key for key in now if key not in start]
    if missing or unexpected:
        raise value_error(
            "params_t",
            "of the same entries as `params_0`",
            f"{len(now)} for {len(start)} entries: missing {listed(missing, 5)}, "
            f"unexpected {listed(unexpected, 5)}",
            "Both must come from one architecture and one selection of parameters.",
        )
