"""`mlp_kernels`: the kernels of a fully connected network of infinite width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_finite_number, check_positive_int, value_error
from ..activations import DualActivation
from ._api import Kernels, evaluation_mode, inputs
from ._program import Program
from .engine import checked_options, run
from .lift import Builder, Data, Layout, resolve
from .lift import activation as activate
from .operations import ONE, Affine


def mlp_kernels(
    x1: Tensor,
    x2: Tensor | None = None,
    depth: int = 3,
    activation: str | nn.Module | Callable[[Tensor], Tensor] | DualActivation = "relu",
    sigma_w: float = 2**0.5,
    sigma_b: float = 0.1,
    *,
    dtype: torch.dtype | None = None,
    max_memory: int | str | None = None,
    progress: bool = False,
) -> Kernels:
    """The NNGP and NTK of a fully connected network of infinite width.

    With `depth` dense layers in NTK parameterization and an activation between them,

        Σ¹ = sigma_w² x·x'/d + sigma_b²,              Θ¹ = Σ¹
        Σˡ⁺¹ = sigma_w² E[φ(u)φ(v)] + sigma_b²         with (u, v) ~ N(0, Σˡ)
        Θˡ⁺¹ = sigma_w² Θˡ E[φ'(u)φ'(v)] + Σˡ⁺¹

    Args:
        x1: `[N1, d]`; further axes are flattened.
        x2: `[N2, d]`; None means x2 = x1.
        depth: The number of dense layers.
        activation: A name, a module, or any elementwise function.
        sigma_w: The scale of the weights.
        sigma_b: The scale of the biases; 0 for no biases.
        dtype: `torch.float64` (also if None) or `torch.float32`.
        max_memory: The memory for the blocks of the computation, in bytes or as `"2GB"`; None
            chooses it from the free memory.
        progress: Whether to show a progress bar.

    Returns:
        `Kernels(nngp, ntk)`, `[N1, N2]` each.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind or out of its range.

    References:
        Jacot et al., "Neural tangent kernel" (2018); Lee et al., "Deep neural networks as Gaussian
        processes" (2018).

    Example:
        >>> import torch
        >>> x = torch.eye(2)
        >>> mlp_kernels(x, depth=1, sigma_w=1.0, sigma_b=0.0).ntk
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]], dtype=torch.float64)
    """
    check_positive_int("depth", depth)
    check_finite_number("sigma_w", sigma_w, minimum=0.0)
    if sigma_w == 0:
        raise value_error("sigma_w", "greater than 0", sigma_w)
    check_finite_number("sigma_b", sigma_b, minimum=0.0)
    options = checked_options(max_memory, progress)
    resolved = resolve(activation)
    a, b = (None if x is None else x.flatten(1) for x in inputs(x1, x2, dtype))
    assert a is not None
    with evaluation_mode(a, b, None):
        program = _program(a, b, depth, resolved, sigma_w, sigma_b)
        nngp, ntk = run(program, options, ntk=True)
        assert ntk is not None
        return Kernels(nngp, ntk)


def _program(
    x1: Tensor,
    x2: Tensor | None,
    depth: int,
    activation: tuple[Any, Callable[[Tensor], Tensor]],
    sigma_w: float,
    sigma_b: float,
) -> Program:
    second = x1 if x2 is None else x2
    builder = Builder(x1.dtype, (len(x1), len(second)), x2 is None)
    lookup, function = activation
    x: Any = Data(x1, second)
    for i in range(depth):
        builder.node = f"layer {i + 1} of {depth}"
        x = activate(builder, x, function, lookup) if i else x
        operation = Affine.ntk(ONE, ONE, sigma_w, sigma_b)
        x = builder.affine(x, operation, i + 1, Layout(1), "a dense layer")
    return builder.program(x)
