"""`monte_carlo_kernel`: the average kernel of a random network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .._checks import check_choice, check_positive_int, type_error, value_error
from .._functional import Batch, quiet
from .._types import BatchLike, ForwardFn
from ..empirical import empirical_nngp, empirical_ntk
from ._moments import RunningMoments
from ._seed import check_seed, seed_all, seeds_of_draws


@dataclass(frozen=True, eq=False)
class MonteCarloKernel:
    """A kernel averaged over draws of a random network.

    Attributes:
        mean: The average kernel `[N1, N2]`, float64.
        standard_error: The standard error of the mean, `[N1, N2]`: the standard deviation of a
            single draw divided by √n_samples.
        n_samples: The number of networks that were drawn.
    """

    mean: Tensor
    standard_error: Tensor
    n_samples: int


def monte_carlo_kernel(
    make_model: Callable[[], nn.Module],
    x1: BatchLike,
    x2: BatchLike | None = None,
    *,
    n_samples: int,
    kind: Literal["ntk", "nngp"] = "ntk",
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
    forward_fn: ForwardFn | None = None,
) -> MonteCarloKernel:
    """The kernel of finite random networks, averaged over draws, with its standard error.

    With Θ_s the kernel of the s-th of n networks,

        mean = 1/n Σ_s Θ_s,    standard_error = √(Σ_s (Θ_s - mean)² / (n - 1) / n)

    entry by entry. As the widths grow the mean converges to `torch_ntk.analytic_ntk` (or
    `analytic_nngp`) of the network, for ordinary layers with the matching `standard=`. This checks
    a limit, or estimates one for which no recursion is known. At a finite width the mean differs
    from the limit by O(1/width), which more draws do not change.

    Before every call of `make_model` the generators of torch, NumPy and Python are seeded from
    `seed` and the number of the draw, so that a longer run begins with the draws of a shorter one.
    Afterwards the generators are in the state that the caller left them in.

    Args:
        make_model: A function that returns a network with newly drawn weights at each call. It may
            also redraw the weights of one module and return that module every time.
        x1: A batch of N1 samples, as `empirical_ntk` takes it, in the dtype of the networks.
        x2: A batch of N2 samples; None means x2 = x1.
        n_samples: The number of networks to draw, at least 2.
        kind: `"ntk"` for `empirical_ntk(..., output="mean")`, or `"nngp"` for `empirical_nngp`.
        seed: The seed of all draws, at least 0.
        batch_size: As in `empirical_ntk`.
        progress: Whether to show a progress bar.
        forward_fn: As in `empirical_ntk`.

    Raises:
        TypeError: `make_model` cannot be called or does not return a module, or an argument is of
            the wrong type.
        ValueError: Two draws have equal weights; `n_samples` is less than 2; or as `empirical_ntk`.

    Example:
        >>> import torch
        >>> from torch_ntk import NTKLinear
        >>> k = monte_carlo_kernel(lambda: NTKLinear(2, 8), torch.eye(2), n_samples=3)
        >>> k.mean.shape, k.n_samples
        (torch.Size([2, 2]), 3)
    """
    _check(make_model, n_samples, seed)
    check_choice("kind", kind, ("ntk", "nngp"))
    device = Batch.of("x1", x1).tensors[0].device
    if x2 is not None:
        Batch.of("x2", x2)
    seeds = seeds_of_draws(seed, n_samples)
    moments = RunningMoments()
    before: list[Tensor] | None = None
    for number in tqdm(seeds, disable=not progress, desc="draws", unit="network"):
        with quiet(None, device):
            seed_all(number, device)
            with torch.enable_grad():  # `make_model` may train the network
                model = make_model()
        if not isinstance(model, nn.Module):
            raise type_error(
                "make_model",
                "a function that returns an nn.Module",
                f"one that returns {model!r:.60}",
                "Give the function itself, for example monte_carlo_kernel(lambda: Net(), x).",
            )
        before = _new_weights(model, before)
        if kind == "ntk":
            value = empirical_ntk(
                model, x1, x2, output="mean", batch_size=batch_size, forward_fn=forward_fn
            )
        else:
            value = empirical_nngp(model, x1, x2, batch_size=batch_size, forward_fn=forward_fn)
        moments.add(value)
    return MonteCarloKernel(moments.mean, moments.standard_error, n_samples)


def _check(make_model: object, n_samples: object, seed: object) -> None:
    if isinstance(make_model, nn.Module) or not callable(make_model):
        raise type_error(
            "make_model",
            "a function that makes a network with new weights",
            make_model,
            "A module has one set of weights: give lambda: Net(...), which makes one.",
        )
    if check_positive_int("n_samples", n_samples) < 2:
        raise value_error("n_samples", "at least 2", n_samples, "One draw has no standard error.")
    check_seed(seed)


def _new_weights(model: nn.Module, before: list[Tensor] | None) -> list[Tensor]:
    """Copies of the model's parameters and buffers, which must differ from the previous ones."""
    weights = [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
    if before is None or len(weights) != len(before):
        return weights
    if all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(weights, before, strict=True)):
        raise value_error(
            "make_model",
            "a function that draws new weights at each call",
            "two networks with equal weights",
            "Make the network inside of it, or draw its weights again, and do not set a seed: "
            "seeds are set for each draw.",
        )
    return weights
