"""The last optimizer step of a training, and the loss on a probe along its direction."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..._checks import UndefinedError
from ..._functional import model_function, quiet
from ..._optimizers import owner
from ..._types import Parameters
from ...empirical.inspect import keep_hooks_that_matter
from ..probe._probe import Probe
from ._adapted_network import Samples
from ._evaluation import Evaluation
from ._statistics import Recalibrating


@dataclass(frozen=True)
class LastStep:
    """Parameters and learning rates before an optimizer step, which give the step afterwards.

    Attributes:
        step: The number of optimizer steps before this one.
        params: Copies of the parameters that require grad, by name, before the step.
        rates: The learning rate of each parameter before the step, by the `id` of the parameter.
    """

    step: int
    params: Parameters
    rates: dict[int, float]

    @staticmethod
    def before(network: nn.Module, step: int, optimizers: Sequence[Optimizer]) -> LastStep:
        """Copy what is needed before the optimizer step that follows `step` others."""
        trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
        rates = {
            id(p): float(group["lr"])
            for optimizer in optimizers
            for group in optimizer.param_groups
            for p in group["params"]
            if "lr" in group
        }
        return LastStep(step, {n: p.detach().clone() for n, p in trained.items()}, rates)

    def lr(self, network: nn.Module, optimizers: Sequence[Optimizer]) -> float:
        """The learning rate of the step, which is the largest of all parameters.

        Raises:
            ValueError: The optimizer has no learning rate, or the parameters have no optimizer or
                several ones.
        """
        parameters = {n: p for n, p in network.named_parameters() if n in self.params}
        optimizer = owner(optimizers, parameters)
        found = [self.rates[id(p)] for p in parameters.values() if id(p) in self.rates]
        if not found:
            raise UndefinedError(f"{type(optimizer).__name__} has no learning rate.")
        return max(found)

    @contextlib.contextmanager
    def losses(
        self,
        network: nn.Module,
        probe: Probe,
        evaluation: Evaluation,
        loss: Callable[[Tensor, Tensor], float],
        y: Tensor,
        recalibrate: bool,
    ) -> Iterator[Callable[[float], float] | None]:
        """A context with the loss on a probe at θ_{t-1} + c (θ_t - θ_{t-1}), as a function of c.

        The network is evaluated in eval mode, with copies in the place of its parameters. If the
        outputs are too many to be stored for all samples (`Evaluation.is_probed`), the loss is the
        mean of those of blocks of samples. If no parameter has changed, there is no function.

        Args:
            network: The module after the step.
            probe: The samples.
            evaluation: The settings of precision and blocks.
            loss: A function of outputs `[N, O]` and targets, which is a mean over samples.
            y: The targets of the probe.
            recalibrate: Whether batch normalization uses the statistics of the probe at every c.
        """
        with quiet(network, probe.device), contextlib.ExitStack() as around:
            given = Samples.of(network, probe)
            dtype = evaluation.movement_dtype(network)
            fn = model_function(network, None, dtype, given.call, probe.coupled)
            samples = fn.input("probe", given.batch.value)
            keep_hooks_that_matter(fn, samples)
            if recalibrate:
                around.enter_context(Recalibrating())
            start = dict(fn.params)
            for name, value in self.params.items():
                if name in start:
                    real = torch.view_as_real(value) if value.is_complex() else value
                    start[name] = real.to(fn.dtype)
            delta = {n: p.detach() - start[n] for n, p in fn.params.items()}
            blocks = [samples] if recalibrate else list(samples.split(evaluation.block))
            wide = evaluation.result_dtype(probe.device)

            def at(c: float) -> float:
                params = {n: p + c * delta[n] for n, p in start.items()}
                found = (fn.batch(params, block).detach().to(wide) for block in blocks)
                if probe.coupled:
                    found = (f.reshape(len(probe), -1) for f in found)
                if not evaluation.is_probed:
                    return loss(torch.cat(list(found)), y)
                targets = [y] if probe.coupled else torch.split(y, [len(block) for block in blocks])
                parts = [len(own) * loss(f, own) for f, own in zip(found, targets, strict=True)]
                return sum(parts) / len(y)

            yield at if any(bool(d.any()) for d in delta.values()) else None
