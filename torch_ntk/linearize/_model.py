"""Networks that are polynomials in their parameters: `linearize` and `taylor_expand`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from .._checks import check_positive_int, check_tensor, describe, type_error, value_error
from .._functional import failure, faithful_copy, refuse_unsupported, unwrap
from .._types import Parameters
from ..memory import is_out_of_memory
from ._choice import Choice
from ._derivatives import leaves_of, row_by_row, taylor_sum
from ._network_function import NetworkFunction
from ._plain_gradient import with_plain_gradient
from ._steady import steady


class _Anchor(nn.Module):
    """Tensors by dotted name, held as buffers: they move and are saved but never trained."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        # A buffer's name has no dots; the number keeps "a.b_c" and "a_b.c" apart.
        self._names = {name: f"t{i}_{name.replace('.', '_')}" for i, name in enumerate(tensors)}
        for name, tensor in tensors.items():
            self.register_buffer(self._names[name], tensor.detach().clone())

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Tensor:
        return self.get_buffer(self._names[name])

    def tensors(self) -> Parameters:
        """Copies by dotted name: some forwards write into the tensors that they are given."""
        return {name: self[name].clone() for name in self._names}


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
        named = dict(model.named_parameters())
        theta_0 = {n: p for n, p in named.items() if p.is_floating_point() or p.is_complex()}
        if not theta_0:
            raise value_error(
                "model",
                "a module with floating-point parameters",
                "one without",
                "There is nothing to expand in.",
            )
        with torch.inference_mode(False):  # what is made in inference mode cannot be trained
            self.network, self._origin = faithful_copy(model)
            self._theta_0 = _Anchor(theta_0)
            self._buffers_0 = _Anchor(dict(model.named_buffers()))
        self._choice = Choice(order)
        self._samples: set[Hashable] = set()
        self._keep_hooks: bool | None = None  # not known before the first evaluation
        self.training = model.training

    def displacement(self) -> Parameters:
        """θ - θ_0 by parameter name; differentiable with respect to θ."""
        at = self._theta_0
        return {k: p - at[k] for k, p in self.network.named_parameters() if k in at}

    @_disable_dynamo  # torch.compiler.disable, which loads torch._dynamo when it is first called
    def forward(self, x: Tensor) -> Tensor:
        """The expansion at a batch `x`, in the shape that the network gives.

        The first call, and each with a batch of another shape or of integers, also makes sure
        by plain backward passes that the function which is expanded is the one that is trained.

        Args:
            x: What the network takes, on its device and in its dtype.

        Raises:
            TypeError: The network does not return one real floating-point tensor.
            ValueError: The network reaches parameters in another way than as attributes; torch
                has no right derivatives for one of its operations; saved tensor hooks
                (`torch.utils.checkpoint`, `save_on_cpu`) are set around this call.
        """
        x = check_tensor("x", x)
        # Someone else differentiates this call by torch.func, which tracks what it needs.
        transformed = torch._C._functorch.maybe_current_level() is not None
        tracked = torch.is_grad_enabled() or transformed
        rounded = x.is_floating_point() and torch.is_autocast_enabled(x.device.type)
        around = partial(steady, self.network, x.device)
        with around():
            theta_0 = self._theta_0.tensors()
            x = x.to(_real_dtype(theta_0)) if rounded else x
            x = x.clone() if x.is_inference() else x
            if not transformed and self._keep_hooks is None:
                self._keep_hooks = self._function(x[:1].detach(), False).hooks_matter(theta_0)
            plain = self._function(x if transformed else _detached(x))
            f = self._function(x) if tracked else plain
            delta = self.displacement()
            try:
                if not transformed:
                    self._check_copy(plain, theta_0, x)
                    self._choice.compare(plain, theta_0, x)
                while True:
                    way, through = self._choice.way, tracked and self._is_through(x, transformed)
                    still = {k: d.detach() for k, d in delta.items()}
                    with torch.set_grad_enabled(through):
                        terms = self._choice.terms(
                            f if through else plain,
                            theta_0,
                            delta if through else still,
                            written_out=through and (transformed or x.requires_grad),
                            to_compare=None if transformed else plain,
                        )
                    trained = any(d.requires_grad for d in delta.values())
                    if tracked and trained and not through:
                        return with_plain_gradient(
                            terms, f, theta_0, delta, x, self._choice, around
                        )
                    # Which integers come up decides what an embedding does.
                    if transformed or x.is_floating_point():
                        proven = self._choice.way is way
                    else:
                        proven = self._choice.is_proven(plain, theta_0, still, terms[1].detach())
                    if proven:
                        return taylor_sum(terms)
            except (RuntimeError, NotImplementedError) as error:
                if is_out_of_memory(error):
                    raise
                if not transformed:
                    self._check_takes(f, x, theta_0)
                raise failure(error, "expand the outputs of the model") from error

    def _is_through(self, x: Tensor, transformed: bool) -> bool:
        """Whether gradients go through the derivatives, and not by a plain backward pass.

        The plain pass gives gradients by θ alone, for the first order. It takes longer than going
        back through forward mode, but proves the value on its way, which batches of integers need.
        """
        if transformed or self.order > 1:
            return True
        if x.requires_grad:
            return self._choice.way is not row_by_row
        return x.is_floating_point() and self._choice.is_differentiable

    def _function(self, x: Tensor, keep_hooks: bool | None = None) -> NetworkFunction:
        # While it is unknown whether they matter, leaving them out could be wrong.
        keep = self._keep_hooks is not False if keep_hooks is None else keep_hooks
        return NetworkFunction(self.network, self._buffers_0.tensors, x, keep_hooks=keep)

    def _check_copy(self, f: NetworkFunction, theta_0: Parameters, x: Tensor) -> None:
        """See that the copy computes with its own tensors, for samples of a new kind."""
        kind = x.dtype, x.shape[1:]
        if kind not in self._samples:
            at = {**self._buffers_0.tensors(), **leaves_of(theta_0)}
            self._origin.check(self.network, at, f.of_another)
            self._samples.add(kind)

    def _check_takes(self, f: NetworkFunction, x: Tensor, theta_0: Parameters) -> None:
        """Raise for inputs on which the network itself fails, before anything is expanded."""
        try:
            f(theta_0)
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


