"""Errors for modules whose kernel cannot be computed correctly."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from .._checks import has_finite_sum, have_finite_sums, type_error, value_error
from ._unwrap import is_script, plain_name

_BATCH_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
)

_GATHER = (
    "Gather a full copy first, for example with "
    "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
    "options=StateDictOptions(full_state_dict=True)), into an unsharded twin."
)


def _once(test: Callable[[type], bool]) -> Callable[[type], bool]:
    """The test with a cache for classes: a model may have many modules of few classes."""
    return functools.cache(test)


def refuse_unsupported(model: nn.Module, *, coupled: bool = False) -> None:
    """Raise an error if `model` has a module for which the kernel would be undefined or wrong.

    These are TorchScript, quantized and uninitialized lazy modules; parameters that are sharded, on
    the meta device, NaN or infinite; buffers with NaN (infinite ones are allowed, such as an
    attention mask with -inf); and, unless the batch is coupled, batch normalization without running
    statistics, with which each output depends on the whole batch.
    """
    for name, module in model.named_modules():
        where = (
            f"{type(module).__name__} at {plain_name(name)!r}"
            if name
            else f"a {type(module).__name__}"
        )
        _refuse_module(module, where, coupled)
    _refuse_tensors(model.named_parameters(), torch.isfinite)
    _refuse_tensors(model.named_buffers(), lambda t: ~torch.isnan(t))


def _refuse_module(module: nn.Module, where: str, coupled: bool) -> None:
    """Raise an error if the kernel of one module, which `where` describes, is not supported."""
    if is_script(module):
        raise type_error(
            "model",
            "made of Python modules",
            f"a TorchScript module ({where})",
            "torch.func cannot transform TorchScript: pass the module before "
            "torch.jit.script or torch.jit.trace.",
        )
    if _is_sharded(type(module)):
        raise type_error(
            "model",
            "held whole by this process",
            f"a module whose parameters are sharded ({where})",
            _GATHER,
        )
    if _is_quantized(type(module)):
        raise type_error(
            "model",
            "differentiable in its parameters",
            f"a quantized module ({where})",
            "Pass the floating-point module from before quantization.",
        )
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        raise type_error(
            "model",
            "initialized",
            f"a lazy module with no parameters yet ({where})",
            "Run one forward pass first.",
        )
    if isinstance(module, _BATCH_NORMS) and module.running_mean is None and not coupled:
        raise value_error(
            "model",
            "a function of one sample at a time",
            f"batch normalization without running statistics ({where}), "
            "which couples the samples of a batch even in eval mode",
            "Build it with track_running_stats=True, or use GroupNorm or LayerNorm. The kernel "
            "between the rows of one batch that are normalized together is that of coupled=True.",
        )


@_once
def _is_sharded(kind: type) -> bool:
    """Whether a module of this class may have parameters that are split over processes."""
    return any(c.__name__ == "FullyShardedDataParallel" for c in kind.__mro__)


@_once
def _is_quantized(kind: type) -> bool:
    """Whether the class is one of torch's quantized modules."""
    # Only torch's own modules are tested: the name of a user's file may contain the word, too.
    return re.match(r"torch(ao)?\..*quantized", kind.__module__) is not None


def _refuse_tensors(
    named: Iterable[tuple[str, Tensor]], is_fine: Callable[[Tensor], Tensor]
) -> None:
    """Raise an error for a tensor of an unsupported kind or with entries not `is_fine`."""
    floating = {}
    for name, tensor in named:
        _refuse_kind(plain_name(name), tensor)
        if tensor.is_floating_point():
            floating[plain_name(name)] = tensor
    if have_finite_sums(floating.values()):
        return
    for name, tensor in floating.items():
        if not has_finite_sum(tensor) and not bool(is_fine(tensor).all()):
            raise value_error(
                "model",
                "finite in every parameter and free of NaN in every buffer",
                f"NaN or infinite entries in {name!r}",
                "Training may have diverged: lower the learning rate, or load an "
                "earlier checkpoint.",
            )


def _refuse_kind(name: str, tensor: Tensor) -> None:
    """Raise an error if a tensor is sharded or on the meta device."""
    kind = type(tensor).__name__
    if kind == "DTensor" or hasattr(tensor, "placements"):
        raise type_error(
            "model",
            "held whole by this process",
            f"the sharded parameter {name!r} ({kind})",
            _GATHER,
        )
    if tensor.device.type == "meta":
        raise type_error(
            "model",
            "materialized",
            f"{name!r} on the meta device",
            "Call .to_empty(device=...) and initialize it first.",
        )
