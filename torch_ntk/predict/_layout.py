"""The axes of kernels and outputs, and their form as matrices.

==============  ================  ===============================================
kernel          its matrix        outputs `[N, O]` become
==============  ================  ===============================================
``[N, N]``      itself            `[N, O]`: O right-hand sides of one matrix
``[N, N, O, O]``  `[N·O, N·O]`    `[N·O, 1]`, row (n, i); Θ[n, m, i, j] couples
==============  ================  ===============================================
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_tensor, value_error
from ..linalg import as_float64, float64_device

_SHAPES = "a kernel of shape [N, N] or [N, N, O, O]"
_SHAPE_REMEDY = (
    "These are the shapes of empirical_ntk(model, x, output='mean') and output='full': samples "
    "before outputs, the full kernel indexed Θ[n, m, i, j]."
)


@dataclass(frozen=True)
class Layout:
    """The shape of a problem.

    Attributes:
        samples: N, the number of training samples.
        outputs: O, the number of outputs per sample.
        full: Whether kernels are `[N, N, O, O]`.
        flat: Whether outputs have the shape `[N]` instead of `[N, O]`; then O is 1.
        device: The device of the kernel.
    """

    samples: int
    outputs: int
    full: bool
    flat: bool
    device: torch.device

    @property
    def entries(self) -> int:
        """N·O, the number of entries over which the mean loss averages."""
        return self.samples * self.outputs

    def shape(self, samples: int | None = None) -> tuple[int, ...]:
        """The shape of the outputs on a number of samples, by default the training samples."""
        n = self.samples if samples is None else samples
        return (n,) if self.flat else (n, self.outputs)

    def columns(self, outputs: Tensor) -> Tensor:
        """Outputs `[M]` or `[M, O]` as the right-hand sides of a kernel's matrix."""
        if self.full:
            return outputs.reshape(-1, 1)
        return outputs.reshape(outputs.shape[0], self.outputs)

    def outputs_of(self, columns: Tensor) -> Tensor:
        """The inverse of `columns`; leading axes are kept."""
        *leading, rows, width = columns.shape
        samples = rows * width // self.outputs
        return columns.reshape(*leading, *self.shape(samples))

    def returned(self, columns: Tensor, dtype: torch.dtype, *, single: bool = False) -> Tensor:
        """`outputs_of(columns)` for the caller; `single` drops a leading axis of one time."""
        outputs = self.outputs_of(columns)
        return (outputs[0] if single else outputs).to(dtype).to(self.device)

    def matrix(self, kernel: Tensor) -> Tensor:
        """A kernel `[M, N]` or `[M, N, O, O]` as a matrix `[M, N]` or `[M·O, N·O]`."""
        if not self.full:
            return kernel
        m, n, o, _ = kernel.shape
        return kernel.permute(0, 2, 1, 3).reshape(m * o, n * o)

    def kernel_of(self, matrix: Tensor) -> Tensor:
        """The inverse of `matrix`; leading axes are kept."""
        if not self.full:
            return matrix
        *leading, rows, columns = matrix.shape
        o = self.outputs
        split = matrix.reshape(*leading, rows // o, o, columns // o, o)
        return split.transpose(-3, -2)

    def read_outputs(self, name: str, value: object, samples: int | None = None) -> Tensor:
        """The caller's outputs in float64, as columns; their shape and device must be right."""
        tensor = check_tensor(name, value)
        expected = self.shape(samples)
        if tuple(tensor.shape) != expected:
            hint = "the kernel and `y`" if samples is None else "`k_test_train` and `y`"
            raise value_error(
                name,
                f"of shape {expected}",
                tensor,
                f"That follows from {hint}: one row per sample, one column per output.",
            )
        self.check_device(name, tensor)
        return self.columns(as_float64(name, tensor))

    def read_kernel(self, name: str, value: object, rows: int | None, columns: int) -> Tensor:
        """A kernel between two sets of inputs, in float64, as a matrix.

        `rows` and `columns` are the numbers of samples on its axes; `None` accepts any number.
        """
        tensor = check_tensor(name, value)
        o = self.outputs
        tail = (columns, o, o) if self.full else (columns,)
        expected = f"[{'M' if rows is None else rows}, {', '.join(map(str, tail))}]"
        first = tensor.shape[0] if rows is None and tensor.ndim else rows
        if tuple(tensor.shape) != (first, *tail):
            remedy = "The first axis counts the test samples, the second the training samples"
            if tensor.ndim >= 2 and tuple(tensor.shape[:2]) == (columns, rows or -1):
                remedy = "It seems to be transposed; samples of the test set come first"
            elif tensor.ndim >= 2 and rows is None and tensor.shape[0] == columns:
                remedy += ": this one seems to be transposed"
            raise value_error(
                name,
                f"of shape {expected}",
                tensor,
                f"{remedy}, and the layout is that of the train kernel.",
            )
        self.check_device(name, tensor)
        return self.matrix(as_float64(name, tensor))

    def check_device(self, name: str, tensor: Tensor) -> None:
        """Raise `ValueError` unless the tensor is on the device of the train kernel."""
        if tensor.device != self.device:
            raise value_error(
                name,
                f"on the device of the train kernel, {self.device}",
                f"a tensor on {tensor.device}",
                f"Move it with .to({str(self.device)!r}).",
            )

    @property
    def work_device(self) -> torch.device:
        """The device on which float64 is computed."""
        return float64_device(self.device)


def check_train_kernel(name: str, value: object) -> Tensor:
    """Return a kernel `[N, N]` or `[N, N, O, O]` of one set of inputs, its shape checked."""
    kernel = check_tensor(name, value)
    shape = tuple(kernel.shape)
    if kernel.numel() == 0:
        raise value_error(name, "non-empty", kernel, "Pass at least one sample.")
    if kernel.ndim in (2, 4) and shape[0] == shape[1] and shape[2:3] == shape[3:4]:
        return kernel
    remedy = _SHAPE_REMEDY
    if kernel.ndim == 4 and (shape[0] == shape[2] and shape[1] == shape[3]):
        remedy = "It seems to be indexed [n, i, m, j]; use .permute(0, 2, 1, 3). " + remedy
    elif kernel.ndim == 3:
        remedy = (
            "A kernel per output, [N, N, O], is a full kernel without coupling: use "
            "torch.diag_embed(k). " + remedy
        )
    raise value_error(name, _SHAPES, kernel, remedy)


def layout_for(name: str, kernel: Tensor, shape: tuple[int, ...], of: str) -> Layout:
    """The layout of a checked train kernel with outputs `[N]` or `[N, O]` of the given shape.

    Messages call the kernel `name`, and the argument that has this shape `of`.
    """
    n, full = kernel.shape[0], kernel.ndim == 4
    outputs = kernel.shape[2] if full else (shape[1] if len(shape) == 2 else 1)
    fits = shape in ((n, outputs), (n,)) if outputs == 1 else shape == (n, outputs)
    if fits and outputs > 0:
        return Layout(n, outputs, full, len(shape) == 1, kernel.device)
    expected = f"[{n}, {kernel.shape[2]}]" if full else f"[{n}] or [{n}, O]"
    remedy = "Targets have one row per sample of the kernel and one column per output."
    if full and kernel.shape[2] == shape[0] and len(shape) == 2 and shape[1] == n:
        remedy = (
            f"`{name}` seems to have its axes in the order [O, O, N, N]: samples come first, "
            "use .permute(2, 3, 0, 1)."
        )
    elif len(shape) == 2 and shape[1] == n:
        remedy += " They seem to be transposed."
    raise value_error(of, f"of shape {expected} to fit `{name}`", f"shape {tuple(shape)}", remedy)