def _real_dtype(theta: Parameters) -> torch.dtype:
    return next(iter(theta.values())).dtype.to_real()


def _detached(x: Tensor) -> Tensor:
    """Without history; some forwards differentiate by their inputs, if these require grad."""
    return x.detach().requires_grad_(x.requires_grad)


class LinearizedModel(TaylorModel):
    """`f(x; θ_0) + ⟨θ - θ_0, ∇f(x; θ_0)⟩`, a trainable module; built by `linearize`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, order=1)


def linearize(model: nn.Module) -> LinearizedModel:
    r"""The network linearized in its parameters around their current values.

    `f_lin(x; θ) = f(x; θ_0) + ⟨θ - θ_0, ∇_θ f(x; θ_0)⟩`: nonlinear in x, linear in θ. Trained by
    gradient descent it follows exactly the dynamics of the constant kernel Θ_0. The original is
    copied and not changed.

    The term ⟨θ - θ_0, ∇f⟩ is computed in forward mode, or by two backward passes where forward
    mode is missing or wrong, which plain backward passes show on the first batch of each shape
    and on every batch of integers. Gradients by θ are one plain backward pass.

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

    Derivatives are taken in nested forward mode, or by nested backward passes where forward mode
    is missing or wrong (`torch.linalg.det`, an `autograd.Function` without a `jvp`). The first
    call compares the two, or one of them with differences of the order below, and refuses a
    network of which neither is right.

    Raises:
        TypeError, ValueError: As `linearize`; `order` is not a positive integer.

    References:
        Bai, Lee, "Beyond linearization: on quadratic and higher-order approximation of wide
        neural networks" (2020).
    """
    if check_positive_int("order", order) == 1:
        return LinearizedModel(model)
    return TaylorModel(model, order)
