"""`ntk_features`: random features of the gradients of a network."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from math import prod
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from .._checks import (
    check_choice,
    check_finite,
    check_positive_int,
    describe,
    has_finite_sum,
    value_error,
)
from .._functional import Batch, ModelFunction, evaluating_on, model_function
from .._types import (
    BatchLike,
    ForwardFn,
    ModelLike,
    Output,
    ParameterSelection,
    PreconditionLike,
)
from .._version import __version__
from ..empirical._computation import NOT_FINITE, rounded
from ..empirical._empirical_ntk import check_settings
from ..empirical._job import KernelJob
from ..empirical._parts import WHOLE, By, distinct, keys_of
from ..empirical._precondition import precondition_of
from ..empirical._result_size import held
from ..empirical.inspect import inspect_forward
from ..empirical.rules import RULES
from ..empirical.structured import UseRecorder
from ..memory import budget, free_memory, in_bytes, limited, size_in_words
from ._coupled import coupled_features
from ._dense import DenseProjection
from ._method import Features, Projections
from ._projection import Kind, ProjectionSettings
from ._samples import ONE_BY_ONE, Samples, samples_of
from ._sjlt import SparseProjection
from ._store import FeatureFile, check_store
from ._zarr_store import FeatureArrays

FeatureOutput = Literal["mean", "pseudo", "full"]

Path = str | os.PathLike[str]


@overload
def ntk_features(
    model: ModelLike,
    x: BatchLike | Dataset[Any] | DataLoader[Any],
    dim: int,
    *,
    kind: Kind = "sjlt",
    output: FeatureOutput = "mean",
    seed: int = 0,
    by: None = None,
    params: ParameterSelection = None,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    max_memory: int | str | None = None,
    progress: bool = False,
    forward_fn: ForwardFn | None = None,
    coupled: bool = False,
    training: bool = False,
    precondition: PreconditionLike = None,
    store: Path | None = None,
    check: bool = True,
) -> Tensor: ...


@overload
def ntk_features(
    model: ModelLike,
    x: BatchLike | Dataset[Any] | DataLoader[Any],
    dim: int,
    *,
    kind: Kind = "sjlt",
    output: FeatureOutput = "mean",
    seed: int = 0,
    by: By,
    params: ParameterSelection = None,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    max_memory: int | str | None = None,
    progress: bool = False,
    forward_fn: ForwardFn | None = None,
    coupled: bool = False,
    training: bool = False,
    precondition: PreconditionLike = None,
    store: Path | None = None,
    check: bool = True,
) -> dict[str, Tensor]: ...


def ntk_features(
    model: ModelLike,
    x: BatchLike | Dataset[Any] | DataLoader[Any],
    dim: int,
    *,
    kind: Kind = "sjlt",
    output: FeatureOutput = "mean",
    seed: int = 0,
    by: By | None = None,
    params: ParameterSelection = None,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    max_memory: int | str | None = None,
    progress: bool = False,
    forward_fn: ForwardFn | None = None,
    coupled: bool = False,
    training: bool = False,
    precondition: PreconditionLike = None,
    store: Path | None = None,
    check: bool = True,
) -> Tensor | dict[str, Tensor]:
    r"""Random projections φ(x) of per-sample gradients: `E⟨φ(x), φ(x')⟩ = Θ(x, x')`.

    A kernel of N samples has N² entries; features have N·dim. Samples are read in blocks. The
    projection of a parameter depends only on `seed` and the parameter's name. It is the same for
    every batch, in every process and on every device, so that features of different calls with one
    seed can be multiplied. Gradients of linear layers and convolutions are projected from their
    inputs and output cotangents, or formed where that is cheaper, with the same result. For random
    seeds

        Var⟨φ(x), φ(x')⟩ ≤ c (Θ(x, x) Θ(x', x') + Θ(x, x')²) / dim,

    c = 3 for `"sjlt"` and 4 for the others, up to terms of order 1/dim²; `features_error` gives the
    standard error of every entry.

    The model is evaluated as by `torch_ntk.empirical_ntk`, whose documentation explains the
    arguments further. Each block is compared with a plain backward pass, and the call leaves no
    trace in the model.

    Args:
        model: A module, or a function `f(params, batch)` with `params={name: tensor}`.
        x: N samples: a batch of any form; a `Dataset`, whose samples are collated by
            `default_collate`; or a `DataLoader` without shuffling. The batches that these yield are
            passed to the model like any batch. If they contain labels, choose the inputs with
            `forward_fn=lambda model, batch: model(batch[0])`.
        dim: The number of features of a sample (of each output for `"full"`), at most the number of
            parameters.
        kind: The projection:

            - `"sjlt"`: a sparse projection that adds every entry of a gradient to four features
              (Kane, Nelson 2014); by far the fastest, and the most precise;
            - `"rademacher"`, `"gaussian"`: feature k is `uᵀ G v / sqrt(dim)` for the gradient G of
              each weight, with vectors of random signs or normal numbers.
        output: `"mean"` and `"full"` as for the kernel; `"pseudo"` projects the gradient of
            `Σ_i f_i / sqrt(O)`, which is O times cheaper.
        seed: The seed of the projection.
        by: `"parameter"` or `"module"` returns the features in parts, `{name: φ_name}` with
            `φ = Σ φ_name`.
        params: The parameters whose gradients are projected.
        batch_size: The number of samples that are computed at once, within the batches of a
            `DataLoader`.
        dtype: The dtype of the computation and of the result.
        max_memory: About how many bytes the call may use, including the result unless it is stored.
        progress: Whether to show a progress bar over samples.
        forward_fn: `forward_fn(model, batch)` calls the model in place of the usual call.
        coupled: Whether the batch is one input, and the rows of its outputs are the samples.
            `"mean"` then uses separate projections for the outputs of a row, which differ from
            those of batches that are not coupled: do not multiply their features.
        training: Whether modules keep their training flags.
        precondition: An optimizer, or `{name: P}`. Gradients are multiplied by √P before the
            projection, so that products of features estimate `J P Jᵀ`. If P varies within a
            weight's unit, the gradient itself must be formed.
        store: A path `….safetensors`, or `….zarr` with the extra `scale`, to which the features are
            written block by block, so that they need not fit in memory. The file or folder appears
            when it is complete. Its metadata contain kind, output, dim and seed.
        check: Whether each block is compared with a plain backward pass. Differences in float32
            that are smaller than the projection's own error, `1 / sqrt(dim)` and at most 2 %, are
            accepted without repeating the block in float64: a ReLU that changes sides by rounding
            changes a gradient by about a percent.

    Returns:
        The features `[N, dim]`, or `[N, O, dim]` for `"full"`, on the model's device. With a
        safetensors file as `store` they are the tensor `"features"` of the file (with `by`, the
        tensors of the names), mapped into memory and read when used. With a Zarr store they are its
        `zarr.Array`, whose slices are NumPy arrays.

    Raises:
        TypeError, ValueError: As `empirical_ntk`; `dim` is larger than the number of parameters; a
            loader is shuffled or its length is not known; the result does not fit in memory.
        MemoryError: A single sample does not fit in memory.

    References:
        Charikar, Chen, Farach-Colton, "Finding frequent items in data streams" (2002). Pham, Pagh,
        "Fast and scalable polynomial kernels via explicit feature maps" (2013). Kane, Nelson,
        "Sparser Johnson-Lindenstrauss transforms" (2014). Park et al., "TRAK: attributing model
        behavior at scale" (2023).

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(200, 1, bias=False).double()
        >>> x = torch.eye(2, 200, dtype=torch.float64)
        >>> ntk_features(model, x, 64) @ ntk_features(model, x, 64).T  # Θ(x, x') = ⟨x, x'⟩
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    check_positive_int("dim", dim)
    check_choice("kind", kind, get_args(Kind))
    check_choice("output", output, get_args(FeatureOutput))
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise value_error("seed", "an integer of at least 0", describe(seed))
    if by is not None:
        check_choice("by", by, get_args(By), "None returns the features of all parameters.")
    check_settings(coupled, training, batch_size, progress, check)
    allowed = None if max_memory is None else in_bytes(max_memory)
    path = None if store is None else check_store(store)

    def compute(
        model: ModelLike, x: Any, output: FeatureOutput, seed: int, call: ForwardFn | None
    ) -> dict[str, Tensor]:
        samples = samples_of("x", x)
        # Loaders and datasets are read inside of the context, because they may draw random numbers.
        with evaluating_on(model, x, call, training=training):
            fn = model_function(model, params, dtype, call, coupled)
            check_dim(dim, fn)
            scales = precondition_of(precondition, fn)
            recorder = UseRecorder(RULES)
            start = fn.input("x", samples.first())
            forward = inspect_forward(fn, "x", start, recorder)
            outputs, keys = forward.outputs, keys_of(fn.params, by)
            if output == "pseudo":
                fn, forward = fn.pseudo(), replace(forward, outputs=1)
            shape = (samples.n, outputs, dim) if output == "full" else (samples.n, dim)
            names = {key: "features" if key == WHOLE else key for key in distinct(keys)}
            size = 0 if path is not None else check_fits(fn, shape, len(names), allowed)
            kept: Output = "full" if output == "full" else "mean"
            job = KernelJob(fn, start, None, kept, forward, keys, batch_size, check, scales)
            joint = outputs if output == "mean" else 1
            left = None if allowed is None else allowed - size - held(fn) - scales.bytes
            with limited(left), ExitStack() as stack:
                settings = ProjectionSettings(dim, seed, joint, fn.device)
                projections = _projections(fn, kind, settings)
                features = Features(job, recorder.recorded(), projections)
                if joint > 1:
                    check_joint(fn, joint)
                if path is None:
                    into: _Results | FeatureFile | FeatureArrays = _Results(fn, shape, names)
                else:
                    about = {"kind": kind, "output": output, "dim": dim, "seed": seed}
                    metadata = {k: str(v) for k, v in about.items()}
                    metadata["torch_ntk"] = __version__
                    shapes = dict.fromkeys(names.values(), shape)
                    about_file = path, shapes, fn.result_dtype, metadata
                    if path.suffix == ".zarr":
                        into = stack.enter_context(FeatureArrays(*about_file))
                    else:
                        into = stack.enter_context(FeatureFile(*about_file))

                def write(first: int, found: dict[str, Tensor], block: Batch) -> None:
                    for key, rows in found.items():
                        rows = rows / joint**0.5 if output == "mean" else rows
                        if not has_finite_sum(rows):
                            block.check_finite("x", "Remove or impute those entries.")
                            check_finite("features", rows, NOT_FINITE)
                        rows = rounded(rows, fn.result_dtype).reshape(-1, *shape[1:])
                        into.write(names[key], first, rows)

                _compute(features, fn, samples, start, write, progress)
        stored = into.read()
        return {key: stored[name] for key, name in names.items()}

    if coupled:
        results = coupled_features(compute, model, x, output, seed, forward_fn, path)
    else:
        results = compute(model, x, output, seed, forward_fn)
    return results if by is not None else results[WHOLE]


