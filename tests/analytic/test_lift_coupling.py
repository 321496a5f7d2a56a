"""Networks whose inputs are changed by functions of the whole batch, which have no kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_ntk import NTKLinear, analytic_kernels, analytic_nngp, analytic_ntk
from torch_ntk.scale import compute_kernel

Forward = Callable[[Any, Tensor], Tensor]


class Written(nn.Module):
    """A network of one layer, with a forward that is a function of the layer and the inputs."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.layer, self._written = NTKLinear(4, 8), forward

    def forward(self, x: Tensor) -> Tensor:
        return self._written(self.layer, x)


class Masked(nn.Module):
    """A mask in the batch, of which each sample takes its own part or that of all."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.layer, self.whole = NTKLinear(4, 8), whole

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        kept = mask.any(0, keepdim=True) if self.whole else mask
        return self.layer(x) * kept[..., None]


def numbered(layer: Any, x: Tensor) -> Tensor:
    return layer(x * torch.arange(x.shape[0])[:, None])


def divided(layer: Any, x: Tensor) -> Tensor:
    y = layer(x)
    return y / y.size(0)


COUPLED: dict[str, Forward] = {
    "mean": lambda layer, x: layer(x - x.mean(0)),
    "mean, keepdim": lambda layer, x: layer(x - x.mean(0, keepdim=True)),
    "largest entry": lambda layer, x: layer(x / x.abs().max()),
    "batch normalization": lambda layer, x: layer(F.batch_norm(x, None, None, training=True)),
    "the sample before": lambda layer, x: layer(x + x.roll(1, 0)),
    "the first sample": lambda layer, x: layer(x - x[:1]),
    "sums of earlier samples": lambda layer, x: layer(x.cumsum(0)),
    "ranks": lambda layer, x: layer(x.argsort(0).double()),
    "the number of a sample": numbered,
    "the number of samples": divided,
    "after the layer": lambda layer, x: layer(x) + x.mean(0).sum() * torch.ones(8),
    "a fixed number of samples": lambda layer, x: layer(x.view(5, 4)),
}

SEPARATE: dict[str, Forward] = {
    "mean": lambda layer, x: layer(x - x.mean(1, keepdim=True)),
    "normalized": lambda layer, x: layer(F.normalize(x)),
    "squeeze": lambda layer, x: layer(x[:, None].squeeze()),
    "view": lambda layer, x: layer(x.view(x.shape[0], 2, 2).flatten(1)).view(x.size(0), -1),
    "constants": lambda layer, x: layer(torch.cat((x[:, :3], torch.ones((x.size(0), 1))), 1)),
    "number of features": lambda layer, x: layer(x) / x.shape[1],
    "sorted": lambda layer, x: layer(x.sort(1)[0]),
    "standardized": lambda layer, x: layer((x - x.mean(1)[:, None]) / x.std(1)[:, None]),
}

each_kernel = pytest.mark.parametrize("kernel", [analytic_kernels, analytic_ntk, analytic_nngp])
REFUSAL = "`model` must be a function of one sample at a time"


def samples(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", COUPLED)
def test_functions_of_the_batch_are_refused(name: str) -> None:
    net = Written(COUPLED[name])
    with pytest.raises(ValueError, match=REFUSAL):
        analytic_ntk(net, samples(5))
    if name != "a fixed number of samples":
        with pytest.raises(ValueError, match=REFUSAL):
            analytic_ntk(net, samples(2))


@pytest.mark.parametrize("numbers", [(1, 5), (1, 1), (5, 1)])
def test_two_sets_are_refused(numbers: tuple[int, int]) -> None:
    x1, x2 = (samples(n, i) for i, n in enumerate(numbers))
    with pytest.raises(ValueError, match=REFUSAL):
        analytic_ntk(Written(COUPLED["mean"]), x1, x2)


@pytest.mark.parametrize("name", SEPARATE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions_of_single_samples_are_read(name: str, dtype: torch.dtype) -> None:
    net, x, y = Written(SEPARATE[name]), samples(5), samples(3, 1)
    whole = analytic_ntk(net, x, dtype=dtype)
    part = analytic_ntk(net, x[:2], dtype=dtype)
    near = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(whole[:2, :2], part, rtol=near, atol=near)
    if name != "squeeze":
        torch.testing.assert_close(
            whole[:1, :1], analytic_ntk(net, x[:1], dtype=dtype), rtol=near, atol=near
        )
    other = analytic_ntk(net, torch.cat((x, y)), dtype=dtype)[:5, 5:]
    torch.testing.assert_close(analytic_ntk(net, x, y, dtype=dtype), other, rtol=near, atol=near)


@each_kernel
def test_every_kernel_refuses(kernel: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match=rf"{REFUSAL}; got 'sub', computed from the inputs"):
        kernel(Written(COUPLED["mean"]), samples(3))


@pytest.mark.parametrize("n", [2, 3, 9])
def test_statistics_that_the_looked_at_samples_share(n: int) -> None:
    """As of images that all have a white pixel and a black one."""
    x = samples(n)
    x[:, 0], x[:, 3] = 3.0, -3.0
    with pytest.raises(ValueError, match=REFUSAL):
        analytic_ntk(Written(lambda layer, x: layer(x / x.max())), x)
    with pytest.raises(ValueError, match=REFUSAL):
        analytic_ntk(Written(lambda layer, x: layer(x - x.min())), x)


def test_samples_that_hold_numbers_of_something() -> None:
    table = torch.randn(5, 4, dtype=torch.float64)
    x = torch.tensor([[0.0, 1, 2, 4], [3, 3, 0, 1]], dtype=torch.float64)
    found = analytic_ntk(Written(lambda layer, x: layer(table[x.long()].sum(1))), x)
    wanted = analytic_ntk(NTKLinear(4, 8), table[x.long()].sum(1))
    torch.testing.assert_close(found, wanted)


def test_batches_of_several_tensors() -> None:
    mask = torch.tensor([[1, 1], [1, 0], [0, 1]], dtype=torch.bool)
    batch = {"mask": mask, "x": samples(6).view(3, 2, 4)}
    assert analytic_ntk(Masked(False), batch).shape == (3, 3)
    with pytest.raises(ValueError, match=REFUSAL):
        analytic_ntk(Masked(True), batch)
    with pytest.raises(ValueError, match=REFUSAL):
        analytic_ntk(Masked(True), (batch["x"], mask))


def test_gradients_by_inputs_are_kept() -> None:
    x = samples(3).requires_grad_()
    analytic_ntk(Written(SEPARATE["normalized"]), x).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.any())


def test_a_layer_without_functions_before_it_is_not_evaluated_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch_ntk.analytic.lift import _read

    monkeypatch.setattr(_read._Reader, "_evaluated", None)
    net = Written(lambda layer, x: layer(x).view(x.shape[0], -1))
    assert analytic_ntk(net, samples(3)).shape == (3, 3)


def _of_net(a: Tensor, b: Tensor) -> Tensor:
    return analytic_ntk(Written(COUPLED["mean"]), a, None if a is b else b)


@pytest.mark.parametrize("tile", [1, 4])
def test_tiles_of_a_store(tmp_path: Path, tile: int) -> None:
    with pytest.raises(ValueError, match=REFUSAL):
        compute_kernel(_of_net, samples(6), store=tmp_path / "k", tile=tile, progress=False)
