"""The user's own module with its own parameters, differentiated by plain autograd.

No vmap and no other transformation of torch.func takes part: whatever way the forward finds its
parameters (an attribute, a list, a closure, a module inside of a backward pass that computes it
again), it finds these. Only in another precision than the module's own do other tensors stand in
their place, and a forward that reaches the module's own is refused.
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
"""Of the parameters that are in place: what surrounds the forward pass, and nothing else."""


@dataclass(frozen=True)
class PlainPass:
    """One forward pass with its graph; valid while the parameters are in place.

    Attributes:
        outputs: `[N, O]`.
        leaves: By name the parameters that the kernel is differentiated by.
    """

    outputs: Tensor
    leaves: Parameters

    def gradients(
        self, u: Tensor, create_graph: bool = False, only: Sequence[str] | None = None
    ) -> Parameters:
        """The gradients of `Σ u·f`, dense, and zero where a parameter takes no part.

        Those by complex parameters are given by real and imaginary parts `[..., 2]`.

        Args:
            u: Weights of the outputs `[N, O]`.
            create_graph: Whether they are differentiated again, by `u`.
            only: Names of the parameters; None is all.
        """
        leaves = self.leaves if only is None else {n: self.leaves[n] for n in only}
        u = u.to(self.outputs.dtype)
        found = transposed_product(self.outputs, leaves, u, create=create_graph)
        return {n: as_real(g) for n, g in found.items()}

    def along(self, w: Parameters) -> Tensor:
        """`J w` `[N, O]` by two backward passes: the derivative of `⟨Jᵀu, w⟩` by u.

        Raises:
            RuntimeError: An operation cannot be differentiated twice.
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


# Of its own, so that the caller's numbers stay as they are.
_generator = torch.Generator().manual_seed(2018)


