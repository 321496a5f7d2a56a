"""A network under another forward: outputs `[N, O]` from what returns or takes something else."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..._functional import Batch, call_model, tensor_of
from ..._types import ForwardFn as ForwardFn
from ..._types import ParameterSelection
from ...empirical._coupled import CoupledBatches
from ..probe._probe import Probe

_OWN = "network."  # begins the names of an adapted network's parameters


class AdaptedNetwork(nn.Module):
    """A network whose forward is `forward_fn(network, batch)`; parameters and buffers are shared.

    Args:
        network: The module with the parameters.
        forward_fn: How it is called.
    """

    def __init__(self, network: nn.Module, forward_fn: ForwardFn) -> None:
        super().__init__()
        # Set from the start: a new module is in training mode, which the network may not be in.
        self.training = network.training
        self.network = network
        self.forward_fn = forward_fn

    def forward(self, batch: Any) -> Tensor:
        """Outputs `[N, ...]` of a batch in the caller's form."""
        return self.forward_fn(self.network, batch)


def call_of(network: nn.Module, probe: Probe) -> ForwardFn | None:
    """How the module to measure is called on a probe; None is the usual way, see `empirical_ntk`.

    Args:
        network: What `adapted` returned.
        probe: Samples in the form in which the network takes them.
    """
    if isinstance(network, AdaptedNetwork):
        return _adapted_outputs
    return _outputs_of_one if probe.as_one else None


class Samples(NamedTuple):
    """A probe as `torch.func` sees it: samples, each with its outputs.

    Attributes:
        batch: The samples: those of the probe, or all of a coupled one as a single sample.
        call: How the module is called on them.
        coupled: What knows the rows of the single sample's outputs, once it has been called.
    """

    batch: Batch
    call: ForwardFn | None
    coupled: CoupledBatches | None = None

    @staticmethod
    def of(network: nn.Module, probe: Probe) -> Samples:
        """Those of a probe.

        Args:
            network: What `adapted` returned.
            probe: Samples in the form in which the network takes them.
        """
        call = call_of(network, probe)
        if not probe.coupled:
            return Samples(probe.batch, call)
        batches = CoupledBatches(probe.x, None, "full")
        _, of_sample = batches.model(network, call)
        return Samples(Batch.of("probe", batches.sample), of_sample, batches)


def _adapted_outputs(network: nn.Module, batch: Any) -> Tensor:
    out: Tensor = network(batch)
    return out


def _outputs_of_one(network: nn.Module, batch: Any) -> Tensor:
    """Of a network whose only argument is a container, with the usual choice of the outputs."""
    samples = Batch.coupled("probe", batch)
    return tensor_of(network(batch), samples, len(samples), None)


def usual_outputs(network: nn.Module, batch: Any) -> Tensor:
    """Outputs `[N, ...]` of a network that is called in the usual way, see `empirical_ntk`."""
    samples = Batch.coupled("probe", batch)
    return tensor_of(call_model(network, batch), samples, len(samples), None)


def adapted(
    network: nn.Module, forward_fn: ForwardFn | None, before: nn.Module | None
) -> nn.Module:
    """The module to measure: `network` itself, or `forward_fn` of it, made once for each network.

    Args:
        network: The module with the parameters.
        forward_fn: How it is called, or None.
        before: What this function returned last, or None.
    """
    if forward_fn is None:
        return network
    # A compiled function would be compiled anew for every transformation of a measurement.
    original = getattr(network, "_orig_mod", None)
    inner = original if isinstance(original, nn.Module) else network
    if isinstance(before, AdaptedNetwork) and before.network is inner:
        return before
    return AdaptedNetwork(inner, forward_fn)


def in_own_names(text: str, network: nn.Module) -> str:
    """A message with the names that parameters and modules have in the user's own network.

    Args:
        text: The message.
        network: What `adapted` returned.
    """
    if not isinstance(network, AdaptedNetwork):
        return text
    own = network.network
    named = (own.named_modules(), own.named_parameters(), own.named_buffers())
    first = {name.partition(".")[0] for names in named for name, _ in names} - {""}
    begins = "|".join(map(re.escape, first))
    return re.sub(rf"(?<![\w.]){re.escape(_OWN)}(?=({begins})\b)", "", text) if first else text


def adapted_selection(params: ParameterSelection) -> ParameterSelection:
    """The same parameters by the names that they have in an `AdaptedNetwork`."""
    if params is None:
        return None
    if callable(params):
        chosen = params
        return lambda name, tensor: chosen(name.removeprefix(_OWN), tensor)
    if isinstance(params, (str, bytes)) or not all(isinstance(name, str) for name in params):
        return params  # refused with the other arguments
    return [_OWN + name for name in params]
