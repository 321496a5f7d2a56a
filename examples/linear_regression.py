"""Linear regression under gradient flow: weights and outputs against the closed form.

    python examples/linear_regression.py
    python examples/linear_regression.py --samples 100 --rates 0.5 0.1 0.02
    python examples/linear_regression.py --quick

A linear model f(x) = w·x on squared error L = ½ Σ (f(x_i) - y_i)² is the simplest tangent kernel:
the gradient of f by w is x, so Θ = X Xᵀ never changes, and gradient flow is solved by

    f_t(X) = Y + exp(-X Xᵀ t) (f_0(X) - Y),      w_t = w* + exp(-Xᵀ X t) (w_0 - w*),

whose limit w* is the solution of the normal equations. The library gives both from one predictor:
w_k is the output of the model on the k-th unit vector, so weights are the outputs on the rows of
the identity matrix as test samples. They are compared with a differential equation solved by
SciPy, and with gradient descent on an `nn.Linear`, whose steps η miss the flow by an amount
proportional to η; `gradient_descent_mse` misses nothing, because it predicts those very steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from _common import COLOURS, exponent, parser_of, save, scaled
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from torch_ntk import empirical_ntk
from torch_ntk.predict import gradient_descent_mse, gradient_flow_mse

MOMENTS = 120


@dataclass(frozen=True)
class Problem:
    """Samples `[N, 2]`, targets `[N, 1]`, and the model at its start.

    Attributes:
        x: Inputs.
        y: Targets.
        w0: The weights at t = 0, `[2]`.
        solution: Those of the normal equations, `[2]`.
        theta: The kernel X Xᵀ, as `empirical_ntk` gives it.
        end: When the slowest mode has decayed to exp(-8), about 1/3000.
    """

    x: Tensor
    y: Tensor
    w0: Tensor
    solution: Tensor
    theta: Tensor
    end: float


@dataclass(frozen=True)
class Flow:
    """Closed form and differential equation at the same times.

    Attributes:
        times: `[T]`.
        weights: In closed form, `[T, 2]`.
        outputs: In closed form, `[T, N]`.
        off: The largest differences of the equation's weights and outputs from these.
    """

    times: Tensor
    weights: Tensor
    outputs: Tensor
    off: tuple[float, float]


@dataclass(frozen=True)
class Descent:
    """Gradient descent with steps of one size.

    Attributes:
        rate: The step η, in units of the largest stable one.
        weights: After each step, `[T, 2]`.
        from_flow: The largest difference of the weights from the flow's at t = k η.
        from_prediction: The largest difference of the outputs from `gradient_descent_mse`.
    """

    rate: float
    weights: Tensor
    from_flow: float
    from_prediction: float


def model_of(w: Tensor) -> nn.Linear:
    """The linear model with weights `w` `[2]`."""
    model = nn.Linear(len(w), 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(w)
    return model


def problem(samples: int, seed: int) -> Problem:
    """Correlated inputs, so that one direction of w is learned faster than the other."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 2, generator=generator, dtype=torch.float64)
    x = x @ torch.tensor([[1.0, 0.5], [0.0, 0.6]], dtype=torch.float64) / samples**0.5
    noise = torch.randn(samples, 1, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([[1.0], [-1.0]], dtype=torch.float64) + 0.3 * noise / samples**0.5
    w0 = torch.tensor([-1.5, 1.0], dtype=torch.float64)
    theta = empirical_ntk(model_of(w0), x, output="mean")
    slowest = float(torch.linalg.eigvalsh(x.T @ x)[0])
    return Problem(x, y, w0, torch.linalg.lstsq(x, y).solution[:, 0], theta, 8.0 / slowest)


def closed_form(p: Problem, times: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `[T, 2]` and outputs `[T, N]` of gradient flow; the unit vectors are test samples."""
    flow = gradient_flow_mse(p.theta, p.y)
    unit = torch.eye(2, dtype=torch.float64)
    f0 = (p.x @ p.w0)[:, None]
    outputs, weights = flow(times, f0, p.w0[:, None], k_test_train=unit @ p.x.T)
    assert weights is not None
    return weights[..., 0], outputs[..., 0]


def limit_off(p: Problem) -> float:
    """The largest difference of the flow's weights, after a very long time, from w*."""
    weights, _ = closed_form(p, torch.tensor([1e3 * p.end], dtype=torch.float64))
    return float((weights[0] - p.solution).abs().max())


def solved(p: Problem, times: Tensor) -> Flow:
    """The closed form, and ẇ = -Xᵀ (X w - Y) by an integrator that knows nothing of it."""
    weights, outputs = closed_form(p, times)
    x, y = p.x.numpy(), p.y[:, 0].numpy()
    found = solve_ivp(
        lambda _, w: -x.T @ (x @ w - y),
        (0.0, float(times[-1])),
        p.w0.numpy(),
        t_eval=times.numpy(),
        method="DOP853",
        rtol=1e-11,
        atol=1e-12,
    )
    other = torch.from_numpy(np.ascontiguousarray(found.y.T))
    off = (other - weights).abs().max(), (other @ p.x.T - outputs).abs().max()
    return Flow(times, weights, outputs, (float(off[0]), float(off[1])))


def descended(p: Problem, rate: float) -> Descent:
    """Gradient descent on an `nn.Linear` by autograd, compared with flow and prediction."""
    predict = gradient_descent_mse(p.theta, p.y, 1.0)
    lr = rate * predict.max_learning_rate
    predict = gradient_descent_mse(p.theta, p.y, lr)
    steps = max(2, round(p.end / lr))
    model = model_of(p.w0)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    weights = [p.w0]
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (model(p.x) - p.y).square().sum()).backward()
        optimizer.step()
        weights.append(model.weight.detach()[0].clone())
    found = torch.stack(weights)
    at = torch.arange(steps + 1, dtype=torch.float64)
    exact, _ = closed_form(p, at * lr)
    predicted, _ = predict(at, (p.x @ p.w0)[:, None])
    off = (found @ p.x.T - predicted[..., 0]).abs().max()
    return Descent(rate, found, float((found - exact).abs().max()), float(off))


def draw(p: Problem, flow: Flow, runs: Sequence[Descent], slope: float) -> Figure:
    """The path of w, the outputs over time, and the error of finite steps."""
    figure = Figure(figsize=(11.0, 3.9), dpi=110, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _draw_path(p, flow, runs[0], left)
    _draw_outputs(p, flow, runs[0], middle)
    rates = [run.rate for run in runs]
    errors = [run.from_flow for run in runs]
    right.loglog(rates, errors, "o-", color=COLOURS[0], label=f"measured: slope {slope:.2f}")
    line = scaled(rates, 1.0, 0.55 * errors[0])
    right.loglog(rates, line, ":", color="0.3", label="slope 1")
    right.set(
        xlabel="step η / largest stable step",
        ylabel="largest distance of w from the flow",
        title="finite steps against the flow",
    )
    right.grid(alpha=0.25)
    right.legend(fontsize=8)
    return figure


def _shown(run: Descent) -> list[int]:
    """Steps to mark: every one at first, fewer and fewer later."""
    last = len(run.weights) - 1
    return sorted({0, *(round(last ** (k / 24)) for k in range(25))})


def _draw_path(p: Problem, flow: Flow, run: Descent, axes: Axes) -> None:
    """Where w goes, over the lines of equal loss."""
    corners = torch.stack([p.w0, p.solution])
    low, high = corners.min(0).values - 0.7, corners.max(0).values + 0.7
    a, b = (torch.linspace(float(low[k]), float(high[k]), 80, dtype=torch.float64) for k in (0, 1))
    grid = torch.stack(torch.meshgrid(a, b, indexing="xy"), -1)
    loss = 0.5 * (grid @ p.x.T - p.y[:, 0]).square().sum(-1)
    axes.contour(a, b, loss.sqrt(), levels=14, colors="0.8", linewidths=0.8)
    axes.plot(*flow.weights.T, color=COLOURS[0], linewidth=2.2, label="flow in closed form")
    dots = {"color": COLOURS[1], "markersize": 4.5, "linestyle": "none"}
    axes.plot(
        *run.weights[_shown(run)].T,
        marker="o",
        label=f"descent, η = {run.rate:g} of the largest",
        **dots,
    )
    axes.plot(*p.w0, "s", color="black", markersize=5, label="w_0")
    axes.plot(*p.solution, "*", color="black", markersize=11, label="(XᵀX)⁻¹ XᵀY")
    axes.set(xlabel="w_1", ylabel="w_2", title="weights, over lines of equal loss")
    axes.legend(fontsize=8, loc="lower left")


def _draw_outputs(p: Problem, flow: Flow, run: Descent, axes: Axes) -> None:
    """Outputs for the samples that move most up and down, and for one between."""
    moved = (flow.outputs[-1] - flow.outputs[0]).argsort().tolist()
    moved = [moved[0], moved[len(moved) // 2], moved[-1]]
    lr, shown = p.end / (len(run.weights) - 1), _shown(run)
    for k, (sample, colour) in enumerate(zip(moved, COLOURS[:3], strict=True)):
        axes.plot(flow.times, flow.outputs[:, sample], color=colour, linewidth=2.2)
        outputs = run.weights @ p.x[sample]
        axes.plot(torch.tensor(shown) * lr, outputs[shown], "o", color=colour, markersize=4.5)
        axes.axhline(float(p.x[sample] @ p.solution), color=colour, linestyle=":", linewidth=1.2)
        axes.annotate(f"x_{k + 1}", (0.0, float(flow.outputs[0, sample])), xytext=(6, 4),
                      textcoords="offset points", color=colour, fontsize=9)  # fmt: skip
    axes.plot([], [], color="0.3", linewidth=2.2, label="flow in closed form")
    axes.plot([], [], "o", color="0.3", markersize=4.0, label="gradient descent")
    axes.plot([], [], ":", color="0.3", label="w*·x, the limit")
    axes.set(
        xlabel="time t = η · steps",
        ylabel="output f_t(x)",
        title="outputs for three samples",
        xlim=(-0.03 * p.end, 0.6 * p.end),
    )
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def print_table(p: Problem, flow: Flow, runs: Sequence[Descent], slope: float) -> None:
    """What was found, and what it says."""
    print(f"{len(p.x)} samples, 2 weights; times up to {p.end:.3g}")
    print(f"ODE against the closed form: w off by {flow.off[0]:.1e}, f by {flow.off[1]:.1e}")
    print(f"limit against the normal equations: {limit_off(p):.1e}")
    head = ("η / largest", "steps", "w off the flow", "f off gradient_descent_mse")
    print("\n{:>11} {:>6} {:>15} {:>28}".format(*head))
    for run in runs:
        steps = len(run.weights) - 1
        print(f"{run.rate:>11g} {steps:>6} {run.from_flow:>15.2e} {run.from_prediction:>28.1e}")
    print(
        "\nThe closed form is the flow, to the digits of the integrator. Gradient descent leaves "
        f"it by η^{slope:.2f} (theory: η^1), and is itself predicted to rounding."
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Solve, descend, compare."""
    parser = parser_of(__doc__, out="linear_regression.png")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--rates", type=float, nargs="+", help="steps, of the largest stable one",
                        default=[0.3, 0.1, 0.03, 0.01, 0.003])  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.quick:
        args.rates = [0.3, 0.1, 0.03, 0.01]
    rates = sorted(set(args.rates), reverse=True)
    if len(rates) < 2 or not 0 < rates[-1] <= rates[0] < 1:
        parser.error("--rates takes at least two numbers between 0 and 1")
    if args.samples < 2:
        parser.error("--samples must be at least 2: there are two weights")
    p = problem(args.samples, args.seed)
    flow = solved(p, p.end * torch.linspace(0.0, 1.0, MOMENTS, dtype=torch.float64) ** 2)
    runs = [descended(p, rate) for rate in rates]
    slope, _ = exponent(rates, torch.tensor([[run.from_flow for run in runs]]))
    print_table(p, flow, runs, slope)
    numbers = {
        "main": {"slope": slope, "ODE off": max(flow.off)},
        "solution": p.solution.tolist(),
        "ode": {"weights": flow.off[0], "outputs": flow.off[1]},
        "limit_off": limit_off(p),
        "rates": rates,
        "from_flow": [run.from_flow for run in runs],
        "from_prediction": [run.from_prediction for run in runs],
        "slope": {"measured": slope, "theory": 1.0},
    }
    save(draw(p, flow, runs, slope), numbers, args.out)


if __name__ == "__main__":
    main()
