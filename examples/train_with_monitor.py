"""Train a network on real data and see in TensorBoard whether its training is lazy.

    python examples/train_with_monitor.py
    python examples/train_with_monitor.py --width 2048 --loss mse
    python examples/train_with_monitor.py --dataset fashion-mnist --data-root data --model cnn

The default trains on scikit-learn's bundled digits, which need no download.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import warnings
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from torch_ntk import MLP, NTKConv2d, NTKLinear, standard_init_
from torch_ntk.callbacks import NTKMonitor

POINTS = 20  # measurements in a run, besides the first and the last
ROWS = (
    ("drift", "kernel drift ‖Θt-Θ0‖/‖Θ0‖"),
    ("linearization_gap", "linearization gap"),
    ("param_drift", "parameter drift ‖θt-θ0‖/‖θ0‖"),
    ("alignment", "alignment with the classes"),
    ("lambda_min", "smallest eigenvalue"),
    ("lambda_max", "largest eigenvalue"),
    ("condition", "condition number"),
    ("effective_rank", "effective rank"),
)


# ------------------------------------------------------------------------------ data
def digits() -> tuple[TensorDataset, TensorDataset]:
    """scikit-learn's 1,797 digits of 8×8 pixels; every fifth is for validation."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    images = torch.as_tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    labels = torch.as_tensor(y, dtype=torch.long)
    held_out = torch.arange(len(labels)) % 5 == 0
    return standardized(images[~held_out], labels[~held_out], images[held_out], labels[held_out])


def torchvision_images(
    name: str, root: Path, download: bool
) -> tuple[TensorDataset, TensorDataset]:
    """Fashion-MNIST, MNIST or CIFAR-10 as torchvision keeps them under `root`."""
    from torchvision import datasets

    kind = {
        "fashion-mnist": datasets.FashionMNIST,
        "mnist": datasets.MNIST,
        "cifar10": datasets.CIFAR10,
    }[name]
    try:
        parts = [kind(root, train=train, download=download) for train in (True, False)]
    except RuntimeError as error:
        sys.exit(
            f"{name} is not under --data-root {root} ({error}).\n"
            f"Put the files there as torchvision lays them out ({kind.__name__}/raw for the MNIST "
            "kinds), or add --download where there is a network."
        )
    images, labels = [], []
    for part in parts:
        pixels = torch.as_tensor(part.data)
        grey = pixels.ndim == 3
        pixels = pixels.unsqueeze(1) if grey else pixels.permute(0, 3, 1, 2)
        images.append(pixels.float() / 255)
        labels.append(torch.as_tensor(part.targets, dtype=torch.long))
    return standardized(images[0], labels[0], images[1], labels[1])


def standardized(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor
) -> tuple[TensorDataset, TensorDataset]:
    """Mean 0 and variance 1 per channel, by the training images."""
    mean = train_x.mean(dim=(0, 2, 3), keepdim=True)
    std = train_x.std(dim=(0, 2, 3), keepdim=True)
    return (
        TensorDataset((train_x - mean) / std, train_y),
        TensorDataset((test_x - mean) / std, test_y),
    )


# ------------------------------------------------------------------------------ network
def mlp(shape: torch.Size, width: int, parameterization: str) -> nn.Module:
    """Two hidden layers on the flattened image."""
    widths = [shape.numel(), width, width, 10]
    return nn.Sequential(nn.Flatten(), MLP(widths, parameterization=parameterization))


