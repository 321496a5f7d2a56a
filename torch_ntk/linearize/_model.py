"""Networks that are polynomials in their parameters: `linearize` and `taylor_expand`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .._checks import check_positive_int, check_tensor, describe, type_error, value_error
from .._functional import (
    failure,
    is_checkpointing,
    refuse_unsupported,
    unwrap,
)
from .._types import Parameters
from ..memory import is_out_of_memory
from ._agreement import check_derivatives_agree
from ._copy import copied
from ._expand import expand
from ._steady import steady


class _Anchor(nn.Module):
    """Tensors by dotted name, held as buffers: they move and are saved but never trained."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        # A buffer's name has no dots; the number keeps "a.b_c" and "a_b.c" apart.
        self._names = {name: f"t{i}_{name.replace('.', '_')}" for i, name in enumerate(tensors)}
        for name, tensor in tensors.items():
            self.register_buffer(self._names[name], tensor.detach().clone())

    def tensors(self) -> Parameters:
        """Copies by dotted name: some forwards write into the tensors that they are given."""
        return {name: self.get_buffer(stored).clone() for name, stored in self._names.items()}


class TaylorModel(nn.Module):
    r"""`Σ_{k ≤ order} (1/k!) d^k/dt^k f(x; θ_0 + t (θ - θ_0))`, a trainable module.

    Built by `taylor_expand`. Its parameters θ start at θ_0, where it equals the original network;
    θ_0 and the buffers of that moment stay fixed. The network is always evaluated in eval mode
    (no dropout, running statistics), whatever the training flags say, and outside of autocast:
    inputs that autocast has rounded are brought back to the dtype of the parameters.

    It holds the parameters twice (θ, trained, and θ_0, a buffer) and the buffers twice, and so
    does its `state_dict`, from which it can go on in another process.

    Attributes:
        network: A copy of the network whose parameters are θ. Train these.
        order: The degree of the polynomial.
    """

    def __init__(self, model: nn.Module, order: int = 1) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise type_error("model", "an nn.Module", describe(model), "Pass the network itself.")
        self.order = check_positive_int("order", order)
        model = unwrap(model)
        refuse_unsupported(model)
        theta_0 = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
        if not theta_0:
            raise value_error(
                "model",
                "a module with floating-point parameters",
                "one without",
                "There is nothing to expand in.",
            )
        with torch.inference_mode(False):  # what is made in inference mode cannot be trained
            self.network = copied(model)
            self._theta_0 = _Anchor(theta_0)
            self._buffers_0 = _Anchor(dict(model.named_buffers()))
        self._agrees = False
        self.training = model.training

    def displacement(self) -> Parameters:
        """θ - θ_0 by parameter name; differentiable with respect to θ."""
        theta_0 = self._theta_0.tensors()
        return {k: p - theta_0[k] for k, p in self.network.named_parameters() if k in theta_0}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor) -> Tensor:
        """The expansion at a batch `x`, in the shape that the network gives.

        The first call also makes sure that forward mode sees the function that is trained.

        Args:
            x: What the network takes, on its device and in its dtype.

        Raises:
            TypeError: The network does not return one real floating-point tensor.
            ValueError: An operation of the network has no forward-mode derivative, or not the
                one of its backward pass; it uses activation checkpointing; saved tensor hooks
                (`torch.utils.checkpoint`, `save_on_cpu`) are set around this call.
        """
        x = check_tensor("x", x)
        theta_0 = self._theta_0.tensors()
        if x.is_floating_point() and torch.is_autocast_enabled(x.device.type):
            x = x.to(next(iter(theta_0.values())).dtype)
        transformed = torch._C._functorch.maybe_current_level() is not None
        tracked = torch.is_grad_enabled() or transformed
        with steady(self.network, x.device, through_input=x.requires_grad or transformed):
            delta = self.displacement()
            if not tracked:  # `steady` has turned grad mode on; without tracked tensors it is off
                x, delta = x.detach(), {k: d.detach() for k, d in delta.items()}
            try:
                if not self._agrees and not transformed:
                    check_derivatives_agree(self._function(x.detach()), theta_0, self.order)
                    self._agrees = True
                return expand(self._function(x), theta_0, delta, self.order)
            except (RuntimeError, NotImplementedError) as error:
                if is_out_of_memory(error):
                    raise
                if not is_checkpointing(error):
                    self._check_takes(x, theta_0)
                raise failure(error, "expand the outputs of the model") from error

    def _function(self, x: Tensor) -> Callable[[Parameters], Tensor]:
        buffers_0 = self._buffers_0

        def f(params: Parameters) -> Tensor:
            out: Any = functional_call(
                self.network, {**buffers_0.tensors(), **params}, (x.clone(),)
            )
            if not isinstance(out, Tensor) or not out.is_floating_point():
                raise type_error(
                    "model",
                    "a module that returns one real floating-point tensor",
                    describe(out),
                    "Wrap it in a module whose forward returns the part you mean.",
                )
            return out

        return f

    def _check_takes(self, x: Tensor, theta_0: Parameters) -> None:
        """Raise for inputs on which the network itself fails, before anything is expanded."""
        try:
            with torch.no_grad():
                self._function(x)(theta_0)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0]
            raise value_error(
                "x",
                "a batch of inputs that the network takes",
                f"{describe(x)}, on which its forward fails with {first}",
                "Give it inputs as the network gets them in training, in its dtype.",
            ) from error

    def extra_repr(self) -> str:
        """What `repr` shows besides the network."""
        return f"order={self.order}"


