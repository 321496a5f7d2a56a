"""Draw `docs/images/curves.png`, what trainings look like: `python docs/draw_curves.py`."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits

from torch_ntk import MLP, empirical_ntk
from torch_ntk.monitor import Monitor
from torch_ntk.predict import max_learning_rate, one_hot

STEPS = 200
SHOWN = (0, 1, 2, 3, 4, 5, 6, 8, 10, *range(15, 40, 5), *range(40, STEPS + 1, 20))
# Name, width, learning rate in units of the largest stable one at the start, colour, line.
TRAININGS = (
    ("lazy", 1024, 0.5, "#0072b2", "-"),
    ("feature learning", 16, 0.3, "#e69f00", "-"),
    ("divergence", 1024, 8.0, "#cc3311", "--"),
    ("too small a learning rate", 1024, 0.0005, "#666666", ":"),
)
PANELS = (
    ("loss", "loss", True),
    ("ntk/drift", "kernel drift", True),
    ("ntk/kernel_distance", "kernel distance", True),
    ("ntk/linearization_gap", "linearization gap", True),
    ("ntk/alignment", "alignment with the classes", False),
    ("ntk/stability", "lr · λ_max of the loss (limit 2)", True),
    ("ntk/lambda_max", "λ_max", True),
    ("ntk/param_drift", "parameter drift", True),
)
LIMITS = {
    "ntk/drift": 0.1,
    "ntk/kernel_distance": 0.05,
    "ntk/linearization_gap": 0.1,
    "ntk/stability": 2.0,
}


def run(width: int, share: float) -> tuple[dict[str, list[float]], str]:
    """The curves of one training, the loss among them, and its verdict."""
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.as_tensor(digits.data[:256] / 16).float()
    labels = torch.as_tensor(digits.target[:256])
    y = one_hot(labels, 10, zero_centered=True).float()
    net = MLP([64, width, width, 10])
    theta = empirical_ntk(net, x, output="mean")
    lr = share * max_learning_rate(theta, reduction="mean", num_outputs=10)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    metrics = ("drift", "kernel_distance", "linearization_gap", "alignment", "lambda_max")
    monitor = Monitor(
        (x[:32], y[:32]),
        metrics=(*metrics, "param_drift", "stability"),
        at_steps=SHOWN,
        loss=lambda f, target: 0.5 * (f - target).square().mean(),
        on_error="warn",
    )
    losses = []
    for step in range(STEPS + 1):
        monitor.step(net, optimizer)
        loss = 0.5 * (net(x) - y).square().mean()
        losses += [loss.item()] * (step in SHOWN)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    curves = {name: list(values) for name, values in monitor.history.items()}
    curves["steps of loss"], curves["loss"] = list(SHOWN), losses
    return curves, str(monitor.verdict)


def main() -> None:
    """Write the picture, and print the verdicts."""
    figure, axes = plt.subplots(2, 4, figsize=(13, 5.6), constrained_layout=True)
    for name, width, share, colour, line in TRAININGS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            curves, verdict = run(width, share)
        print(f"{name}: {verdict}")
        for ax, (key, _, _) in zip(axes.flat, PANELS, strict=True):
            steps = curves["steps of loss" if key == "loss" else "step"]
            values = np.asarray(curves[key], dtype=float)
            shown = np.isfinite(values) & (np.abs(values) < 1e6)
            ax.plot(np.asarray(steps)[shown], values[shown], line, color=colour, label=name, lw=2)
    for ax, (key, title, logarithmic) in zip(axes.flat, PANELS, strict=True):
        ax.set_title(title, size=11)
        ax.set_xlabel("step")
        ax.set_xscale("symlog", linthresh=2)
        ax.set_xticks((0, 1, 2, 10, 100), ("0", "1", "2", "10", "100"))
        if key in LIMITS:
            ax.axhline(LIMITS[key], color="k", lw=0.8, ls=(0, (2, 3)))
        if logarithmic:
            ax.set_yscale("log")
            low, high = ax.get_ylim()
            ax.set_ylim(max(low, 1e-6), min(high, 1e4))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(Path(__file__).parent / "images" / "curves.png", dpi=80)


if __name__ == "__main__":
    main()