def cnn(shape: torch.Size, width: int, parameterization: str) -> nn.Module:
    """Three convolutions, the second and third with stride 2, and a dense layer."""
    gain = math.sqrt(2)
    side = -(-shape[1] // 4) * -(-shape[2] // 4)
    is_ntk = parameterization == "ntk"
    conv, dense = (
        (partial(NTKConv2d, sigma_w=gain), NTKLinear) if is_ntk else (nn.Conv2d, nn.Linear)
    )
    body = nn.Sequential(
        conv(shape[0], width, 3, padding=1),
        nn.ReLU(),
        conv(width, width, 3, stride=2, padding=1),
        nn.ReLU(),
        conv(width, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        dense(width * side, 10),
    )
    if not is_ntk:
        standard_init_(body[:-1], sigma_w=gain, sigma_b=0.1)
        standard_init_(body[-1], sigma_w=1.0, sigma_b=0.1)
    return body


class Classifier(LightningModule):
    """Plain SGD on cross-entropy, or on ½(f - y)² with zero-centred one-hot targets."""

    def __init__(self, network: nn.Module, lr: float, loss: str = "cross-entropy") -> None:
        super().__init__()
        self.network = network
        self.lr = lr
        self.loss_name = loss

    def forward(self, x: Tensor) -> Tensor:
        """Outputs `[N, 10]`."""
        return self.network(x)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The mean loss over a batch."""
        if self.loss_name == "cross-entropy":
            return F.cross_entropy(outputs, labels)
        targets = F.one_hot(labels, 10).to(outputs.dtype) - 0.1
        return (outputs - targets).square().sum(1).mean() / 2

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """The loss of a batch."""
        loss = self.loss(self(batch[0]), batch[1])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Loss and accuracy on held-out images."""
        outputs = self(batch[0])
        self.log("val/loss", self.loss(outputs, batch[1]))
        accuracy = (outputs.argmax(1) == batch[1]).float().mean()
        self.log("val/accuracy", accuracy, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD without momentum."""
        return torch.optim.SGD(self.parameters(), lr=self.lr)


# ------------------------------------------------------------------------------ run
def positive_int(text: str) -> int:
    """An integer of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text}")
    return value


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", choices=("digits", "fashion-mnist", "mnist", "cifar10"), default="digits")
    add("--data-root", type=Path, default=Path("data"), help="where torchvision finds its files")
    add("--download", action="store_true", help="let torchvision fetch what is missing")
    add("--model", choices=("mlp", "cnn"), default="mlp")
    add("--width", type=positive_int, help="hidden units (default 512) or channels (default 32)")
    add("--parameterization", choices=("ntk", "standard"), default="ntk")
    add("--loss", choices=("cross-entropy", "mse"), default="cross-entropy")
    add("--lr", type=float, help="learning rate of SGD (default: by parameterization and width)")
    add("--max-epochs", type=positive_int, help="default 30 on digits, 5 elsewhere")
    add("--batch-size", type=positive_int, default=64)
    add("--probe", type=positive_int, default=64, help="samples on which the kernel is measured")
    add("--seed", type=int, default=0)
    add("--log-dir", type=Path, default=Path("runs"))
    args = parser.parse_args(argv)
    if args.width is None:
        args.width = 512 if args.model == "mlp" else 32
    if args.max_epochs is None:
        args.max_epochs = 30 if args.dataset == "digits" else 5
    if args.lr is None:
        # In standard parameterization the kernel, and with it the curvature of the loss, grows
        # like the width: the same speed in function space needs a rate that much smaller.
        args.lr = 0.5 if args.parameterization == "ntk" else 0.5 / args.width
    return args


def main(argv: list[str] | None = None) -> NTKMonitor:
    """Train, measure, and say what was seen."""
    args = arguments(argv)
    quiet_lightning()
    seed_everything(args.seed, verbose=False)
    if args.dataset == "digits":
        train, test = digits()
    else:
        train, test = torchvision_images(args.dataset, args.data_root, args.download)
    build = mlp if args.model == "mlp" else cnn
    network = build(train[0][0].shape, args.width, args.parameterization)

    steps = args.max_epochs * math.ceil(len(train) / args.batch_size)
    monitor = NTKMonitor(probe=args.probe, every_n_steps=max(1, steps // POINTS))
    name = f"{args.dataset}-{args.model}{args.width}-{args.parameterization}"
    logger = TensorBoardLogger(args.log_dir, name=name)
    trainer = Trainer(
        max_epochs=args.max_epochs,
        accelerator="auto",
        devices=1,
        logger=logger,
        callbacks=[monitor],
        log_every_n_steps=max(1, min(10, steps // (5 * POINTS))),
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    print(
        f"{args.dataset}: {len(train):,} training images; {args.model} of width {args.width} in "
        f"{args.parameterization} parameterization, {count(network):,} parameters, "
        f"lr {args.lr:.3g}, {steps:,} steps"
    )
    trainer.fit(
        Classifier(network, args.lr, args.loss),
        DataLoader(train, batch_size=args.batch_size, shuffle=True),
        DataLoader(test, batch_size=1000),
    )
    report(monitor, trainer)
    print(f"\ntensorboard --logdir {args.log_dir}")
    return monitor


def report(monitor: NTKMonitor, trainer: Trainer) -> None:
    """First and last values, and the verdict."""
    history = monitor.history
    first, last = int(history["step"][0]), int(history["step"][-1])
    print(f"\n{'':<32}{f'step {first}':>14}{f'step {last}':>14}")
    for key, words in ROWS:
        values = history.get(f"ntk/{key}")
        if values is not None:
            print(f"{words:<32}{values[0]:>14.4g}{values[-1]:>14.4g}")
    accuracy = trainer.callback_metrics.get("val/accuracy")
    if accuracy is not None:
        print(f"{'validation accuracy':<32}{'':>14}{float(accuracy):>14.1%}")
    seconds = sum(history["ntk/seconds"])
    print(f"\n{len(history['step'])} measurements in {seconds:.1f} s.")
    print(f"Verdict: {monitor.verdict}.")


def count(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in network.parameters())


def quiet_lightning() -> None:
    """Leave out what Lightning says about hardware and workers; errors stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")


if __name__ == "__main__":
    main()