class LinearizedModel(TaylorModel):
    """`f(x; θ_0) + ⟨θ - θ_0, ∇f(x; θ_0)⟩`, a trainable module; built by `linearize`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, order=1)


def linearize(model: nn.Module) -> LinearizedModel:
    r"""The network linearized in its parameters around their current values.

    `f_lin(x; θ) = f(x; θ_0) + ⟨θ - θ_0, ∇_θ f(x; θ_0)⟩`: nonlinear in x, linear in θ. Trained by
    gradient descent it follows exactly the dynamics of the constant kernel Θ_0. The original is
    copied and not changed.

    Args:
        model: The network. It must return one tensor.

    Returns:
        A module with the parameters θ = θ_0 to begin with. Any optimizer trains it. A training
        step costs about two of the network's, a forward pass alone about four.

    Raises:
        TypeError: Not a module, or of a kind that cannot be transformed.
        ValueError: No parameters, batch-coupled normalization, NaN in the parameters.

    References:
        Lee et al., "Wide neural networks of any depth evolve as linear models under gradient
        descent" (2019).

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> lin = linearize(net)
        >>> x = torch.ones(3, 2)
        >>> bool(torch.allclose(lin(x), net(x)))  # equal at θ_0
        True
    """
    return LinearizedModel(model)


def taylor_expand(model: nn.Module, order: int) -> TaylorModel:
    r"""The network expanded in its parameters around their current values up to `order`.

    `Σ_{k=0}^{order} (1/k!) d^k/dt^k f(x; θ_0 + t (θ - θ_0))` at t = 0: `order=1` is `linearize`,
    `order=2` adds the first correction to lazy training.

    Args:
        model: The network. It must return one tensor.
        order: The degree, at least 1. Each order multiplies the cost by about 3: a forward pass
            of order 2 costs about 14 of the network's, of order 3 about 40.

    Some operations (`torch.linalg.det`, an `autograd.Function` with a `jvp`) have forward-mode
    rules in torch that are right once but not twice. The first call compares with nested backward
    passes and refuses such a network; `layer_norm` and `instance_norm` are computed around it.

    Raises:
        TypeError, ValueError: As `linearize`; `order` is not a positive integer.

    References:
        Bai, Lee, "Beyond linearization: on quadratic and higher-order approximation of wide
        neural networks" (2020).
    """
    if check_positive_int("order", order) == 1:
        return LinearizedModel(model)
    return TaylorModel(model, order)
