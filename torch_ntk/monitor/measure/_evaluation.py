"""Evaluation of a network on a probe: kernels and outputs, their precision and their memory."""

from __future__ import annotations

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
from ..._functional import Batch, ModelFunction, model_function, quiet
from ..._optimizers import KNOWN, NoScalesError, has_scales, owner, step_scales
from ..._types import Method, Output, Parameters, ParameterSelection
from ...empirical import NTKOperator, ProbedKernel, empirical_ntk
from ...empirical._probed import along, random_signs
from ...empirical.inspect import inspect_forward, keep_hooks_that_matter
from ...memory import aiming_at, free_memory, is_out_of_memory
from ..probe._probe import Probe
from ._adapted_network import AdaptedNetwork, Samples, call_of, usual_outputs

KernelOutput: TypeAlias = Output | Literal["probed"] | None
"""The kernel's output reduction. None is `"mean"` for up to `MANY` outputs, else `"probed"`."""

MANY = 64
"""For more outputs than this the mean kernel is estimated from random directions of the outputs."""

DIRECTIONS = 8
"""The number of random directions of the outputs by which `"probed"` estimates a kernel."""

_OUTPUTS = ("mean", "trace", "pseudo", "full", "probed")
KernelKind: TypeAlias = Literal["gradient", "optimizer"]
"""The kernel J Jᵀ of gradient descent, or the kernel J P Jᵀ of the optimizer in use."""

_METHODS = ("auto", "structured", "jacobian", "vector_product")
# The number of samples in a block, if the user has not chosen it, is 16. It is larger while their
# activations take fewer than `_SMALL_BLOCK` bytes, and smaller, but at least 4, if they take more
# than `_LARGE_BLOCK` bytes, as products with the Jacobian take about four times this memory. All
# outputs of a block together are at most `_MOST_OUTPUTS`.
_BLOCK, _LEAST = 16, 4
_SMALL_BLOCK, _LARGE_BLOCK, _MOST_OUTPUTS = 2**24, 2**26, 2**22
# A kernel of two samples that takes fewer seconds than these may be mostly Python.
_OVERHEAD = 0.1
_SHARE = 4  # a kernel takes at most this fraction, 1 / 4, of the free memory
# The bytes that a kernel should take if that costs little time are `_AIM` and 16 copies of the
# parameters, where the copies count up to a bound.
_AIM, _COPIES, _MOST_COPIES = 5 * 2**25, 16, 2**28
_LEAST_COPIES = 4  # the copies of the parameters that a kernel needs in any case
_ITSELF = "self"  # the name for the part of the parameters that belong to the network itself

LARGE, BUSY = 2**16, 2**19
"""Kernels of networks with more parameters, or with more bytes of activations per sample, times
outputs, are computed in float32, which takes a third to two thirds of the time. If sums over
parameters are accumulated in float64, eigenvalues are still precise enough for a curve: see
`_ROUNDED`."""

HUGE, CROWDED = 1_000_000, 2**21
"""The same limits for outputs and their linearization, which are subtracted from each other."""

FLOAT32_ROUNDING = 1e-6
"""The error of outputs in float32, relative to their size."""

# A gradient in float32 has a relative error of a few units of 2^-23. A kernel is the Gram matrix
# J Jᵀ of gradients, and its eigenvalues are the squares of the singular values σ of J. By Weyl's
# inequality the error of every σ is at most that of J, about 8 · 2^-23 σ_max. An eigenvalue λ = σ²
# is therefore rounding error if √λ is below that, which is λ < (8 · 2^-23)² λ_max.
_ROUNDED = (8 * 2.0**-23) ** 2


class OptimizerError(ArgumentValueError):
    """The kernel of the optimizer is requested, but it is not known for this training."""


class Examined(NamedTuple):
    """Facts about a network and a probe, which a forward pass on the probe shows.

    Attributes:
        trained: The names of the parameters by which the kernel is computed.
        outputs: The number O of outputs of a sample.
        activation_bytes: The bytes of the intermediate results of one sample, or of a coupled
            probe.
        probe: The probe. If it is coupled, its number of rows is now set.
    """

    trained: tuple[str, ...]
    outputs: int
    activation_bytes: int
    probe: Probe


