"""Record the outputs of a network's modules in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from .._checks import value_error
from .._functional import tensors_in

OUTPUT = "output"
"""The name of the outputs of the network itself."""

Recorded = dict[str, Tensor]
"""Copies of modules' outputs, by the modules' names; those of a second call as `name (2)`."""


def layers_of(model: nn.Module, patterns: Sequence[str] | None) -> dict[str, nn.Module]:
    """The modules to record: those with own parameters, or that match a pattern."""
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
                f"{pattern!r}, which matches none of them",
                f"It has {', '.join(list(named)[:8])}, …",
            )
    return {n: m for n, m in named.items() if any(fnmatchcase(n, p) for p in patterns)}


def recorded(
    layers: dict[str, nn.Module], forward: Callable[[], Tensor]
) -> tuple[Tensor, Recorded]:
    """The outputs of a forward pass, and copies of them and of the outputs of `layers`.

    If a module returns several tensors, the first floating-point tensor is recorded. A module that
    returns the outputs of the network is left out, because they are recorded as `OUTPUT`.
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
    """A forward hook that copies outputs immediately: a later operation may write into them."""
    calls = 0

    def keep(module: nn.Module, inputs: Any, out: Any) -> None:
        nonlocal calls
        h = next((t for t in tensors_in(out) if t.is_floating_point()), None)
        if h is not None:
            calls += 1
            key = name if calls == 1 else f"{name} ({calls})"
            seen[key], own[key] = h.detach().clone(), h

    return keep
