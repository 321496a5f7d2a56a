"""Operations that overwrite their input, which are refused if a later node reads that input."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch import fx, nn

_AUGMENTED = {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow}
_VIEWS = {
    *(torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.permute, torch.transpose),
    *(torch.movedim, torch.moveaxis, torch.swapaxes, torch.narrow, torch.select, torch.unbind),
    *(torch.chunk, torch.split, torch.tensor_split, torch.unflatten, operator.getitem),
}
_VIEW_METHODS = {
    *(f.__name__ for f in _VIEWS if f is not operator.getitem),
    *("view", "contiguous", "view_as", "expand"),
}
_VIEW_MODULES = (nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)


def overwritten(node: fx.Node, module: nn.Module | None) -> fx.Node | None:
    """Return the node whose value `node` overwrites, or None.

    Args:
        node: A node of a graph.
        module: The module that it calls, if it calls one.
    """
    taken = node.args[0] if node.args else node.kwargs.get("input")
    return taken if isinstance(taken, fx.Node) and _writes(node, module) else None


def read_later(node: fx.Node, written: fx.Node, root: nn.Module) -> fx.Node | None:
    """Return a node after `node` that reads `written`, or a value of which `written` is a view."""
    order = {n: i for i, n in enumerate(node.graph.nodes)}
    seen: fx.Node | None = written
    while seen is not None:
        for user in seen.users:
            if order[user] > order[node]:
                return user
        seen = _viewed(seen, root)
    return None


def _writes(node: fx.Node, module: nn.Module | None) -> bool:
    if node.op == "call_module":
        return bool(getattr(module, "inplace", False))
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    if node.target in _AUGMENTED or (
        # The underscore of `operator.and_` only avoids a keyword.
        getattr(node.target, "__name__", "").endswith("_")
        and getattr(node.target, "__module__", "") != "_operator"
    ):
        return True
    return bool(arguments(node.target, node.args, node.kwargs).get("inplace", False))


def arguments(function: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return the arguments of a call by name, as far as the function's signature names them."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):  # built in, or called wrongly
        return dict(kwargs)
    kinds = {p.kind for p in bound.signature.parameters.values()}
    return dict(kwargs if inspect.Parameter.POSITIONAL_ONLY in kinds else bound.arguments)


def _viewed(node: fx.Node, root: nn.Module) -> fx.Node | None:
    """Return the node with whose memory the node's value shares its own, or None."""
    module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
    view = (
        node.target in _VIEWS
        or (node.op == "call_method" and node.target in _VIEW_METHODS)
        or isinstance(module, _VIEW_MODULES)
    )
    if not (view or (node.op.startswith("call") and _writes(node, module))):
        return None
    taken = node.args[0] if node.args else node.kwargs.get("input")
    return taken if isinstance(taken, fx.Node) else None
