"""Removal of wrappers that change how a module runs, but not what it computes."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
# Wrappers of libraries that may not be installed: the package and the name of the class.
_FOREIGN = {("lightning", "_FabricModule"), ("lightning_fabric", "_FabricModule")}


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, `DataParallel`, `DistributedDataParallel` and Fabric.

    A kernel is a property of the function that the network computes, which these wrappers do not
    change. Under a wrapper, `torch.func` would recompile for every transformation, or start
    collective communication.
    """
    while True:
        original = getattr(model, "_orig_mod", None)  # what torch.compile wraps
        kind = type(model)
        if isinstance(original, nn.Module):
            model = original
        elif (kind.__module__.partition(".")[0], kind.__name__) in _FOREIGN:
            model = cast(nn.Module, model.module)
        elif isinstance(model, _WRAPPERS):
            model = model.module
        else:
            return model


def plain_name(name: str) -> str:
    """A parameter's name without the `_orig_mod.` that `torch.compile` puts into it."""
    return name.replace("_orig_mod.", "")


def is_script(module: nn.Module) -> bool:
    """Whether the module is a TorchScript module, whose attributes are stored in C++."""
    return isinstance(module, torch.jit.ScriptModule)
