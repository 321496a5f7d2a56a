"""How a kernel is taken on a probe: whole, by its modules, and in the limit of infinite width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._types import Method, Output
from ..analytic import analytic_ntk
from ..empirical import NTKOperator, empirical_ntk
from ._adapted import AdaptedNetwork
from ._outputs import current_outputs
from ._probe import Probe

_CHUNK = 16  # samples whose intermediate results are held at once
_ITSELF = "self"  # the name under which the parameters of the network itself are shown

LARGE = 1_000_000
"""Networks of more parameters are evaluated in float32, which takes a third of the time."""

# Gradients in float32 are off by some units of 2^-23; an eigenvalue λ of their Gram matrix means
# nothing once √λ is as small as that beside √λ_max.
_ROUNDED = (8 * 2.0**-23) ** 2


@dataclass(frozen=True)
class Take:
    """The settings of every kernel of an observation.

    Attributes:
        output: The kernel's output reduction.
        method: As in `torch_ntk.empirical_ntk`.
        batch_size: Samples per block; None follows the free memory.
        dtype: In which the network is evaluated; None is float64, or float32 for networks of more
            than `LARGE` parameters. Products over parameters are added up in float64 in any case.
    """

    output: Output
    method: Method
    batch_size: int | None
    dtype: torch.dtype | None

    @property
    def chunk(self) -> int:
        """Samples that pass through the network at once."""
        return self.batch_size or _CHUNK

    def precision(self, device: torch.device) -> torch.dtype:
        """The dtype of outputs and kernels."""
        return torch.float32 if device.type == "mps" else self.dtype or torch.float64

    def evaluation(self, network: nn.Module) -> torch.dtype:
        """The dtype in which gradients of the network are taken."""
        parameters = list(network.parameters())
        whole = self.precision(parameters[0].device)
        if self.dtype is not None or any(p.dtype == torch.float64 for p in parameters):
            return whole
        is_large = sum(p.numel() for p in parameters) > LARGE
        return torch.float32 if is_large else whole

    def accumulation(self, network: nn.Module) -> torch.dtype | None:
        """The dtype of products over parameters, where it is not that of the gradients."""
        lacks_it = next(network.parameters()).device.type == "mps"
        return None if lacks_it or self.method == "vector_product" else torch.float64

    def rounding(self, network: nn.Module) -> float:
        """The relative precision of the kernel's eigenvalues."""
        gradients = self.evaluation(network)
        if gradients == torch.float64:
            return float(torch.finfo(torch.float64).eps)
        if self.accumulation(network) is None:
            return float(torch.finfo(gradients).eps)
        return _ROUNDED

    def kernel(
        self, network: nn.Module, names: Sequence[str], probe: Probe, output: Output | None = None
    ) -> Tensor:
        """Θ by the parameters called `names`, with `output` in place of the usual one."""
        return empirical_ntk(
            network,
            probe.x,
            output=output or self.output,
            method=self.method,
            params=list(names),
            batch_size=self.batch_size,
            dtype=self.evaluation(network),
            accumulate=self.accumulation(network),
        )

    def outputs(self, network: nn.Module, names: Sequence[str], probe: Probe) -> Tensor:
        """The outputs on the probe, `[N, O]`."""
        outputs = current_outputs(
            network, tuple(names), probe.x, self.evaluation(network), self.chunk
        )
        return outputs.to(self.precision(probe.x.device))

    def operator(self, network: nn.Module, names: Sequence[str], probe: Probe) -> NTKOperator:
        """The full Θ by the parameters called `names`, only to multiply with."""
        return NTKOperator(
            network,
            probe.x,
            output="full",
            params=list(names),
            batch_size=self.batch_size,
            dtype=self.evaluation(network),
        )

    def by_module(
        self, network: nn.Module, names: Sequence[str], probe: Probe
    ) -> dict[str, Tensor]:
        """The parts Θ_m of Θ = Σ_m Θ_m, one for each module m that holds parameters itself."""
        parts = empirical_ntk(
            network,
            probe.x,
            output=self.output,
            method=self.method,
            params=list(names),
            by="module",
            batch_size=self.batch_size,
            dtype=self.evaluation(network),
            accumulate=self.accumulation(network),
        )
        if isinstance(network, AdaptedNetwork):  # its user knows nothing of the outer module
            parts = {n.removeprefix("network").removeprefix("."): p for n, p in parts.items()}
        return {n or _ITSELF: p for n, p in parts.items()}


def infinite_kernel(network: nn.Module, names: Sequence[str], probe: Probe) -> Tensor:
    """The kernel `[N, N]` of the network's limit of infinite width, float64.

    Raises:
        TypeError, ValueError: The network has none, or only some of its parameters are meant.
    """
    movable = {n for n, p in network.named_parameters() if p.requires_grad}
    if movable != set(names):
        raise ValueError("the infinite-width kernel is that of all parameters that require grad.")
    # A compiler that starts within a training could change the run.
    return analytic_ntk(network, probe.x, compile=False)


def mean_kernel(kernel: Tensor, output: Output, outputs: int) -> Tensor:
    """The kernel `[N, N]` in the units of `output="mean"`, which have a limit of infinite width."""
    if output == "full":
        return kernel.diagonal(dim1=2, dim2=3).mean(-1)
    return kernel / outputs if output == "trace" else kernel
