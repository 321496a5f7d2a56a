"""The networks of `empirical.py`, for torch and for neural-tangents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NAMES = {
    "mlp": "MLP 784-1024³-10",
    "cnn": "CNN 32-32-32-10",
    "gap": "CNN 64-64-128-GAP-10",
    "resnet": "ResNet-18 (CIFAR, no norm)",
}


class Block(nn.Module):
    """Two convolutions and a shortcut, without normalization."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = stride == 1 and inputs == outputs
        self.way = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images to images."""
        return torch.relu(self.two(torch.relu(self.one(x))) + self.way(x))


def conv(inputs: int, outputs: int, stride: int = 1, padding: int = 0) -> list[nn.Module]:
    """A 3×3 convolution and a ReLU."""
    return [nn.Conv2d(inputs, outputs, 3, stride, padding), nn.ReLU()]


def net(job: dict[str, Any]) -> tuple[nn.Module, Tensor]:
    """The network of a job and its inputs, on its device."""
    model, x = _net(job)
    device = job.get("device", "cpu")
    return model.to(device), x.to(device)


def _net(job: dict[str, Any]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    width, outputs = job.get("width", 1024), job.get("outputs", 10)
    if job["net"] == "mlp":
        layers: list[nn.Module] = [nn.Linear(784, width), nn.ReLU()]
        for _ in range(2):
            layers += [nn.Linear(width, width), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(width, outputs)), torch.randn(job["n"], 784)
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if job["net"] == "cnn":
        layers = [*conv(3, 32), *conv(32, 32), *conv(32, 32), nn.Flatten(), nn.Linear(21632, 10)]
    elif job["net"] == "gap":
        layers = [*conv(3, 64, 1, 1), *conv(64, 64, 2, 1), *conv(64, 128, 2, 1), *pool]
        layers.append(nn.Linear(128, 10))
    else:
        layers, inputs = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.ReLU()], 64
        for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            layers += [Block(inputs, channels, stride), Block(channels, channels, 1)]
            inputs = channels
        layers += [*pool, nn.Linear(512, 10)]
    return nn.Sequential(*layers), torch.randn(job["n"], 3, 32, 32)


def stax_net(job: dict[str, Any]) -> tuple[Any, tuple[int, ...]]:
    """The same network in neural-tangents, and the shape of a batch."""
    from neural_tangents import stax

    def dense(width: int) -> Any:
        return stax.Dense(width, W_std=1.0, b_std=0.1)

    def conv3(channels: int, stride: int = 1, padding: str = "SAME", bias: Any = 0.1) -> Any:
        return stax.Conv(channels, (3, 3), (stride, stride), padding, W_std=1.0, b_std=bias)

    def block(channels: int, stride: int, same: bool) -> Any:
        main = stax.serial(
            conv3(channels, stride, bias=None), stax.Relu(), conv3(channels, bias=None)
        )
        way = stax.Conv(channels, (1, 1), (stride, stride), "SAME", W_std=1.0, b_std=None)
        shortcut = stax.Identity() if same else way
        fan = (stax.FanOut(2), stax.parallel(main, shortcut), stax.FanInSum())
        return stax.serial(*fan, stax.Relu())

    if job["net"] == "mlp":
        width, layers = job.get("width", 1024), []
        for _ in range(3):
            layers += [dense(width), stax.Relu()]
        return stax.serial(*layers, dense(job.get("outputs", 10))), (job["n"], 784)
    if job["net"] == "cnn":
        layers = [conv3(32, 1, "VALID"), stax.Relu()] * 3 + [stax.Flatten()]
    elif job["net"] == "gap":
        layers = [conv3(64), stax.Relu(), conv3(64, 2), stax.Relu(), conv3(128, 2), stax.Relu()]
        layers.append(stax.GlobalAvgPool())
    else:
        layers, inputs = [conv3(64, bias=None), stax.Relu()], 64
        for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            layers.append(block(channels, stride, stride == 1 and inputs == channels))
            layers.append(block(channels, 1, True))
            inputs = channels
        layers.append(stax.GlobalAvgPool())
    return stax.serial(*layers, dense(10)), (job["n"], 32, 32, 3)
