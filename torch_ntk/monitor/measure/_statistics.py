"""Running statistics of batch normalization, computed on the samples of the probe.

In a new network the running statistics are 0 and 1, and later they lag behind the parameters. They
change kernel and outputs even if the parameters do not change, so that drift and linearization gap
of a network in eval mode say little about its features. If they are computed on the same samples at
every measurement, they are a function of the parameters.
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
from ..._types import Parameters
from ..probe._probe import Probe
from ._adapted_network import call_of


def statistics_of(network: nn.Module) -> Parameters:
    """The running means and variances of batch normalization in a network, by name."""
    layers = [(n, m) for n, m in network.named_modules() if isinstance(m, _BatchNorm)]
    named = {
        f"{name}.{kind}" if name else kind: getattr(layer, kind)
        for name, layer in layers
        for kind in ("running_mean", "running_var")
    }
    return {n: t for n, t in named.items() if t is not None}


@contextlib.contextmanager
def recalibrated(network: nn.Module, probe: Probe) -> Iterator[frozenset[str]]:
    """A context in which the running statistics of a network are those of the probe.

    They are computed in one forward pass in eval mode, in which each layer normalizes with the mean
    and the unbiased variance of its input. Layers that the pass does not call, or whose input has
    one value per channel, keep their statistics. The context has the names of the buffers.
    """
    own = statistics_of(network)
    if not own:
        yield frozenset()
        return
    first = next(iter(own.values()))
    samples = probe.to(first.device).batch.to(first.dtype).map(torch.clone).value
    with quiet(network, first.device), Recalibrating():
        copies = {n: t.clone() for n, t in (*network.named_parameters(), *network.named_buffers())}
        call_with(network, copies, samples, call_of(network, probe))
    with with_statistics(network, copies):
        yield frozenset(own)


@contextlib.contextmanager
def with_statistics(network: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """A context in which running statistics of a network have the given values, by name."""
    own = {n: t for n, t in statistics_of(network).items() if n in values}
    with torch.inference_mode(False):
        before = {n: t.detach().clone() for n, t in own.items()}
    try:
        _write(own, values)
        yield
    finally:
        _write(own, before)


def _write(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into the tensors of the same names."""
    for name, tensor in own.items():
        # Written through `.data`, as an autograd graph of the training may have saved the tensor
        # and would raise an error if its version had changed.
        tensor.data.copy_(values[name])


class Recalibrating(TorchFunctionMode):
    """A context in which each call of `F.batch_norm` uses the statistics of its input.

    They are written into the tensors of running statistics with which it is called. The caller must
    use copies of these.
    """

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
    """Write mean and variance of the input `[N, C, ...]` into the running statistics `[C]`."""
    if running_mean is None or running_var is None or input.numel() < 2 * input.shape[1]:
        return
    over = [axis for axis in range(input.ndim) if axis != 1]
    var, mean = torch.var_mean(input.double() if input.device.type == "cpu" else input, over)
    running_mean.data.copy_(mean)
    running_var.data.copy_(var)
