"""A module as a pure function of its parameters and one batch of samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from .._checks import check_finite, check_tensor, describe, type_error, value_error
from .._types import ModelLike, Parameters, ParameterSelection
from ..memory import is_out_of_memory
from ._agree import check_batching
from ._failure import CANNOT_TRANSFORM
from ._parameters import common_device_and_dtype, copied, shareable, working_dtype
from ._refuse import refuse_unsupported
from ._select import select_parameters
from ._unwrap import unwrap


@dataclass(frozen=True)
class ModelFunction:
    """`f(params, x)` with everything but `params` and `x` held fixed.

    Attributes:
        call: Maps parameters and a batch `[N, ...]` to outputs `[N, O]`.
        params: The parameters to differentiate by; own copies, in `dtype`.
        module: The module behind `call`, or None for a plain function.
        device: Where all parameters are.
        dtype: The floating type in which everything is computed.
        result_dtype: The floating type of the model, in which results are returned.
        originals: Names of the caller's own parameters by their identity.
        dtype_from_model: Whether `dtype` follows from the model instead of the caller's wish.
        accumulate: In which products over parameters are added up; None is `dtype`.
        shared: Parameters, selected or not, that are in the caller's own memory.
    """

    call: Callable[[Parameters, Tensor], Tensor]
    params: Parameters
    module: nn.Module | None
    device: torch.device
    dtype: torch.dtype
    result_dtype: torch.dtype
    originals: Mapping[int, str]
    dtype_from_model: bool = True
    accumulate: torch.dtype | None = None
    shared: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def products(self) -> torch.dtype:
        """The floating type in which products over parameters are added up."""
        return self.dtype if self.accumulate is None else self.accumulate

    def batch(self, params: Parameters, x: Tensor) -> Tensor:
        """Outputs `[N, O]` of a batch. The input is copied: a forward may write into it."""
        return self.call(params, x.clone())

    def single(self, params: Parameters, x: Tensor) -> Tensor:
        """Outputs `[O]` of one sample `x` without its batch dimension."""
        return self.call(params, x.unsqueeze(0).clone()).reshape(-1)

    def each(self, params: Parameters, x: Tensor) -> Tensor:
        """Outputs `[N, O]` of a batch, every sample evaluated alone like the Jacobians."""
        try:
            rows: Tensor = vmap(self.single, in_dims=(None, 0))(params, x)
            check_batching({"f": rows[-1]}, {"f": self.single(params, x[-1])})
            return rows
        except CANNOT_TRANSFORM as error:
            if is_out_of_memory(error):
                raise
        return torch.stack([self.single(params, sample) for sample in x])

    def pseudo(self) -> ModelFunction:
        """The function `Σ_i f_i / sqrt(O)` with one output (Mohamadi et al. 2023)."""
        call = self.call

        def summed(params: Parameters, x: Tensor) -> Tensor:
            out = call(params, x)
            return out.sum(dim=1, keepdim=True) / math.sqrt(out.shape[1])

        return replace(self, call=summed)

    def input(self, name: str, x: Any) -> Tensor:
        """Check a batch of inputs and bring it into the form in which it is computed with.

        Floating-point inputs must come in the model's dtype (or any, if a dtype was asked for);
        integer and boolean inputs such as token indices pass as they are.

        Raises:
            TypeError: Not a dense tensor, or of another floating dtype than the model.
            ValueError: No batch dimension, an empty batch, another device, NaN or infinity.
        """
        x = check_tensor(name, x).detach()
        if x.ndim == 0 or x.shape[0] == 0 or x.numel() == 0:
            raise value_error(
                name,
                "a batch [N, ...] of at least one sample",
                x,
                "Put a batch dimension first, for example with x.unsqueeze(0).",
            )
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
        check_finite(name, x, "Remove or impute those entries.")
        return torch.clone(x.to(self.dtype))


def model_function(
    model: ModelLike,
    params: ParameterSelection = None,
    dtype: torch.dtype | None = None,
    share: bool = False,
) -> ModelFunction:
    """Make a pure function of `model`; call and use it within `quiet`.

    Parameters and buffers are copied, so that a forward that writes to them (batch statistics,
    power iterations, counters, weight clipping) writes to the copies. A half-precision model is
    computed in float32 and its results are rounded to its dtype once, at the end.

    Args:
        model: A module, or a function `f(params, x)` together with a dictionary `params`.
        params: See `torch_ntk.empirical_ntk`.
        dtype: float32 or float64, or None for the model's own.
        share: Leave parameters of that dtype where they are, instead of copying them. For callers
            that look out for writes to what is `shared`.

    Raises:
        TypeError: `model` is neither module nor function, or its kind cannot be transformed.
        ValueError: See `refuse_unsupported`, `select_parameters`; mixed dtypes or devices.
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
    if isinstance(model, nn.Module):
        return _of_module(unwrap(model), params, dtype, share)
    if callable(model):
        return _of_function(model, params, dtype, share)
    raise type_error("model", "an nn.Module or a function f(params, x)", describe(model), "")


