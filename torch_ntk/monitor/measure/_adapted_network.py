"""Networks whose call is replaced by the user's `forward_fn`, so that they return `[N, O]`."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..._functional import Batch, call_model, tensor_of, unwrap
from ..._types import ForwardFn as ForwardFn
from ..._types import ParameterSelection
from ...empirical._coupled import CoupledBatches
from ..probe._probe import Probe

_OWN = "network."  # begins the names of an adapted network's parameters


class AdaptedNetwork(nn.Module):
    """A network whose forward is `forward_fn(network, batch)`, and which shares its parameters."""

    def __init__(self, network: nn.Module, forward_fn: ForwardFn) -> None:
        super().__init__()
        # A new module is in train mode, unlike perhaps the network.
        self.training = network.training
        self.network = network
        self.forward_fn = forward_fn

    def forward(self, batch: Any) -> Tensor:
        """The outputs `[N, ...]` for a batch in the caller's form."""
        return self.forward_fn(self.network, batch)


def call_of(network: nn.Module, probe: Probe) -> ForwardFn | None:
    """The `forward_fn` of `empirical_ntk` by which a module that `adapted` returned is called."""
    if isinstance(network, AdaptedNetwork):
        return _adapted_outputs
    return _outputs_of_one if probe.as_one else None


class Samples(NamedTuple):
    """A probe in the form in which `torch.func` evaluates it.

    Attributes:
        batch: The samples of the probe, or a single sample which is the whole coupled probe.
        call: The `forward_fn` by which the module is called on them, or None.
        coupled: For a coupled probe the object that, after a call, has the number of rows.
    """

    batch: Batch
    call: ForwardFn | None
    coupled: CoupledBatches | None = None

    @staticmethod
    def of(network: nn.Module, probe: Probe) -> Samples:
        """The samples of a probe, for a module that `adapted` returned."""
        call = call_of(network, probe)
        if not probe.coupled:
            return Samples(probe.batch, call)
        batches = CoupledBatches(probe.x, None, "full")
        _, of_sample = batches.model(network, call)
        return Samples(Batch.of("probe", batches.sample), of_sample, batches)


def _adapted_outputs(network: nn.Module, batch: Any) -> Tensor:
    """The outputs `[N, ...]` of an `AdaptedNetwork`, which gets a container as one argument."""
    out: Tensor = network(batch)
    return out


def _outputs_of_one(network: nn.Module, batch: Any) -> Tensor:
    """The outputs `[N, ...]` of a network that gets a container as its only argument."""
    samples = Batch.coupled("probe", batch)
    return tensor_of(network(batch), samples, len(samples), None)


def usual_outputs(network: nn.Module, batch: Any) -> Tensor:
    """The outputs `[N, ...]` of a network that is called as `empirical_ntk` calls it."""
    samples = Batch.coupled("probe", batch)
    return tensor_of(call_model(network, batch), samples, len(samples), None)


def adapted(
    network: nn.Module, forward_fn: ForwardFn | None, before: nn.Module | None
) -> nn.Module:
    """The module to measure: `network` itself, or an `AdaptedNetwork` with `forward_fn`.

    The module `before`, which was returned last, is returned again if it has the same network.
    """
    if forward_fn is None:
        return network
    inner = unwrap(network)
    if isinstance(before, AdaptedNetwork) and before.network is inner:
        return before
    return AdaptedNetwork(inner, forward_fn)


def in_own_names(text: str, network: nn.Module) -> str:
    """A message about the module to measure, with the names of the user's own network."""
    if not isinstance(network, AdaptedNetwork):
        return text
    own = network.network
    named = (own.named_modules(), own.named_parameters(), own.named_buffers())
    first = {name.partition(".")[0] for names in named for name, _ in names} - {""}
    begins = "|".join(map(re.escape, first))
    return re.sub(rf"(?<![\w.]){re.escape(_OWN)}(?=({begins})\b)", "", text) if first else text


def adapted_selection(params: ParameterSelection) -> ParameterSelection:
    """The user's selection of parameters, by the names that they have in an `AdaptedNetwork`."""
    if params is None:
        return None
    if callable(params):
        chosen = params
        return lambda name, tensor: chosen(name.removeprefix(_OWN), tensor)
    if isinstance(params, (str, bytes)) or not all(isinstance(name, str) for name in params):
        return params  # `Evaluation` refuses it
    return [_OWN + name for name in params]
