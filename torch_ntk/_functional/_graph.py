"""The nodes and leaves of an autograd graph, and the tensors in nested containers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def leaves_reached(*outputs: Tensor) -> dict[int, Tensor]:
    """The leaf tensors by which the outputs can be differentiated, by their `id`."""
    found = {id(out): out for out in outputs if out.is_leaf and out.requires_grad}
    for node in nodes_of(*outputs):
        if (leaf := getattr(node, "variable", None)) is not None:
            found[id(leaf)] = leaf
    return found


def nodes_of(*outputs: Tensor) -> Iterator[Any]:
    """The nodes of the autograd graph of the outputs, each once."""
    nodes: list[Any] = [out.grad_fn for out in outputs]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        nodes.extend(following for following, _ in node.next_functions)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in `value`, which may be nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from tensors_in(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from tensors_in(v)
