"""Networks that are polynomials in their parameters: `linearize` and `taylor_expand`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from .._checks import check_positive_int, describe, type_error, value_error
from .._functional import (
    Batch,
    RightOperations,
    failure,
    faithful_copy,
    first_line,
    leaves_of,
    refuse_kept_tensors,
    refuse_unsupported,
    unwrap,
)
from .._functional._kept_tensors import TensorsRead
from .._types import ForwardFn, Parameters
from ..memory import is_out_of_memory
from ._expansion import backwards_by_torch_func, right_terms, taylor_sum
from ._linear import linearized
from ._network_function import Call, NetworkFunction, has_samples
from ._steady import steady


class _Anchor(nn.Module):
    """Stores tensors by dotted name as buffers, which are moved and saved but never trained."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        # A buffer's name cannot have dots; the number distinguishes "a.b_c" from "a_b.c".
        self._names = {name: f"t{i}_{name.replace('.', '_')}" for i, name in enumerate(tensors)}
        for name, tensor in tensors.items():
            self.register_buffer(self._names[name], tensor.detach().clone())

    @property
    def names(self) -> set[str]:
        """The dotted names."""
        return set(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Tensor:
        return self.get_buffer(self._names[name])

    def tensors(self) -> Parameters:
        """Copies by dotted name, because some forwards write into their parameters or buffers."""
        return {name: self[name].clone() for name in self._names}


class TaylorModel(nn.Module):
    r"""`Σ_{k ≤ order} (1/k!) d^k/dt^k f(x; θ_0 + t (θ - θ_0))`, a trainable module.

    Built by `taylor_expand`. Its parameters θ start at θ_0, where it equals the original network;
    θ_0 and the present buffers stay fixed. The network is always evaluated in eval mode (no
    dropout, running statistics), whatever the training flags are, and outside of autocast: inputs
    that autocast has rounded are converted back to the dtype of the parameters.

    The module contains the parameters twice (θ, which is trained, and θ_0, which is a buffer) and
    the buffers twice. So does its `state_dict`, from which another process can continue.

    Attributes:
        network: A copy of the network whose parameters are θ. Train these.
        order: The degree of the polynomial.
        forward_fn: Returns the outputs that are expanded; None expands those of the network.
    """

    def __init__(
        self, model: nn.Module, order: int = 1, *, forward_fn: ForwardFn | None = None
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise type_error("model", "an nn.Module", describe(model), "Pass the network itself.")
        self.order = check_positive_int("order", order)
        if forward_fn is not None and not callable(forward_fn):
            raise type_error("forward_fn", "a function forward_fn(model, batch)", forward_fn)
        self.forward_fn = forward_fn
        model = unwrap(model)
        refuse_unsupported(model)
        named = dict(model.named_parameters())
        theta_0 = {n: p for n, p in named.items() if p.is_floating_point() or p.is_complex()}
        if not theta_0:
            raise value_error(
                "model",
                "a module with floating-point parameters",
                "one without",
                "There are no parameters in which it could be expanded.",
            )
        with torch.inference_mode(False):  # what is made in inference mode cannot be trained
            self.network, self._origin = faithful_copy(model)
            self._theta_0 = _Anchor(theta_0)
            self._buffers_0 = _Anchor(dict(model.named_buffers()))
        self._samples: set[Hashable] = set()
        self._keep_hooks: bool | None = None  # unknown before the first evaluation
        self.training = model.training

    def displacement(self) -> Parameters:
        """θ - θ_0 by parameter name; differentiable with respect to θ."""
        at = self._theta_0
        return {k: p - at[k] for k, p in self.network.named_parameters() if k in at}

    @_disable_dynamo  # torch.compiler.disable, which loads torch._dynamo when it is first called
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The expansion at a batch of inputs, in the shape that the network gives.

        It is called like the network: `lin(x)`, `lin(x, lengths)`, `lin(**batch)`. A `forward_fn`
        gets these arguments as its batch: x, the tuple `(x, lengths)` or the dictionary.

        Every call checks with its own data that the derivatives agree with plain backward passes,
        and that the copy of the network computes with its own tensors. The first call for samples
        of a form also checks that the copy computes the same as the original.

        Args:
            *args: The positional arguments of the network, on its device and in its dtype.
            **kwargs: The keyword arguments of the network.

        Raises:
            TypeError: There is no tensor among the inputs; or the network does not return one real
                floating-point tensor, or a mapping or dataclass with `logits` or with exactly one.
            ValueError: The network accesses parameters in another way than as attributes; torch
                has no right derivatives for one of its operations; or the call is made within saved
                tensor hooks (`torch.utils.checkpoint`, `save_on_cpu`).
        """
        value, call = _batch_of(args, kwargs)
        x = Batch.coupled("x", value)  # one input: tensors need not have samples
        device = x.tensors[0].device
        # The caller differentiates this call by torch.func, which records what it needs.
        transformed = torch._C._functorch.maybe_current_level() is not None
        tracked = torch.is_grad_enabled() or transformed
        around = partial(steady, self.network, device)
        rounded = torch.is_autocast_enabled(device.type)
        with around():
            theta_0 = self._theta_0.tensors()
            x = x.to(_real_dtype(theta_0)) if rounded else x
            x = x.map(lambda t: t.clone() if t.is_inference() else t)
            if not transformed and self._keep_hooks is None:
                one = self._function(_first(x), call, keep_hooks=False)
                self._keep_hooks = one.hooks_matter(theta_0)
            # If this is True, normalizations are differentiated three times.
            inputs = [t for t in x.tensors if t.requires_grad]
            often = transformed or self.order > 1 or (tracked and bool(inputs))
            f = self._function(x, call, often=often)
            delta = self.displacement()
            if not tracked:
                delta = {k: d.detach() for k, d in delta.items()}
            try:
                if transformed:
                    return taylor_sum(backwards_by_torch_func(f, theta_0, delta, self.order))
                self._check_copy(f, theta_0, x, call)
                if self.order == 1:
                    return linearized(f, theta_0, delta, inputs, tracked, around)
                with torch.set_grad_enabled(tracked):
                    return taylor_sum(right_terms(f, theta_0, delta, self.order))
            except (RuntimeError, NotImplementedError) as error:
                if is_out_of_memory(error):
                    raise
                if not transformed:
                    _check_takes(f, value, theta_0)
                remedy = "It takes backward passes of its own, which torch.func does not transform."
                doing = "expand the outputs of the model"
                raise failure(error, doing, remedy if transformed else "") from error

    def _function(
        self, x: Batch, call: Call, often: bool = False, keep_hooks: bool = True
    ) -> NetworkFunction:
        # While it is unknown whether hooks change the outputs, they must run.
        keep = keep_hooks and self._keep_hooks is not False
        around = RightOperations(norms=often)
        return NetworkFunction(
            self.network,
            self._buffers_0.tensors,
            x,
            around,
            keep,
            self.forward_fn,
            call,
            self._origin.watch(self.network, self._theta_0.names | self._buffers_0.names),
        )

    def _check_copy(self, f: NetworkFunction, theta_0: Parameters, x: Batch, call: Call) -> None:
        """Check for samples of a new form that the copy computes the same as the original."""
        kind = str(x)
        if kind not in self._samples:
            leaves = leaves_of(theta_0)
            at = {**self._buffers_0.tensors(), **leaves}
            unused = self._origin.check(self.network, at, f.of_another)

            def run(batch: Batch, around: Callable[[Parameters], TensorsRead]) -> Tensor:
                return self._function(batch, call).of_another(self.network, at, around(leaves))

            if has_samples(x):
                refuse_kept_tensors(self.network, unused, x, run)
            self._samples.add(kind)

    def extra_repr(self) -> str:
        """The order, for `repr`."""
        return f"order={self.order}"


def _batch_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Call]:
    """The arguments of a call as one batch, and a function that calls a network with it."""
    if args and kwargs:
        return (args, kwargs), lambda network, value: network(*value[0], **value[1])
    if kwargs:
        return kwargs, lambda network, value: network(**value)
    if len(args) == 1:
        return args[0], lambda network, value: network(value)
    return args, lambda network, value: network(*value)


def _first(x: Batch) -> Batch:
    """The first sample of a batch, or the whole batch if it has no samples."""
    return (x[:1] if has_samples(x) else x).map(torch.detach)


def _check_takes(f: NetworkFunction, value: Any, theta_0: Parameters) -> None:
    """Raise `ValueError` if the network's own forward fails on these inputs."""
    try:
        f(theta_0)
    except RuntimeError as error:
        raise value_error(
            "x",
            "a batch of inputs that the network takes",
            f"{describe(value)}, on which its forward fails with {first_line(error)}",
            "Pass inputs as in the training of the network, in its dtype.",
        ) from error


def _real_dtype(theta: Parameters) -> torch.dtype:
    return next(iter(theta.values())).dtype.to_real()


class LinearizedModel(TaylorModel):
    """`f(x; θ_0) + ⟨θ - θ_0, ∇f(x; θ_0)⟩`, a trainable module; built by `linearize`."""

    def __init__(self, model: nn.Module, *, forward_fn: ForwardFn | None = None) -> None:
        super().__init__(model, order=1, forward_fn=forward_fn)


def linearize(model: nn.Module, *, forward_fn: ForwardFn | None = None) -> LinearizedModel:
    r"""The network linearized in its parameters around their current values.

    `f_lin(x; θ) = f(x; θ_0) + ⟨θ - θ_0, ∇_θ f(x; θ_0)⟩` is nonlinear in x and linear in θ. Under
    gradient descent its outputs follow exactly the dynamics of the constant kernel Θ_0. The
    original is copied and not changed.

    The term ⟨θ - θ_0, ∇f⟩ is computed by two backward passes. Every call checks the second with the
    first; if an operation has no second derivative or a wrong one, there is one pass for each
    output instead. A gradient with respect to θ is one plain backward pass.

    Args:
        model: The network. It returns one tensor, or a mapping or dataclass with `logits` or with
            exactly one floating-point tensor.
        forward_fn: `forward_fn(model, batch)` calls the network in place of the usual call and
            returns the outputs that are meant. The batch is x for `lin(x)`, and the dictionary for
            `lin(**batch)`.

    Returns:
        A module that is called like the network, with initial parameters θ = θ_0. Any optimizer can
        train it. A training step costs about as much as three of the network, and a forward pass
        without gradients as much as eight.

    Raises:
        TypeError: `model` is not a module, or of a type that cannot be transformed.
        ValueError: It has no parameters, NaN in its parameters, or a normalization that couples the
            samples of a batch.

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
    return LinearizedModel(model, forward_fn=forward_fn)


def taylor_expand(
    model: nn.Module, order: int, *, forward_fn: ForwardFn | None = None
) -> TaylorModel:
    r"""The network expanded in its parameters around their current values up to `order`.

    The expansion is `Σ_{k=0}^{order} (1/k!) d^k/dt^k f(x; θ_0 + t (θ - θ_0))` at t = 0. `order=1`
    is `linearize`, and `order=2` adds the first correction to lazy training.

    Derivatives are computed in nested forward mode and by nested backward passes. Every call
    compares the two. If one is missing or wrong (`torch.linalg.det`, an `autograd.Function` without
    a `jvp`), the other is compared with finite differences of the derivative of one order less. A
    network for which neither is right is refused.

    Args:
        model: The network, as in `linearize`.
        order: The degree, at least 1. Each order multiplies the cost by about 3: a forward pass of
            order 2 costs as much as about 30 of the network.
        forward_fn: As in `linearize`.

    Raises:
        TypeError, ValueError: As `linearize`; `order` is not a positive integer.

    References:
        Bai, Lee, "Beyond linearization: on quadratic and higher-order approximation of wide
        neural networks" (2020).
    """
    if check_positive_int("order", order) == 1:
        return LinearizedModel(model, forward_fn=forward_fn)
    return TaylorModel(model, order, forward_fn=forward_fn)
