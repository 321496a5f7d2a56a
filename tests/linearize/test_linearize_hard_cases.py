"""`linearize` on networks that a transformation gets wrong easily, against plain backward passes.

The oracle loops over the outputs of the user's own module, evaluated on the whole batch with its
own parameters.
"""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from linearize_cases import (
    ROWS,
    Row,
    WrongForwards,
    layers,
    signed,
    wrong_for_negative_batches,
)
from torch import Tensor, nn

from torch_ntk import TaylorModel, linearize

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())


def outputs_and_jacobian(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """`f(x)` `[N, O]` and `J` `[N·O, P]` by the trained parameters, of a copy nobody else uses."""
    net.eval()
    params = [p for p in net.parameters() if p.requires_grad]
    out = net(x.clone())
    rows = []
    for entry in out.reshape(-1):
        found = torch.autograd.grad(entry, params, retain_graph=True, allow_unused=True)
        pairs = zip(found, params, strict=True)
        rows.append(flat([torch.zeros_like(p) if g is None else g.to_dense() for g, p in pairs]))
    return out.detach(), torch.stack(rows)


def flat(tensors: list[Tensor]) -> Tensor:
    """All entries, of complex ones real and imaginary parts."""
    real = [torch.view_as_real(t) if t.is_complex() else t for t in tensors]
    return torch.cat([t.detach().reshape(-1) for t in real])


def build(row: Row, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return row.make()


def reference(row: Row) -> nn.Module:
    """For the oracle, with the parameters of `build(row)`."""
    torch.manual_seed(1)
    return row.make() if row.reference is None else row.reference()


def trained(model: TaylorModel) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def move(model: TaylorModel, size: float = 0.3) -> Tensor:
    """Move the parameters that are trained; the displacement `[P]`."""
    before = flat(list(trained(model))).clone()
    with torch.no_grad():
        for p in trained(model):
            p.add_(size * torch.randn_like(p))
    return flat(list(trained(model))) - before


@every_row
def test_value_and_gradient(row: Row) -> None:
    first, second = row.batches()
    lin = linearize(build(row))
    for x in (first, second):
        f_0, _ = outputs_and_jacobian(reference(row), x)
        torch.testing.assert_close(lin(x), f_0, rtol=1e-12, atol=1e-12)
    torch.manual_seed(2)
    delta = move(lin)
    for x in (first, second):
        f_0, jacobian = outputs_and_jacobian(reference(row), x)
        expected = f_0 + (jacobian @ delta).reshape(f_0.shape)
        assert (expected - f_0).abs().max() > 1e-3
        out = lin(x)
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
        with torch.no_grad():
            torch.testing.assert_close(lin(x), expected, rtol=1e-10, atol=1e-10)
        u = torch.linspace(-1, 2, out.numel(), dtype=out.dtype)
        lin.zero_grad()
        out.backward(u.reshape(out.shape))
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained(lin)]
        torch.testing.assert_close(flat(grads), jacobian.T @ u, rtol=1e-10, atol=1e-10)


@every_row
def test_gradient_descent_follows_the_constant_kernel(row: Row) -> None:
    """`f_t = y + (1 - η Θ_0)^t (f_0 - y)`, which training does not leave the original for."""
    _, x = row.batches()
    net = build(row)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    lin = linearize(net)
    f_0, jacobian = outputs_and_jacobian(reference(row), x)
    y = torch.randn_like(f_0)
    kernel = jacobian @ jacobian.T
    lr = 0.5 / float(torch.linalg.eigvalsh(kernel)[-1])
    optimizer = torch.optim.SGD(lin.parameters(), lr=lr)
    for _ in range(3):
        optimizer.zero_grad()
        (0.5 * (lin(x) - y).square().sum()).backward()
        optimizer.step()
    decay = torch.matrix_power(torch.eye(len(kernel), dtype=torch.float64) - lr * kernel, 3)
    expected = y + (decay @ (f_0 - y).reshape(-1)).reshape(f_0.shape)
    torch.testing.assert_close(lin(x), expected, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@every_row
def test_the_copy_does_not_follow_the_original(row: Row) -> None:
    _, x = row.batches()
    net = build(row)
    lin = linearize(net)
    move(lin)
    expected = copy.deepcopy(lin)(x)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    torch.testing.assert_close(lin(x), expected, rtol=1e-12, atol=1e-12)


@every_row
def test_state_dict_goes_into_another_one(row: Row) -> None:
    _, x = row.batches()
    lin = linearize(build(row))
    move(lin)
    file = io.BytesIO()
    torch.save(lin.state_dict(), file)
    file.seek(0)
    other = linearize(build(row, seed=3))
    assert not torch.allclose(other(x), lin(x))
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    torch.testing.assert_close(other(x), lin(x), rtol=1e-12, atol=1e-12)


def test_a_derivative_that_is_wrong_in_a_later_batch() -> None:
    """Each result is proven on its own data: no other batch of that shape was wrong."""
    first, second = signed()
    torch.manual_seed(1)
    lin = linearize(layers(wrong_for_negative_batches))
    lin(first)
    delta = move(lin)
    torch.manual_seed(1)
    f_0, jacobian = outputs_and_jacobian(layers(wrong_for_negative_batches), second)
    out = lin(second)
    torch.testing.assert_close(out, f_0 + (jacobian @ delta).reshape(3, 2), rtol=1e-10, atol=1e-10)
    out.sum().backward()
    grads = flat([p.grad for p in trained(lin)])
    torch.testing.assert_close(grads, jacobian.sum(0), rtol=1e-10, atol=1e-10)


def test_a_derivative_that_is_wrong_for_some_tokens_is_found_without_training() -> None:
    """A `jvp` that is wrong where the embedding is negative, for a token of the second batch."""
    first, second = ROWS["padding_tied"].batches()

    def make() -> nn.Module:
        net = layers(lambda net, x: net.b(WrongForwards.apply(net.rows(x)).mean(1)))
        net.rows = nn.Embedding(10, 4, dtype=torch.float64)
        with torch.no_grad():
            net.rows.weight.abs_()[0].neg_()
        return net

    torch.manual_seed(1)
    lin = linearize(make())
    lin(first)
    delta = move(lin)
    torch.manual_seed(1)
    f_0, jacobian = outputs_and_jacobian(make(), second)
    with torch.no_grad():
        out = lin(second)
    torch.testing.assert_close(out, f_0 + (jacobian @ delta).reshape(3, 2), rtol=1e-10, atol=1e-10)


def test_a_loss_that_is_not_finite_is_no_wrong_derivative() -> None:
    row = ROWS["plain"]
    lin = linearize(build(row))
    move(lin)
    out = lin(row.batches()[0])
    (out.sum() * float("inf")).backward()
    assert not any(p.grad.isfinite().all() for p in lin.parameters())


def test_second_gradients_by_the_parameters() -> None:
    """`d/dθ ‖Jᵀu(θ)‖²` for the loss ½‖f‖²: `2 JᵀJ JᵀJ (f_0 + …)`, through one backward pass."""
    row = ROWS["plain"]
    x, _ = row.batches()
    lin = linearize(build(row))
    delta = move(lin)
    f_0, jacobian = outputs_and_jacobian(reference(row), x)
    out = lin(x)
    params = trained(lin)
    grads = torch.autograd.grad(0.5 * out.square().sum(), params, create_graph=True)
    found = torch.autograd.grad(sum(g.square().sum() for g in grads), params)
    residual = f_0.reshape(-1) + jacobian @ delta
    expected = 2 * jacobian.T @ jacobian @ jacobian.T @ residual
    torch.testing.assert_close(flat(list(found)), expected, rtol=1e-10, atol=1e-10)


class WithoutSecondDerivative(torch.autograd.Function):
    """`w x`, whose gradient by w cannot be differentiated by the cotangent."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return w * x

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return (cotangent.detach() * x).sum(0), None


def test_what_is_missing_does_not_cancel_between_equal_samples() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.v = (torch.nn.Parameter(torch.ones(1).double()) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return WithoutSecondDerivative.apply(self.w, x) + self.v * x  # type: ignore[no-any-return]

    for n in range(1, 9):
        lin, x = linearize(Net()), torch.ones(n, 1).double()
        with torch.no_grad():
            lin.network.w += 1
        torch.testing.assert_close(lin(x), 3 * x)
