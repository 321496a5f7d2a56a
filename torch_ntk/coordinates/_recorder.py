"""What the modules of a network return in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from .._checks import value_error
from .._functional import tensors_in

OUTPUT = "output"
"""The name under which the outputs of the network itself are kept."""

Recorded = dict[str, Tensor]
"""Copies of what modules return, by their names; of a second call as `name (2)`."""


def layers_of(model: nn.Module, patterns: Sequence[str] | None) -> dict[str, nn.Module]:
    """The modules of which outputs are recorded.

    Args:
        model: The network.
        patterns: Names or patterns of modules; None takes those with parameters of their own.

    Raises:
        ValueError: A pattern is the name of no module.
    """
    named = {name: module for name, module in model.named_modules() if name}
    if patterns is None:
        return {
            n: m for n, m in named.items() if next(m.parameters(recurse=False), None) is not None
        }
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise value_error(
                "modules",
                "names or patterns of modules of the network",
                f"{pattern!r}, which fits none of them",
                f"It has {', '.join(list(named)[:8])}, …",
            )
    return {n: m for n, m in named.items() if any(fnmatchcase(n, p) for p in patterns)}


def recorded(
    layers: dict[str, nn.Module], forward: Callable[[], Tensor]
) -> tuple[Tensor, Recorded]:
    """The outputs of a forward pass, and copies of them and of what `layers` return in it.

    A module that returns several tensors is known by the first of floating-point numbers. One that
    returns the outputs of the network is left out: it would stand there twice.
    """
    seen: Recorded = {}
    own: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_hook(_keeper(name, seen, own)) for name, layer in layers.items()
    ]
    try:
        f = forward()
    finally:
        for handle in handles:
            handle.remove()
    kept = {name: h for name, h in seen.items() if own[name] is not f}
    return f, {**kept, OUTPUT: f.detach().clone()}


def _keeper(name: str, seen: Recorded, own: dict[str, Tensor]) -> Callable[..., None]:
    """A forward hook. It copies at once, since the next operation may write into the tensor."""
    calls = 0

    def keep(module: nn.Module, inputs: Any, out: Any) -> None:
        nonlocal calls
        h = next((t for t in tensors_in(out) if t.is_floating_point()), None)
        if h is not None:
            calls += 1
            key = name if calls == 1 else f"{name} ({calls})"
            seen[key], own[key] = h.detach().clone(), h

    return keep
