"""The empirical Neural Tangent Kernel of a module or a function."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args, overload

import torch
from torch import Tensor

from .._checks import (
    check_bool,
    check_choice,
    check_positive_int,
    describe,
    value_error,
)
from .._types import (
    BatchLike,
    ForwardFn,
    Method,
    ModelLike,
    Output,
    ParameterSelection,
    PreconditionLike,
)
from ..memory import in_bytes
from ._computation import Computation
from ._coupled import CoupledBatches
from ._outputs import OUTPUTS
from ._parts import WHOLE, By
from ._probed import ProbedKernel, estimate


@overload
def empirical_ntk(
    model: ModelLike,
    x1: BatchLike,
    x2: BatchLike | None = None,
    *,
    output: Literal["probed"],
    method: Method = "auto",
    params: ParameterSelection = None,
    by: None = None,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    accumulate: torch.dtype | None = None,
    max_memory: int | str | None = None,
    progress: bool = False,
    forward_fn: ForwardFn | None = None,
    probes: int = 8,
    seed: int = 0,
    coupled: bool = False,
    training: bool = False,
    precondition: PreconditionLike = None,
    differentiable: bool = False,
    check: bool = True,
) -> ProbedKernel: ...


@overload
def empirical_ntk(
    model: ModelLike,
    x1: BatchLike,
    x2: BatchLike | None = None,
    *,
    output: Literal["probed"],
    method: Method = "auto",
    params: ParameterSelection = None,
    by: By,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    accumulate: torch.dtype | None = None,
    max_memory: int | str | None = None,
    progress: bool = False,
    forward_fn: ForwardFn | None = None,
    probes: int = 8,
    seed: int = 0,
    coupled: bool = False,
    training: bool = False,
    precondition: PreconditionLike = None,
    differentiable: bool = False,
    check: bool = True,
) -> dict[str, ProbedKernel]: ...


@overload
def empirical_ntk(
    model: ModelLike,
    x1: BatchLike,
    x2: BatchLike | None = None,
    *,
    output: Output = "full",
    method: Method = "auto",
    params: ParameterSelection = None,
    by: None = None,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    accumulate: torch.dtype | None = None,
    max_memory: int | str | None = None,
    progress: bool = False,
    forward_fn: ForwardFn | None = None,
    probes: int = 8,
    seed: int = 0,
    coupled: bool = False,
    training: bool = False,
    precondition: PreconditionLike = None,
    differentiable: bool = False,
    check: bool = True,
) -> Tensor: ...


@overload
def empirical_ntk(
    model: ModelLike,
    x1: BatchLike,
    x2: BatchLike | None = None,
    *,
    output: Output = "full",
    method: Method = "auto",
    params: ParameterSelection = None,
    by: By,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    accumulate: torch.dtype | None = None,
    max_memory: int | str | None = None,
    progress: bool = False,
    forward_fn: ForwardFn | None = None,
    probes: int = 8,
    seed: int = 0,
    coupled: bool = False,
    training: bool = False,
    precondition: PreconditionLike = None,
    differentiable: bool = False,
    check: bool = True,
) -> dict[str, Tensor]: ...


def empirical_ntk(
    model: ModelLike,
    x1: BatchLike,
    x2: BatchLike | None = None,
    *,
    output: Output | Literal["probed"] = "full",
    method: Method = "auto",
    params: ParameterSelection = None,
    by: By | None = None,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    accumulate: torch.dtype | None = None,
    max_memory: int | str | None = None,
    progress: bool = False,
    forward_fn: ForwardFn | None = None,
    probes: int = 8,
    seed: int = 0,
    coupled: bool = False,
    training: bool = False,
    precondition: PreconditionLike = None,
    differentiable: bool = False,
    check: bool = True,
) -> Tensor | ProbedKernel | dict[str, Tensor] | dict[str, ProbedKernel]:
    r"""The empirical NTK `Θ[n, m, i, j] = ⟨∂f_i(x1_n)/∂θ, ∂f_j(x2_m)/∂θ⟩` at the current θ.

    The model is evaluated in eval mode and without autocast, as if for one sample at a time. The
    call changes no state: gradients, buffers, training flags, random states and inputs are the same
    afterwards, also after an exception. It works under `torch.no_grad` and `torch.inference_mode`.
    The result has no gradient, except with `differentiable=True`.

    Args:
        model: Any `nn.Module` that maps a batch of N samples to outputs `[N, ...]` (flattened to
            O per sample), or a function `f(params, batch)` with `params={name: tensor}`. A mapping
            or dataclass that a module returns must have `logits`, or exactly one floating-point
            tensor `[N, ...]`.
        x1: N1 samples: a tensor `[N1, ...]`, passed as `model(x)`; or a mapping (`model(**x)`), a
            tuple or list (`model(*x)`) or a dataclass (`model(x)`) that contains such tensors, with
            any nesting. Every tensor has the samples on its first axis; other values are passed on
            unchanged.
        x2: N2 samples with the same structure; None means x2 = x1, and the result is then exactly
            symmetric.
        output: Which entries or sums over the output indices are computed:

            - `"full"`: `[N1, N2, O, O]`;
            - `"trace"`: `[N1, N2]`, `Σ_i Θ[n, m, i, i]` (a sum, not a mean);
            - `"mean"`: `[N1, N2]`, the trace divided by O, which converges to the analytic kernel
              as the width grows;
            - `"diagonal"`: `[N1, N2, O]`, `Θ[n, m, i, i]`;
            - `"pseudo"`: `[N1, N2]`, the kernel of `Σ_i f_i / sqrt(O)`, O times cheaper than
              `"mean"`, and at initialization equal to it in expectation (Mohamadi et al. 2023);
            - `"probed"`: a `ProbedKernel`, an unbiased estimate of `"mean"` from a few random
              directions of the outputs, and its standard error, both `[N1, N2]`: for the logits
              of a vocabulary, or a map of pixels.
        method: `"jacobian"` forms per-sample Jacobians and contracts them (the reference);
            `"structured"` contracts the inputs and output cotangents of linear operations
            (linear layers, convolutions, embeddings, products, norms, scales and shifts) in the
            cheapest order, and computes the Jacobian only of the other parameters;
            `"vector_product"` uses a vjp and a jvp per column and never forms a Jacobian (Novak
            et al. 2022), and is refused if the forward writes to its parameters in place.
            `"auto"` is `"structured"` if that fits in memory.
        params: Names of parameters and patterns such as `"layers.1.*"` (`fnmatch`), or a
            predicate `(name, tensor) -> bool`; by default every parameter with `requires_grad`.
            Tied parameters count once, with their cross terms.
        by: Return the kernel in parts, `{name: Θ_name}` with `Θ = Σ Θ_name`: one for each
            `"parameter"` (a tied one under its first name), or one for each `"module"` that has
            parameters of its own (`""` is the model itself). None returns the sum.
        batch_size: The number of samples per block; None chooses from the memory. If memory runs
            out, blocks become smaller, with a warning.
        dtype: The dtype of the computation and of the result, `torch.float32` or `torch.float64`;
            None is the model's own (for a half-precision model, the computation is in float32 and
            the result is rounded).
        accumulate: `torch.float64` adds up the products over parameters in float64, which is then
            the dtype of the result, while the network is evaluated in `dtype`. At nearly the cost
            of float32 the kernel is then the exact Gram matrix of gradients that were rounded to
            float32: the error of an eigenvalue λ is about 1e-7 √(λ λ_max) instead of 1e-7 λ_max.
            None is `dtype`.
        max_memory: The approximate number of bytes that the call may take in addition to the memory
            in use, including the result, as an integer or like `"2GB"` and `"512MiB"`. Blocks of
            samples and outputs depend on it. None uses a part of the free memory.
        progress: Whether to show a progress bar over samples.
        forward_fn: A function `forward_fn(model, batch)` that returns the outputs `[N, ...]`, where
            `batch` has the structure of `x1`. It replaces the call of the model, for another output
            or one that depends on targets in the batch, such as the loss of each sample or a
            margin.
        probes: The number of directions with `"probed"`. The error falls with its square root, and
            time and memory grow with it. With at least O the result is exact.
        seed: The seed of these directions, which depend on nothing else.
        coupled: Whether the batch is *one* input, whose outputs may depend on all of it: the nodes
            of a graph, or rows that are normalized together. The rows `[N, ...]` of the outputs are
            then the samples, and the tensors of the batch may have any shape.
        training: Whether modules keep their training flags instead of being evaluated in eval
            mode. Batch normalization then uses the statistics of the batch, which needs `coupled`.
            Buffers are restored afterwards.
        precondition: Compute the kernel `J P Jᵀ` by which an optimizer moves the outputs: if its
            steps are `θ ← θ - lr P g` with a diagonal matrix P, they move by `-lr J P Jᵀ ∂L/∂f` to
            first order. Pass the `torch.optim` optimizer of the parameters: P is
            `1 / (√v̂ + ε)` of its last step for Adam, AdamW and NAdam, similar for RMSprop and
            Adagrad, and 1 for SGD, times each group's learning rate relative to the first group's.
            It does not contain momentum and weight decay, and an entry that never had a gradient
            has P = 1/ε. Or pass a mapping `{name: P}` with positive tensors in the parameters'
            shapes. A P that is one number for a parameter costs nothing, nor does any P of an
            embedding, a norm or a bias; one that varies within another weight takes more time
            (`docs/empirical.md`).
        differentiable: Whether autograd can differentiate the result with respect to every
            parameter of the model (also one that is not among `params`) and every tensor in `x1`
            and `x2` that requires grad: for penalties on a kernel, or inputs that are trained
            (Nguyen et al. 2021). The kernel is computed without a graph, as always, and its
            backward pass evaluates the network again, block by block. Both together take 3 to 5
            times as long as the kernel alone, and 4 to 7 times its memory if that is not limited.
            The gradients can be differentiated again, with all samples in memory at once.
            `precondition` counts as constant, and at the kink of an activation derivatives are
            those of torch. The model must not change before the backward pass; if a parameter was
            written to, it raises an error, as everywhere in torch.
        check: Whether the derivatives in the kernel are compared with plain backward passes of the
            model itself, on the same samples: for random u, the gradient of `Σ u·f` must be
            `Σ u J`, parameter by parameter. If they differ, plain autograd loops are used, or the
            model is refused. The check costs about one training step on the samples. With
            `differentiable`, the gradient of the kernel of two samples is compared with that of
            plain backward passes, too. If a call repeats an earlier one with other values, outputs
            are always compared.

    Returns:
        The kernel, on the model's device; with `by`, the kernels of its parts.

    Raises:
        TypeError: An argument has a wrong type; the model cannot be transformed (TorchScript,
            quantized, lazy, sharded, complex); or the P of this type of optimizer is not known.
        ValueError: A shape, device or value is wrong; the outputs of a sample depend on other
            samples, are random or not finite; a kernel with `differentiable` has no gradient;
            an optimizer has not made a step, or lacks one of the parameters; or the result does not
            fit in memory, or a single sample does not fit in `max_memory`.
        MemoryError: A single sample does not fit in memory.

    References:
        Jacot, Gabriel, Hongler, "Neural Tangent Kernel" (2018). Novak,
        Sohl-Dickstein, Schoenholz, "Fast finite width neural tangent kernel" (2022). Nguyen, Chen,
        Lee, "Dataset meta-learning from kernel ridge-regression" (2021).

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2, bias=False).double()
        >>> x = torch.eye(3, dtype=torch.float64)
        >>> empirical_ntk(model, x, output="mean")  # ⟨x_n, x_m⟩ for a linear model
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 1.]], dtype=torch.float64)
    """
    check_choice("output", output, (*OUTPUTS, "probed"))
    check_choice("method", method, get_args(Method))
    if output == "probed":
        check_probes(probes, seed)
    check_settings(coupled, training, batch_size, progress, check)
    if by is not None:
        check_choice("by", by, get_args(By), "None returns the whole kernel.")
    allowed = None if max_memory is None else in_bytes(max_memory)
    check_accumulate(accumulate)
    if check_bool("differentiable", differentiable) and not torch.is_grad_enabled():
        raise value_error(
            "differentiable",
            "False where gradients are off",
            "True within torch.no_grad() or torch.inference_mode()",
            "Leave them out, or compute within torch.enable_grad().",
        )
    computation = Computation(
        model=model,
        x1=x1,
        x2=x2,
        output=output,
        method=method,
        params=params,
        by=by,
        batch_size=batch_size,
        max_memory=allowed,
        progress=progress,
        forward_fn=forward_fn,
        probes=probes,
        seed=seed,
        coupled=coupled,
        training=training,
        precondition=precondition,
        differentiable=differentiable,
        check=check,
        given=(forward_fn, output),
    )
    if coupled:
        batches = CoupledBatches(x1, x2, output, probes, seed)
        one, call = batches.model(model, forward_fn)
        computation = replace(
            computation, model=one, x1=batches.sample, x2=None, output="full", forward_fn=call
        )
        whole = computation.kernels(dtype, accumulate)
        kernels = {key: batches.kernel(kernel) for key, kernel in whole.items()}
    else:
        kernels = computation.kernels(dtype, accumulate)
    if output != "probed":
        return kernels if by is not None else kernels[WHOLE]
    probed = {key: estimate(kernel) for key, kernel in kernels.items()}
    return probed if by is not None else probed[WHOLE]


def check_probes(probes: object, seed: object) -> None:
    """Raise an error if the arguments for `"probed"` are wrong."""
    if check_positive_int("probes", probes) == 1:
        raise value_error("probes", "at least 2", "1", "One direction has no standard error.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise value_error("seed", "an integer of at least 0", describe(seed))


def check_settings(
    coupled: object,
    training: object,
    batch_size: int | None = None,
    progress: object = False,
    check: object = True,
) -> None:
    """Raise an error if one of these arguments, which several functions have, is wrong."""
    if batch_size is not None:
        check_positive_int("batch_size", batch_size, "None chooses from the free memory.")
    check_bool("progress", progress)
    check_bool("check", check)
    check_bool("training", training)
    if check_bool("coupled", coupled) and batch_size is not None:
        raise value_error(
            "batch_size",
            "None with coupled=True",
            describe(batch_size),
            "The batch is one input and is not divided. max_memory bounds what is formed of it.",
        )


def check_accumulate(accumulate: object) -> None:
    """Raise an error if it is neither None nor `torch.float64`."""
    if accumulate not in (None, torch.float64):
        came = str(accumulate) if isinstance(accumulate, torch.dtype) else describe(accumulate)
        raise value_error("accumulate", "None or torch.float64", came)
