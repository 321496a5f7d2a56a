"""How a network is evaluated on a probe: kernels and outputs, their precision, and their blocks."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..._checks import (
    ArgumentError,
    ArgumentValueError,
    UndefinedError,
    check_choice,
    check_positive_int,
    describe,
    message,
    type_error,
    value_error,
)
from ..._functional import model_function, quiet
from ..._optimizers import KNOWN, NoScalesError, has_scales, owner, step_scales
from ..._types import Method, Output, Parameters, ParameterSelection
from ...analytic import ORDINARY, Scheme, analytic_ntk
from ...empirical import NTKOperator, ProbedKernel, empirical_ntk
from ...empirical._probed import along, random_signs
from ...empirical.inspect import inspect_forward, keep_hooks_that_matter
from ...memory import aiming_at, free_memory
from ...nn._inventory import fan_in_of
from ..probe._probe import Probe
from ._adapted_network import AdaptedNetwork, Samples, call_of, usual_outputs

KernelOutput: TypeAlias = Output | Literal["probed"] | None
"""The kernel's output reduction; None is `"mean"` up to `MANY` outputs and `"probed"` beyond."""

MANY = 64
"""From more outputs than this on, the mean kernel is estimated from random directions of them."""

DIRECTIONS = 8
"""Of the outputs, by which a kernel is estimated; see `empirical_ntk`."""

_OUTPUTS = ("mean", "trace", "pseudo", "full", "probed")
KernelKind: TypeAlias = Literal["gradient", "optimizer"]
"""The kernel of gradient descent, J Jᵀ, or J P Jᵀ of the optimizer in use."""

_METHODS = ("auto", "structured", "jacobian", "vector_product")
_BLOCK, _LEAST = 16, 4  # samples that pass through the network at once where nobody says how many
_TOGETHER = 2**24  # bytes of activations up to which they are more
_APART = 2**26  # and from which on they are fewer: slopes keep about four times as much
_NUMBERS = 2**22  # outputs of a block up to which it has so many samples
_SHARE = 4  # of the free memory a kernel takes one in so many parts
# Bytes to which a kernel keeps if it can: so many, and so many copies of the network up to a bound.
_AIM, _COPIES, _MOST_COPIES = 5 * 2**25, 16, 2**28
_HELD = 4  # copies of the network that a kernel holds in any case
_ITSELF = "self"  # the name under which the parameters of the network itself are shown

LARGE = 2**16
"""Networks of more parameters are evaluated in float32, which takes a third to two thirds of the
time. Where products are added up in float64, eigenvalues lose nothing that a curve would show: see
`_ROUNDED`."""

BUSY = 2**19
"""Networks with more bytes of activations, for all outputs of a sample, are evaluated so too."""

# A gradient in float32 is off by some units of 2^-23 of its size. A kernel is the Gram matrix
# J Jᵀ of gradients, and its eigenvalues are the squares of the singular values σ of J. By Weyl's
# inequality every σ is known up to the size of the error, about 8 · 2^-23 σ_max; an eigenvalue
# λ = σ² therefore means nothing once √λ is below that, which is λ < (8 · 2^-23)² λ_max.
_ROUNDED = (8 * 2.0**-23) ** 2

# Standard errors by which a mean square may deviate from that of the default initialization.
_DEVIATIONS = 5.0


class OptimizerError(ArgumentValueError):
    """The kernel of the optimizer is asked of a training that has not one that is known."""


class Examined(NamedTuple):
    """What one forward pass says.

    Attributes:
        trained: Names of the parameters by which the kernel is taken.
        outputs: O.
        activation_bytes: Of the intermediate results of a sample, or of all coupled ones.
        probe: The samples, of which it is known now how many there are.
    """

    trained: tuple[str, ...]
    outputs: int
    activation_bytes: int
    probe: Probe