def _of_module(
    model: nn.Module, params: ParameterSelection, dtype: torch.dtype | None, share: bool
) -> ModelFunction:
    refuse_unsupported(model)
    chosen = select_parameters(model, params)
    every: Parameters = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    device, own = common_device_and_dtype("model", dict(model.named_parameters()), dtype)
    working = working_dtype(own, dtype)
    buffers = {n for n, _ in model.named_buffers()}
    # A buffer may be in another dtype than the parameters on purpose, unless all is converted.
    keep = buffers if dtype is None and own == working else set()
    shared = shareable(every.keys() - buffers if share else (), every, working)
    copies = {
        n: shared[n] if n in shared else copied(t, t.dtype if n in keep else working)
        for n, t in every.items()
    }
    selected = {n: copies.pop(n) for n in chosen}

    def call(p: Parameters, x: Tensor) -> Tensor:
        # Buffers are copied anew: what one evaluation writes must not reach the next.
        fixed = {n: t.clone() if n in buffers else t for n, t in copies.items()}
        return _flat(functional_call(model, {**fixed, **p}, (x,)), x, working)

    result = own if dtype is None else dtype
    originals = {id(p): n for n, p in model.named_parameters()}
    return ModelFunction(
        call,
        selected,
        model,
        device,
        working,
        result,
        originals,
        dtype is None,
        shared=shared,
    )


def _of_function(
    f: Any, params: ParameterSelection, dtype: torch.dtype | None, share: bool
) -> ModelFunction:
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
    shared = shareable(params if share else (), params, working)
    copies = {n: shared[n] if n in shared else copied(t, working) for n, t in params.items()}

    def call(p: Parameters, x: Tensor) -> Tensor:
        return _flat(f(dict(p), x), x, working)

    result = own if dtype is None else dtype
    originals = {id(p): n for n, p in params.items()}
    return ModelFunction(
        call,
        copies,
        None,
        device,
        working,
        result,
        originals,
        dtype is None,
        shared=shared,
    )


def _flat(out: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Outputs as `[N, O]` in `dtype`; a batch of one may come without its batch dimension."""
    if not isinstance(out, Tensor):
        raise type_error(
            "model",
            "a function that returns one tensor [N, ...]",
            describe(out),
            "Wrap it in a module whose forward returns the part you mean, for example its logits.",
        )
    if not out.is_floating_point():
        raise type_error(
            "model",
            "a function with real floating-point outputs",
            out,
            "Return logits instead of classes, and real and imaginary parts "
            "(torch.view_as_real) instead of complex numbers.",
        )
    n = x.shape[0]
    if n == 1:
        return out.reshape(1, -1).to(dtype)
    if out.ndim == 0 or out.shape[0] != n:
        raise value_error(
            "model",
            "a function that returns one row of outputs per sample",
            out,
            "Its forward must keep the batch dimension first, and return outputs, not a loss.",
        )
    return out.reshape(n, -1).to(dtype)
