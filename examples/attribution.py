"""Which training images does a prediction rest on? TRAK's estimator, checked by retraining.

    python examples/attribution.py
    python examples/attribution.py --images 12 --remove 10 40 160 --dim 1024
    python examples/attribution.py --quick

A small network learns scikit-learn's digits. For a test image z and each training image x_i

    τ_i = φ(z) (Φᵀ Φ)⁻¹ φ(x_i) (1 - p_i)

says how much x_i speaks for the right class of z (Park et al. 2023, "TRAK: attributing model
behavior at scale", with one trained network). φ are random features of the gradient of the margin
log p / (1 - p), `ntk_features` with a `forward_fn`, and p_i is the probability of the right class.
Then networks are trained anew without the images of the highest τ, without as many random ones,
and without those of the lowest: the margin of z should fall, stay, and rise.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from _common import Data, digits, parser_of, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F
from tqdm.auto import tqdm

from torch_ntk import ntk_features

REMOVED = ("highest", "random", "lowest")
COLOURS = {"highest": "#b5452c", "random": "#8a8f94", "lowest": "#2c6fb5"}
SHOWN = 5


@dataclass(frozen=True)
class Result:
    """What was predicted and what happened.

    Attributes:
        tau: τ `[images, N]`.
        full: Margins of the networks that have seen all images, `[images, seeds]`.
        change: By what was removed, how the margins changed, `[images, len(remove), seeds]`.
    """

    tau: Tensor
    full: Tensor
    change: dict[str, Tensor]


def network(seed: int, width: int) -> nn.Sequential:
    """One hidden layer."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The margin log p / (1 - p) of the right class, `[N]`."""
    own = F.one_hot(labels, logits.shape[-1]).bool()
    others = logits.masked_fill(own, -math.inf).logsumexp(-1)
    return (logits * own).sum(-1) - others


def margins(net: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """Of images and their labels, `[N, 1]`."""
    x, labels = batch
    return margin(net(x), labels).unsqueeze(-1)


def trained(
    data: Data, weights: Tensor, seeds: Sequence[int], args: argparse.Namespace
) -> tuple[dict[str, Tensor], Tensor]:
    """Train M networks at once: their parameters, and the margins of test images `[M, images]`.

    Args:
        data: The digits.
        weights: Of each training image for each network, `[M, N]`.
        seeds: Of each network's start.
        args: The command line.
    """
    nets = [network(seed, args.width) for seed in seeds]
    net = nets[0]
    params = {name: p.detach() for name, p in stack_module_state(nets)[0].items()}
    steps = {name: torch.zeros_like(p) for name, p in params.items()}

    def loss(params: dict[str, Tensor], weight: Tensor) -> Tensor:
        logits = functional_call(net, params, (data.x,))
        each = F.cross_entropy(logits, data.labels, reduction="none")
        return (each * weight).sum() / weight.sum()

    slope = vmap(grad(loss))
    for _ in tqdm(range(args.steps), desc=f"training {len(nets)} networks", leave=False):
        for name, g in slope(params, weights).items():
            steps[name].mul_(0.9).add_(g)
            params[name].sub_(args.lr * steps[name])
    logits = vmap(lambda p: functional_call(net, p, (data.x_test,)))(params)
    return params, margin(logits, data.test_labels.expand(len(nets), -1))


def scores(net: nn.Module, data: Data, dim: int) -> Tensor:
    """τ `[images, N]`."""
    train, test = [data.x, data.labels], [data.x_test, data.test_labels]
    phi, phi_test = (
        ntk_features(net, batch, dim, forward_fn=margins, dtype=torch.float64)
        for batch in (train, test)
    )
    gram = phi.T @ phi
    # Some directions of the features hold next to nothing, whatever their number.
    gram += 1e-3 * gram.diagonal().mean() * torch.eye(dim, dtype=gram.dtype)
    with torch.no_grad():
        wrong = torch.sigmoid(-margins(net, train)[:, 0].double())  # 1 - p
    return phi_test @ torch.linalg.solve(gram, phi.T) * wrong


def retrained(data: Data, tau: Tensor, full: Tensor, args: argparse.Namespace) -> dict[str, Tensor]:
    """How margins change when images are removed: `[images, len(remove), seeds]` by which."""
    n, generator = len(data.x), torch.Generator().manual_seed(args.seed)
    orders = {
        "highest": tau.argsort(dim=1, descending=True),
        "random": torch.stack([torch.randperm(n, generator=generator) for _ in tau]),
        "lowest": tau.argsort(dim=1),
    }
    found = {}
    for which, order in orders.items():
        weights = torch.ones(len(tau), len(args.remove), args.seeds, n)
        for image, row in enumerate(order):
            for j, k in enumerate(args.remove):
                weights[image, j, :, row[:k]] = 0.0
        seeds = list(range(args.seeds)) * (len(tau) * len(args.remove))
        _, after = trained(data, weights.view(-1, n), seeds, args)
        after = after.view(len(tau), len(args.remove), args.seeds, len(tau))
        own = torch.stack([after[image, ..., image] for image in range(len(tau))])
        found[which] = own - full.unsqueeze(1)
    return found


def print_table(result: Result, remove: Sequence[int]) -> None:
    """Mean changes of the margin, with the standard error over test images."""
    print(f"margin with all training images: {float(result.full.mean()):.2f}")
    print(f"{'removed':>8}" + "".join(f"   {which:>14}" for which in REMOVED))
    for j, k in enumerate(remove):
        cells = []
        for which in REMOVED:
            error, mean = torch.std_mean(result.change[which][:, j].mean(1))
            cells.append(f"{float(mean):+.2f} ± {float(error) / len(result.tau) ** 0.5:.2f}")
        print(f"{k:>8}" + "".join(f"   {cell:>14}" for cell in cells))


def draw(data: Data, result: Result, args: argparse.Namespace) -> Figure:
    """Test images with what speaks for and against them, and the changes of the margin."""
    figure = Figure(figsize=(11.0, 5.2), dpi=110, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.2, 1.0))
    _draw_images(left, data, result.tau)
    axes = right.subplots(1, 1, squeeze=False)[0, 0]
    for which in REMOVED:
        each = result.change[which].mean(2)
        error = each.std(0) / len(each) ** 0.5
        label = "random ones" if which == "random" else f"those of {which} τ"
        style = {"color": COLOURS[which], "marker": "o", "capsize": 3.0, "label": label}
        axes.errorbar(args.remove, each.mean(0).tolist(), error.tolist(), **style)
    axes.axhline(0.0, color="0.6", linewidth=0.8)
    axes.set(xlabel="training images removed", ylabel="change of the margin log p / (1 - p)")
    axes.set_title(f"after retraining: {len(result.tau)} test images, {args.seeds} seeds each")
    axes.legend(title="removed")
    return figure


