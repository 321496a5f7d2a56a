"""Make the function that computes an estimator's kernel from the estimator's parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._checks import (
    check_bool,
    check_finite,
    check_positive_int,
    describe,
    message,
    type_error,
    value_error,
)
from .._functional import (
    Batch,
    CannotTransformError,
    Origin,
    call_model,
    check_copy,
    coupled_rows_of,
    faithful_copy,
    rows_of,
    transforming,
)
from ..analytic import analytic_ntk, mlp_kernels
from ..empirical import empirical_ntk
from ..features import ntk_features
from ..memory import ranges

_CHOICES = (
    "'mlp', 'empirical', 'analytic' or 'precomputed', a function (x1, x2=None) -> [N1, N2], or a "
    "network (an nn.Module with parameters)"
)

_BLOCK = 64  # samples whose forward passes are checked together


@dataclass(frozen=True)
class KernelSettings:
    """The parameters of an estimator that determine its kernel.

    Attributes:
        kernel: `"mlp"`, `"empirical"`, `"analytic"`, `"precomputed"`, a callable, or a network.
        network: The network for the kinds `"empirical"` and `"analytic"`.
        forward_fn: The function that calls the network for an empirical kernel.
        standard: How the network's ordinary layers are drawn for an analytic kernel.
        depth, activation, sigma_w, sigma_b: The network of the kind `"mlp"`.
        coupled, training: How the network of an empirical kernel is evaluated.
    """

    kernel: Any
    network: Any
    forward_fn: Any
    standard: Any
    depth: Any
    activation: Any
    sigma_w: Any
    sigma_b: Any
    coupled: Any
    training: Any

    def check_flags(self) -> None:
        """Raise if an argument is given that the kernel ignores.

        `coupled` and `training` belong to an empirical kernel, and `standard` to an analytic one.
        """
        if self.standard is not None and not _is(self.kernel, "analytic"):
            raise value_error(
                "standard",
                "None for a kernel that is not kernel='analytic'",
                describe(self.standard),
                "Other kernels do not depend on how layers are drawn.",
            )
        is_empirical = _is(self.kernel, "empirical")
        for name, what in (("coupled", "rows of one input"), ("training", "training flags")):
            if not check_bool(name, getattr(self, name)):
                continue
            if not (is_empirical or is_network(self.kernel)):
                raise value_error(
                    name,
                    "False for a kernel that is not the empirical one of a network",
                    "True",
                    f"Only kernel=network or kernel='empirical' evaluates a network with {what}.",
                )

    def function(self) -> Callable[[Tensor, Tensor | None], Any]:
        """The kernel as a function of two batches; None as the second means the first."""
        kernel = self.kernel
        if is_network(kernel):
            return self._empirical(kernel, "kernel")
        if callable(kernel) and not isinstance(kernel, type):
            return lambda a, b: kernel(a) if b is None else kernel(a, b)
        if kernel == "mlp":
            return self._mlp()
        if kernel == "empirical":
            return self._empirical(self.network, "network")
        if kernel == "analytic":
            net = self._checked(self.network, "network")
            return lambda a, b: analytic_ntk(net, a, b, standard=self.standard)
        error = ValueError if isinstance(kernel, str) else TypeError
        raise error(message("kernel", _CHOICES, describe(kernel)))

    def features(self, dim: Any, seed: Any) -> Callable[[Tensor], np.ndarray[Any, Any]]:
        """A function from a batch to features `[N, dim]`, whose products are the kernel."""
        kernel = self.kernel
        name = "kernel" if is_network(kernel) else "network"
        if name == "network" and not _is(kernel, "empirical"):
            raise value_error(
                "features",
                "None for a kernel that is not that of a network",
                describe(dim),
                "Features are those of gradients: kernel=network or kernel='empirical'.",
            )
        net = self._checked(getattr(self, name), name)
        size = int(dim) if isinstance(dim, np.integer) else dim
        parameters = sum(p.numel() for p in net.parameters() if p.requires_grad)
        if check_positive_int("features", size, "None solves with the kernel.") > parameters:
            raise value_error(
                "features",
                f"at most the number of the network's parameters, {parameters}",
                describe(size),
                "None solves with the kernel.",
            )
        device = next(net.parameters()).device

        def phi(samples: Tensor) -> np.ndarray[Any, Any]:
            found = ntk_features(
                net,
                samples.to(device),
                size,
                seed=int(seed) if isinstance(seed, np.integer) else seed,
                dtype=torch.float64,
                forward_fn=self.forward_fn,
                coupled=self.coupled,
                training=self.training,
            )
            return np.asarray(found.cpu().numpy())

        return phi

    def copied(self) -> tuple[KernelSettings, OwnTensors | None]:
        """A copy of these settings, and a check that its network computes with its own tensors."""
        name = "kernel" if is_network(self.kernel) else "network"
        network = getattr(self, name)
        if not is_network(network):
            return copy.deepcopy(self), None
        outputs, origin = faithful_copy(_Outputs(network, self.forward_fn, self.coupled), name)
        found = copy.deepcopy(self, {id(network): outputs._orig_mod})
        # An analytic kernel does not read the parameters.
        return found, None if self.kernel == "analytic" else OwnTensors(found, outputs, origin)

    def _mlp(self) -> Callable[[Tensor, Tensor | None], Any]:
        depth = int(self.depth) if isinstance(self.depth, Integral) else self.depth
        check_positive_int("depth", depth)

        def kernel(a: Tensor, b: Tensor | None) -> Tensor:
            flat = None if b is None else b.flatten(1)
            found = mlp_kernels(
                a.flatten(1), flat, depth, self.activation, self.sigma_w, self.sigma_b
            )
            return found.ntk

        return kernel

    def _empirical(self, network: object, name: str) -> Callable[[Tensor, Tensor | None], Any]:
        net = self._checked(network, name)
        device = next(net.parameters()).device

        def kernel(a: Tensor, b: Tensor | None) -> Tensor:
            other = None if b is None else b.to(device)
            return empirical_ntk(
                net,
                a.to(device),
                other,
                output="mean",
                dtype=torch.float64,
                forward_fn=self.forward_fn,
                coupled=self.coupled,
                training=self.training,
            )

        return kernel

    def _checked(self, network: object, name: str) -> nn.Module:
        if isinstance(network, nn.Module) and is_network(network):
            return network
        raise type_error(
            name,
            f"an nn.Module with parameters for kernel={self.kernel!r}",
            describe(network),
            "Pass network=MLP([...]), for example.",
        )


@dataclass(frozen=True)
class OwnTensors:
    """Checks that the network of copied settings computes with its own tensors.

    Which tensors a forward uses may depend on its inputs, so that every batch is checked.

    Attributes:
        settings: The copied settings.
        outputs: The module that calls the copied network and returns its outputs.
        origin: The tensors of the original network.
    """

    settings: KernelSettings
    outputs: _Outputs
    origin: Origin

    def check(self, samples: Tensor) -> None:
        """Raise an error if the copy computes with parameters of the original on them."""
        settings, n = self.settings, len(samples)
        name = "kernel" if is_network(settings.kernel) else "network"
        like, training = next(self.outputs.parameters()), settings.training
        # In train mode, batch normalization makes samples depend on each other.
        coupled = settings.coupled or training
        for a, b in ranges(0, n, n if settings.coupled else _BLOCK):
            batch = samples[a:b].to(like.device, like.dtype)
            try:
                with transforming():
                    check_copy(self.outputs, self.origin, batch, name, coupled, training)
            except CannotTransformError:
                return  # the forward fails on these samples; the kernel reports this better


class _Outputs(nn.Module):
    """A module that returns the outputs of a network whose kernel is meant.

    The network has the attribute name that `torch.compile` uses for a wrapped module, because that
    name is left out of the names of parameters.
    """

    def __init__(self, network: nn.Module, forward_fn: Any, coupled: bool) -> None:
        super().__init__()
        self._orig_mod = network
        self.forward_fn = forward_fn
        self.coupled = coupled

    def forward(self, x: Tensor) -> Tensor:
        """The outputs `[N, O]`."""
        batch = Batch.coupled("X", x) if self.coupled else Batch.of("X", x)
        out = call_model(self._orig_mod, batch.value, self.forward_fn)
        if self.coupled:
            return coupled_rows_of(out, batch, self.forward_fn)
        return rows_of(out, batch, x.dtype, self.forward_fn)


def _is(kernel: object, kind: str) -> bool:
    return isinstance(kernel, str) and kernel == kind


def is_network(kernel: object) -> bool:
    """Whether `kernel` is a network, and not a kernel that is a module, such as `CNTK`."""
    return isinstance(kernel, nn.Module) and any(True for _ in kernel.parameters())


def evaluate(
    function: Callable[[Tensor, Tensor | None], Any], a: Tensor, b: Tensor | None
) -> np.ndarray[Any, Any]:
    """The kernel of two batches as a finite array `[N1, N2]` in float64."""
    found = function(a, b)
    kernel = found if isinstance(found, Tensor) else torch.as_tensor(np.asarray(found))
    shape = (a.shape[0], (a if b is None else b).shape[0])
    if kernel.shape != shape:
        raise value_error(
            "kernel",
            f"a function that returns {list(shape)} for {shape[0]} and {shape[1]} samples",
            kernel,
            "Of an empirical kernel take output='mean': one number for each pair.",
        )
    kernel = check_finite("kernel", kernel.detach().cpu().to(torch.float64))
    return np.asarray(kernel.numpy())
