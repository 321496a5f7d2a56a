"""Solve a stiff initial value problem with its exact Jacobian, for given times or for the limit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from .._checks import value_error

Method: TypeAlias = Literal["BDF", "Radau", "LSODA"]
"""Implicit solvers of `scipy.integrate`."""

METHODS: tuple[Method, ...] = get_args(Method)

Array: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tolerances:
    """The solver, its tolerances, and when it gives up.

    Attributes:
        method: The solver.
        rtol: The relative local error per step.
        atol: The absolute local error per step, in the units of the state.
        max_evaluations: The number of evaluations of the right-hand side after which the solver
            gives up.
    """

    method: Method
    rtol: float
    atol: float
    max_evaluations: int


@dataclass(frozen=True)
class Flow:
    """A state x that moves from 0 at t = 0 by ẋ = velocity(t, x).

    Attributes:
        size: The length of x.
        velocity: ẋ(t, x).
        jacobian: ∂ẋ/∂x (t, x).
        remaining: The distance of x from its limit at time t, in units of the distance that is
            tolerated: with at most 1 the limit is reached.
        horizon: A time by which the limit is reached, if there is one.
    """

    size: int
    velocity: Callable[[float, Array], Array]
    jacobian: Callable[[float, Array], Array]
    remaining: Callable[[float, Array], float]
    horizon: float


def solve(flow: Flow, times: Array, options: Tolerances, *, progress: bool = False) -> Array:
    """The states `[T, size]` of a flow at ascending times ≥ 0, where infinity means the limit.

    Raises:
        RuntimeError: The solver fails, or needs more evaluations than allowed.
        ValueError: The limit is not reached by the horizon.
    """
    from scipy import integrate  # type: ignore[import-untyped]  # slow to import
    from tqdm.auto import tqdm

    size = flow.size
    states = np.zeros((len(times), size))
    finite = int(np.isfinite(times).sum())
    done = int((times == 0.0).sum())
    if done == len(times):
        return states
    endless = finite < len(times)
    last = float(times[finite - 1]) if finite else 0.0
    bound = max(last, flow.horizon) if endless else last
    tolerances = {"rtol": options.rtol, "atol": options.atol}
    solver = getattr(integrate, options.method)(
        flow.velocity, 0.0, np.zeros(size), bound, jac=flow.jacobian, **tolerances
    )
    total = None if endless else bound
    next_look, remaining = 0.0, math.inf
    shown = "{l_bar}{bar}| t = {n:.4g} of {total:.4g} [{elapsed}<{remaining}]"
    with tqdm(
        total=total,
        desc="gradient flow",
        unit="step",
        bar_format=None if endless else shown,
        disable=not progress,
    ) as bar:
        while True:
            _step(solver, options)
            bar.update(1 if endless else solver.t - solver.t_old)
            if done < finite and solver.t >= times[done]:
                reached = int(np.searchsorted(times[:finite], solver.t, side="right"))
                states[done:reached] = solver.dense_output()(times[done:reached]).T
                done = reached
            if not endless and done == finite:
                return states
            finished = solver.status == "finished"
            if endless and (finished or solver.t >= next_look):  # whenever t has doubled
                remaining = flow.remaining(solver.t, solver.y)
                next_look = 2.0 * solver.t
                if remaining <= 1.0 and done == finite:
                    states[finite:] = solver.y
                    return states
            if finished:
                raise _no_limit(solver.t, remaining)


def _step(solver: Any, options: Tolerances) -> None:
    with np.errstate(all="ignore"):  # the solver repeats a step that overflows with a smaller one
        reason = solver.step()
    if solver.status == "failed":
        raise RuntimeError(
            f"The {options.method} solver stopped at t = {solver.t:.6g}: {reason} A loss must be "
            "twice differentiable at all outputs on the way (an absolute value is not at 0; use a "
            "smooth one); otherwise try another `method` or larger `rtol` and `atol`."
        )
    if solver.nfev > options.max_evaluations:
        raise RuntimeError(
            f"The {options.method} solver has only reached t = {solver.t:.6g} after {solver.nfev} "
            f"evaluations, more than `max_evaluations`={options.max_evaluations}. A loss that is "
            "not twice differentiable (an absolute value) makes steps tiny: use a smooth one; "
            "otherwise allow more evaluations, or larger `rtol` and `atol`."
        )


def _no_limit(t: float, remaining: float) -> ValueError:
    if math.isinf(remaining):
        still = "the loss still slopes without curvature"
    else:
        still = f"the outputs still have {remaining:.3g} times their tolerance to go"
    return value_error(
        "t",
        "finite for a loss without a finite minimum",
        f"a limit that is not reached at t = {t:.3g}, where {still}",
        "Cross-entropy on labels has no limit, as the outputs grow for ever: ask for a finite "
        "time.",
    )
