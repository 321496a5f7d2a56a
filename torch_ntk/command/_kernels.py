"""Make the kernel that the arguments of the command line name."""

from __future__ import annotations

import argparse
import functools
import os
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..analytic import CNTK, analytic_ntk, mlp_kernels
from ..empirical import empirical_ntk
from ._datasets import safetensors

PRESETS = (
    "cntk-gap-D, cntk-v-D (the convolutional kernels of Arora et al. 2019, D layers, with and "
    "without pooling), mlp-D (D dense layers, ReLU)"
)


def kernel(chosen: argparse.Namespace) -> Callable[..., Tensor]:
    """The kernel that is chosen by the arguments of `torch-ntk kernel`."""
    empirical = _is_empirical(chosen)
    if chosen.preset is not None:
        return preset(chosen.preset)
    if chosen.kernel is not None:
        found = imported(chosen.kernel)
        if not callable(found):
            raise TypeError(f"{chosen.kernel} must be a function (a, b) -> [n1, n2].")
        function: Callable[..., Tensor] = found
        return function
    model = imported(chosen.model)()
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise TypeError(f"{chosen.model} must be a function that returns a module; got a {kind}.")
    if not empirical:
        given = {} if chosen.standard is None else {"standard": chosen.standard}
        return functools.partial(analytic_ntk, model, **given)
    if chosen.state is not None:
        _load(model, chosen.state)
    of_network: Callable[..., Any] = empirical_ntk
    return functools.partial(of_network, model.eval(), output=chosen.output or "mean")


def _is_empirical(chosen: argparse.Namespace) -> bool:
    """Whether the empirical kernel of a network is asked for; arguments of others are refused."""
    empirical: bool = chosen.state is not None or chosen.empirical
    others: tuple[str, ...]
    if chosen.model is None:
        others, needed = ("state", "empirical", "output", "standard"), "with --model"
    elif empirical:
        others, needed = ("standard",), "without --state and --empirical"
    else:
        others, needed = ("output",), "with --state or --empirical"
    for name in others:
        if getattr(chosen, name):
            raise ValueError(f"--{name} is used {needed} only; leave it out.")
    return empirical


def preset(name: str) -> Callable[..., Tensor]:
    """The infinite-width kernel of a preset."""
    found = re.fullmatch(r"(cntk-gap|cntk-v|mlp)-([1-9]\d?)", name)
    if found is None:
        raise ValueError(f"--preset must be one of {PRESETS}; got {name!r}.")
    kind, depth = found[1], int(found[2])
    if kind == "mlp":
        return functools.partial(mlp, depth=depth)
    return CNTK(depth, pooling="gap" if kind == "cntk-gap" else "flatten")


def mlp(a: Tensor, b: Tensor | None = None, *, depth: int) -> Tensor:
    """Θ of a fully connected network of infinite width; samples are flattened first."""
    flat = None if b is None else b.flatten(1)
    return mlp_kernels(a.flatten(1), flat, depth).ntk


def imported(name: str) -> Any:
    """Import the object `module:name`; modules in the current folder are found too."""
    module, separator, attribute = name.partition(":")
    if not (module and separator and attribute):
        raise ValueError(f"expected module:function; got {name!r}.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return functools.reduce(getattr, attribute.split("."), import_module(module))
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name} cannot be imported: {error}") from error


def _load(model: nn.Module, path: Path) -> None:
    try:
        model.load_state_dict(safetensors(path))
    except RuntimeError as error:
        raise ValueError(f"--state {path} does not fit the model: {error}") from error