class _Results:
    """Features that are kept in memory, by name."""

    def __init__(self, fn: ModelFunction, shape: tuple[int, ...], names: dict[str, str]) -> None:
        like = torch.empty((), dtype=fn.result_dtype, device=fn.device)
        self._found = {name: like.new_empty(shape) for name in names.values()}

    def write(self, name: str, first: int, rows: Tensor) -> None:
        """Store the features of the samples from `first` on."""
        self._found[name][first : first + len(rows)] = rows

    def read(self) -> dict[str, Tensor]:
        """Return the features of all samples, by name."""
        return self._found


def _compute(
    features: Features,
    fn: ModelFunction,
    samples: Samples,
    first: Batch,
    write: Callable[[int, dict[str, Tensor], Batch], None],
    progress: bool,
) -> None:
    """Compute the features of all samples, block by block."""
    done = 0
    with tqdm(
        total=samples.n, desc="NTK features", unit="sample", disable=not progress, leave=False
    ) as bar:
        for value in samples.blocks(features.size):
            block = fn.input("x", value)
            if not block.is_like(first) or done + len(block) > samples.n:
                raise value_error(
                    "x",
                    f"{samples.n} samples of one kind, {first}",
                    f"{len(block)} {block} after {done} of them",
                    f"Pad all batches to one size. Or: {ONE_BY_ONE}",
                )
            for start, found in features.of(block):
                write(done + start, found, block)
            done += len(block)
            bar.update(len(block))
    if done < samples.n:
        raise value_error("x", f"{samples.n} samples, as its length says", f"{done} of them")


