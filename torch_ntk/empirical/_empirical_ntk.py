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

    The model is evaluated in eval mode, one sample at a time in effect, without autocast; nothing
    of the call can be seen afterwards: gradients, buffers, training flags, random states and
    inputs are as before, also after an exception. Works under `torch.no_grad` and
    `torch.inference_mode`. The result carries no gradient, except with `differentiable=True`.

    Args:
        model: Any `nn.Module` that maps a batch of N samples to outputs `[N, ...]` (flattened to
            O per sample), or a function `f(params, batch)` with `params={name: tensor}`. A mapping
            or dataclass that a module returns must have `logits`, or exactly one floating-point
            tensor `[N, ...]`.
        x1: N1 samples: a tensor `[N1, ...]`, given as `model(x)`; or a mapping (`model(**x)`), a
            tuple or list (`model(*x)`) or a dataclass (`model(x)`) with such tensors in it, nested
            as may be. Every tensor has the samples on its first axis; everything else passes
            through as it is.
        x2: N2 samples of the same kind; None means x2 = x1, and the result is then exactly
            symmetric.
        output: What is kept of the output indices:

            - `"full"`: `[N1, N2, O, O]`;
            - `"trace"`: `[N1, N2]`, `Σ_i Θ[n, m, i, i]` (a sum, not a mean);
            - `"mean"`: `[N1, N2]`, the trace divided by O, which converges to the analytic kernel
              as the width grows;
            - `"diagonal"`: `[N1, N2, O]`, `Θ[n, m, i, i]`;
            - `"pseudo"`: `[N1, N2]`, the kernel of `Σ_i f_i / sqrt(O)`, O times cheaper than the
              trace and equal to `"mean"` in expectation (Mohamadi et al. 2023);
            - `"probed"`: a `ProbedKernel`, an unbiased estimate of `"mean"` from a few random
              directions of the outputs, and its standard error, both `[N1, N2]`: for the logits
              of a vocabulary, or a map of pixels.
        method: `"jacobian"` forms per-sample Jacobians and contracts them (the reference);
            `"structured"` contracts the inputs and output cotangents of linear operations
            (linear layers, convolutions, embeddings, products, norms, scales and shifts) in the
            cheapest order and takes the Jacobian of the other parameters only;
            `"vector_product"` uses a vjp and a jvp per column and never forms a Jacobian (Novak
            et al. 2022), and is refused where the forward writes to its parameters in place.
            `"auto"` is `"structured"` wherever that fits.
        params: Names of parameters and patterns such as `"layers.1.*"` (`fnmatch`), or a
            predicate `(name, tensor) -> bool`; by default every parameter with `requires_grad`.
            Tied parameters count once, with their cross terms.
        by: Return the kernel in parts, `{name: Θ_name}` with `Θ = Σ Θ_name`: one for each
            `"parameter"` (a tied one under its first name), or one for each `"module"` that holds
            parameters (`""` is the model itself). None returns the sum.
        batch_size: Samples per block; None chooses from the memory, and every block size backs
            off with a warning when memory runs out.
        dtype: `torch.float32` or `torch.float64` to compute and return; None is the model's own
            (a half-precision model is computed in float32 and the result rounded).
        accumulate: `torch.float64` adds up the products over parameters in float64, and returns
            that, while the network is evaluated in `dtype`. At nearly the price of float32 the
            kernel is then the exact Gram matrix of gradients that were rounded to float32: an
            eigenvalue λ is off by about 1e-7 √(λ λ_max) and not by 1e-7 λ_max. None is `dtype`.
        max_memory: About how many bytes the call may take on top of what is there before it,
            the result included, as an integer or like `"2GB"` and `"512MiB"`; blocks of samples
            and outputs follow it. None plans with a share of what is free.
        progress: Show a progress bar over samples.
        forward_fn: `forward_fn(model, batch)` returns the outputs `[N, ...]` in place of that
            call, `batch` being samples in the caller's form: another output, or one that depends
            on targets in the batch, such as the loss of each sample or a margin.
        probes: With `"probed"` the number of directions; the error falls with its square root, and
            time and memory grow with it. From O on the result is exact.
        seed: Of these directions, which depend on nothing else.
        coupled: Whether the batch is *one* input, whose outputs may depend on all of it: the nodes
            of a graph, rows that are normalized together. The rows `[N, ...]` of the outputs are
            then the samples, and the tensors of the batch may be of any shape.
        training: Whether modules keep their training flags instead of being evaluated in eval
            mode: batch normalization with the statistics of the batch, then with `coupled`. What it
            writes to its buffers is undone.
        precondition: The kernel `J P Jᵀ` by which an optimizer moves the outputs: where its steps
            are `θ ← θ - lr P g` with a diagonal matrix P, they move by `-lr J P Jᵀ ∂L/∂f` to first
            order. Either the `torch.optim` optimizer that holds the parameters: P is
            `1 / (√v̂ + ε)` of its last step for Adam, AdamW and NAdam, likewise for RMSprop and
            Adagrad, and 1 for SGD, times each group's learning rate relative to the first group's;
            momentum and weight decay do not count, and an entry that never had a gradient has
            P = 1/ε. Or a mapping `{name: P}` with positive tensors of the parameters' shapes. P
            that is one number for a parameter costs nothing, nor does any P of an embedding, a norm
            or a bias; one that varies within another weight takes more (`docs/empirical.md`).
        differentiable: Whether autograd goes on from the result to every parameter of the model
            (also one that is not among `params`) and every tensor in `x1` and `x2` that requires
            grad: for penalties on a kernel, or inputs that are trained (Nguyen et al. 2021). The
            kernel is computed as ever, without a graph, and its backward pass evaluates the network
            again, block by block: both together take 3 to 5 times as long as the kernel alone, and
            4 to 7 times its memory where that is not limited. The gradients can be differentiated
            again, with everything in memory at once. `precondition` counts as constant; at the kink
            of an activation, derivatives are those of torch. Until the backward pass the model must
            stay as it is; a parameter that is written to before it raises an error, as everywhere
            in torch.
        check: Whether the derivatives behind the kernel are compared with plain backward passes
            of the model itself, on these very samples: for random u, the gradient of `Σ u·f`
            must be `Σ u J`, parameter by parameter. What differs is taken by plain autograd loops
            instead, or refused. It costs about one training step on the samples. With
            `differentiable`, the gradient of the kernel of two samples is compared with that of
            plain backward passes too. Where a call repeats an earlier one with other values,
            outputs are compared in any case.

    Returns:
        The kernel, on the model's device; with `by`, the kernels of its parts.

    Raises:
        TypeError: An argument is of the wrong type, or the model of a kind that cannot be
            transformed (TorchScript, quantized, lazy, sharded, complex); an optimizer of which it
            is not known how it steps.
        ValueError: A shape, device or value is wrong; the outputs of a sample depend on other
            samples, are random or not finite; a kernel to be differentiated has no gradient;
            an optimizer has not taken a step, or lacks one of the parameters; the result cannot fit
            in memory, or a single sample not in `max_memory`.
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
    if batch_size is not None:
        check_positive_int("batch_size", batch_size, "None chooses from the free memory.")
    check_bool("progress", progress)
    check_bool("check", check)
    if by is not None:
        check_choice("by", by, get_args(By), "None returns the whole kernel.")
    allowed = None if max_memory is None else in_bytes(max_memory)
    check_accumulate(accumulate)

    check_coupled(coupled, batch_size)
    check_bool("training", training)
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
    """Raise if they are not what `empirical_ntk` takes."""
    if check_positive_int("probes", probes) == 1:
        raise value_error("probes", "at least 2", "1", "One direction has no standard error.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise value_error("seed", "an integer of at least 0", describe(seed))


def check_coupled(coupled: object, batch_size: int | None) -> None:
    """Raise if it is no bool, or there are blocks of a batch that is one input."""
    if check_bool("coupled", coupled) and batch_size is not None:
        raise value_error(
            "batch_size",
            "None with coupled=True",
            describe(batch_size),
            "The batch is one input and is not divided. max_memory bounds what is formed of it.",
        )


def check_accumulate(accumulate: object) -> None:
    """Raise if it is not what `empirical_ntk` takes."""
    if accumulate not in (None, torch.float64):
        came = str(accumulate) if isinstance(accumulate, torch.dtype) else describe(accumulate)
        raise value_error("accumulate", "None or torch.float64", came)
