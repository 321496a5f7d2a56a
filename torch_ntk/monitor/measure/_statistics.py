"""Running statistics of batch normalization, as they are on the samples of the probe.

In a fresh network they are 0 and 1 and mean nothing, and they follow the training with a lag of
their own: they move kernel and outputs without any change of the parameters, so that drift and gap
of a network in eval mode say little of its features. Taken anew on the same samples at every
measurement, they are a function of the parameters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from ..._functional import call_with, quiet
from ..._types import ForwardFn, Parameters
from ..probe._probe import Probe
from ._adapted_network import call_of


def statistics_of(network: nn.Module) -> Parameters:
    """By name the running means and variances of batch normalization in a network."""
    layers = [(n, m) for n, m in network.named_modules() if isinstance(m, _BatchNorm)]
    named = {
        f"{name}.{kind}" if name else kind: getattr(layer, kind)
        for name, layer in layers
        for kind in ("running_mean", "running_var")
    }
    return {n: t for n, t in named.items() if t is not None}


@contextlib.contextmanager
def recalibrated(network: nn.Module, probe: Probe) -> Iterator[frozenset[str]]:
    """Within it, the running statistics of a network are those of the probe's samples.

    They are found layer by layer in one forward pass in eval mode: each layer normalizes with the
    statistics of what reaches it, unbiased as running statistics are. Layers that the pass does
    not reach, or with a single value, keep theirs. Afterwards all are as before.

    Yields:
        The names of the buffers.
    """
    own = statistics_of(network)
    if not own:
        yield frozenset()
        return
    with torch.inference_mode(False):
        before = {n: t.detach().clone() for n, t in own.items()}
    first = next(iter(own.values()))
    samples = probe.to(first.device).batch.to(first.dtype).map(torch.clone).value
    found = _on_samples(network, samples, call_of(network, probe))
    try:
        _write(own, found)
        yield frozenset(own)
    finally:
        _write(own, before)


def _on_samples(network: nn.Module, samples: Any, call: ForwardFn | None) -> Parameters:
    """Running statistics as one forward pass finds them, and copies of everything else."""
    first = next(iter(network.buffers()))
    with quiet(network, first.device), _Recalibrating():
        copies = {n: t.clone() for n, t in (*network.named_parameters(), *network.named_buffers())}
        call_with(network, copies, samples, call)
    return copies


@contextlib.contextmanager
def with_statistics(network: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it, running statistics of a network have these values."""
    own = {n: t for n, t in statistics_of(network).items() if n in values}
    before = {n: t.detach().clone() for n, t in own.items()}
    try:
        _write(own, values)
        yield
    finally:
        _write(own, before)


def _write(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in own.items():
        # As data: a graph of the training that has kept the tensor must not see a new version.
        tensor.data.copy_(values[name])


def recalibrating() -> TorchFunctionMode:
    """Within it, each call of `F.batch_norm` has the statistics of its input.

    They are written into the running ones that it is called with, which are to be copies.
    """
    return _Recalibrating()


class _Recalibrating(TorchFunctionMode):
    """Writes the statistics of every input of `F.batch_norm` into those that it is called with."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            _recalibrate(*args, **kwargs)
        return func(*args, **kwargs)


def _recalibrate(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, *_: Any, **__: Any
) -> None:
    if running_mean is None or running_var is None or input.numel() < 2 * input.shape[1]:
        return
    over = [axis for axis in range(input.ndim) if axis != 1]
    var, mean = torch.var_mean(input.double() if input.device.type == "cpu" else input, over)
    running_mean.data.copy_(mean)
    running_var.data.copy_(var)
