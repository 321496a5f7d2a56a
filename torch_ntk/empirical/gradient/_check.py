"""Check a kernel's gradient on two samples, when the kernel is computed.

For weights W = u vᵀ over pairs of a sample and an output, `⟨W, Θ⟩ = ⟨Jᵀu, Jᵀv⟩` follows from two
plain backward passes of the user's own module, which autograd differentiates. This costs as much
as a few training steps on these samples, and is independent of the gradient of a kernel, except
that both rely on the derivative formulas of torch's own operations. The `backward` of a user's
`autograd.Function` need not be differentiable, which torch does not notice. If the model has one,
the derivative in a random direction is compared with a finite difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from ..._checks import ArgumentError, describe, value_error
from ..._functional import (
    Batch,
    CannotTransformError,
    PlainPass,
    RightOperations,
    copied,
    first_line,
    leaves_reached,
    nodes_of,
)
from ...memory import is_out_of_memory
from .._parts import distinct
from .._stages import stage
from ..checksum import CLOSE, CLOSE_IN_DOUBLE, signs
from ..structured import UsesChangedError
from ._kernel_gradient import KernelGradient, gradients

T = TypeVar("T")

_MOST_OUTPUTS = 3  # not the number of samples, since wrong batching rules may swap axes
_ROUNDINGS = 1e3
# The steps of finite differences, and the relative error of the best one. Not every step needs to
# agree, because there may be a kink of the function within it.
_STEPS, _CLOSE_TO_DIFFERENCE = (1e-4, 1e-5, 1e-6), 1e-4
_STEPS_IN_SINGLE, _CLOSE_IN_SINGLE = (1e-2, 1e-3), 3e-2


@dataclass(frozen=True)
class _Expected:
    """The value and the gradients from plain backward passes.

    Attributes:
        value: The number `⟨Jᵀu, Jᵀv⟩`.
        gradients: Its gradients with respect to the sources; None for a source that is neither a
            parameter nor an input of the passes.
        has_functions: Whether the graph contains an `autograd.Function`.
    """

    value: Tensor
    gradients: list[Tensor | None]
    has_functions: bool


def check_gradient(gradient: KernelGradient) -> KernelGradient:
    """Return the gradient by torch.func if it is right, and by loops otherwise.

    It is refused if autograd cannot differentiate the kernel of this model, or not with respect to
    all tensors that require grad and on which it depends.
    """
    with stage("check"):
        small = _TwoSamples.of(gradient)
        expected = small.expected()
        if expected.has_functions:
            double = small.in_double()
            (double or small).check_difference()
        for by_loops in (False, True):
            if small.is_right(by_loops, expected):
                return replace(gradient, by_loops=by_loops)
    raise value_error(
        "differentiable",
        "False for a model whose kernel has no right gradient",
        "True, where the gradient of ⟨Jᵀu, Jᵀv⟩ is not that of plain backward passes",
        "An operation of the model has a second derivative that is missing or wrong.",
    )


@dataclass(frozen=True)
class _TwoSamples:
    """The kernel of two samples and of a few random combinations of the outputs.

    Attributes:
        gradient: The gradient of that kernel.
        u, v: The weights, `[N, O]` each.
    """

    gradient: KernelGradient
    u: Tensor
    v: Tensor

    @staticmethod
    def of(gradient: KernelGradient) -> _TwoSamples:
        """Return it for the gradient of the whole kernel."""
        job, sources = gradient.job, gradient.sources
        several = len(job.x1) > 1 or job.x2 is not None
        x = job.x1[:1].join(job.columns[-1:]) if several else job.x1
        k, before = min(job.outputs, _MOST_OUTPUTS), job.fn.transform
        like = torch.zeros((), dtype=job.fn.dtype, device=job.fn.device)
        mixing = signs(job.outputs, k, like=like) / job.outputs**0.5

        def outputs(out: Tensor) -> Tensor:
            rows: Tensor = (out if before is None else before(out)) @ mixing.to(out)
            return rows

        fn, forward = job.fn.with_outputs(outputs), replace(job.forward, outputs=k)
        job = replace(job, fn=fn, x1=x, x2=None, output="full", forward=forward, batch_size=None)
        inputs = tuple(dict.fromkeys((*sources.first, *sources.second)))
        sources = replace(sources, first=inputs, second=())
        made = replace(gradient, job=job, sources=sources)
        return _TwoSamples(made, *(signs(len(x), k, like=like) for _ in range(2)))

    def in_double(self) -> _TwoSamples | None:
        """Return it in float64; None if the model cannot be evaluated in float64."""
        gradient = replace(self.gradient, job=self.gradient.job.in_dtype(torch.float64))
        found = _TwoSamples(gradient, self.u.double(), self.v.double())
        try:
            found.expected()
        except (ArgumentError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            return None
        return found

    @property
    def is_exact(self) -> bool:
        """Whether all operations are evaluated in float64."""
        job = self.gradient.job
        return {job.fn.dtype, job.forward.precision} == {torch.float64}

    def is_right(self, by_loops: bool, expected: _Expected) -> bool:
        """Whether the value and the gradients are the expected ones, up to rounding."""
        job, sources = self.gradient.job, self.gradient.sources
        gradient = replace(self.gradient, by_loops=by_loops)
        # Gradients have the dtype of the values, which is that of the evaluation here.
        parameters = [copied(t, job.fn.dtype) for t in sources.tensors[: len(sources.names)]]
        values = [*parameters, *(job.x1.tensors[i] for i in sources.first)]
        weights = torch.einsum("ni,mj->nmij", self.u, self.v)
        try:
            value, found = gradient.of(values, dict.fromkeys(distinct(job.keys), weights))
        except (CannotTransformError, UsesChangedError):
            return False
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            return False
        if self._agree([value, *found], [expected.value, *expected.gradients]):
            return True
        double = None if job.fn.dtype == torch.float64 else self.in_double()
        return double is not None and double.is_right(by_loops, double.expected())

    def _agree(self, found: list[Tensor | None], expected: list[Tensor | None]) -> bool:
        close, kind = (CLOSE_IN_DOUBLE, torch.float64) if self.is_exact else (CLOSE, torch.float32)
        pairs = [
            (torch.zeros_like(w) if f is None else f.to(w), w)
            for f, w in zip(found, expected, strict=True)
            if w is not None and w.numel()
        ]
        if any(not torch.equal(f.isfinite(), w.isfinite()) for f, w in pairs):
            return False
        # Derivatives that are not finite must be so in both; all others must agree.
        pairs = [(f.nan_to_num(0, 0, 0), w.nan_to_num(0, 0, 0)) for f, w in pairs]
        sizes = [float(w.abs().max()) for _, w in pairs]
        noise = _ROUNDINGS * torch.finfo(kind).eps * max(sizes)
        return all(
            float((f - w).abs().max()) <= max(close * size, noise)
            for (f, w), size in zip(pairs, sizes, strict=True)
        )

    def expected(self) -> _Expected:
        """Return the value and the gradients from plain backward passes."""
        sources = self.gradient.sources

        def of_pass(found: PlainPass, inputs: Batch) -> _Expected:
            value = self._value(found, create_graph=True)
            leaves: dict[Any, Tensor] = {**found.leaves, **dict(enumerate(inputs.tensors))}
            _check_reached([value, found.outputs], leaves)
            wanted = [leaves.get(k) for k in (*sources.names, *sources.first)]
            by = [t for t in wanted if t is not None]
            each = iter(gradients([value], by))
            made: list[Tensor | None] = []
            for t in wanted:
                g = None if t is None else next(each)
                made.append(torch.zeros_like(t) if t is not None and g is None else g)
            nodes = nodes_of(found.outputs)
            has_functions = any(isinstance(node, BackwardCFunction) for node in nodes)
            return _Expected(value.detach(), made, has_functions)

        try:
            return self._run(of_pass, {})
        except ArgumentError:
            raise
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise value_error(
                "differentiable",
                "False for a model that autograd cannot differentiate twice",
                f"True, where it fails with {first_line(error)}",
                "The error above this one names the operation.",
            ) from error

    def check_difference(self) -> None:
        """Refuse a derivative in a random direction that agrees with no finite difference."""
        job, sources = self.gradient.job, self.gradient.sources
        given = {n: t.detach() for n, t in zip(sources.names, sources.tensors, strict=False)}
        by: dict[Any, Tensor] = {**given, **{i: job.x1.tensors[i] for i in sources.first}}
        pairs = []
        directions: dict[object, Tensor] = {}
        for (key, t), g in zip(by.items(), self.expected().gradients, strict=True):
            if g is not None:
                directions[key] = signs(*t.shape, like=g)
                pairs.append((g.conj() * directions[key]).real)
        slope, size = (float(sum(p.sum() for p in of)) for of in (pairs, [p.abs() for p in pairs]))
        steps, close = (
            (_STEPS, _CLOSE_TO_DIFFERENCE)
            if self.is_exact
            else (_STEPS_IN_SINGLE, _CLOSE_IN_SINGLE)
        )
        rates = []
        for step in steps:
            moved = ({k: h * d for k, d in directions.items()} for h in (step, -step))
            after, before = (
                float(self._run(lambda found, _: self._value(found, False), m)) for m in moved
            )
            rates.append((after - before) / (2 * step))
        size = max(size, *(abs(rate) for rate in rates))
        if min(abs(rate - slope) for rate in rates) > close * size:
            raise value_error(
                "differentiable",
                "False for a model with an autograd.Function whose backward pass autograd cannot "
                "follow",
                f"True, where the derivative of the kernel in a direction is {slope:.6g}, and "
                f"{rates[1]:.6g} by a difference of its values",
                "In `backward`, compute with ctx.saved_tensors, and not with .data, .detach() or "
                "NumPy. If it means another derivative than its forward has (a straight-through "
                "estimator), check=False leaves this comparison out.",
            )

    def _value(self, found: PlainPass, create_graph: bool) -> Tensor:
        """Return `⟨Jᵀu, Jᵀv⟩`."""
        job = self.gradient.job
        names = list(job.fn.params)
        left, right = (found.gradients(w, create_graph, names) for w in (self.u, self.v))
        left = {n: job.precondition.columns(n, g.reshape(-1)) for n, g in left.items()}
        right = {n: job.precondition.columns(n, g.reshape(-1)) for n, g in right.items()}
        return torch.stack([left[n] @ right[n] for n in names]).sum()

    def _run(self, use: Callable[[PlainPass, Batch], T], moved: Mapping[Any, Tensor]) -> T:
        """Return the result of `use` for a plain pass and its inputs.

        The tensors `moved` are added to parameters, by name, and to inputs, by index.
        """
        job, plain = self.gradient.job, self.gradient.job.fn.exact_plain
        names = {*plain.selected, *(n for n in self.gradient.sources.names if n in plain.own)}
        every = {**plain.fixed, **plain.selected}
        placed = replace(
            plain,
            selected={n: every[n] + moved[n] if n in moved else every[n] for n in names},
            fixed={n: t for n, t in plain.fixed.items() if n not in names},
        )
        # All inputs require grad, because a forward may differentiate with respect to them.
        leaves = [
            (t + moved[i] if i in moved else t.clone()).detach().requires_grad_()
            if t.is_floating_point()
            else t
            for i, t in enumerate(job.x1.tensors)
        ]
        inputs = job.x1.with_tensors(leaves)
        with torch.enable_grad():  # the copies of the inputs belong to the graph
            return placed.run(inputs, lambda found: use(found, inputs), lambda _: RightOperations())


def _check_reached(ends: list[Tensor], leaves: Mapping[Any, Tensor]) -> None:
    """Raise an error if other tensors require grad, which would get no gradient of the kernel."""
    known = {id(t) for t in leaves.values()}
    for other in leaves_reached(*ends).values():
        if id(other) not in known:
            raise value_error(
                "differentiable",
                "False where outputs depend on tensors that require grad and that are neither "
                "parameters of the model nor part of a batch",
                f"True, where the forward (or forward_fn) reaches {describe(other)} by a closure "
                "or an attribute",
                "Make it a parameter of a module around both, or an entry of params of a function "
                "f(params, batch); or detach it.",
            )
