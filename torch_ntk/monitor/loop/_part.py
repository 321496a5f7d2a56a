"""A part of a network that can be measured where the whole cannot."""

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
    """A `forward_fn` as one writes it, which has been tried; None if no part works.

    The mean of a variational autoencoder, the discriminator of a GAN: a method `encode`, and the
    submodules with parameters, each of which gets the samples.

    Args:
        network: What cannot be measured as a whole.
        probe: The samples.
        dtype: Of the evaluation.
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
            except Exception:  # anything that a part raises on what it was not made for
                continue
            return f"forward_fn=lambda net, x: net.{name}(x){part}"
    return None


def _forward(name: str, pick: Callable[[Any], Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    return lambda net, x: pick(getattr(net, name)(x))
