"""`RowKernel`: any kernel of this package as a function of flat rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from .._checks import (
    check_choice,
    check_finite,
    check_positive_int,
    describe,
    type_error,
    value_error,
)
from ..analytic import CNTK, Kernels, StandardLike, analytic_nngp, analytic_ntk

Which: TypeAlias = Literal["ntk", "nngp"]

# Samples whose diagonal is computed at once. Larger blocks compute more pairs in vain, and smaller
# ones need more calls.
_BLOCK = 8


class RowKernel:
    """A kernel between flat rows `[N1, d]` and `[N2, d]`, whatever the shape of its samples is.

    Args:
        kernel: The kernel to compute:

            - a network of NTK layers, or with `standard=` of ordinary ones (an `nn.Module` with
              parameters): its infinite-width kernel, see `torch_ntk.analytic_kernels`;
            - a `CNTK`, or any function of tensors `(x1, x2=None) -> [N1, N2]`;
            - a function that returns `Kernels`, from which `which` chooses: for example
              `functools.partial(torch_ntk.mlp_kernels, depth=4)`.
        input_shape: The shape of one sample, `(3, 32, 32)`; None leaves the rows as they are.
        which: `"ntk"` or `"nngp"`.
        standard: How ordinary layers of a network are drawn; see `torch_ntk.analytic_kernels`.

    Raises:
        TypeError: `kernel` is none of these, or `input_shape` is not a sequence of integers.
        ValueError: An argument is out of its range, or `which="nngp"` is given for a `CNTK`.

    Example:
        >>> import torch
        >>> from torch_ntk import mlp_kernels
        >>> from torch_ntk.integrations import RowKernel
        >>> kernel = RowKernel(mlp_kernels, which="nngp")
        >>> x = torch.eye(3, dtype=torch.float64)
        >>> torch.allclose(kernel.diagonal(x), kernel(x).diagonal())
        True
    """

    def __init__(
        self,
        kernel: nn.Module | Callable[..., Any],
        *,
        input_shape: Sequence[int] | None = None,
        which: Which = "ntk",
        standard: StandardLike = None,
    ) -> None:
        if not callable(kernel) or isinstance(kernel, type):
            raise type_error(
                "kernel",
                "a network of NTK layers, a CNTK, or a function (x1, x2=None) -> [N1, N2]",
                describe(kernel),
                "Pass torch_ntk.mlp_kernels for an infinitely wide MLP.",
            )
        self.which: Which = (
            "ntk" if check_choice("which", which, ("ntk", "nngp")) == "ntk" else "nngp"
        )
        if isinstance(kernel, CNTK) and self.which == "nngp":
            raise value_error(
                "which",
                "'ntk' for a CNTK",
                "'nngp'",
                "Pass the network itself, built from NTKConv2d and NTKLinear, for its NNGP.",
            )
        if standard is not None and not _is_network(kernel):
            raise value_error(
                "standard",
                "None for a kernel that is not a network",
                describe(standard),
                "Give it to the function: functools.partial(analytic_ntk, net, standard='torch').",
            )
        self.kernel, self.standard = kernel, standard
        self.input_shape = None if input_shape is None else _shape(input_shape)

    @property
    def is_analytic(self) -> bool:
        """Whether the kernel is the same in every call; a function may change between calls."""
        return isinstance(self.kernel, CNTK) or _is_network(self.kernel)

    def __call__(self, x1: Tensor, x2: Tensor | None = None) -> Tensor:
        """The kernel `[N1, N2]` in the dtype of `x1`; `x2=None` means x2 = x1."""
        a = self._samples("x1", x1)
        b = None if x2 is None else self._samples("x2", x2)
        found = self._evaluate(a, b)
        shape = (len(a), len(a if b is None else b))
        if found.shape != shape:
            raise value_error(
                "kernel",
                f"a function that returns {list(shape)} for {shape[0]} and {shape[1]} samples",
                found,
                "Of an empirical kernel take output='mean': one number for each pair.",
            )
        check_finite("kernel", found.detach())
        return found.to(x1.dtype)

    def diagonal(self, x1: Tensor, x2: Tensor | None = None) -> Tensor:
        """k(x1_n, x2_n), `[N]`, computed in blocks of a few samples without a matrix `[N, N]`."""
        if x2 is not None and x2.shape != x1.shape:
            raise value_error("x2", f"as many rows as x1, of shape {tuple(x1.shape)}", x2)
        if not len(x1):
            return x1.new_zeros(0)
        found = []
        for start in range(0, len(x1), _BLOCK):
            here = slice(start, start + _BLOCK)
            found.append(self(x1[here], None if x2 is None else x2[here]).diagonal())
        return torch.cat(found)

    def _samples(self, name: str, rows: Tensor) -> Tensor:
        if rows.ndim != 2:
            raise value_error(name, "rows [N, d]", rows, "Flatten them: x.flatten(1).")
        if self.input_shape is None:
            return rows
        if math.prod(self.input_shape) != rows.shape[1]:
            raise value_error(
                "input_shape",
                f"a shape of {rows.shape[1]} numbers, the length of a row of `{name}`",
                f"{self.input_shape}",
                "Give the shape of one sample without the batch: (1, 8, 8) for digits.",
            )
        return rows.reshape(-1, *self.input_shape)

    def _evaluate(self, a: Tensor, b: Tensor | None) -> Tensor:
        if isinstance(self.kernel, nn.Module) and _is_network(self.kernel):
            lifted = analytic_ntk if self.which == "ntk" else analytic_nngp
            return lifted(self.kernel, a, b, standard=self.standard)
        found = self.kernel(a) if b is None else self.kernel(a, b)
        if isinstance(found, Kernels):
            return found.ntk if self.which == "ntk" else found.nngp
        if not isinstance(found, Tensor):
            raise type_error("kernel", "a function that returns a tensor or Kernels", found)
        if self.which == "nngp":
            raise value_error(
                "which",
                "'ntk' for a function that returns one kernel",
                "'nngp'",
                "Leave it out: the kernel is what the function returns.",
            )
        return found


def _is_network(kernel: object) -> bool:
    return isinstance(kernel, nn.Module) and any(True for _ in kernel.parameters())


def _shape(given: object) -> tuple[int, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise type_error(
            "input_shape", "a sequence of integers", describe(given), "As in (1, 8, 8)."
        )
    return tuple(check_positive_int("input_shape", size) for size in given)
