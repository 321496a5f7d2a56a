"""Search for a part of a network that can be measured if the whole network cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..._functional import unwrap
from ..measure._adapted_network import AdaptedNetwork
from ..measure._evaluation import Evaluation
from ..probe._probe import Probe


def part_that_works(
    network: nn.Module, probe: Probe, dtype: torch.dtype | None = None
) -> str | None:
    """The text of a `forward_fn` that evaluates a part of the network, or None if no part works.

    The method `encode` and all submodules with parameters are tried with the samples. This finds,
    for example, the mean of a variational autoencoder, or the discriminator of a GAN.
    """
    if not isinstance(probe.x, Tensor):
        return None
    network = unwrap(network)
    names = [n for n, m in network.named_children() if next(m.parameters(), None) is not None]
    if callable(getattr(network, "encode", None)):
        names.insert(0, "encode")
    for name in dict.fromkeys(names):
        for part, pick in (("", lambda out: out), ("[0]", lambda out: out[0])):
            try:
                adapted = AdaptedNetwork(network, _forward(name, pick))
                Evaluation(dtype=dtype).examined(adapted, probe)
            except Exception:  # a part may raise anything if it is not made for these samples
                continue
            return f"forward_fn=lambda net, x: net.{name}(x){part}"
    return None


def _forward(name: str, pick: Callable[[Any], Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    """A `forward_fn` that calls the attribute `name` and applies `pick` to what it returns."""
    return lambda net, x: pick(getattr(net, name)(x))
