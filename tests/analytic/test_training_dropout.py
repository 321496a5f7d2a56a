"""The limit of networks with dropout during training, against networks with masks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from small_nets import Function, conv, conv1d, dense
from torch import Tensor, nn

from torch_ntk import Erf, analytic_kernels, analytic_nngp, analytic_ntk
from torch_ntk.sampling._moments import RunningMoments


class Functional(nn.Module):
    """Dropout as a function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3, self.training)


def vectors(n: int) -> nn.Module:
    return nn.Sequential(
        *(dense(4, n), nn.ReLU(), nn.Dropout(0.4), dense(n, n), Erf(), Functional(), dense(n, 4)),
    )


def pooled(n: int) -> nn.Module:
    """Masks of each position, and an average over positions after them."""
    return nn.Sequential(
        *(conv1d(2, n), nn.ReLU(), nn.Dropout(0.4), nn.AvgPool1d(2, 1), conv1d(n, n, 2)),
        *(nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), dense(n, 4)),
    )


def by_channel(n: int) -> nn.Module:
    """One mask for all positions of a channel."""
    return nn.Sequential(
        *(conv(2, n, 2), nn.ReLU(), nn.Dropout2d(0.4), conv(n, n, 2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense(n, 4)),
    )


def before(n: int) -> nn.Module:
    """Masks before an activation."""
    return nn.Sequential(
        *(conv1d(2, n), nn.Dropout1d(0.4), nn.GELU(), nn.AvgPool1d(2, 1), conv1d(n, n, 2)),
        *(nn.Dropout(0.3), nn.ReLU(), nn.Flatten(), dense(n, 4)),
    )


NETS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "vectors": (vectors, (4,)), "pooled": (pooled, (2, 5)), "by channel": (by_channel, (2, 3, 4)),
    "before": (before, (2, 5)),
}  # fmt: skip


def _kernels(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Both kernels of one forward pass, in which every sample has its masks."""
    f = net(x)
    rows = [
        torch.cat(
            [g.flatten() for g in torch.autograd.grad(y, net.parameters(), retain_graph=True)]
        )
        for y in f.flatten()
    ]
    jacobian = torch.stack(rows).view(*f.shape, -1)
    theta = torch.einsum("nop,mop->nm", jacobian, jacobian) / f.shape[1]
    return (f @ f.T / f.shape[1]).detach(), theta


@pytest.mark.parametrize("name", NETS)
def test_networks_with_masks_have_it_on_average(name: str) -> None:
    build, shape = NETS[name]
    x = torch.randn(2, *shape, dtype=torch.float64)
    limit = analytic_kernels(build(3), x, training=True)
    moments = RunningMoments(), RunningMoments()
    for _ in range(120):
        for moment, kernel in zip(moments, _kernels(build(96), x), strict=True):
            moment.add(kernel)
    plain = analytic_kernels(build(3), x)
    for moment, wanted, without in zip(moments, limit, plain, strict=True):
        scale = float(wanted.abs().max())
        beyond = ((moment.mean - wanted).abs() - 2 * scale / 96).clamp(min=0)
        assert float((beyond / moment.standard_error).max()) < 3
        # Sharp enough to tell the masks.
        beyond = ((moment.mean - without).abs() - 2 * scale / 96).clamp(min=0)
        assert float((beyond / moment.standard_error).max()) > 3


def test_a_copy_of_a_sample_has_masks_of_its_own() -> None:
    x = torch.randn(2, 4, dtype=torch.float64)
    net = vectors(3)
    whole = analytic_ntk(net, torch.cat([x, x]), training=True)
    torch.testing.assert_close(whole[:2, 2:], analytic_ntk(net, x, x.clone(), training=True))
    torch.testing.assert_close(whole[:2, :2], analytic_ntk(net, x, training=True))
    assert bool((whole[:2, :2].diagonal() > 1.2 * whole[:2, 2:].diagonal()).all())
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(
        analytic_ntk(net, leaf, training=True).detach(), whole[:2, :2], rtol=1e-7, atol=0
    )


def test_modules_keep_their_flags() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    net = vectors(3)
    frozen = vectors(3).eval()
    eval_mode = analytic_nngp(net, x)
    torch.testing.assert_close(analytic_nngp(frozen, x, training=True), eval_mode)
    assert not torch.allclose(analytic_nngp(net, x, training=True), eval_mode)
    assert all(m.training for m in net.modules())


@pytest.mark.parametrize(
    "make", [lambda: nn.Dropout(0.25), lambda: Function(lambda x: F.dropout(x, 0.25))]
)
def test_dropout_of_inputs(make: Callable[[], nn.Module]) -> None:
    """K(x, x) of the first layer is that of inputs divided by 1 - p, and no mask is drawn."""
    x = torch.randn(3, 4, dtype=torch.float64)
    scaled = (x @ x.T / 4).clone()
    scaled.diagonal().div_(0.75)
    net = nn.Sequential(make(), dense(4, 3, 1.5, 0.5))
    found = analytic_nngp(net, x, training=True)
    torch.testing.assert_close(found, 2.25 * scaled + 0.25, rtol=1e-12, atol=0)


# ruff: noqa: E501
REFUSED: dict[str, tuple[nn.Module, str]] = {
    "alpha": (nn.Sequential(dense(4, 3), nn.AlphaDropout(0.1)), "alpha dropout during training.*nn.Dropout"),
    "everything": (nn.Sequential(dense(4, 3), nn.Dropout(1.0)), "dropout with p=1"),
    "before an activation": (nn.Sequential(dense(4, 3), nn.Dropout(0.1), nn.Sigmoid()), "not 0 at 0 after dropout at '2'.*dropout after the function"),
    "twice": (nn.Sequential(dense(4, 3), nn.Dropout(0.1), nn.Dropout(0.1), nn.ReLU()), "not Gaussian"),
    "noise": (nn.Sequential(Function(lambda x: x + torch.randn_like(x)), dense(4, 3)), "draws random numbers"),
    "batch norm": (nn.Sequential(dense(4, 3), nn.BatchNorm1d(3).double()), "nn.BatchNorm1d"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    net, text = REFUSED[name]
    with pytest.raises(ValueError, match=text):
        analytic_ntk(net, torch.randn(2, 4, dtype=torch.float64), training=True)
    with pytest.raises(TypeError, match="`training` must be True or False"):
        analytic_ntk(net, torch.randn(2, 4, dtype=torch.float64), training=1)  # type: ignore[arg-type]
