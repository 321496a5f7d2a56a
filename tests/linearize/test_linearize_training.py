"""A linearized network is trained like any other module, and follows its constant kernel."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from oracles import jacobian_loop
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from torch_ntk import TaylorModel, linearize, taylor_expand


def noisy_net() -> nn.Sequential:
    """Every kind of layer whose behaviour depends on the training flag."""
    net = nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 2)
    ).double()
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2.0)
    return net


def flat(lin: TaylorModel) -> Tensor:
    return torch.cat([v.reshape(-1) for v in lin.displacement().values()]).detach()


def regression() -> tuple[nn.Sequential, Tensor, Tensor, Tensor, Tensor]:
    """A net, a batch, targets, f_0 and J."""
    net = noisy_net()
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    twin = copy.deepcopy(net).eval()
    return net, x, y, twin(x).detach(), jacobian_loop(twin, x)


def test_gradient_descent_follows_the_constant_kernel() -> None:
    """`f_t = y + (1 - η Θ_0)^t (f_0 - y)` for the loss ½‖f - y‖²."""
    net, x, y, f_0, jacobian = regression()
    lin = linearize(net)
    lr, steps = 0.01, 7
    optimizer = torch.optim.SGD(lin.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (lin(x) - y).square().sum()).backward()
        optimizer.step()
    j = jacobian.reshape(12, -1)
    decay = torch.matrix_power(torch.eye(12, dtype=torch.float64) - lr * j @ j.T, steps)
    expected = y + (decay @ (f_0 - y).reshape(-1)).reshape(6, 2)
    torch.testing.assert_close(lin(x), expected, rtol=1e-11, atol=1e-11)


def test_adam_does_what_it_does_on_the_explicit_linear_model() -> None:
    net, x, y, f_0, jacobian = regression()
    lin = linearize(net)
    delta = torch.zeros(jacobian.shape[-1], dtype=torch.float64, requires_grad=True)
    first = torch.optim.Adam(lin.parameters(), lr=0.05, eps=1e-3)
    second = torch.optim.Adam([delta], lr=0.05, eps=1e-3)
    for _ in range(10):
        for optimizer, out in ((first, lin(x)), (second, f_0 + jacobian @ delta)):
            optimizer.zero_grad()
            (out - y).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(flat(lin), delta.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", [1, 2])
def test_training_flags_change_nothing(order: int) -> None:
    net, x = noisy_net(), torch.randn(4, 5, dtype=torch.float64)
    model = taylor_expand(net, order)
    expected = copy.deepcopy(net).eval()(x)
    buffers = {k: b.clone() for k, b in model.named_buffers()}
    for _ in range(2):
        for flag in (True, False):
            model.train(flag)
            torch.testing.assert_close(model(x), expected, rtol=1e-13, atol=1e-13)
            assert all(m.training is flag for m in model.modules())
        model.network.train()
    assert all(torch.equal(b, buffers[k]) for k, b in model.named_buffers())


def test_the_buffers_are_those_of_the_anchor() -> None:
    net, x = noisy_net(), torch.randn(4, 5, dtype=torch.float64)
    lin = linearize(net)
    before = lin(x)
    net[1].running_mean.add_(1.0)
    lin.network[1].running_mean.add_(1.0)
    assert torch.equal(lin(x), before)


def test_the_original_is_left_as_it_was() -> None:
    net, x = noisy_net(), torch.randn(4, 5, dtype=torch.float64)
    net(x).sum().backward()
    net[2].eval()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    grads = [p.grad.clone() for p in net.parameters()]
    flags = [m.training for m in net.modules()]
    lin = linearize(net)
    assert all(p.grad is None for p in lin.parameters())
    optimizer = torch.optim.SGD(lin.parameters(), lr=0.1)
    lin(x).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), grads, strict=True))
    assert [m.training for m in net.modules()] == flags
    assert {id(p) for p in net.parameters()}.isdisjoint(id(p) for p in lin.parameters())


@pytest.mark.parametrize("frozen", [False, True])
def test_requires_grad_is_kept(frozen: bool) -> None:
    net = noisy_net()
    net[0].weight.requires_grad_(not frozen)
    lin = linearize(net)
    lin(torch.randn(3, 5, dtype=torch.float64)).sum().backward()
    assert (lin.network[0].weight.grad is None) is frozen


def test_the_parameters_are_those_of_the_network_and_the_rest_are_buffers() -> None:
    net = noisy_net()
    lin = linearize(net)
    count = sum(p.numel() for p in net.parameters())
    assert sum(p.numel() for p in lin.parameters()) == count
    assert [n for n, _ in lin.named_parameters()] == [
        f"network.{n}" for n, _ in net.named_parameters()
    ]
    anchored = [b for n, b in lin.named_buffers() if n.startswith("_theta_0.")]
    assert sum(b.numel() for b in anchored) == count
    assert not any(b.requires_grad for b in lin.buffers())


class Regression(LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.val_losses: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return 0.5 * (self.net(x) - y).square().sum()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.val_losses.append(float(0.5 * (self.net(x) - y).square().sum()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trainer(path: Path, **options: Any) -> Trainer:
    return Trainer(
        max_epochs=3,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path,
        **options,
    )


lightning_remarks = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec.*is deprecated:FutureWarning"
)


@lightning_remarks
@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_a_trainer_fits_it(tmp_path: Path, precision: str) -> None:
    net, x, y, f_0, jacobian = regression()
    dtype = torch.float64 if precision == "64-true" else torch.float32
    module = Regression(linearize(net.to(dtype)))
    loader = DataLoader(TensorDataset(x.to(dtype), y.to(dtype)), batch_size=6)
    trainer(tmp_path, precision=precision).fit(module, loader, loader)

    j = jacobian.reshape(12, -1)
    decay = torch.matrix_power(torch.eye(12, dtype=torch.float64) - 0.01 * j @ j.T, 3)
    residual = decay @ (f_0 - y).reshape(-1)
    assert module.val_losses[-1] == pytest.approx(
        float(0.5 * residual @ residual), rel=1e-10 if dtype == torch.float64 else 1e-4
    )
