"""Modules whose kernel cannot be computed right, each refused by name."""

from __future__ import annotations

import torch
from torch import nn

from .._checks import message
from ._unwrap import is_script, plain_name

_BATCH_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
)


def refuse_unsupported(model: nn.Module, argument: str = "model") -> None:
    """Raise if `model` holds a module for which a kernel would be undefined or wrong.

    Raises:
        TypeError: TorchScript, quantized, uninitialized lazy modules, sharded or meta
            parameters, complex parameters.
        ValueError: Batch normalization that has no running statistics, because its outputs
            depend on the whole batch; NaN or infinite parameters and buffers.
    """
    for name, module in model.named_modules():
        where = f"{type(module).__name__} at {plain_name(name)!r}" if name else _kind(module)
        _refuse_module(module, where, argument)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        _refuse_tensor(plain_name(name), tensor, argument)


def _kind(module: nn.Module) -> str:
    return f"a {type(module).__name__}"


def _refuse_module(module: nn.Module, where: str, argument: str) -> None:
    if is_script(module):
        raise TypeError(
            message(
                argument,
                "made of Python modules",
                f"a TorchScript module ({where})",
                "torch.func cannot transform TorchScript: pass the module before "
                "torch.jit.script or torch.jit.trace.",
            )
        )
    if "quantized" in type(module).__module__:
        raise TypeError(
            message(
                argument,
                "differentiable in its parameters",
                f"a quantized module ({where})",
                "Pass the floating-point module from before quantization.",
            )
        )
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        raise TypeError(
            message(
                argument,
                "initialized",
                f"a lazy module with no parameters yet ({where})",
                "Run one forward pass first.",
            )
        )
    if isinstance(module, _BATCH_NORMS) and module.running_mean is None:
        raise ValueError(
            message(
                argument,
                "a function of one sample at a time",
                f"batch normalization without running statistics ({where}), "
                "which couples the samples of a batch even in eval mode",
                "Build it with track_running_stats=True, or use GroupNorm or LayerNorm.",
            )
        )


def _refuse_tensor(name: str, tensor: torch.Tensor, argument: str) -> None:
    kind = type(tensor).__name__
    if kind == "DTensor" or hasattr(tensor, "placements"):
        raise TypeError(
            message(
                argument,
                "held whole by this process",
                f"the sharded parameter {name!r} ({kind})",
                "Gather a full copy first, for example with "
                "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
                "options=StateDictOptions(full_state_dict=True)), into an unsharded twin.",
            )
        )
    if tensor.device.type == "meta":
        raise TypeError(
            message(
                argument,
                "materialized",
                f"{name!r} on the meta device",
                "Call .to_empty(device=...) and initialize it first.",
            )
        )
    if tensor.is_complex():
        raise TypeError(
            message(
                argument,
                "real",
                f"the complex parameter or buffer {name!r}",
                "The kernel of a complex-valued network has several definitions; "
                "write the network over the real and imaginary parts.",
            )
        )
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ValueError(
            message(
                argument,
                "finite in every parameter and buffer",
                f"NaN or infinite entries in {name!r}",
                "Training may have diverged: lower the learning rate, or load an "
                "earlier checkpoint.",
            )
        )