def check_dim(dim: int, fn: ModelFunction) -> None:
    """Raise `ValueError` if the features are larger than the gradients."""
    parameters = sum(p.numel() for p in fn.params.values())
    if dim > parameters:
        raise value_error(
            "dim",
            f"at most the number of parameters, {parameters}",
            str(dim),
            "The gradients themselves are smaller than these features, and exact: "
            "empirical_ntk, or torch.func.vmap(torch.func.grad(...)).",
        )


def check_fits(fn: ModelFunction, shape: tuple[int, ...], parts: int, allowed: int | None) -> int:
    """The size of the result in bytes; raise `ValueError` if it does not fit in memory."""
    size = parts * prod(shape) * torch.empty((), dtype=fn.result_dtype).element_size()
    free = free_memory(fn.device)
    bound = f"the {size_in_words(free)} that are free"
    if allowed is not None and allowed < free:
        free, bound = allowed, f"max_memory, {size_in_words(allowed)}"
    if size > free:
        many = "features" if parts == 1 else f"{parts} times features"
        raise value_error(
            "x",
            f"samples whose features fit in {bound}",
            f"{many} {list(shape)} of {size_in_words(size)}",
            "Write them to a file with store='features.safetensors', or lower dim.",
        )
    return size


def _projections(fn: ModelFunction, kind: Kind, settings: ProjectionSettings) -> Projections:
    """The projection of each parameter. It depends on the parameter's name without wrappers."""
    # A tied weight is one parameter under its first name, so that all its uses are projected alike.
    names = dict(zip(fn.params, keys_of(fn.params, "parameter").values(), strict=True))
    if kind == "sjlt":
        return {n: SparseProjection(names[n], p.shape, settings) for n, p in fn.params.items()}
    shapes = [p.shape for p in fn.params.values()]
    numbers = sum(DenseProjection.numbers(s, settings.dim, settings.joint) for s in shapes)
    normal = kind == "gaussian"
    kept = numbers * (4 if normal else 1) <= budget(fn.device) // 4
    return {
        n: DenseProjection(names[n], p.shape, settings, normal=normal, kept=kept)
        for n, p in fn.params.items()
    }


def check_joint(fn: ModelFunction, joint: int) -> None:
    """Raise `ValueError` if the random numbers for so many outputs do not fit in memory."""
    size = 5 * sum(SparseProjection.numbers(p.shape, joint) for p in fn.params.values())
    if size > budget(torch.device("cpu")):
        raise value_error(
            "output",
            "one of fewer outputs that are projected together",
            f"'mean' of {joint} outputs, whose projection takes {size_in_words(size)}",
            "Instead: output='pseudo', or a forward_fn that returns few outputs, such as the loss "
            "of each sample.",
        )
