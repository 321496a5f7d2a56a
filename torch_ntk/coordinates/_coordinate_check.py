"""`coordinate_check`: measure which sizes grow, shrink or stay equal as a network gets wider."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from tqdm.auto import tqdm

from .._checks import (
    check_bool,
    check_finite_number,
    check_positive_int,
    describe,
    type_error,
    value_error,
)
from .._functional import Batch, settings
from .._types import BatchLike, ForwardFn
from ..sampling._seed import check_seed, seed_all, seeds_of_draws
from ._check import CoordinateCheck, CoordinateSizes
from ._training import Loss, Measured, Task, measure

OptimizerFactory: TypeAlias = Callable[[nn.Module, int], Optimizer]
"""`optimizer(model, width)` returns the optimizer for a network of this width."""

_LR = 0.1


def coordinate_check(
    make_model: Callable[[int], nn.Module],
    widths: Sequence[int],
    x: BatchLike,
    y: Any = None,
    *,
    lr: float | None = None,
    optimizer: OptimizerFactory | None = None,
    loss: Loss | None = None,
    steps: int = 3,
    seeds: int = 3,
    seed: int = 0,
    modules: Sequence[str] | None = None,
    kernel: bool = False,
    fit_from: int = 0,
    forward_fn: ForwardFn | None = None,
    progress: bool = False,
) -> CoordinateCheck:
    r"""Measure how activations, and their changes in training, depend on the width.

    For each width n and each seed a network is made and trained on the one batch `(x, y)` for a few
    steps t. For the outputs h of every module with its own parameters, and for the network's
    outputs, it measures

        size of h_0 = √(mean of h_0²)        size of the change = √(mean of (h_t - h_0)²),

    where the means are over samples and coordinates; and for every weight
    `‖W_t - W_0‖_F / ‖W_0‖_F`. The exponent p of `size ∝ n**p` is fitted to each of them. After a
    few steps of gradient descent with one learning rate, in a network of at least three layers:

    | | outputs at the start | change of hidden layers | change of outputs |
    |---|---|---|---|
    | standard (`W ~ N(0, σ²/n)`) | 0 | +½, the first one -½ | +1: diverges |
    | NTK | 0 | -½: no features are learned | 0 |
    | μP | -½ | 0 | 0 |

    If every change keeps its size under a parameterization, learning rates that are good for a
    narrow network are good for a wide one ("coordinate checking", Yang et al. 2022). To compare
    parameterizations, pass their checks by name to `torch_ntk.plotting.plot_coordinates`.

    For each seed, the generators of torch, NumPy and Python are seeded equally before a network is
    made and before each of its forward passes. Afterwards they are in the caller's state again. The
    networks are trained with the training flags that `make_model` sets, in full precision and
    without autocast.

    Args:
        make_model: A function that returns a network of the given width with newly drawn weights,
            on the device of the batch.
        widths: At least two positive widths.
        x: A batch of any form, as `empirical_ntk` takes it.
        y: Targets; None draws random signs for each seed, the same for every width.
        lr: The learning rate of plain gradient descent at every width; None means 0.1. For
            meaningful slopes it must be so small that the widest network does not diverge.
        optimizer: `optimizer(model, width)` returns an optimizer to be used in place of `lr`: for
            μP, which has a learning rate for each layer, or for another method.
        loss: `loss(f, y) -> scalar` of the network's outputs f in their own shape; None means
            cross-entropy for integer targets, and the mean square of f - y for others.
        steps: The number of training steps.
        seeds: The number of networks for each width.
        seed: The seed of all draws, at least 0.
        modules: Names or patterns (`"blocks.*.mlp"`) of the modules to measure; None measures all
            modules with their own parameters.
        kernel: Whether to measure the kernel on `x` too, `empirical_ntk(..., output="mean")`: the
            root mean square of the entries of Θ_0, and `‖Θ_t - Θ_0‖_F / ‖Θ_0‖_F`.
        fit_from: The smallest width to which slopes are fitted, since small networks are far from
            the limit.
        forward_fn: `forward_fn(model, batch)` calls the network in place of the usual call.
        progress: Whether to show a progress bar.

    Raises:
        TypeError: An argument has the wrong type, or `make_model` or `optimizer` does not return a
            network or an optimizer.
        ValueError: A number is out of range; there are fewer than two widths; the networks of all
            widths have the same shapes, or different modules; or the loss cannot be computed.

    References:
        Yang et al., "Tensor Programs V: Tuning large neural networks via zero-shot hyperparameter
        transfer" (2022), appendix D.1.

    Example:
        >>> import torch
        >>> from torch_ntk import MLP, coordinate_check
        >>> x = torch.randn(8, 4, dtype=torch.float64)
        >>> def network(width):
        ...     return MLP([4, width, width, 2], dtype=torch.float64)
        >>> check = coordinate_check(network, [64, 128, 256], x, steps=1)
        >>> f"{check.slope('change', 'output'):.0f}"  # in NTK parameterization: of order 1
        '0'
    """
    task = Task(
        x=Batch.coupled("x", x),
        y=y,
        loss=_check_callable("loss", loss, "loss(f, y) -> scalar"),
        make_optimizer=_optimizer_factory(lr, optimizer),
        steps=check_positive_int("steps", steps),
        modules=_check_modules(modules),
        kernel=check_bool("kernel", kernel),
        forward_fn=forward_fn,
    )
    sizes = _check_widths(widths)
    if isinstance(make_model, nn.Module) or not callable(make_model):
        raise type_error(
            "make_model",
            "a function from a width to a network",
            make_model,
            "Pass lambda width: Net(width).",
        )
    fit_from = int(check_finite_number("fit_from", fit_from, minimum=0))
    if sum(width >= fit_from for width in sizes) < 2:
        raise value_error("fit_from", f"at most {sizes[-2]}, the second largest width", fit_from)
    draws = seeds_of_draws(check_seed(seed), check_positive_int("seeds", seeds))
    measured = _measure(make_model, sizes, draws, task, progress)
    found = (
        CoordinateSizes(kind, name, sizes, _table(measured, (kind, name)), fit_from)
        for kind, name in measured[0][0]
    )
    return CoordinateCheck(sizes, steps, tuple(found))


def _measure(
    make_model: Callable[[int], nn.Module],
    widths: tuple[int, ...],
    draws: Sequence[int],
    task: Task,
    progress: bool,
) -> list[list[Measured]]:
    """The measured sizes for each width and each seed."""
    device = task.x.tensors[0].device
    found: list[list[Measured]] = []
    shapes: set[tuple[torch.Size, ...]] = set()
    bar = tqdm(total=len(widths) * len(draws), disable=not progress, unit="network")
    with bar:
        for width in widths:
            found.append([])
            for number in draws:
                with settings(None, device), torch.enable_grad():
                    seed_all(number, device)
                    model = make_model(width)
                    if not isinstance(model, nn.Module):
                        raise type_error("make_model", "a function that returns a module", model)
                    shapes.add(tuple(p.shape for p in model.parameters()))
                    found[-1].append(measure(model, width, task, number))
                bar.update()
    _check_networks(widths, shapes, found)
    return found


def _check_networks(
    widths: tuple[int, ...], shapes: set[tuple[torch.Size, ...]], found: list[list[Measured]]
) -> None:
    if len(shapes) == 1:
        raise value_error(
            "make_model",
            "a function whose networks grow with the width",
            f"parameters of the same shapes at widths {widths[0]} and {widths[-1]}",
            "Use its argument.",
        )
    first = set(found[0][0])
    for width, row in zip(widths, found, strict=True):
        for measured in row:
            if differ := first ^ set(measured):
                kind, name = min(differ)
                raise value_error(
                    "make_model",
                    "a function whose networks have the same modules at every width",
                    f"{name!r} ({kind}) at only one of the widths {widths[0]} and {width}",
                    "Select modules that all of them have with modules=.",
                )


def _table(measured: list[list[Measured]], key: tuple[Any, str]) -> Tensor:
    """The sizes `[S, W]` of one kind and name."""
    return torch.tensor([[m[key] for m in row] for row in measured], dtype=torch.float64).T


def _check_widths(widths: object) -> tuple[int, ...]:
    remedy = "Pass widths=[64, 128, 256, 512], for example."
    if isinstance(widths, str) or not isinstance(widths, Sequence):
        raise type_error("widths", "a sequence of integers", describe(widths), remedy)
    found = sorted({check_positive_int(f"widths[{k}]", w, remedy) for k, w in enumerate(widths)})
    if len(found) < 2:
        raise value_error("widths", "at least two widths", f"{list(widths)}", remedy)
    return tuple(found)


def _check_modules(modules: object) -> Sequence[str] | None:
    if modules is None:
        return None
    if isinstance(modules, str) or not isinstance(modules, Sequence) or not modules:
        raise type_error("modules", "names or patterns of modules", describe(modules))
    return [str(name) for name in modules]


def _check_callable(name: str, value: Any, form: str) -> Any:
    if value is not None and (isinstance(value, type) or not callable(value)):
        raise type_error(name, f"a function {form}", describe(value))
    return value


def _optimizer_factory(lr: float | None, optimizer: OptimizerFactory | None) -> OptimizerFactory:
    if optimizer is not None:
        if lr is not None:
            raise value_error(
                "lr", "None where there is an `optimizer`", lr, "Give one of the two."
            )
        if isinstance(optimizer, Optimizer) or not callable(optimizer):
            raise type_error(
                "optimizer",
                "a function from a network and its width to an optimizer",
                describe(optimizer),
                "Pass lambda model, width: torch.optim.Adam(model.parameters(), 1e-3).",
            )
        return optimizer
    rate = check_finite_number("lr", _LR if lr is None else lr, minimum=0.0)
    return lambda model, width: SGD(model.parameters(), lr=rate)