@dataclass(frozen=True)
class Evaluation:
    """The settings by which all kernels and outputs of a record are computed.

    Methods take the module to measure, the names of the parameters by which the kernel is computed,
    the samples, and for J P Jᵀ the optimizer with P.

    Attributes:
        output: The kernel's output reduction: `"mean"`, `"trace"`, `"pseudo"`, `"full"` or
            `"probed"`. If it is None, `for_outputs` chooses by the number of outputs.
        params: The parameters by which the kernel is computed, as in `torch_ntk.empirical_ntk`.
        batch_size: The number of samples per block; None chooses it by the free memory.
        dtype: The floating type in which the network is evaluated. None is float64, but float32 on
            devices without float64, for kernels of networks with more than `LARGE` parameters or
            `BUSY` bytes of activations, and for outputs of those with more than `HUGE` or
            `CROWDED`.
        method: The method for kernels, as in `torch_ntk.empirical_ntk`.
        moved_by: `"gradient"` for the kernel J Jᵀ of gradient descent, or `"optimizer"` for the
            kernel J P Jᵀ of the optimizer of the training.
        size: The number O of outputs of a sample, or None before a network has been evaluated.
        max_memory: The bytes that a kernel may take; None is between an eighth and a quarter of the
            free memory.
        held: The bytes of the activations of a sample, in float64 for a network that is not large,
            or 0 before a network has been evaluated.
        has_spectrum: Whether eigenvalues of the kernels are computed. Then sums over parameters are
            accumulated in float64 in any case, since in float32 the smallest eigenvalue would be
            mostly rounding error. A norm of a kernel does not need that, and takes half the time.

    Raises:
        TypeError, ValueError: An argument is wrong.
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
        """Check the arguments as far as that is possible without a network."""
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
        """The settings for a network with `size` outputs and `held` bytes of activations."""
        output = self.output or ("probed" if size > MANY else "mean")
        return replace(self, output=output, size=size, held=held)

    @property
    def is_probed(self) -> bool:
        """Whether the kernel is estimated from random directions of the outputs.

        The outputs of all samples are not stored then, since they may be very many.
        """
        return self.output == "probed"

    @property
    def _differentiated(self) -> int:
        """The number of outputs of a sample, or directions of them, that are differentiated."""
        size = self.size or 1
        return min(size, DIRECTIONS) if self.is_probed else size

    @property
    def block(self) -> int:
        """The number of samples in a block of a forward pass."""
        held = self.held or 1
        most = max(min(_BLOCK, max(_LEAST, _LARGE_BLOCK // held)), _SMALL_BLOCK // held)
        return self.batch_size or max(1, min(most, _MOST_OUTPUTS // (self.size or 1)))

    # ------------------------------------------------------------------ precision

    def result_dtype(self, device: torch.device) -> torch.dtype:
        """The floating type of outputs and kernels."""
        return torch.float32 if device.type == "mps" else self.dtype or torch.float64

    def gradient_dtype(self, network: nn.Module) -> torch.dtype:
        """The floating type in which gradients, and so kernels, are computed."""
        return self._dtype_up_to(network, LARGE, BUSY)

    def movement_dtype(self, network: nn.Module) -> torch.dtype:
        """The floating type of outputs and of their linearization, which are subtracted.

        In float32 outputs have a relative error of `FLOAT32_ROUNDING`, which matters if they have
        changed little. Their passes take less time than a kernel, so that float64 is kept for
        larger networks.
        """
        return self._dtype_up_to(network, HUGE, CROWDED)

    def _dtype_up_to(self, network: nn.Module, most: int, most_bytes: int) -> torch.dtype:
        """`dtype`, or float64 up to these numbers of parameters and bytes, and else float32."""
        parameters = list(network.parameters())
        result = self.result_dtype(parameters[0].device)
        if self.dtype is not None or any(p.dtype == torch.float64 for p in parameters):
            return result
        is_large = sum(p.numel() for p in parameters) > most
        is_busy = self.held * self._differentiated > most_bytes
        return torch.float32 if is_large or is_busy else result

    def sum_dtype(self, network: nn.Module) -> torch.dtype | None:
        """The floating type of sums over parameters; None is that of the gradients."""
        has_no_float64 = next(network.parameters()).device.type == "mps"
        is_unused = not self.has_spectrum or self.method == "vector_product"
        return None if has_no_float64 or is_unused else torch.float64

    def eigenvalue_precision(self, network: nn.Module) -> float:
        """The error of the kernel's eigenvalues, relative to the largest one."""
        dtype = self.gradient_dtype(network)
        if dtype == torch.float64 or self.sum_dtype(network) is None:
            return float(torch.finfo(dtype).eps)
        return _ROUNDED

    # ------------------------------------------------------------------ kernels and outputs
    def examined(self, network: nn.Module, probe: Probe) -> Examined:
        """Run a forward pass; `TypeError` or `ValueError` if a kernel cannot be computed."""
        given, dtype = Samples.of(network, probe), self.gradient_dtype(network)
        with quiet(network, probe.device):
            fn = model_function(network, self.params, dtype, given.call, probe.coupled)
            samples = fn.input("probe", given.batch.value)
            samples.check_finite("probe", "Remove or impute those entries.")
            found = inspect_forward(fn, "probe", samples)
            # The linearization later evaluates the network with θ_0 in the place of θ_t.
            fn.plain.check_replaceable(samples[:1])
            self._check_precision(fn.in_dtype(self.movement_dtype(network)), samples[:1])
        outputs = found.outputs
        if given.coupled is not None:
            probe, outputs = replace(probe, rows=given.coupled.rows[0]), given.coupled.outputs
        return Examined(tuple(fn.params), outputs, found.activation_bytes, probe)

    def _check_precision(self, fn: ModelFunction, sample: Batch) -> None:
        """Raise an error if the network cannot be evaluated in the dtype of `fn`.

        An example is a mixture of experts by grouped products, which do not exist in float64.
        """
        try:
            fn.batch(fn.params, sample.to(fn.dtype))
        except RuntimeError as error:
            if is_out_of_memory(error) or fn.dtype == torch.float32:
                raise
            raise value_error(
                "dtype",
                "torch.float32 for this network",
                f"{self.dtype}, for which it is evaluated in {fn.dtype}. That fails with: {error}",
            ) from error

    def seconds(self, network: nn.Module, names: Sequence[str], probe: Probe) -> float:
        """An estimate of the seconds that the kernel of the probe takes.

        It is extrapolated from the kernel of two samples, and of eight if that of two takes little
        time. For a coupled probe it is extrapolated from a product with the kernel, which takes two
        passes, as do two outputs.
        """
        if probe.coupled:
            theta = self.operator(network, names, probe)
            one = torch.ones(theta.shape[0], dtype=theta.dtype, device=probe.device)
            theta @ one
            started = time.perf_counter()
            theta @ one
            return (time.perf_counter() - started) / 2 * len(one)
        n = len(probe)
        few = self._seconds_of_kernel(network, names, probe.first(2))
        if few > _OVERHEAD or n <= 8:
            return few * n / min(n, 2)
        # Most of it may be Python, whose time does not grow with the samples.
        more = self._seconds_of_kernel(network, names, probe.first(8))
        return few + max(0.0, more - few) * (n - 2) / 6

    def _seconds_of_kernel(self, network: nn.Module, names: Sequence[str], probe: Probe) -> float:
        self.kernel(network, names, probe)  # without the time for imports and plans
        started = time.perf_counter()
        self.kernel(network, names, probe)
        return time.perf_counter() - started

    def seconds_of_step(self, network: nn.Module, names: Sequence[str], probe: Probe) -> float:
        """An estimate of the seconds of a training step on the probe: three forward passes."""
        started = time.perf_counter()
        self.outputs(network, names, probe)
        return 3.0 * (time.perf_counter() - started)

    def optimizer_of(
        self, network: nn.Module, names: Sequence[str], optimizers: Sequence[Optimizer]
    ) -> Optimizer | None:
        """The optimizer whose P is in the kernel, or None for the kernel of gradient descent.

        Raises:
            NoScalesError: The optimizer has no P yet, or none at this step.
            OptimizerError: These parameters have no optimizer or several ones, or their optimizer
                is not known.
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
            next(step_scales("kernel", optimizer, parameters), None)  # this runs its checks
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
        """The kernel Θ on the probe, of shape `[N, N]`, or `[N, N, O, O]` for `"full"`.

        `output` replaces the output reduction of these settings.
        """
        own = {"output": output or self._kept, "precondition": optimizer}
        return self._stored(self._computed(network, names, probe, **own))

    @property
    def shares(self) -> int:
        """The number of outputs, or directions, whose kernels add up to Θ, or 1 if it is no sum."""
        return self._differentiated if self._kept in ("mean", "trace", "probed") else 1

    def kernel_of_some(
        self, network: nn.Module, names: Sequence[str], probe: Probe, part: slice
    ) -> Tensor:
        """The part of Θ `[N, N]` that belongs to some of the outputs. All parts add up to `kernel`.

        It is `Σ_i Θ[n, m, i, i]` over some of the outputs f_i, or of the directions Σ_i v_i f_i /
        √O by which a kernel is estimated, divided by the number of all of them, which is `shares`,
        unless the kernel is the trace.
        """
        size = self.size or 1
        is_along = self.is_probed and size > DIRECTIONS
        signs = random_signs(size, DIRECTIONS, seed=0)[part] if is_along else None
        call = call_of(network, probe) or usual_outputs

        def some(network: nn.Module, batch: Any) -> Tensor:
            out = call(network, batch)
            out = out.reshape(len(out), -1)
            return out[:, part] if signs is None else along(out, signs.to(out.device))

        kernel = self._computed(network, names, probe, output="trace", forward_fn=some)
        return self._stored(kernel) / (1 if self._kept == "trace" else self.shares)

    def sums_of_outputs(self, network: nn.Module, names: Sequence[str], probe: Probe) -> Tensor:
        """For each sample, the sum of its outputs with random signs, `[N]`.

        Processes that share a kernel compare these sums to see that they evaluate the same
        function.
        """
        outputs = self.outputs(network, names, probe)
        signs = random_signs(outputs.shape[1], 1, seed=1)[0].to(outputs)
        return outputs @ signs

    def kernel_by_module(
        self,
        network: nn.Module,
        names: Sequence[str],
        probe: Probe,
        optimizer: Optimizer | None,
    ) -> Parameters:
        """The parts Θ_m of Θ = Σ_m Θ_m by the own parameters of each module m, by its name."""
        own = {"output": self._kept, "by": "module", "precondition": optimizer}
        found: dict[str, Any] = self._computed(network, names, probe, **own)
        parts = {n: self._stored(part) for n, part in found.items()}
        if isinstance(network, AdaptedNetwork):  # the user's module is its submodule
            parts = {n.removeprefix("network").removeprefix("."): p for n, p in parts.items()}
        return {n or _ITSELF: p for n, p in parts.items()}

    def _stored(self, kernel: Tensor | ProbedKernel) -> Tensor:
        """The kernel, or the estimate of it, in `result_dtype` or a more precise type."""
        estimate = kernel.kernel if isinstance(kernel, ProbedKernel) else kernel
        wide = self.result_dtype(estimate.device)
        return estimate.to(torch.promote_types(estimate.dtype, wide))

    @property
    def _kept(self) -> Any:
        """The output reduction, which is `"mean"` before a network has been evaluated."""
        return self.output or "mean"

    def _computed(self, network: nn.Module, names: Sequence[str], probe: Probe, **own: Any) -> Any:
        """What `empirical_ntk` returns with these settings and its arguments `own`."""
        how: dict[str, Any] = {
            "method": self.method,
            "params": list(names),
            "batch_size": None if probe.coupled else self.batch_size,
            "dtype": self.gradient_dtype(network),
            "accumulate": self.sum_dtype(network),
            "forward_fn": call_of(network, probe),
            "coupled": probe.coupled,
            "max_memory": self._allowed(network, probe.device),
            **own,
        }
        with aiming_at(self._aim(network)):
            return empirical_ntk(network, probe.x, **how)

    def _allowed(self, network: nn.Module, device: torch.device) -> int:
        """The bytes that a kernel may take.

        If the user has not chosen them, this is between an eighth and a quarter of the free memory.
        It is more, but at most half of it, if a kernel needs more for a single sample: copies of
        the parameters, and the intermediate results and cotangents of a pass.
        """
        if self.max_memory is not None:
            return self.max_memory
        free = free_memory(device)
        # Of a power of 2, so that it is seldom another share than at the last measurement, whose
        # operations are then executed again.
        share = (1 << max(0, free.bit_length() - 1)) // _SHARE
        passed = 2 * (self._differentiated + 1) * self.held
        least = _LEAST_COPIES * self._copy(network) + 2 * passed
        return max(1, share, min(free // 2, least))

    def _aim(self, network: nn.Module) -> int:
        """The bytes that a kernel should not exceed if that costs little time."""
        copy = self._copy(network)
        return _AIM + min(_COPIES * copy, _MOST_COPIES + copy)

    def _copy(self, network: nn.Module) -> int:
        """The bytes of a copy of the network's parameters."""
        item = torch.finfo(self.gradient_dtype(network)).bits // 8
        return item * sum(p.numel() for p in network.parameters())

    def operator(
        self,
        network: nn.Module,
        names: Sequence[str],
        probe: Probe,
        optimizer: Optimizer | None = None,
    ) -> NTKOperator:
        """The full kernel as an operator on vectors of N·O entries, without forming it."""
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
        """The outputs `[N, O]` on the probe in eval mode, with the present parameters and buffers.

        The network is evaluated in `dtype`; None is that of `movement_dtype`.
        """
        dtype, given = dtype or self.movement_dtype(network), Samples.of(network, probe)
        with quiet(network, probe.device):
            fn = model_function(network, list(names), dtype, given.call, probe.coupled)
            samples = fn.input("probe", given.batch.value)
            keep_hooks_that_matter(fn, samples)
            blocks = samples.split(self.block)
            outputs = torch.cat([fn.batch(fn.params, block) for block in blocks])
            outputs = outputs.reshape(len(probe), -1)
        return outputs.to(self.result_dtype(probe.device))
