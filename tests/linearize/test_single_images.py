"""One image, of which torch's gradients of normalizations are wrong in some layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_ntk import NTKOperator, linearize


class Net(nn.Module):
    """The gradient of the normalization comes with its channels innermost."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 3, 1), norm, nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.conv(x))).permute(0, 2, 3, 1).flatten(1))


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(3), nn.InstanceNorm2d(3, affine=True), nn.BatchNorm2d(3, affine=False)]
)
def test_values_and_gradients(norm: Any) -> None:
    torch.manual_seed(0)
    net = Net(norm).double().eval()
    with torch.no_grad():
        for tensor in (*net.norm.parameters(), *net.norm.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 2.0)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    params = list(net.parameters())
    # Of two images, the second of which is not read, they are right.
    out = net(torch.cat([x, x]))[0]
    jacobian = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(f, params, retain_graph=True)])
            for f in out
        ]
    )
    delta = 0.1 * torch.randn(jacobian.shape[1], dtype=torch.float64)
    model = linearize(net)
    with torch.no_grad():
        for p, d in zip(model.parameters(), delta.split([p.numel() for p in params]), strict=True):
            p.add_(d.reshape(p.shape))
    found = model(x)
    assert torch.allclose(found[0], out + jacobian @ delta, rtol=1e-10)
    grads = torch.autograd.grad(found.sum(), list(model.parameters()))
    assert torch.allclose(
        torch.cat([g.flatten() for g in grads]), jacobian.sum(0), rtol=1e-10, atol=1e-12
    )
    kernel = NTKOperator(net, x).to_dense()
    assert torch.allclose(kernel, jacobian @ jacobian.T, rtol=1e-10)
