"""Classify images with the kernel of an infinitely wide network.

    python examples/cntk_classify.py
    python examples/cntk_classify.py --network unet
    python examples/cntk_classify.py --network attention
    python examples/cntk_classify.py --dataset fashion-mnist --data-root data --size 32 --depth 11
    python examples/cntk_classify.py --pooling flatten --train 1000 --test 500

The network is trained to the end in closed form: f(x) = Θ(x, X) Θ(X, X)⁻¹ Y with zero-centred
one-hot targets Y. The default takes scikit-learn's bundled digits, which need no download.

`--network cntk` is the plain convolutional network of Arora et al. 2019. The other two are modules
of NTK layers, whose kernels `analytic_ntk` reads from them: a small U-Net, which goes down to half
the positions, up again by a transposed convolution, and adds what there was; and self-attention
between patches (Hron et al. 2020), with encodings of their places.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import torch
from _common import torchvision_images
from torch import Tensor, nn
from torch.nn import functional as F

from torch_ntk import (
    CNTK,
    NTKConv2d,
    NTKConvTranspose2d,
    NTKLinear,
    NTKSelfAttention,
    analytic_ntk,
)
from torch_ntk.predict import gradient_flow_mse, one_hot


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 digits `[N, 1, 8, 8]` and their labels."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.as_tensor(x).reshape(-1, 1, 8, 8) / 16, torch.as_tensor(y, dtype=torch.long)


def chosen(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """A random choice of images, resized and standardized, and their labels."""
    if args.dataset == "digits":
        images, labels = digits()
    else:
        images, labels = torchvision_images(args.dataset, args.data_root)
    number = args.train + args.test
    if number > len(labels):
        sys.exit(f"--train and --test ask for {number} images; {args.dataset} has {len(labels)}.")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(args.seed))[:number]
    images = images[order].double()
    if args.size is not None:
        images = F.interpolate(images, (args.size, args.size), mode="bilinear", antialias=True)
    return (images - images[: args.train].mean()) / images[: args.train].std(), labels[order]


ROOT2 = math.sqrt(2)
WIDTH = 8  # only the structure counts for the limit


class UNet(nn.Module):
    """One step down and up again, beside a convolution of one point."""

    def __init__(self, channels: int, positions: int, gap: bool) -> None:
        super().__init__()
        n, self.gap = WIDTH, gap
        self.first = NTKConv2d(channels, n, 3, padding=1, sigma_w=ROOT2)
        self.down = NTKConv2d(n, n, 2, stride=2, sigma_w=ROOT2)
        self.inside = NTKConv2d(n, n, 3, padding=1, sigma_w=ROOT2)
        self.up = NTKConvTranspose2d(n, n, 2, stride=2, sigma_w=2 * ROOT2)
        self.beside = NTKConv2d(n, n, 1)
        self.last = NTKConv2d(n, n, 3, padding=1, sigma_w=ROOT2)
        self.out = NTKLinear(n if gap else n * positions, 10)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, P, Q]` to `[N, 10]`."""
        x = self.first(x).relu()
        inside = self.inside(self.down(x).relu()).relu()
        x = (self.up(inside, output_size=x.shape[2:]) + self.beside(x)).relu()
        x = self.last(x).relu()
        return self.out(x.mean((2, 3)) if self.gap else x.flatten(1))


class Attention(nn.Module):
    """Patches of 3×3 pixels that look at each other, in half the resolution."""

    def __init__(self, channels: int, patches: int, gap: bool) -> None:
        super().__init__()
        n, self.gap = WIDTH, gap
        self.patches = NTKConv2d(channels, n, 3, stride=2, padding=1, sigma_w=ROOT2)
        places = torch.arange(patches)[:, None] / 10 ** (torch.arange(n // 2) / 2)
        encodings = torch.cat([places.sin(), places.cos()], 1)
        self.register_buffer("encodings", 0.3 * encodings[None])
        self.attention = NTKSelfAttention(n, n, sigma_value=ROOT2)
        self.features = NTKLinear(n, n)
        self.out = NTKLinear(n if gap else n * patches, 10)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, P, Q]` to `[N, 10]`."""
        tokens = self.features(self.patches(x).relu().flatten(2).transpose(1, 2))
        x = (self.attention(tokens + self.encodings) + tokens).relu()
        return self.out(x.mean(1) if self.gap else x.flatten(1))


def kernel_of(args: argparse.Namespace, images: Tensor, dtype: torch.dtype) -> tuple[Tensor, str]:
    """Θ between all images, and what it is the kernel of."""
    _, channels, rows, columns = images.shape
    if args.network == "cntk":
        pooling = args.pooling or "gap"
        kernel = CNTK(args.depth, pooling=pooling, dtype=dtype, progress=True)
        theta: Tensor = kernel(images)
        return theta, str(kernel)
    if rows % 2 or columns % 2:
        sys.exit(f"--network {args.network} halves the images; {rows}×{columns} are odd.")
    gap = args.pooling == "gap"
    net: nn.Module = UNet(channels, rows * columns, gap)
    if args.network == "attention":
        net = Attention(channels, rows * columns // 4, gap)
    return analytic_ntk(net.to(dtype), images, dtype=dtype, progress=True), type(net).__name__


def main() -> None:
    """Compute the kernel, solve, and print the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--dataset", choices=("digits", "fashion-mnist", "mnist", "cifar10"), default="digits"
    )
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--size", type=int, help="side to which images are resized")
    parser.add_argument("--network", choices=("cntk", "unet", "attention"), default="cntk")
    parser.add_argument("--depth", type=int, default=5, help="of the cntk")
    parser.add_argument(
        "--pooling",
        choices=("flatten", "gap"),
        help="at the end: gap for the cntk and flatten for the others, if nothing is said",
    )
    parser.add_argument("--train", type=int, default=100)
    parser.add_argument("--test", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--float32", action="store_true", help="half the time, half the digits")
    args = parser.parse_args()
    images, labels = chosen(args)
    dtype = torch.float32 if args.float32 else torch.float64
    start = time.perf_counter()
    theta, network = kernel_of(args, images, dtype)
    theta = theta.double()
    seconds = time.perf_counter() - start
    pairs = len(images) * (len(images) + 1) // 2
    n = args.train
    targets = one_hot(labels[:n], 10, zero_centered=True).to(theta)
    trained = gradient_flow_mse(theta[:n, :n], targets)
    _, outputs = trained(None, k_test_train=theta[n:, :n])
    right = (outputs.argmax(1) == labels[n:]).double().mean()
    spectrum = torch.linalg.eigvalsh(theta)
    print(f"{len(images)} images {tuple(images.shape[1:])}, {network}")
    print(f"kernel: {seconds:.1f} s, {1e3 * seconds / pairs:.2f} ms per pair")
    print(f"eigenvalues from {spectrum[0]:.3g} to {spectrum[-1]:.3g}")
    print(f"accuracy, {n} to {args.test}: {right:.1%}")


if __name__ == "__main__":
    main()
