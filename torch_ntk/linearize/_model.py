"""Networks that are polynomials in their parameters: `linearize` and `taylor_expand`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.func import functional_call
from typing_extensions import Self

from .._checks import check_positive_int, check_tensor, describe, message
from .._functional import failure, is_out_of_memory, refuse_unsupported, unwrap
from .._functional._forward_mode import forward_mode
from .._types import Parameters
from ._expand import expand

_NO_CHECKPOINTING = "A Taylor expansion cannot use saved tensor hooks."


class _Anchor(nn.Module):
    """Tensors by dotted name, held as buffers: they move and are saved but never trained."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {name: f"t{i}_{name.replace('.', '_')}" for i, name in enumerate(tensors)}
        for name, tensor in tensors.items():
            self.register_buffer(self._names[name], tensor.detach().clone())

    def tensors(self) -> Parameters:
        return {name: self.get_buffer(stored) for name, stored in self._names.items()}


class TaylorModel(nn.Module):
    r"""`Σ_{k ≤ order} (1/k!) d^k/dt^k f(x; θ_0 + t (θ - θ_0))`, a trainable module.

    Built by `taylor_expand`. Its parameters θ start at θ_0, where it equals the original network;
    θ_0 and the buffers of that moment stay fixed. It always evaluates the network in eval mode
    (no dropout, running statistics), whatever its own training flag.

    Attributes:
        network: A copy of the network whose parameters are θ. Train these.
        order: The degree of the polynomial.
    """

    def __init__(self, model: nn.Module, order: int = 1) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(message("model", "an nn.Module", describe(model), ""))
        self.order = check_positive_int("order", order)
        model = unwrap(model)
        refuse_unsupported(model)
        named = dict(model.named_parameters())
        if not named:
            raise ValueError(
                message("model", "a module with parameters", "one with none", "Nothing to expand.")
            )
        try:
            self.network = copy.deepcopy(model)
        except RuntimeError as error:
            raise ValueError(
                message(
                    "model",
                    "a module that copy.deepcopy can copy",
                    f"{type(model).__name__}, for which it fails: {error}",
                    "torch.nn.utils.weight_norm and spectral_norm keep a computed tensor on the "
                    "module; use those of torch.nn.utils.parametrizations.",
                )
            ) from error
        self.network.zero_grad(set_to_none=True)
        self._theta_0 = _Anchor(named)
        self._buffers_0 = _Anchor(dict(model.named_buffers()))
        self.train(model.training)

    def train(self, mode: bool = True) -> Self:
        """Set the flag of this module; the network inside stays in eval mode."""
        super().train(mode)
        self.network.eval()
        return self

    def displacement(self) -> Parameters:
        """θ - θ_0 by parameter name; differentiable with respect to θ."""
        theta_0 = self._theta_0.tensors()
        return {k: p - theta_0[k] for k, p in self.network.named_parameters()}

    def forward(self, x: Tensor) -> Tensor:
        """The expansion at a batch `x`, in the shape that the network gives.

        Raises:
            TypeError: The network does not return one tensor.
            ValueError: An operation of the network has no forward-mode derivative, or it uses
                activation checkpointing.
        """
        x = check_tensor("x", x)
        theta_0 = self._theta_0.tensors()
        network = self.network

        def f(params: Parameters) -> Tensor:
            buffers = {k: b.clone() for k, b in self._buffers_0.tensors().items()}
            out: Any = functional_call(network, {**buffers, **params}, (x.clone(),))
            if not isinstance(out, Tensor):
                raise TypeError(
                    message(
                        "model",
                        "a module that returns one tensor",
                        describe(out),
                        "Wrap it in a module whose forward returns the part you mean.",
                    )
                )
            return out

        # Activation checkpointing would recompute at θ instead of θ_0, for wrong gradients.
        with forward_mode(network), disable_saved_tensors_hooks(_NO_CHECKPOINTING):
            try:
                return expand(f, theta_0, self.displacement(), self.order)
            except (RuntimeError, NotImplementedError) as error:
                if is_out_of_memory(error):
                    raise
                raise failure(error, "expand the outputs of the model") from error

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
        A module with the parameters θ = θ_0 to begin with. Any optimizer trains it; a forward
        pass costs about two of the network's.

    Raises:
        TypeError: Not a module, or of a kind that cannot be transformed.
        ValueError: No parameters, batch-coupled normalization, NaN in the parameters.

    References:
        Lee et al., "Wide neural networks of any depth evolve as linear models under gradient
        descent" (2019), equation 9.

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
        order: The degree, at least 1. The cost grows about as 2^order.

    Raises:
        TypeError, ValueError: As `linearize`; `order` is not a positive integer.

    References:
        Bai, Lee, "Beyond linearization: on quadratic and higher-order approximation of wide
        neural networks" (2020), equation 4.
    """
    if order == 1:
        return LinearizedModel(model)
    return TaylorModel(model, order)