@dataclass(frozen=True)
class Evaluation:
    """The settings of every kernel and every output of a record.

    Attributes:
        output: The kernel's output reduction: `"mean"`, `"trace"`, `"pseudo"`, `"full"` or
            `"probed"`; None is left to the number of outputs, see `for_outputs`.
        params: By which parameters the kernel is taken; see `torch_ntk.empirical_ntk`.
        batch_size: Samples per block; None follows the free memory.
        dtype: In which the network is evaluated; None is float64, or float32 for networks of more
            than `LARGE` parameters or `BUSY` activations and on devices without float64.
        has_spectrum: Whether eigenvalues are taken of kernels. Then products over parameters are
            added up in float64 in any case: added up in float32, the smallest eigenvalue of a
            kernel is mostly noise. A norm of kernels does not need it, and takes half the time.
        method: As in `torch_ntk.empirical_ntk`.
        moved_by: Whether the kernel is J Jᵀ, by which gradient descent moves the outputs, or
            J P Jᵀ, by which the optimizer of the training does.
        size: O, the number of outputs of a sample; None before a network has been seen.
        max_memory: Bytes that a kernel may take; None is a quarter of what is free.
        held: Bytes of the activations of a sample, in float64 of a network that is not large; 0
            before a network has been seen.

    Raises:
        TypeError, ValueError: One of them is wrong.
    """

    output: KernelOutput = None
    params: ParameterSelection = None
    batch_size: int | None = None
    dtype: torch.dtype | None = None
    method: Method = "auto"
    moved_by: KernelKind = "gradient"
    size: int | None = None
    max_memory: int | None = None
    held: int = 0
    has_spectrum: bool = True

    def __post_init__(self) -> None:
        """Check what can be told before there is a network."""
        if self.batch_size is not None:
            check_positive_int("batch_size", self.batch_size)
        if self.output is not None:
            check_choice("output", self.output, _OUTPUTS)
        check_choice("method", self.method, _METHODS)
        check_choice("kernel", self.moved_by, ("gradient", "optimizer"))
        if self.dtype not in (None, torch.float32, torch.float64):
            raise value_error("dtype", "None, torch.float32 or torch.float64", str(self.dtype), "")
        if self.params is None or callable(self.params):
            return
        is_list = isinstance(self.params, Sequence) and not isinstance(self.params, (str, bytes))
        if not is_list or not all(isinstance(name, str) for name in self.params):
            expected = "None, names of parameters or a predicate"
            raise type_error("params", expected, describe(self.params), "")

    def for_outputs(self, size: int, held: int) -> Evaluation:
        """The same for a network with `size` outputs and `held` bytes of activations a sample."""
        output = self.output or ("probed" if size > MANY else "mean")
        return replace(self, output=output, size=size, held=held)

    @property
    def is_probed(self) -> bool:
        """Whether there are so many outputs that those of all samples are not kept."""
        return self.output == "probed"

    @property
    def _differentiated(self) -> int:
        """Outputs of a sample, or directions of them, that a kernel takes derivatives of."""
        size = self.size or 1
        return min(size, DIRECTIONS) if self.is_probed else size

    @property
    def block(self) -> int:
        """Samples that pass through the network at once."""
        held = self.held or 1
        most = max(min(_BLOCK, max(_LEAST, _APART // held)), _TOGETHER // held)
        return self.batch_size or max(1, min(most, _NUMBERS // (self.size or 1)))

    # ------------------------------------------------------------------ precision

    def result_dtype(self, device: torch.device) -> torch.dtype:
        """The dtype of outputs and kernels."""
        return torch.float32 if device.type == "mps" else self.dtype or torch.float64

    def gradient_dtype(self, network: nn.Module) -> torch.dtype:
        """The dtype in which the network runs and its gradients are taken."""
        parameters = list(network.parameters())
        result = self.result_dtype(parameters[0].device)
        if self.dtype is not None or any(p.dtype == torch.float64 for p in parameters):
            return result
        is_large = sum(p.numel() for p in parameters) > LARGE
        is_busy = self.held * self._differentiated > BUSY
        return torch.float32 if is_large or is_busy else result

    def sum_dtype(self, network: nn.Module) -> torch.dtype | None:
        """The dtype of products over parameters; None is that of the gradients."""
        lacks_it = next(network.parameters()).device.type == "mps"
        is_moot = not self.has_spectrum or self.method == "vector_product"
        return None if lacks_it or is_moot else torch.float64

    def eigenvalue_precision(self, network: nn.Module) -> float:
        """The error of the kernel's eigenvalues, relative to the largest."""
        dtype = self.gradient_dtype(network)
        if dtype == torch.float64 or self.sum_dtype(network) is None:
            return float(torch.finfo(dtype).eps)
        return _ROUNDED

    # ------------------------------------------------------------------ kernels and outputs
    def examined(self, network: nn.Module, probe: Probe) -> Examined:
        """What one forward pass says of a network and a probe.

        Raises:
            TypeError, ValueError: The network or its inputs are not fit for a kernel.
        """
        given, dtype = Samples.of(network, probe), self.gradient_dtype(network)
        with quiet(network, probe.device):
            fn = model_function(network, self.params, dtype, given.call, probe.coupled)
            samples = fn.input("probe", given.batch.value)
            samples.check_finite("probe", "Remove or impute those entries.")
            found = inspect_forward(fn, "probe", samples)
            # θ_0 is put in the place of θ_t later.
            fn.plain.check_replaceable(samples[:1])
        outputs = found.outputs
        if given.coupled is not None:
            probe, outputs = replace(probe, rows=given.coupled.rows[0]), given.coupled.outputs
        return Examined(tuple(fn.params), outputs, found.activation_bytes, probe)

    def seconds(self, network: nn.Module, names: Sequence[str], probe: Probe) -> float:
        """That a kernel of the probe takes, about, from one of two samples.

        Of rows that are coupled, from a product, which takes two passes as does every output.
        """
        if probe.coupled:
            theta = self.operator(network, names, probe)
            one = torch.ones(theta.shape[0], dtype=theta.dtype, device=probe.device)
            theta @ one
            started = time.perf_counter()
            theta @ one
            return (time.perf_counter() - started) / 2 * len(one)
        few = probe.first(2)
        self.kernel(network, names, few)  # what is loaded and planned at first
        started = time.perf_counter()
        self.kernel(network, names, few)
        return (time.perf_counter() - started) * len(probe) / len(few)

    def seconds_of_step(self, network: nn.Module, names: Sequence[str], probe: Probe) -> float:
        """That a training step on the samples takes, about: three times the forward pass."""
        started = time.perf_counter()
        self.outputs(network, names, probe)
        return 3.0 * (time.perf_counter() - started)

    def optimizer_of(
        self, network: nn.Module, names: Sequence[str], optimizers: Sequence[Optimizer]
    ) -> Optimizer | None:
        """By whose P the kernel is taken; None for the kernel of gradient descent.

        Args:
            network: The module.
            names: The parameters by which the kernel is taken.
            optimizers: Those of the training.

        Raises:
            NoScalesError: It has no P yet, or none at this step.
            OptimizerError: No optimizer moves these parameters, or several, or one that is not
                known.
        """
        if self.moved_by == "gradient":
            return None
        chosen = set(names)
        parameters = {n: p for n, p in network.named_parameters() if n in chosen}
        try:
            optimizer = owner(optimizers, parameters)
            if not has_scales(optimizer):
                raise UndefinedError(
                    f"{type(optimizer).__name__} is none of torch.optim's {KNOWN}."
                )
            next(step_scales("kernel", optimizer, parameters), None)  # its checks come first
        except NoScalesError:
            raise
        except ArgumentError as error:
            raise OptimizerError(
                message(
                    "kernel",
                    "'gradient' for this training",
                    f"'optimizer': {str(error).removesuffix('.')}",
                )
            ) from error
        return optimizer

    def kernel(
        self,
        network: nn.Module,
        names: Sequence[str],
        probe: Probe,
        output: Output | None = None,
        optimizer: Optimizer | None = None,
    ) -> Tensor:
        """Θ by the parameters called `names`, with `output` in place of the usual one."""
        how = self._how(network, names, probe, optimizer)
        with aiming_at(self._aim(network)):
            kernel: Any = empirical_ntk(network, probe.x, output=output or self._kept, **how)
        return self._stored(kernel)

    @property
    def shares(self) -> int:
        """Outputs, or directions of them, whose kernels add up to Θ; 1 where none can be told."""
        return self._differentiated if self._kept in ("mean", "trace", "probed") else 1

    def kernel_of_some(
        self, network: nn.Module, names: Sequence[str], probe: Probe, part: slice
    ) -> Tensor:
        """The part of Θ that some of `shares` make; all of them add up to `kernel`.

        `Σ_i Θ[n, m, i, i]` over some of the outputs f_i, or of the directions Σ_i v_i f_i / √O by
        which a kernel is probed, divided by what the sum over all is divided by.
        """
        size = self.size or 1
        is_along = self.is_probed and size > DIRECTIONS
        signs = random_signs(size, DIRECTIONS, seed=0)[part] if is_along else None
        call = call_of(network, probe) or usual_outputs

        def some(network: nn.Module, batch: Any) -> Tensor:
            out = call(network, batch)
            out = out.reshape(len(out), -1)
            return out[:, part] if signs is None else along(out, signs.to(out.device))

        how = self._how(network, names, probe, None)
        with aiming_at(self._aim(network)):
            kernel = empirical_ntk(network, probe.x, output="trace", **{**how, "forward_fn": some})
        return self._stored(kernel) / (1 if self._kept == "trace" else self.shares)

    def kernel_by_module(
        self,
        network: nn.Module,
        names: Sequence[str],
        probe: Probe,
        optimizer: Optimizer | None = None,
    ) -> Parameters:
        """The parts Θ_m of Θ = Σ_m Θ_m, one for each module m that holds parameters itself."""
        how = self._how(network, names, probe, optimizer)
        with aiming_at(self._aim(network)):
            found: dict[str, Any] = empirical_ntk(
                network, probe.x, output=self._kept, by="module", **how
            )
        parts = {n: self._stored(part) for n, part in found.items()}
        if isinstance(network, AdaptedNetwork):  # its user knows nothing of the outer module
            parts = {n.removeprefix("network").removeprefix("."): p for n, p in parts.items()}
        return {n or _ITSELF: p for n, p in parts.items()}

    def _stored(self, kernel: Tensor | ProbedKernel) -> Tensor:
        """What is kept, in one dtype, however it is added up.

        Of probed outputs that is the estimate, always by the same directions.
        """
        estimate = kernel.kernel if isinstance(kernel, ProbedKernel) else kernel
        wide = self.result_dtype(estimate.device)
        return estimate.to(torch.promote_types(estimate.dtype, wide))

    @property
    def _kept(self) -> Any:
        return self.output or "mean"

    def _how(
        self,
        network: nn.Module,
        names: Sequence[str],
        probe: Probe,
        optimizer: Optimizer | None,
    ) -> dict[str, Any]:
        return {
            "method": self.method,
            "params": list(names),
            "batch_size": None if probe.coupled else self.batch_size,
            "dtype": self.gradient_dtype(network),
            "accumulate": self.sum_dtype(network),
            "forward_fn": call_of(network, probe),
            "coupled": probe.coupled,
            "precondition": optimizer,
            "max_memory": self._allowed(network, probe.device),
        }

    def _allowed(self, network: nn.Module, device: torch.device) -> int:
        """Bytes that a kernel may take.

        Without a wish, that is a share of what is free, or what it takes at the least if that is
        more: the copies that are held, and for a sample the results and cotangents of a pass.
        """
        if self.max_memory is not None:
            return self.max_memory
        free = free_memory(device)
        passed = 2 * (self._differentiated + 1) * self.held
        least = _HELD * self._copy(network) + 2 * passed
        return max(1, free // _SHARE, min(free // 2, least))

    def _aim(self, network: nn.Module) -> int:
        """Bytes to which a kernel keeps if that costs it little."""
        copy = self._copy(network)
        return _AIM + min(_COPIES * copy, _MOST_COPIES + copy)

    def _copy(self, network: nn.Module) -> int:
        """Bytes of a copy of the network's parameters."""
        item = torch.finfo(self.gradient_dtype(network)).bits // 8
        return item * sum(p.numel() for p in network.parameters())

    def operator(
        self,
        network: nn.Module,
        names: Sequence[str],
        probe: Probe,
        optimizer: Optimizer | None = None,
    ) -> NTKOperator:
        """The full Θ by the parameters called `names`, only to multiply with."""
        return NTKOperator(
            network,
            probe.x,
            output="full",
            params=list(names),
            batch_size=None if probe.coupled else self.batch_size,
            dtype=self.gradient_dtype(network),
            forward_fn=call_of(network, probe),
            coupled=probe.coupled,
            precondition=optimizer,
            max_memory=self.max_memory,
        )

    def outputs(
        self,
        network: nn.Module,
        names: Sequence[str],
        probe: Probe,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """The outputs on the probe, `[N, O]`, in eval mode with the current parameters and buffers.

        Args:
            network: The module.
            names: The parameters by which the kernel is taken.
            probe: The samples.
            dtype: In which the network runs; None is the one of its gradients.
        """
        dtype, given = dtype or self.gradient_dtype(network), Samples.of(network, probe)
        with quiet(network, probe.device):
            fn = model_function(network, list(names), dtype, given.call, probe.coupled)
            samples = fn.input("probe", given.batch.value)
            keep_hooks_that_matter(fn, samples)
            blocks = samples.split(self.block)
            outputs = torch.cat([fn.batch(fn.params, block) for block in blocks])
            outputs = outputs.reshape(len(probe), -1)
        return outputs.to(self.result_dtype(probe.device))


def infinite_kernel(network: nn.Module, names: Sequence[str], probe: Probe) -> Tensor:
    """The kernel `[N, N]` of the network's limit of infinite width, float64.

    Ordinary layers are taken as they are drawn: those whose weights and biases have the variance
    of PyTorch's default initialization by that, others by what their mean squares are.

    Raises:
        TypeError, ValueError: The network has none, or only some of its parameters are meant.
    """
    if probe.coupled:
        raise UndefinedError("the infinite-width kernel is that of samples one by one.")
    movable = {n for n, p in network.named_parameters() if p.requires_grad}
    if movable != set(names):
        raise UndefinedError(
            "the infinite-width kernel is that of all parameters that require grad."
        )
    return analytic_ntk(network, probe.x, standard=_drawn(network))


def _drawn(network: nn.Module) -> dict[str, Scheme]:
    """Per ordinary layer how it seems to have been drawn."""
    layers = {n: m for n, m in network.named_modules() if type(m) in ORDINARY}
    return {name: _scheme(layer) for name, layer in layers.items()}


def _scheme(layer: Any) -> Scheme:
    """The default initialization, or the scales that the layer's weights and biases have now.

    The mean square of m uniform numbers of variance v deviates by v √(0.8/m): E w⁴ = 1.8 v².
    """
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    # torch draws by the second axis of the weight, for transposed convolutions too.
    drawn_for = weight[0].numel()
    parameters = [p.detach() for p in (weight, bias) if isinstance(p, Tensor)]
    default = [1 / (3 * drawn_for)] * len(parameters)
    squares = [float(p.double().square().mean()) for p in parameters]
    if all(
        abs(found - v) < _DEVIATIONS * v * math.sqrt(0.8 / p.numel())
        for p, found, v in zip(parameters, squares, default, strict=True)
    ):
        return "torch"
    return math.sqrt(squares[0] * fan_in_of(layer)), math.sqrt(
        squares[1]
    ) if bias is not None else 0.0


def mean_kernel(kernel: Tensor, output: KernelOutput, outputs: int) -> Tensor:
    """The kernel `[N, N]` in the units of `output="mean"`, which have a limit of infinite width."""
    if output == "full":
        return kernel.diagonal(dim1=2, dim2=3).mean(-1)
    return kernel / outputs if output == "trace" else kernel