@dataclass(frozen=True)
class PlainModel:
    """How a model is evaluated plainly; use it within `quiet`.

    Attributes:
        model: The module, or the function `f(params, x)`.
        selected: By name the values of the parameters to differentiate by.
        fixed: By name the values of the other parameters and of the buffers.
        dtype: Of the evaluation.
        own: The caller's own parameters by name.
        buffers: The module's own buffers by name.
        forward_fn: In place of the usual call of a module; see `call_model`.
        transform: From outputs `[N, O]` to what the kernel is of.
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
        """Whether the module's own parameters can be in place, in `dtype`.

        Not if they were made in inference mode, which autograd does not follow.
        """
        if not isinstance(self.model, nn.Module):
            return False
        return not any(
            p.is_inference() or real_dtype(p) not in (None, self.dtype) for p in self.own.values()
        )

    def new_fixed(self) -> Parameters:
        """What is held fixed, to evaluate with; a forward may write to the buffers."""
        return {n: t.clone() if n in self.buffers else t for n, t in self.fixed.items()}

    def with_transform(self, transform: Callable[[Tensor], Tensor]) -> PlainModel:
        """The same model, with other outputs."""
        return replace(self, transform=transform)

    def in_dtype(self, dtype: torch.dtype) -> PlainModel:
        """The same in another precision, from the values of the parameters as they are here."""
        if dtype == self.dtype:
            return self
        selected, fixed = (
            {n: copied(t, dtype) for n, t in tensors.items()}
            for tensors in (self.selected, self.fixed)
        )
        return replace(self, selected=selected, fixed=fixed, dtype=dtype)

    def with_rounding(self, times: float = 1.0) -> PlainModel:
        """The same with every number of the selected parameters moved by a few roundings.

        Sums of hundreds or thousands of terms, of which networks are made, round by as much.

        Args:
            times: By how many times that it is moved.
        """

        def moved(t: Tensor) -> Tensor:
            drawn = torch.randint(-4, 5, t.shape, generator=_generator, dtype=torch.int8)
            eps = times * torch.finfo(t.dtype).eps
            return t * (1.0 + eps * drawn.to(t.device, real_dtype(t)))

        return replace(self, selected={n: moved(t) for n, t in self.selected.items()})

    def run(
        self,
        x: Batch,
        use: Callable[[PlainPass], T],
        around: Around | None = None,
    ) -> T:
        """What `use` makes of a forward pass on the batch `x`, with the parameters in place.

        A forward that needs inputs with `requires_grad`, such as one that returns the gradient of
        an energy, gets them if it fails without.

        Args:
            x: A batch `[N, ...]`, into which the forward may write nothing that is seen here.
            use: Called with the pass.
            around: What surrounds the forward pass itself.

        Raises:
            ArgumentError: The outputs are not as they must be, or the forward reaches a parameter
                where it cannot be replaced.
        """
        x = x.to(self.dtype)
        try:
            return self._run(x.clone(), use, around)
        except (ArgumentError, MemoryError):
            raise
        except RuntimeError as error:
            if "grad" not in str(error) or not x.floating:
                raise  # it does not miss gradients
            with torch.enable_grad():
                tracked = x.map(_tracked)
            try:
                return self._run(tracked, use, around)
            except RuntimeError:
                raise error from None

    def check_replaceable(self, x: Batch) -> None:
        """Raise if the forward does not use values that are put in place of its parameters.

        Args:
            x: A batch.

        Raises:
            ValueError: It reaches the module's own parameters in another way.
        """
        with torch.enable_grad():
            self._replaced(x.to(self.dtype).clone(), lambda found: None, None)

    def _run(
        self,
        x: Batch,
        use: Callable[[PlainPass], T],
        around: Around | None,
    ) -> T:
        module = self.model if isinstance(self.model, nn.Module) else None
        try:
            with torch.enable_grad():
                if module is not None and self.is_own:
                    with self._in_place() as own:
                        with _none() if around is None else around(own):
                            out = call_model(module, x.value, self.forward_fn)
                        return use(self._pass(out, x, own))
                return self._replaced(x, use, around)
        finally:
            after_evaluation(module)

    def _replaced(
        self,
        x: Batch,
        use: Callable[[PlainPass], T],
        around: Around | None,
    ) -> T:
        """With other tensors in the place of the parameters, during backward passes too."""
        module = self.model if isinstance(self.model, nn.Module) else None
        try:
            leaves = {n: p.detach().requires_grad_() for n, p in self.selected.items()}
            context = _none() if around is None else around(leaves)

            def then(out: Any) -> T:
                found = self._pass(out, x, leaves)
                self._check_reached(found)
                result = use(found)
                _check_no_stray_gradients(leaves)
                return result

            if module is None:
                with context:
                    out = self.model({**self.fixed, **leaves}, x.value)
                return then(out)
            # The parameters stay in place for backward passes inside of `use`: some run parts
            # of the module again.
            values = {**self.new_fixed(), **leaves}
            found: T = call_with(module, values, x.value, self.forward_fn, then, context)
            return found
        finally:
            after_evaluation(module)

    def _pass(self, out: Any, x: Batch, leaves: Parameters) -> PlainPass:
        rows = rows_of(out, x, self.dtype, self.forward_fn)
        return PlainPass(rows if self.transform is None else self.transform(rows), leaves)

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[Parameters]:
        """The module's own parameters, with the memory of copies, and buffers likewise.

        Whatever the forward writes, also through `.data`, it writes to the copies; afterwards the
        parameters have their own memory again, which nothing has touched.
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
        """The forward must find its parameters where others were put in their place.

        If autograd reaches one of the caller's own instead, the forward has got it in another way,
        from a list or a closure, and it would count as a constant.
        """
        reached = leaves_reached(found.outputs)
        for name in (n for n, p in self.own.items() if id(p) in reached):
            if isinstance(self.model, nn.Module):
                raise another_reference(name)
            raise value_error(
                "model",
                "a function f(params, x) that uses its parameters from `params`",
                f"one that reaches {name!r} by itself, through a closure",
                "For a module write lambda p, x: torch.func.functional_call(model, p, (x,)), "
                "or pass the module itself.",
            )


def _check_no_stray_gradients(leaves: Mapping[str, Tensor]) -> None:
    """Refuse backward passes that add to `.grad` by themselves.

    Some autograd.Functions run their forward again in `backward`, by `torch.autograd.backward`:
    what belongs to the parameters then does not come back to whom asked for it.
    """
    stray = [n for n, p in leaves.items() if p.grad is not None]
    if stray:
        raise value_error(
            "model",
            "a function whose backward pass returns its gradients",
            "an autograd.Function whose backward runs parts of the model again and adds to the "
            f".grad of {plain_name(stray[0])!r} by itself",
            "Let it return the gradients (torch.autograd.grad), or switch this off meanwhile.",
        )


def _none() -> AbstractContextManager[object]:
    return contextlib.nullcontext()


def _tracked(t: Tensor) -> Tensor:
    """A copy through which autograd goes on to the inputs."""
    return t.detach().requires_grad_().clone() if t.is_floating_point() else t.clone()
