"""The user's own module with its own parameters, differentiated by plain autograd.

Neither vmap nor another transformation of torch.func is used. However the forward refers to its
parameters (by an attribute, a list, a closure, or from a backward pass that runs a part of the
module again), it gets the same tensors. Only in another precision than the module's own are the
parameters replaced by other tensors, and a forward that then uses the module's own is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import _unsafe_preserve_version_counter  # type: ignore[attr-defined]

from .._checks import ArgumentError, value_error
from .._types import ForwardFn, Parameters
from ._batch import Batch
from ._call import call_model, call_with
from ._faithful_copy import another_reference
from ._graph import leaves_reached
from ._parameters import as_real, copied, real_dtype
from ._quiet import after_evaluation
from ._result import rows_of
from ._slope import transposed_product
from ._unwrap import plain_name

T = TypeVar("T")
Around = Callable[[Parameters], AbstractContextManager[object]]
"""A function of the parameters that a forward pass uses. It makes a context for this pass alone."""


@dataclass(frozen=True)
class PlainPass:
    """A forward pass with its autograd graph, which can be used inside of `PlainModel.run` only.

    Attributes:
        outputs: The outputs `[N, O]`.
        leaves: The parameters that the kernel is differentiated by, by name.
    """

    outputs: Tensor
    leaves: Parameters

    def gradients(
        self, u: Tensor, create_graph: bool = False, only: Sequence[str] | None = None
    ) -> Parameters:
        """The gradients `Jᵀu` of `Σ_ni u_ni f_ni` as dense tensors, for all or `only` some names.

        The gradient by a parameter that the outputs do not depend on is zero. The gradient by a
        complex parameter is given by its real and imaginary parts `[..., 2]`.
        """
        leaves = self.leaves if only is None else {n: self.leaves[n] for n in only}
        u = u.to(self.outputs.dtype)
        found = transposed_product(self.outputs, leaves, u, create=create_graph)
        return {n: as_real(g) for n, g in found.items()}

    def along(self, w: Parameters) -> Tensor:
        """The product `J w` `[N, O]` by two backward passes: the derivative of `⟨Jᵀu, w⟩` by u.

        A `RuntimeError` is raised if an operation cannot be differentiated twice.
        """
        if not self.outputs.requires_grad:
            return torch.zeros_like(self.outputs)
        u = torch.zeros_like(self.outputs, requires_grad=True)
        gradients = self.gradients(u, create_graph=True)
        used = [n for n, g in gradients.items() if g.requires_grad]
        if not used:
            return torch.zeros_like(self.outputs)
        (product,) = torch.autograd.grad(
            [gradients[n] for n in used],
            u,
            [w[n].to(gradients[n].dtype) for n in used],
            retain_graph=True,
            materialize_grads=True,
        )
        return product


# A generator of its own, so that the caller's random numbers do not change.
_generator = torch.Generator().manual_seed(2018)


@dataclass(frozen=True)
class PlainModel:
    """A model with the values of its parameters, evaluated by plain autograd within `quiet`.

    Attributes:
        model: The module, or the function `f(params, x)`.
        selected: The values of the parameters to differentiate by, by name.
        fixed: The values of the other parameters and of the buffers, by name.
        dtype: The floating type of the evaluation.
        own: The caller's own parameters by name.
        buffers: The module's own buffers by name.
        forward_fn: A function that replaces the usual call of a module, as in `call_model`.
        transform: A function that is applied to the outputs `[N, O]` of the model, or None.
    """

    model: Any
    selected: Parameters
    fixed: Parameters
    dtype: torch.dtype
    own: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    forward_fn: ForwardFn | None = None
    transform: Callable[[Tensor], Tensor] | None = None

    @property
    def is_own(self) -> bool:
        """Whether the module can be evaluated with its own parameters.

        They must have the floating type `dtype`. Tensors that were made in inference mode cannot be
        used, since autograd does not record their operations.
        """
        if not isinstance(self.model, nn.Module):
            return False
        return not any(
            p.is_inference() or real_dtype(p) not in (None, self.dtype) for p in self.own.values()
        )

    def in_dtype(self, dtype: torch.dtype) -> PlainModel:
        """The model in another precision, with the values that the parameters have here."""
        if dtype == self.dtype:
            return self
        selected, fixed = (
            {n: copied(t, dtype) for n, t in tensors.items()}
            for tensors in (self.selected, self.fixed)
        )
        return replace(self, selected=selected, fixed=fixed, dtype=dtype)

    def with_rounding(self, times: float = 1.0) -> PlainModel:
        """The model with every selected parameter changed by a few rounding errors.

        An entry t becomes `t (1 + times · eps · k)` with a random integer k from -4 to 4. Sums of
        hundreds or thousands of terms, as in networks, have rounding errors of this size.
        """

        def moved(t: Tensor) -> Tensor:
            drawn = torch.randint(
                -4, 5, t.shape, generator=_generator, device="cpu", dtype=torch.int8
            )
            eps = times * torch.finfo(t.dtype).eps
            return t * (1.0 + eps * drawn.to(t.device, real_dtype(t)))

        return replace(self, selected={n: moved(t) for n, t in self.selected.items()})

    def run(
        self,
        x: Batch,
        use: Callable[[PlainPass], T],
        around: Around | None = None,
    ) -> T:
        """Return what `use` returns for a forward pass, made within `around`, on a copy of `x`.

        If the forward fails since it needs inputs with `requires_grad`, as one that returns the
        gradient of an energy does, it is run again with such inputs.
        """
        x, is_own = x.to(self.dtype), self.is_own
        try:
            return self._run(x.clone(), use, around, is_own)
        except (ArgumentError, MemoryError):
            raise
        except RuntimeError as error:
            if "grad" not in str(error) or not x.floating:
                raise  # the error is not about missing gradients
            with torch.enable_grad():
                tracked = x.map(_tracked)
            try:
                return self._run(tracked, use, around, is_own)
            except RuntimeError:
                raise error from None

    def check_replaceable(self, x: Batch) -> None:
        """Raise an error if the forward does not use tensors that replace its parameters."""
        self._run(x.to(self.dtype).clone(), lambda found: None, None, is_own=False)

    def _run(
        self,
        x: Batch,
        use: Callable[[PlainPass], T],
        around: Around | None,
        is_own: bool,
    ) -> T:
        """`run` with a batch that may be written to, and own parameters or replacements."""
        evaluate = self._with_own_parameters if is_own else self._with_replacements
        try:
            with torch.enable_grad():
                return evaluate(x, use, around)
        finally:
            after_evaluation(self.model if isinstance(self.model, nn.Module) else None)

    def _with_own_parameters(
        self, x: Batch, use: Callable[[PlainPass], T], around: Around | None
    ) -> T:
        """`_run` with the module's own parameters."""
        with self._in_place() as own:
            with _context(around, own):
                out = call_model(self.model, x.value, self.forward_fn)
            return use(self._pass(out, x, own))

    def _with_replacements(
        self, x: Batch, use: Callable[[PlainPass], T], around: Around | None
    ) -> T:
        """`_run` with other tensors in the place of the parameters, also during backward passes."""
        leaves = {n: p.detach().requires_grad_() for n, p in self.selected.items()}
        context = _context(around, leaves)

        def then(out: Any) -> T:
            found = self._pass(out, x, leaves)
            self._check_reached(found)
            result = use(found)
            _check_no_stray_gradients(leaves)
            return result

        if not isinstance(self.model, nn.Module):
            with context:
                out = self.model({**self.fixed, **leaves}, x.value)
            return then(out)
        # The replacements stay during `use`, since some backward passes run parts of the module
        # again.
        fixed = {n: t.clone() if n in self.buffers else t for n, t in self.fixed.items()}
        values = {**fixed, **leaves}
        found: T = call_with(self.model, values, x.value, self.forward_fn, then, context)
        return found

    def _pass(self, out: Any, x: Batch, leaves: Parameters) -> PlainPass:
        """The pass that returned `out` for the batch `x`."""
        rows = rows_of(out, x, self.dtype, self.forward_fn)
        return PlainPass(rows if self.transform is None else self.transform(rows), leaves)

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[Parameters]:
        """A context in which the module's parameters and buffers use the memory of copies.

        Whatever the forward writes, also through `.data`, goes to the copies. Afterwards the
        parameters and buffers use their own memory again, which has not changed.

        Yields:
            The selected parameters by name.
        """
        parameters, buffers = self.own, self.buffers
        every = [t for t in (*parameters.values(), *buffers.values()) if not t.is_inference()]
        saved = [(t, t.data, t.requires_grad, t.grad if t.is_leaf else None) for t in every]
        with _unsafe_preserve_version_counter(tuple(every)):
            try:
                for n, p in parameters.items():
                    p.data = self.selected[n] if n in self.selected else self.fixed[n]
                    if p.is_floating_point() or p.is_complex():
                        p.requires_grad_(n in self.selected)
                    p.grad = None
                for n, b in buffers.items():
                    if not b.is_inference():
                        b.data = self.fixed[n].clone()
                leaves: Parameters = {n: parameters[n] for n in self.selected}
                yield leaves
                _check_no_stray_gradients(leaves)
            finally:
                for t, data, tracked, gradient in saved:
                    t.data = data
                    if t.is_leaf:
                        t.requires_grad_(tracked)
                        t.grad = gradient

    def _check_reached(self, found: PlainPass) -> None:
        """Raise an error if the outputs depend on the caller's parameters and not on replacements.

        The forward then refers to a parameter by a list or a closure, and the parameter would be
        treated as a constant.
        """
        reached = leaves_reached(found.outputs)
        for name in (n for n, p in self.own.items() if id(p) in reached):
            if isinstance(self.model, nn.Module):
                raise another_reference(name)
            raise value_error(
                "model",
                "a function f(params, x) that uses its parameters from `params`",
                f"one that uses {name!r} through a closure instead",
                "For a module write lambda p, x: torch.func.functional_call(model, p, (x,)), "
                "or pass the module itself.",
            )


def _check_no_stray_gradients(leaves: Mapping[str, Tensor]) -> None:
    """Raise an error if a backward pass has added to the `.grad` of a parameter.

    Some autograd.Functions run their forward again in `backward`, and differentiate it by
    `torch.autograd.backward`. The gradients of parameters are then added to `.grad`, and are
    missing in what `torch.autograd.grad` returns.
    """
    stray = [n for n, p in leaves.items() if p.grad is not None]
    if stray:
        raise value_error(
            "model",
            "a function whose backward pass returns its gradients",
            "an autograd.Function whose backward runs parts of the model again and adds to the "
            f".grad of {plain_name(stray[0])!r} by itself",
            "Let its backward return the gradients (torch.autograd.grad), or disable it for the "
            "evaluation.",
        )


def _context(around: Around | None, leaves: Parameters) -> AbstractContextManager[object]:
    """The context of a forward pass with the parameters `leaves`."""
    return contextlib.nullcontext() if around is None else around(leaves)


def _tracked(t: Tensor) -> Tensor:
    """A copy of an input with a `grad_fn`, if it is of floating-point numbers."""
    return t.detach().requires_grad_().clone() if t.is_floating_point() else t.clone()
