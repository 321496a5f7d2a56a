"""Distill scikit-learn's digits into one image per class, by gradients through neural kernels.

    python examples/distill_digits.py
    python examples/distill_digits.py --per-class 2 --steps 400
    python examples/distill_digits.py --quick

Kernel regression with the NTK of a network on a few images is asked to predict the labels of all
training images, and the pixels of the few are trained to make it right (kernel inducing points,
Nguyen, Chen, Lee 2021): autograd goes through the kernel into its inputs. Every step takes the
kernel of a network that is drawn anew, so that the images are made for none of them. They are then
judged by networks that they have not met, and by the kernel of the infinitely wide one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from _common import Data, digits, parser_of, save
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm.auto import tqdm

from torch_ntk import MLP, analytic_ntk, empirical_ntk
from torch_ntk.predict import one_hot

Kernel = Callable[[Tensor, Tensor | None], Tensor]
UNSEEN = (10_000, 10_001, 10_002)  # seeds of networks that no step draws


def network(width: int, seed: int) -> nn.Module:
    """Two hidden layers in the NTK parameterization, at random weights."""
    torch.manual_seed(seed)
    return MLP([64, width, width, 1]).requires_grad_(False)


def kernel_of(net: nn.Module, differentiable: bool = False) -> Kernel:
    """Its kernel by all parameters; they are fixed, so that gradients go to images alone."""
    names = [name for name, _ in net.named_parameters()]

    def kernel(a: Tensor, b: Tensor | None) -> Tensor:
        return empirical_ntk(net, a, b, output="mean", params=names, differentiable=differentiable)

    return kernel


def infinitely_wide(a: Tensor, b: Tensor | None) -> Tensor:
    """The kernel that those of wide networks converge to."""
    other = None if b is None else b.double()
    return analytic_ntk(MLP([64, 1, 1, 1]), a.double(), other).float()


def predicted(kernel: Kernel, x: Tensor, y: Tensor, x_test: Tensor) -> Tensor:
    """Kernel regression from images `x` and their labels `y` to others."""
    within = kernel(x, None)
    ridge = 1e-6 * within.diagonal().mean() * torch.eye(len(x))
    return kernel(x_test, x) @ torch.linalg.solve(within + ridge, y)


def accuracy(kernels: Sequence[Kernel], x: Tensor, y: Tensor, data: Data) -> float:
    """The share of test images that regression from `x` gets right, mean over the kernels."""
    with torch.no_grad():
        found = [predicted(k, x, y, data.x_test).argmax(1) == data.test_labels for k in kernels]
    return float(torch.stack(found).float().mean())


def some_of_each(data: Data, per_class: int, seed: int) -> Tensor:
    """Indices of as many images of every class, chosen at random."""
    order = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[data.labels[order] == k][:per_class] for k in range(10)])


def distill(data: Data, start: Tensor, args: argparse.Namespace) -> tuple[Tensor, list[float]]:
    """The trained images, and test accuracies after every `args.every` steps."""
    y = one_hot(data.labels, 10).float()
    images, targets = data.x[start].clone().requires_grad_(), y[start]
    optimizer = torch.optim.Adam([images], lr=args.lr)
    generator = torch.Generator().manual_seed(args.seed)
    unseen = [kernel_of(network(args.width, seed)) for seed in UNSEEN]
    curve = [accuracy(unseen, images.detach(), targets, data)]
    for step in tqdm(range(1, args.steps + 1), desc="distilling", unit="step", leave=False):
        kernel = kernel_of(network(args.width, step), differentiable=True)
        some = torch.randperm(len(data.x), generator=generator)[: args.batch]
        loss = (predicted(kernel, images, targets, data.x[some]) - y[some]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % args.every == 0:
            curve.append(accuracy(unseen, images.detach(), targets, data))
    return images.detach(), curve


def draw(
    before: Tensor,
    after: Tensor,
    curve: Sequence[float],
    marks: dict[str, float],
    args: argparse.Namespace,
) -> Figure:
    """The images before and after above, and how accuracy grew below."""
    figure = Figure(figsize=(9.0, 6.0), dpi=110, layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.0, 1.5])
    grid = above.subplots(2, 10)
    shown = slice(None, None, args.per_class)
    for row, images, name in ((grid[0], before, "real"), (grid[1], after, "distilled")):
        for axes, image in zip(row, images[shown], strict=True):
            axes.imshow(image.view(8, 8).numpy(), cmap="gray_r", vmin=-1.5, vmax=2.5)
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    axes = below.subplots()
    steps = [args.every * k for k in range(len(curve))]
    axes.plot(steps, curve, "-o", markersize=3, color="#1f6fb2", label="distilled images")
    for (name, value), style in zip(marks.items(), ("--", ":"), strict=True):
        axes.axhline(value, color="0.4", linestyle=style, label=f"{name}: {value:.1%}")
    axes.set(xlabel="step", ylabel="test accuracy, unseen networks")
    axes.legend(loc="center right", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{len(after)} images for {args.train}, by gradients through the kernel")
    return figure


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `--quick` takes few images, a small network and few steps."""
    parser = parser_of(__doc__, out="distill_digits.png")
    parser.add_argument("--per-class", type=int, default=1, help="images to distill into")
    parser.add_argument("--train", type=int, default=1200, help="images to distill")
    parser.add_argument("--batch", type=int, default=200, help="of these in every step")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.quick:
        args.train, args.batch, args.steps, args.width = 300, 100, 20, 64
    if min(args.per_class, args.batch, args.steps, args.width) < 1:
        parser.error("--per-class, --batch, --steps and --width must be at least 1")
    if not 100 <= args.train <= 1697:
        parser.error("--train must be from 100 to 1697: there are 1797 digits")
    args.every = max(1, args.steps // 10)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Distill, judge, draw."""
    args = arguments(argv)
    data = digits(args.train, None, args.seed, torch.float32)
    y = one_hot(data.labels, 10).float()
    unseen = [kernel_of(network(args.width, seed)) for seed in UNSEEN]
    start, started = some_of_each(data, args.per_class, args.seed), time.perf_counter()
    images, curve = distill(data, start, args)
    took = time.perf_counter() - started
    draws = [some_of_each(data, args.per_class, seed) for seed in range(10)]
    chosen = [accuracy(unseen, data.x[some], y[some], data) for some in draws]
    wide = [infinitely_wide]
    results = {
        "images": len(images),
        "seconds": round(took, 1),
        "distilled, unseen networks": curve[-1],
        "distilled, infinitely wide": accuracy(wide, images, y[start], data),
        "real images, mean of 10 choices": sum(chosen) / len(chosen),
        "real images, best of 10 choices": max(chosen),
        f"all {args.train} images": accuracy(unseen, data.x, y, data),
    }
    for name, value in results.items():
        print(f"{name:>32}  {value:.1%}" if 0 < value < 1 else f"{name:>32}  {value:g}")
    names = ("real images, mean of 10 choices", f"all {args.train} images")
    figure = draw(data.x[start], images, curve, {name: results[name] for name in names}, args)
    record = {"arguments": {k: str(v) for k, v in vars(args).items()}, "results": results}
    save(figure, record, args.out)


if __name__ == "__main__":
    main()
