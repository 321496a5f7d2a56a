"""A module as a pure function of its parameters and one batch of samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .._checks import check_finite, check_tensor, describe, type_error, value_error
from .._types import ForwardFn, ModelLike, Parameters, ParameterSelection
from ._batch import Batch
from ._call import call_with
from ._parameters import (
    as_real,
    common_device_and_dtype,
    copied,
    followed,
    real_dtype,
    working_dtype,
)
from ._plain import PlainModel
from ._quiet import after_evaluation
from ._refuse import refuse_unsupported
from ._result import rows_of
from ._select import select_parameters
from ._unwrap import unwrap

T = TypeVar("T")


@dataclass(frozen=True)
class ModelFunction:
    """A model as a function `f(params, x)`, in which everything but `params` and `x` is fixed.

    Attributes:
        model: The module, or the user's function `f(params, batch)`.
        params: The parameters to differentiate by, by name. They are copies in `dtype`. A complex
            parameter is represented by its real and imaginary parts `[..., 2]`.
        fixed: Copies of all other parameters and of the buffers, by name.
        plain: The same function, evaluated by plain autograd. Results are compared with it. It has
            the model's own precision if that is float32 or float64.
        device: The device of all parameters.
        dtype: The floating type in which everything is computed.
        result_dtype: The floating type in which results are returned.
        dtype_from_model: Whether `dtype` follows from the model; otherwise the caller chose it.
        accumulate: The floating type in which sums over parameters are accumulated. None means
            `dtype`.
        forward_fn: A function that replaces the usual call of a module, as in `call_model`.
        coupled: Whether the batch is one input as a whole, so that it cannot be split into samples.
        transform: A function that is applied to the outputs `[N, O]` of the model, or None.
    """

    model: Any
    params: Parameters
    fixed: Parameters
    plain: PlainModel
    device: torch.device
    dtype: torch.dtype
    result_dtype: torch.dtype
    dtype_from_model: bool = True
    accumulate: torch.dtype | None = None
    forward_fn: ForwardFn | None = None
    coupled: bool = False
    transform: Callable[[Tensor], Tensor] | None = None

    @property
    def module(self) -> nn.Module | None:
        """The module, or None if the model is a function."""
        return self.model if isinstance(self.model, nn.Module) else None

    @property
    def products(self) -> torch.dtype:
        """The floating type in which sums over parameters are accumulated."""
        return self.dtype if self.accumulate is None else self.accumulate

    @property
    def parameter_bytes(self) -> int:
        """The memory of one copy of the parameters, in bytes."""
        return sum(p.numel() * p.element_size() for p in self.params.values())

    def call(self, params: Parameters, x: Batch) -> Tensor:
        """The outputs `[N, O]` for a batch. The forward may write into the tensors of `x`."""
        module = self.module
        if module is None:
            out = self.model(dict(params), x.value)
        else:
            # Buffers are copied for every call, so that writes to them do not change the next one.
            values = {n: t.clone() if n in self.plain.buffers else t for n, t in self.fixed.items()}
            for n, p in params.items():
                own = self.plain.selected.get(n)
                is_complex = own is not None and own.is_complex()
                values[n] = torch.view_as_complex(p) if is_complex else p
            try:
                out = call_with(module, values, x.value, self.forward_fn)
            finally:
                after_evaluation(module)
        rows = rows_of(out, x, self.dtype, self.forward_fn)
        return rows if self.transform is None else self.transform(rows)

    def batch(self, params: Parameters, x: Batch) -> Tensor:
        """The outputs `[N, O]` for a copy of a batch, since a forward may write into its input."""
        return self.call(params, x.clone())

    def single(self, params: Parameters, x: Batch) -> Tensor:
        """The outputs `[O]` for one sample, whose tensors `[...]` have no batch dimension."""
        return self.call(params, x.map(lambda t: t.unsqueeze(0).clone())).reshape(-1)

    def of_each(self, x: Batch, f: Callable[[Batch], T]) -> T:
        """Apply `f` to each sample and stack the results along a new first axis.

        This uses vmap, except for a coupled batch. That is a single sample, and its module may be
        in train mode, where it writes to buffers, which is not possible under vmap.
        """
        if not self.coupled:
            return x.vmap(f)
        found: T = tree_map(lambda t: t.unsqueeze(0), f(next(x.samples())))
        return found

    def in_dtype(self, dtype: torch.dtype) -> ModelFunction:
        """The function in another precision, with the values that the parameters have here."""
        if dtype == self.dtype:
            return self
        plain = self.exact_plain.in_dtype(dtype)
        params = {n: as_real(p) for n, p in plain.selected.items()}
        return replace(self, params=params, fixed=plain.fixed, plain=plain, dtype=dtype)

    def connected(self, tensors: Parameters) -> ModelFunction:
        """The function of other parameters or buffers, to which derivatives propagate."""
        placed = {n: followed(t, self.dtype) for n, t in tensors.items()}
        params = {n: as_real(placed[n]) if n in placed else p for n, p in self.params.items()}
        return replace(
            self, params=params, fixed={n: placed.get(n, t) for n, t in self.fixed.items()}
        )

    @property
    def exact_plain(self) -> PlainModel:
        """The function, evaluated by plain autograd in `dtype`."""
        return self.plain.in_dtype(self.dtype)

    def with_outputs(self, transform: Callable[[Tensor], Tensor]) -> ModelFunction:
        """The function whose outputs are `transform` of the outputs `[N, O]` of this one."""
        return replace(self, transform=transform, plain=replace(self.plain, transform=transform))

    def pseudo(self) -> ModelFunction:
        """The function `Σ_i f_i / sqrt(O)` with one output (Mohamadi et al. 2023)."""
        return self.with_outputs(lambda out: out.sum(dim=1, keepdim=True) / math.sqrt(out.shape[1]))

    def input(self, name: str, x: Any) -> Batch:
        """Check a batch of inputs, and return copies of its tensors in the dtype of computation.

        Floating-point tensors must have the model's dtype, or any dtype if the caller has chosen
        that of the computation. Integer and boolean tensors such as token indices and masks keep
        their dtype. `name` is that of the caller's argument.
        """
        batch = Batch.of(name, x)
        return batch.with_tensors([self._prepared(n, t.detach()) for n, t in batch.named(name)])

    def _prepared(self, name: str, x: Tensor) -> Tensor:
        """A copy of one tensor of a batch, in the floating type of the computation."""
        if x.device != self.device:
            raise value_error(
                name,
                f"on the model's device {self.device}",
                x,
                f"Move it with {name}.to({str(self.device)!r}).",
            )
        if x.is_complex():
            raise type_error(name, "real", x, "Pass real and imaginary parts.")
        if not x.is_floating_point():
            return torch.clone(x)
        allowed = (self.result_dtype, self.dtype)
        if self.dtype_from_model and x.dtype not in allowed:
            raise type_error(
                name,
                f"of the model's dtype {self.result_dtype}",
                x,
                f"Convert it with {name}.to({self.result_dtype}), or choose the precision "
                "of the whole computation with dtype=torch.float64.",
            )
        return torch.clone(x.to(self.dtype))


def model_function(
    model: ModelLike,
    params: ParameterSelection = None,
    dtype: torch.dtype | None = None,
    forward_fn: ForwardFn | None = None,
    coupled: bool = False,
) -> ModelFunction:
    """Make a pure function of `model`. This call and all uses of the result belong into `quiet`.

    Parameters and buffers are copied, so that a forward that writes to them (batch statistics,
    power iterations, counters, weight clipping) writes to the copies. A half-precision model is
    evaluated in float32, and its results are rounded to its dtype once, at the end. The arguments,
    and the errors about them, are those of `torch_ntk.empirical_ntk`.
    """
    if dtype not in (None, torch.float32, torch.float64):
        raise value_error(
            "dtype",
            "None, torch.float32 or torch.float64",
            str(dtype) if isinstance(dtype, torch.dtype) else describe(dtype),
            "A kernel accumulated in half precision has about two digits.",
        )
    if isinstance(model, type):
        raise type_error(
            "model",
            "an instance of a module",
            f"the class {model.__name__}",
            f"Make one first: {model.__name__}(...).",
        )
    if forward_fn is not None and not callable(forward_fn):
        raise type_error("forward_fn", "a function forward_fn(model, batch)", forward_fn)
    if isinstance(model, nn.Module):
        return _of_module(unwrap(model), params, dtype, forward_fn, coupled)
    if callable(model):
        if forward_fn is not None:
            raise type_error(
                "forward_fn",
                "None when `model` is a function f(params, batch)",
                forward_fn,
                "Call it inside of that function.",
            )
        return replace(_of_function(model, params, dtype), coupled=coupled)
    raise type_error("model", "an nn.Module or a function f(params, x)", describe(model), "")


def _of_module(
    model: nn.Module,
    params: ParameterSelection,
    dtype: torch.dtype | None,
    forward_fn: ForwardFn | None,
    coupled: bool,
) -> ModelFunction:
    """`model_function` for a module, whose other arguments have been checked."""
    refuse_unsupported(model, coupled=coupled)
    chosen = select_parameters(model, params)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    device, own = common_device_and_dtype("model", parameters, dtype)
    working = working_dtype(own, dtype)
    # Buffers may have another dtype than the parameters on purpose. They keep it, unless the
    # parameters are converted.
    keep = dtype is None and own == working
    fixed = {n: copied(p, working) for n, p in parameters.items()}
    fixed.update((n, copied(b, b.dtype if keep else working)) for n, b in buffers.items())
    selected = {n: fixed.pop(n) for n in chosen}
    plain = PlainModel(model, selected, fixed, working, parameters, buffers, forward_fn)
    kinds = [real_dtype(p) for p in parameters.values()]
    floating = {kind for kind in kinds if kind is not None}
    if len(floating) == 1 and floating != {working} and floating <= {torch.float32, torch.float64}:
        own_dtype = next(iter(floating))
        every = {n: copied(t, t.dtype) for n, t in {**parameters, **buffers}.items()}
        plain = replace(
            plain,
            selected={n: every[n] for n in chosen},
            fixed={n: every[n] for n in fixed},
            dtype=own_dtype,
        )
    result = own if dtype is None else dtype
    # Torch's derivative by a complex number consists of those by its real and imaginary parts.
    params_ = {n: as_real(p) for n, p in selected.items()}
    return ModelFunction(
        model,
        params_,
        fixed,
        plain,
        device,
        working,
        result,
        dtype_from_model=dtype is None,
        forward_fn=forward_fn,
        coupled=coupled,
    )


def _of_function(f: Any, params: ParameterSelection, dtype: torch.dtype | None) -> ModelFunction:
    """`model_function` for a function `f(params, batch)`, whose `params` are checked here."""
    if not isinstance(params, Mapping) or not params:
        raise type_error(
            "params",
            "a dictionary of parameter tensors when `model` is a function",
            describe(params),
            "Pass params={name: tensor, ...}, the point at which f is differentiated.",
        )
    for name, value in params.items():
        check_tensor(f"params[{name!r}]", value)
        if not value.is_floating_point():
            raise type_error(f"params[{name!r}]", "floating-point", value, "")
        check_finite(f"params[{name!r}]", value)
    device, own = common_device_and_dtype("params", dict(params), dtype)
    working = working_dtype(own, dtype)
    copies = {n: copied(t, working) for n, t in params.items()}
    plain = PlainModel(f, copies, {}, working, dict(params), {})
    result = own if dtype is None else dtype
    return ModelFunction(
        f, copies, {}, plain, device, working, result, dtype_from_model=dtype is None
    )
