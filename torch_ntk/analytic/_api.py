"""`analytic_kernels`, `analytic_ntk` and `analytic_nngp`: infinite-width limits of modules."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._checks import (
    check_bool,
    check_finite,
    check_tensor,
    type_error,
    value_error,
)
from .._functional import Batch, quiet, refuse_unsupported, unwrap
from .._types import BatchLike
from ._explanation import AnalyticExplanation, explanation
from ._program import Program
from .engine import checked_options, run
from .lift import StandardLike, checked_standard, read

_DTYPES = (torch.float32, torch.float64)


class Kernels(NamedTuple):
    """The two kernels of an infinitely wide network, `[N1, N2]` each.

    Attributes:
        nngp: The covariance `E[f(x) f(x')]` of an output at initialization.
        ntk: The tangent kernel `E[⟨∂f(x), ∂f(x')⟩]` of an output.
    """

    nngp: Tensor
    ntk: Tensor


def analytic_kernels(
    model: nn.Module,
    x1: BatchLike,
    x2: BatchLike | None = None,
    *,
    standard: StandardLike = None,
    training: bool = False,
    dtype: torch.dtype | None = None,
    max_memory: int | str | None = None,
    progress: bool = False,
) -> Kernels:
    """Both infinite-width kernels of a module, `[N1, N2]` each.

    The module is read with `torch.fx`. Each of its operations acts on the covariance K of the
    features (NNGP) and on the tangent kernel Θ:

        NTK layer:   K ← sigma_w²⟨K⟩ + sigma_b²,   Θ ← sigma_w²⟨Θ + K⟩ + sigma_b²
        activation:  K ← E[φ(u) φ(v)],             Θ ← Θ · E[φ'(u) φ'(v)]

    with `(u, v) ~ N(0, K)` and ⟨·⟩ the mean over the taps of a convolution. The kernels of a sum
    of branches are the sums of theirs, and an average over positions averages over the positions
    of both samples. The result depends on the structure of `model` and not on its widths:
    `empirical_ntk(model, x1, x2, output="mean")` converges to `ntk`, and `empirical_nngp` to
    `nngp`, as all widths grow. As there, parameters that do not require a gradient do not enter Θ.

    These operations are supported, as modules, functions or methods: NTK layers (`NTKLinear`,
    `NTKConv1d/2d/3d`, `NTKConvTranspose1d/2d/3d`, `NTKConvLocal2d`, `NTKRNN`, and
    `NTKSelfAttention` where it has a limit), elementwise activations (closed forms for ReLU,
    LeakyReLU, Abs, Erf, GELU, Sin, Cos, …, Gauss quadrature for any other function), average
    pooling, flattening, sums of independent branches, concatenation of channels, layer and group
    normalization (with trained gain and shift), and dropout (which does nothing in eval mode).
    `docs/lift.md` has a table of all layers. What comes before the first layer is computed with
    the inputs themselves.

    Layers in standard parameterization (`nn.Linear`, `nn.ConvNd`, `nn.ConvTransposeNd`), alone or
    among NTK layers, need `standard=`, which states their initialization. Their tangent kernel
    grows with the width. So it is computed for the widths of `model`, to leading order in 1/width:
    with n inputs per output,

        K ← n Var W ⟨K⟩ + Var b,   Θ ← n Var W ⟨Θ⟩ + n ⟨K⟩ + 1

    (Sohl-Dickstein et al. 2020). K is exact for Gaussian weights. For uniform ones, which PyTorch
    draws by default, its error is O(1/n) in a first layer of n inputs, and O(1/width) after it.

    Args:
        model: The network. Its output is one tensor.
        x1: Inputs `[N1, ...]`; or a tuple or mapping of several tensors for a forward with several
            arguments, all with the samples on their first axis: for example features and a matrix
            for each graph `[N1, V, V]`, or features and a mask.
        x2: Inputs `[N2, ...]`; None means x2 = x1, and the result is exactly symmetric.
        standard: The initialization of layers in standard parameterization with n inputs per
            output: `"torch"`, their default (variances of 1/(3n) for weights and biases),
            `"kaiming"` (variance 2/n, biases 0), `"lecun"` (1/n, biases 0), `(sigma_w, sigma_b)`
            (sigma_w²/n and sigma_b², as `standard_init_`), or a mapping of names of modules to
            these, where a name stands for all layers in that module. None refuses such layers.
        training: Whether modules keep their training flags; otherwise they are in eval mode.
            `nn.Dropout` in training mode draws a mask for every sample. Kernels between different
            samples (also of a sample and its exact copy) do not change; variances, and kernels of
            a sample with itself, are divided by 1 - p.
        dtype: `torch.float64` (also if None, whatever the dtype of the inputs) or `torch.float32`,
            which loses about half of the digits and, for deep networks, positive definiteness.
        max_memory: The memory for the blocks of the computation, in bytes or as `"2GB"`,
            `"512MiB"`; None chooses it from the free memory.
        progress: Whether to show a progress bar.

    Returns:
        `Kernels(nngp, ntk)`, `[N1, N2]` each, on the device of `x1`; differentiable in `x1` and
        `x2`.

    Raises:
        ValueError: The network has no such limit (`nn.Linear` without `standard=`, batch
            normalization, max pooling, weights used twice, …), or samples depend on each other
            (`x - x.mean(0)`); the message names the node, the reason and a remedy. Or the inputs
            are not finite.
        TypeError: The network cannot be traced, or an argument has a wrong type.

    References:
        Jacot et al., "Neural tangent kernel" (2018); Lee et al., "Deep neural networks as Gaussian
        processes" (2018); Arora et al., "On exact computation with an infinitely wide neural net"
        (2019); Novak et al., "Neural tangents" (2020); Sohl-Dickstein et al., "On the infinite
        width limit of neural networks with a standard parameterization" (2020).

    Example:
        >>> import torch
        >>> from torch_ntk import NTKLinear
        >>> net = torch.nn.Sequential(NTKLinear(2, 8), torch.nn.ReLU(), NTKLinear(8, 1))
        >>> k = analytic_kernels(net, torch.eye(2))
        >>> k.ntk.shape
        torch.Size([2, 2])
        >>> ordinary = torch.nn.Sequential(torch.nn.Linear(2, 8, bias=False), torch.nn.Linear(8, 1))
        >>> analytic_kernels(ordinary, torch.eye(2), standard="lecun").ntk
        tensor([[6., 1.],
                [1., 6.]], dtype=torch.float64)
    """
    options = checked_options(max_memory, progress)
    with _lifted(model, x1, x2, standard, training, dtype) as program:
        nngp, theta = run(program, options, ntk=True)
    assert theta is not None
    return Kernels(nngp, theta)


def analytic_ntk(
    model: nn.Module,
    x1: BatchLike,
    x2: BatchLike | None = None,
    *,
    standard: StandardLike = None,
    training: bool = False,
    dtype: torch.dtype | None = None,
    max_memory: int | str | None = None,
    progress: bool = False,
) -> Tensor:
    """The infinite-width tangent kernel `[N1, N2]` of a module; see `analytic_kernels`.

    Args:
        model: The network.
        x1: Inputs `[N1, ...]`.
        x2: Inputs `[N2, ...]`; None means x2 = x1.
        standard: The initialization of layers in standard parameterization; see `analytic_kernels`.
        training: Whether dropout is active; see `analytic_kernels`.
        dtype: `torch.float64` (also if None) or `torch.float32`.
        max_memory: The memory for the blocks, in bytes or as `"2GB"`.
        progress: Whether to show a progress bar.

    Raises:
        TypeError, ValueError: As `analytic_kernels`.

    Example:
        >>> import torch
        >>> from torch_ntk import NTKLinear
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> analytic_ntk(NTKLinear(2, 1, sigma_w=1.0, sigma_b=0.5), x)
        tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]], dtype=torch.float64)
    """
    options = checked_options(max_memory, progress)
    with _lifted(model, x1, x2, standard, training, dtype) as program:
        ntk = run(program, options, ntk=True)[1]
    assert ntk is not None
    return ntk


def analytic_nngp(
    model: nn.Module,
    x1: BatchLike,
    x2: BatchLike | None = None,
    *,
    standard: StandardLike = None,
    training: bool = False,
    dtype: torch.dtype | None = None,
    max_memory: int | str | None = None,
    progress: bool = False,
) -> Tensor:
    """The infinite-width covariance of the outputs, `[N1, N2]`; see `analytic_kernels`.

    Args:
        model: The network.
        x1: Inputs `[N1, ...]`.
        x2: Inputs `[N2, ...]`; None means x2 = x1.
        standard: The initialization of layers in standard parameterization; see `analytic_kernels`.
        training: Whether dropout is active; see `analytic_kernels`.
        dtype: `torch.float64` (also if None) or `torch.float32`.
        max_memory: The memory for the blocks, in bytes or as `"2GB"`.
        progress: Whether to show a progress bar.

    Raises:
        TypeError, ValueError: As `analytic_kernels`.
    """
    options = checked_options(max_memory, progress)
    with _lifted(model, x1, x2, standard, training, dtype) as program:
        return run(program, options, ntk=False)[0]


def analytic_explain(
    model: nn.Module,
    x1: BatchLike,
    x2: BatchLike | None = None,
    *,
    standard: StandardLike = None,
    training: bool = False,
    dtype: torch.dtype | None = None,
) -> AnalyticExplanation:
    """Explain how `analytic_kernels` evaluates a module: its operations, and which are fused.

    On a CPU, operations with a fused form are evaluated by compiled loops, which apply all
    operations to the entries of one pair of images before they begin with the next pair. On a CUDA
    device with Triton the loops over images are Triton kernels. The first time that a network is
    evaluated or explained, these are compared with tensor operations on two images, and if one
    is wrong there is a warning. Other operations are evaluated by tensor operations, and so are
    all operations on other devices or if an input requires derivatives.

    Args:
        model: The network; see `analytic_kernels`, also for the other arguments.
        x1: Inputs `[N1, ...]`.
        x2: Inputs `[N2, ...]`; None means x2 = x1.
        standard: The initialization of layers in standard parameterization.
        training: Whether dropout is active.
        dtype: `torch.float64` (also if None) or `torch.float32`.

    Raises:
        TypeError, ValueError: As `analytic_kernels`.

    Example:
        >>> import torch
        >>> from torch_ntk import NTKConv2d, NTKLinear
        >>> net = torch.nn.Sequential(
        ...     NTKConv2d(1, 8, 3),
        ...     torch.nn.Tanh(),
        ...     torch.nn.AvgPool2d(2),
        ...     torch.nn.Flatten(),
        ...     NTKLinear(8, 1),
        ... )
        >>> print(analytic_explain(net, torch.randn(2, 1, 4, 4)))
        operation   positions  loop  how
        Affine            2×2     1  all pairs of positions, image by image of one displacement
        Activation        2×2     1  all pairs of positions, image by image of one displacement
        Pool              1×1     1  all pairs of positions, image by image of one displacement
        Affine            1×1     -  it takes vectors, in a network with averages over positions
    """
    with _lifted(model, x1, x2, standard, training, dtype) as program:
        return explanation(program, program.known[0].x1)


@contextlib.contextmanager
def _lifted(
    model: nn.Module,
    x1: BatchLike,
    x2: BatchLike | None,
    standard: StandardLike,
    training: bool,
    dtype: torch.dtype | None,
) -> Iterator[Program]:
    """A context that puts a module into the mode of the computation, and gives its program."""
    if not isinstance(model, nn.Module):
        raise type_error(
            "model",
            "an nn.Module",
            model,
            "Functions cannot be traced.",
        )
    model = unwrap(model)
    refuse_unsupported(model)
    known = checked_standard(standard, model)
    a, b = batches(x1, x2, dtype)
    check_bool("training", training)
    with evaluation_mode(a, b, model, training):
        yield read(model, a, b, check_dtype(dtype), known, training)


@contextlib.contextmanager
def evaluation_mode(
    x1: Tensor | Batch,
    x2: Tensor | Batch | None,
    model: nn.Module | None,
    training: bool = False,
) -> Iterator[None]:
    """A context with eval mode (with `training` the modules' own modes) and full precision.

    Derivatives are recorded only if an input requires them.
    """
    tensors = [t for x in (x1, x2) for t in (x.tensors if isinstance(x, Batch) else (x,))]
    track = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    device = tensors[0].device if tensors[0] is not None else torch.device("cpu")
    # Hooks stay in place, because `lift` refuses modules that have them.
    around = quiet(model, device, keep_forward_hooks=True, training=training)
    with around, torch.set_grad_enabled(track):
        yield


def batches(
    x1: object, x2: object, dtype: torch.dtype | None
) -> tuple[Tensor | Batch, Tensor | Batch | None]:
    """Check both inputs, tensors or batches of several tensors, and convert them to the dtype."""
    several = [isinstance(x, (tuple, list, Mapping)) for x in (x1, x2)]
    if not any(several):
        return inputs(x1, x2, dtype)  # type: ignore[arg-type]
    wanted = check_dtype(dtype)
    a = _batch("x1", x1, wanted)
    if x2 is None or x2 is x1:
        return a, None
    b = _batch("x2", x2, wanted)
    if not b.is_like(a):
        raise value_error("x2", f"{a}, as `x1`", f"{b}", "A kernel compares inputs of one kind.")
    return a, b


def _batch(name: str, x: object, dtype: torch.dtype) -> Batch:
    found = Batch.of(name, x)
    floating = [t.is_floating_point() for t in found.tensors]
    if not any(floating):
        raise type_error(name, "a batch with a real floating-point tensor", found.tensors[0])
    return found.with_tensors(
        [
            _input(path, t, dtype, axes=1) if real else t
            for (path, t), real in zip(found.named(name), floating, strict=True)
        ]
    )


def inputs(
    x1: Tensor, x2: Tensor | None, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | None]:
    """Check both input tensors, and convert them to the dtype of the computation."""
    wanted = check_dtype(dtype)
    a = _input("x1", x1, wanted)
    if x2 is None or x2 is x1:
        return a, None
    b = _input("x2", x2, wanted)
    if b.shape[1:] != a.shape[1:]:
        raise value_error(
            "x2",
            f"of samples of shape {tuple(a.shape[1:])}, as those of `x1`",
            x2,
            "A kernel compares inputs of one shape.",
        )
    if b.device != a.device:
        raise value_error("x2", f"on {a.device}, where `x1` is", x2, "Move it there.")
    return a, b


def check_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """Return the dtype of a computation: float64 by default, or float32."""
    if dtype is None:
        return torch.float64
    if not isinstance(dtype, torch.dtype):
        raise type_error("dtype", "a torch.dtype or None", dtype)
    if dtype not in _DTYPES:
        raise value_error(
            "dtype",
            "torch.float64 or torch.float32",
            str(dtype),
            "In half precision the recursion over layers loses every digit.",
        )
    return dtype


def _input(name: str, x: Tensor, dtype: torch.dtype, axes: int = 2) -> Tensor:
    check_tensor(name, x)
    if x.dtype in (torch.float16, torch.bfloat16):
        raise type_error(
            name,
            "of float32 or float64",
            x,
            "Inputs that were rounded to half precision are other inputs: convert them "
            "with .float() or .double() if that is meant.",
        )
    if not x.is_floating_point():
        raise type_error(name, "real floating-point", x, "Convert it with .double().")
    if x.ndim < axes:
        raise value_error(name, "a batch [N, ...]", x, "Add the axis: x[None].")
    if x.numel() == 0:
        raise value_error(name, "of at least one sample and feature", x)
    check_finite(name, x.detach())
    with torch.inference_mode(False):
        # A tensor made under inference_mode cannot be used where derivatives are recorded.
        return (x.clone() if x.is_inference() else x).to(dtype)
