"""`linearize` against Jacobians from plain autograd, for every row of the table of cases."""

from __future__ import annotations

from collections.abc import Callable

import case as case_module
import pytest
import torch
from cases import Case, by_name
from oracles import jacobian_loop, ntk_loop, relative_error
from torch import Tensor, nn

from torch_ntk import LinearizedModel, empirical_ntk, linearize

Oracle = Callable[[Case], tuple[Tensor, Tensor]]


def moved(lin: LinearizedModel, size: float = 0.3) -> Tensor:
    """Move the trainable parameters; the flat displacement `[P]`."""
    generator = torch.Generator().manual_seed(7)
    steps = []
    with torch.no_grad():
        for p in lin.parameters():
            if p.requires_grad:
                step = size * torch.randn(p.shape, generator=generator, dtype=p.dtype)
                p.add_(step.to(p.device))
                steps.append(step.reshape(-1))
    return torch.cat(steps)


def test_value_and_gradient_are_those_of_the_jacobian(case: Case, oracle: Oracle) -> None:
    if "training" in case.options:
        return  # a linearized network is always evaluated in eval mode
    lin = linearize(case.build(), forward_fn=case.options.get("forward_fn"))
    jacobian = oracle(case)[0].to(case_module.DEVICE)
    anchor = {k: b.clone() for k, b in lin.named_buffers()}
    f_0 = case.outputs(case.build().eval(), case.inputs(4)).detach()
    at_anchor = case.returned(lin, case.inputs(4))
    assert at_anchor.shape == f_0.shape
    torch.testing.assert_close(at_anchor, f_0, rtol=1e-13, atol=1e-13)

    delta = moved(lin).to(case_module.DEVICE)
    out = case.returned(lin, case.inputs(4))
    expected = f_0 + (jacobian @ delta).reshape(f_0.shape)
    assert relative_error(out.detach(), expected) < 1e-12 or not expected.any()

    cotangent = torch.linspace(-1, 2, out.numel(), dtype=out.dtype, device=out.device)
    cotangent = cotangent.reshape(out.shape)
    out.backward(cotangent)
    grads = [
        (torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1)
        for p in lin.parameters()
        if p.requires_grad
    ]
    assert all(torch.equal(b, anchor[k]) for k, b in lin.named_buffers())
    transposed = torch.einsum("nop,no->p", jacobian, cotangent.reshape(4, -1))
    assert relative_error(torch.cat(grads), transposed) < 1e-12 or not transposed.any()


def test_value_at_the_anchor_is_the_network_bit_by_bit() -> None:
    net = by_name("ntk_mlp").build().eval()
    x = by_name("ntk_mlp").inputs(4)
    assert torch.equal(linearize(net)(x), net(x))


@pytest.mark.parametrize("name", ["mlp", "tied_weights", "batchnorm2d"])
def test_its_kernel_is_that_of_the_network_wherever_the_parameters_are(name: str) -> None:
    case = by_name(name)
    lin = linearize(case.build())
    x1, x2 = case.inputs(3), case.inputs(2, 1)
    expected = ntk_loop(case.build(), x1, x2)
    moved(lin)
    assert relative_error(empirical_ntk(lin, x1, x2), expected) < 1e-12


def test_a_parameter_frozen_after_it_has_moved_still_counts() -> None:
    case = by_name("mlp")
    lin = linearize(case.build())
    x, names = case.inputs(3), ["0.weight"]
    with torch.no_grad():
        lin.network[0].weight += 0.5
    lin.network[0].weight.requires_grad_(False)
    jacobian = jacobian_loop(case.build(), x, names)
    expected = case.build()(x) + jacobian @ torch.full((40,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(lin(x), expected, rtol=1e-12, atol=1e-12)
    lin(x).sum().backward()
    assert lin.network[0].weight.grad is None
    assert lin.network[2].weight.grad is not None


def test_tied_weights_move_together() -> None:
    """The derivative by a shared weight has a part from each of its uses."""
    lin = linearize(by_name("tied_weights").build())
    assert lin.network.first.weight is lin.network.second.weight
    assert len(list(lin.parameters())) == 5
    assert list(lin.displacement()) == [n for n, _ in lin.network.named_parameters()]


@pytest.mark.parametrize(
    "name", ["mlp", "batchnorm1d", "layer_norm", "instance_norm", "lstm", "attention", "residual"]
)
def test_gradient_by_the_input(name: str) -> None:
    """Against central differences of the linearized function itself."""
    case = by_name(name)
    lin = linearize(case.build())
    moved(lin)
    assert torch.autograd.gradcheck(lin, (case.inputs(2).requires_grad_(),))


def test_it_is_a_function_of_the_input_alone() -> None:
    """The forward of a network that writes into its input writes into a copy."""
    case = by_name("relu_inplace_first")
    x = case.inputs(4)
    before = x.clone()
    lin = linearize(case.build())
    assert torch.equal(lin(x), lin(x))
    assert torch.equal(x, before)


def test_parameters_that_are_integers_are_left_alone() -> None:
    class Power(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3, dtype=torch.float64)
            self.power = nn.Parameter(torch.tensor(3), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) ** self.power

    net, x = Power(), by_name("mlp").inputs(3)
    lin = linearize(net)
    assert set(lin.displacement()) == {"layer.weight", "layer.bias"}
    with torch.no_grad():
        lin.network.layer.bias += 0.1
    hidden = net.layer(x)
    torch.testing.assert_close(lin(x), hidden**3 + 3 * hidden**2 * 0.1, rtol=1e-12, atol=1e-12)