def _draw_images(figure: SubFigure, data: Data, tau: Tensor) -> None:
    rows = min(4, len(tau))
    grid = figure.subplots(rows, 1 + 2 * SHOWN, squeeze=False)
    for image, row in enumerate(grid):
        order = tau[image].argsort(descending=True)
        chosen = [*order[:SHOWN].tolist(), *order.flip(0)[:SHOWN].tolist()]
        _digit(row[0], data.x_test[image], f"{int(data.test_labels[image])}", "black")
        for j, (axes, i) in enumerate(zip(row[1:], chosen, strict=True)):
            colour = COLOURS["highest" if j < SHOWN else "lowest"]
            _digit(axes, data.x[i], f"{int(data.labels[i])}", colour)
    figure.suptitle("test image | highest τ: for its class | lowest τ: against it", fontsize=11)


def _digit(axes: Axes, pixels: Tensor, label: str, colour: str) -> None:
    axes.imshow(pixels.view(8, 8).tolist(), cmap="gray_r")
    axes.set(xticks=[], yticks=[])
    axes.set_title(label, fontsize=9, color=colour)
    for side in axes.spines.values():
        side.set_color(colour)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `--quick` takes few images and networks."""
    parser = parser_of(__doc__, out="attribution.png")
    parser.add_argument("--train", type=int, default=1000, help="training images")
    parser.add_argument("--images", type=int, default=8, help="test images")
    parser.add_argument("--remove", type=int, nargs="+", default=[10, 20, 40, 80])
    parser.add_argument("--seeds", type=int, default=4, help="networks for each removal")
    parser.add_argument("--dim", type=int, default=512, help="features")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0, help="of the data and the network")
    args = parser.parse_args(argv)
    if args.quick:
        args.train, args.images, args.remove, args.seeds, args.steps = 500, 6, [20], 3, 150
    if min(args.train, args.images, *args.remove, args.seeds, args.dim, args.steps) < 1:
        parser.error("all numbers must be at least 1")
    if max(args.remove) >= args.train:
        parser.error("--remove must be less than --train")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Attribute, retrain, compare."""
    args = arguments(argv)
    data = digits(args.train, args.images, args.seed, torch.float32)
    params, full = trained(data, torch.ones(args.seeds, args.train), list(range(args.seeds)), args)
    full = full.T
    net = network(0, args.width)
    net.load_state_dict({name: p[0] for name, p in params.items()})
    tau = scores(net, data, args.dim)
    result = Result(tau, full, retrained(data, tau, full, args))
    print_table(result, args.remove)
    numbers = {
        "remove": args.remove,
        "margin": full.mean(1).tolist(),
        "change": {which: change.mean(2).tolist() for which, change in result.change.items()},
        "highest": tau.argsort(dim=1, descending=True)[:, :SHOWN].tolist(),
        "lowest": tau.argsort(dim=1)[:, :SHOWN].tolist(),
    }
    save(draw(data, result, args), numbers, args.out)


if __name__ == "__main__":
    main()
