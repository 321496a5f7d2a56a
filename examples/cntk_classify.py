"""Classify images with the kernel of an infinitely wide convolutional network.

    python examples/cntk_classify.py
    python examples/cntk_classify.py --dataset fashion-mnist --data-root data --size 32 --depth 11
    python examples/cntk_classify.py --pooling flatten --train 1000 --test 500

The network is trained to the end in closed form: f(x) = Θ(x, X) Θ(X, X)⁻¹ Y with zero-centred
one-hot targets Y. The default takes scikit-learn's bundled digits, which need no download.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_ntk import CNTK
from torch_ntk.predict import gradient_flow_mse, one_hot


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 digits `[N, 1, 8, 8]` and their labels."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.as_tensor(x).reshape(-1, 1, 8, 8) / 16, torch.as_tensor(y, dtype=torch.long)


def torchvision_images(name: str, root: Path) -> tuple[Tensor, Tensor]:
    """The training images of Fashion-MNIST, MNIST or CIFAR-10, as torchvision keeps them."""
    from torchvision import datasets

    kinds = {"fashion-mnist": "FashionMNIST", "mnist": "MNIST", "cifar10": "CIFAR10"}
    try:
        data = getattr(datasets, kinds[name])(root, train=True)
    except RuntimeError as error:
        sys.exit(f"{name} is not under --data-root {root} ({error}).")
    pixels = torch.as_tensor(data.data)
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    return pixels, torch.as_tensor(data.targets, dtype=torch.long)


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


def main() -> None:
    """Compute the kernel, solve, and print the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--dataset", choices=("digits", "fashion-mnist", "mnist", "cifar10"), default="digits"
    )
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--size", type=int, help="side to which images are resized")
    parser.add_argument("--depth", type=int, default=5)
    parser.add_argument("--pooling", choices=("flatten", "gap"), default="gap")
    parser.add_argument("--train", type=int, default=100)
    parser.add_argument("--test", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--float32", action="store_true", help="half the time, half the digits")
    args = parser.parse_args()
    images, labels = chosen(args)
    dtype = torch.float32 if args.float32 else torch.float64
    kernel = CNTK(args.depth, pooling=args.pooling, dtype=dtype, progress=True)
    start = time.perf_counter()
    theta = kernel(images).double()
    seconds = time.perf_counter() - start
    pairs = len(images) * (len(images) + 1) // 2
    n = args.train
    targets = one_hot(labels[:n], 10, zero_centered=True).to(theta)
    trained = gradient_flow_mse(theta[:n, :n], targets)
    _, outputs = trained(None, k_test_train=theta[n:, :n])
    right = (outputs.argmax(1) == labels[n:]).double().mean()
    spectrum = torch.linalg.eigvalsh(theta)
    print(f"{len(images)} images {tuple(images.shape[1:])}, {kernel}")
    print(f"kernel: {seconds:.1f} s, {1e3 * seconds / pairs:.2f} ms per pair")
    print(f"eigenvalues from {spectrum[0]:.3g} to {spectrum[-1]:.3g}")
    print(f"accuracy, {n} to {args.test}: {right:.1%}")


if __name__ == "__main__":
    main()
