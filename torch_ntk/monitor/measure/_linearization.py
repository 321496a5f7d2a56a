"""Outputs of the network's linearization at the reference."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.func import jvp

from ..._checks import ArgumentError
from ..._functional import ModelFunction, agree, failure, model_function, quiet
from ..._types import Parameters
from ...empirical.inspect import keep_hooks_that_matter
from ...memory import is_out_of_memory
from ..reference._reference import Reference
from ._evaluation import Evaluation

_NO_CHECKPOINTING = "saved tensor hooks, which activation checkpointing uses, are refused here"
_REMEDY = "Leave out what needs it: metrics=(...) without 'linearization_gap'."


@dataclass(frozen=True)
class Linearization:
    """`f^lin = f_0 + ⟨θ - θ_0, ∇f_0⟩` on the probe of a reference.

    The slopes ⟨δ, ∇f_0⟩ are taken at the parameters and buffers of the reference, in the dtype of
    the network's gradients, and added to f_0 in its own precision.

    Attributes:
        network: The module; its present parameters are θ.
        reference: θ_0, the buffers, f_0 and the samples.
        evaluation: Precision and size of blocks.
    """

    network: nn.Module
    reference: Reference
    evaluation: Evaluation

    def outputs(self) -> Tensor:
        """f^lin at the network's parameters, `[N, O]`.

        Every parameter that has moved counts, also one that was frozen at the reference.

        Raises:
            ValueError: The network cannot be differentiated, or checkpoints activations.
        """
        theta_0, reference = self._theta_0, self.reference
        now = {n: p.detach() for n, p in self.network.named_parameters() if n in theta_0}
        delta = {n: p.to(self._dtype) - theta_0[n] for n, p in now.items()}
        moved = {n: d for n, d in delta.items() if bool(d.any())}
        forward_mode = reference.forward_mode and moved.keys() <= set(reference.trained)
        return reference.outputs + self._slopes(moved, reference.probe.x, forward_mode)

    def check(self) -> bool:
        """Raise at the reference, on one sample, what `outputs` would raise steps later.

        Returns:
            Whether forward mode gives the slopes as well. It is tried for large networks only, for
            which it takes a third of the time.

        Raises:
            ValueError: As `outputs`.
        """
        one = self.reference.probe.x[:1]
        direction = {n: self._theta_0[n] for n in self.reference.trained}
        slopes = self._slopes(direction, one)
        if self._dtype == torch.float64:
            return False
        try:
            return agree([self._slopes(direction, one, forward_mode=True)], [slopes])
        except ArgumentError:
            return False

    def _slopes(self, delta: Parameters, x: Tensor, forward_mode: bool = False) -> Tensor:
        """⟨δ, ∇f_0⟩ `[N, O]` for a displacement δ of some of the parameters; 0 if there is none."""
        network, reference, dtype = self.network, self.reference, self._dtype
        if not delta:
            return torch.zeros((), dtype=dtype, device=x.device)
        with quiet(network, x.device), disable_saved_tensors_hooks(_NO_CHECKPOINTING):
            fn = model_function(network, list(reference.trained), dtype)
            samples = fn.input("probe", x)
            keep_hooks_that_matter(fn, samples)
            fixed = {
                **_floating(reference.buffers, dtype),
                **{n: t for n, t in self._theta_0.items() if n not in delta},
            }
            point = _Point(fn, fixed, {n: self._theta_0[n] for n in delta}, delta)
            slope = point.slope_by_jvp if forward_mode else point.slope_by_vjps
            block = self.evaluation.block
            blocks = samples.split(block)  # type: ignore[no-untyped-call]
            try:
                return torch.cat([slope(part) for part in blocks])
            except (RuntimeError, NotImplementedError) as error:
                if is_out_of_memory(error):
                    raise
                raise failure(error, "linearize the outputs of the model", _REMEDY) from error

    @cached_property
    def _dtype(self) -> torch.dtype:
        return self.evaluation.gradient_dtype(self.network)

    @cached_property
    def _theta_0(self) -> Parameters:
        return _floating(self.reference.params, self._dtype)


@dataclass(frozen=True)
class _Point:
    """Where a slope is taken: f as a function of parameters, θ_0, and a direction δ.

    Attributes:
        fn: The network as a function.
        fixed: Buffers and the parameters that do not move.
        theta_0: The parameters that do.
        delta: Their displacement.
    """

    fn: ModelFunction
    fixed: Parameters
    theta_0: Parameters
    delta: Parameters

    def slope_by_jvp(self, x: Tensor) -> Tensor:
        """`⟨δ, ∇f⟩` by forward mode, in one pass."""
        copies = {n: t.clone() for n, t in self.fixed.items()}
        slopes: Tensor = jvp(
            lambda p: self.fn.batch({**copies, **p}, x), (self.theta_0,), (self.delta,)
        )[1]
        return slopes.detach()

    def slope_by_vjps(self, x: Tensor) -> Tensor:
        r"""`⟨δ, ∇f⟩` by reverse mode twice.

        The gradient g(u) = ∇_θ ⟨u, f⟩ = Jᵀ u is linear in u, so ⟨δ, g(u)⟩ = ⟨J δ, u⟩, and its
        gradient in u is J δ, the slope of every output along δ, whatever u is. Forward mode takes
        one pass, but does not know every operation and does not stop where a forward stops its
        gradients with `torch.no_grad()`.
        """
        leaves = {n: t.clone().requires_grad_() for n, t in self.theta_0.items()}
        # Reentrant checkpointing would lose the gradients of a block without a word. Autograd
        # refuses it once it has to go through the block, as it does on its way to the input.
        x = x.detach().requires_grad_(x.is_floating_point())
        inputs = [x] if x.requires_grad else []

        def gradients(out: Tensor, u: Tensor, again: bool) -> dict[str, Tensor]:
            """Jᵀ u by parameter, itself differentiable if `again`."""
            if not out.requires_grad:
                return {}
            found = torch.autograd.grad(
                out,
                [*leaves.values(), *inputs],
                u,
                create_graph=again,
                retain_graph=True,
                allow_unused=True,
            )
            pairs = zip(leaves, found[: len(leaves)], strict=True)
            return {n: g.to_dense() for n, g in pairs if g is not None}

        def along(found: dict[str, Tensor]) -> Tensor:
            """⟨δ, Jᵀ u⟩."""
            return torch.stack([(g * self.delta[n]).sum() for n, g in found.items()]).sum()

        with torch.enable_grad():
            # Copies, because a forward may write to its buffers, or to its weights in place.
            tensors = {n: t.clone() for n, t in {**self.fixed, **leaves}.items()}
            out = self.fn.batch(tensors, x)
            u = torch.zeros_like(out, requires_grad=True)
            found = gradients(out, u, again=True)
            if not found:
                return torch.zeros_like(out)
            if all(g.requires_grad for g in found.values()):
                try:
                    (result,) = torch.autograd.grad(along(found), u, retain_graph=True)
                    return result
                except RuntimeError as error:
                    if is_out_of_memory(error):
                        raise
            # Some operations have no second derivative: then one backward pass for every output.
            rows: list[Tensor] = []
            for unit in torch.eye(out.numel(), dtype=out.dtype, device=out.device):
                rows.append(along(gradients(out, unit.reshape(out.shape), again=False)).detach())
            return torch.stack(rows).reshape(out.shape)


def _floating(tensors: Parameters, dtype: torch.dtype) -> Parameters:
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
