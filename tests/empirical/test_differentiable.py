"""`empirical_ntk(..., differentiable=True)`: gradients of kernels, against loops with a graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import Lambda, by_name
from oracles import contract_full, jacobian_with_graph, reduced, relative_error
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn.utils import parametrizations
from traces import in_training, snapshot

from torch_ntk import empirical_ntk
from torch_ntk.empirical._probed import random_signs

# Of every kind: Gram matrices and Jacobians, tied weights, weights without rules, loops.
NAMES = (
    "ntk_conv",
    "conv_groups_dilation",
    "conv_transpose_maxpool",
    "batchnorm2d",
    "layer_norm",
    "instance_norm",
    "tied_embedding",
    "tied_weights",
    "layer_three_times",
    "spectral_norm_parametrized",
    "lstm",
    "attention",
    "functional",
    "frozen_parameters",
    "function_of_the_old_kind",
    "writes_into_zeros",
    "item_on_data",
    "as_many_outputs_as_samples",
)
OUTPUTS = ("full", "trace", "mean", "diagonal", "pseudo")


def leaves(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """What gradients are taken by."""
    return [t for t in (*model.parameters(), *inputs) if t.requires_grad and t.numel()]


def gradients(kernel: Tensor, by: list[Tensor]) -> list[Tensor]:
    """Of `Σ W ∘ Θ`, for the same W of every kernel of a shape."""
    generator = torch.Generator().manual_seed(7)
    weights = torch.randn(kernel.shape, generator=generator, dtype=torch.float64)
    w = weights.to(kernel)
    found = torch.autograd.grad(kernel, by, w, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(by, found, strict=True)]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-10) -> None:
    """Every gradient, by the largest entry of all."""
    size = max(float(e.abs().max()) for e in expected)
    assert size > 0
    for f, e in zip(found, expected, strict=True):
        assert float((f - e).abs().max()) < tolerance * size


def tracked(x: Tensor) -> Tensor:
    return x.requires_grad_() if x.is_floating_point() else x


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).double()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_loops(name: str) -> None:
    """By parameters and inputs, of one set and between two, in the outputs in turn."""
    case = by_name(name)
    model, own = case.build(), case.build()
    x1, x2 = tracked(case.inputs(3)), tracked(case.inputs(2, 1))
    y1, y2 = tracked(case.inputs(3)), tracked(case.inputs(2, 1))
    j1, j2 = jacobian_with_graph(own, y1), jacobian_with_graph(own, y2)
    output: Any = OUTPUTS[NAMES.index(name) % len(OUTPUTS)]

    for kind, method in (("full", "auto"), (output, "jacobian")):
        kernel = empirical_ntk(model, x1, x2, output=kind, method=method, differentiable=True)
        expected = reduced(contract_full(j1, j2), kind)
        assert relative_error(kernel.detach(), expected.detach()) < 1e-10
        wanted = gradients(expected, leaves(own, y1, y2))
        assert_close(gradients(kernel, leaves(model, x1, x2)), wanted)

    kernel = empirical_ntk(model, x1, output=output, differentiable=True)
    plain = empirical_ntk(model, x1, output=output)
    assert torch.equal(kernel, plain)
    assert not plain.requires_grad
    expected = reduced(contract_full(j1, j1), output)
    assert_close(gradients(kernel, leaves(model, x1)), gradients(expected, leaves(own, y1)))


class WrittenOut(nn.Module):
    """A linear layer with weight normalization, of plain operations."""

    def __init__(self, v: Tensor, g: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.g, self.v, self.bias = (nn.Parameter(t.detach().clone()) for t in (g, v, bias))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.g * self.v / self.v.square().sum(1, keepdim=True).sqrt()).T + self.bias


def test_derivatives_that_torch_has_wrong() -> None:
    """The second derivative of `torch._weight_norm` is wrong; here it is made of operations."""
    layer = parametrizations.weight_norm(nn.Linear(4, 3).double())
    g, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    own = nn.Sequential(WrittenOut(v, g, layer.bias), nn.Tanh())
    x = torch.randn(3, 4, dtype=torch.float64)
    kernel = empirical_ntk(nn.Sequential(layer, nn.Tanh()), x, differentiable=True)
    j = jacobian_with_graph(own, x)
    wanted = gradients(contract_full(j, j), [own[0].g, own[0].v, own[0].bias])
    assert_close(gradients(kernel, [g, v, layer.bias]), wanted)


def _two_layers() -> nn.Module:
    return mlp(3, 4, 2)


def _convolutions() -> nn.Module:
    parts = (nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Conv2d(2, 2, 2, groups=2), nn.Flatten())
    return nn.Sequential(*parts).double()


def _attention() -> nn.Module:
    heads = nn.MultiheadAttention(4, 2, batch_first=True)
    return Lambda(lambda a, n, x: n(a(x, x, x)[0])[:, 0, :2], heads, nn.LayerNorm(4)).double()


@pytest.mark.parametrize(
    ("make", "shape"), [(_two_layers, (3,)), (_convolutions, (1, 3, 3)), (_attention, (2, 4))]
)
def test_derivatives_of_first_and_second_order(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    """Gradients and their gradients are those of differences, by parameters and inputs."""
    model = make()
    names = [n for n, _ in model.named_parameters()]
    theta = [p.detach().requires_grad_() for p in model.parameters()]
    x1, x2 = (tracked(torch.randn(n, *shape, dtype=torch.float64)) for n in (2, 1))

    def function(params: Any, x: Tensor) -> Tensor:
        return functional_call(model, params, (x,))

    def between(a: Tensor, b: Tensor, *values: Tensor) -> Tensor:
        params = dict(zip(names, values, strict=True))
        return empirical_ntk(function, a, b, params=params, differentiable=True, check=False)

    def of_one(a: Tensor, *values: Tensor) -> Tensor:
        params = dict(zip(names, values, strict=True))
        return empirical_ntk(
            function, a, params=params, output="mean", differentiable=True, check=False
        )

    def curved(a: Tensor, *values: Tensor) -> Tensor:  # its derivative depends on the kernel
        return torch.logdet(of_one(a, *values) + torch.eye(len(a), dtype=a.dtype))

    one = (x1, *theta)
    for f, inputs in ((between, (x1, x2, *theta)), (of_one, one), (curved, one)):
        assert gradcheck(f, inputs, fast_mode=True)
        assert gradgradcheck(f, inputs, fast_mode=True)


def test_gradients_in_parts_and_of_all_parameters() -> None:
    """`by`, and parameters that the kernel is not made of but depends on."""
    model, own = mlp(5, 6, 3), mlp(5, 6, 3)
    own.load_state_dict(model.state_dict())
    x = torch.randn(4, 5, dtype=torch.float64)
    parts = empirical_ntk(
        model, x, by="module", params=["0.weight", "0.bias", "2.bias"], differentiable=True
    )
    j = jacobian_with_graph(own, x, ["0.weight", "0.bias"])
    wanted = gradients(contract_full(j, j), leaves(own))
    assert float(wanted[2].abs().max()) > 0.1  # by 2.weight, of which the kernel is not made
    assert_close(gradients(parts["0"], leaves(model)), wanted)
    assert not gradients(parts["2"], leaves(model))[0].any()  # the identity matrix
    one = gradients(parts["0"] + 2 * parts["2"], leaves(model))
    assert_close(one, wanted)


def test_inputs_of_one_side() -> None:
    """Images that are distilled are compared with real ones, by a network that is fixed."""
    model, own = mlp(5, 6, 3).requires_grad_(False), mlp(5, 6, 3)
    own.load_state_dict(model.state_dict())
    x1, x2 = torch.randn(4, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    y1, y2 = jacobian_with_graph(own, x1), jacobian_with_graph(own, tracked(x2))
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    for a, b, expected in ((x1, x2, contract_full(y1, y2)), (x2, x1, contract_full(y2, y1))):
        kernel = empirical_ntk(model, a, b, params=names, differentiable=True)
        assert_close(gradients(kernel, [x2]), gradients(expected, [x2]))


def test_blocks_do_not_show() -> None:
    """Nor does a limit on memory, which they follow."""
    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 3, 2)),
        *(nn.BatchNorm2d(3, affine=False), nn.Flatten(), nn.Linear(12, 3)),
    )
    model.double().eval()
    x1, x2 = (tracked(torch.randn(n, 2, 5, 5, dtype=torch.float64)) for n in (5, 3))
    for pair in ((x1,), (x1, x2)):
        whole = empirical_ntk(model, *pair, differentiable=True)
        wanted = gradients(whole, leaves(model, *pair))
        for options in ({"batch_size": 1}, {"batch_size": 2}, {"max_memory": "300kB"}):
            kernel = empirical_ntk(model, *pair, differentiable=True, **options)  # type: ignore[call-overload]
            assert_close(gradients(kernel, leaves(model, *pair)), wanted, 1e-12)


def test_estimates_by_directions() -> None:
    model, own = mlp(5, 6, 4), mlp(5, 6, 4)
    own.load_state_dict(model.state_dict())
    x = torch.randn(3, 5, dtype=torch.float64)
    j = jacobian_with_graph(own, x)
    along = torch.einsum("ki,nip->nkp", random_signs(4, 2, 5).double() / 2, j)
    expected = torch.einsum("nkp,mkp->nm", along, along) / 2
    found = empirical_ntk(model, x, output="probed", probes=2, seed=5, differentiable=True)
    assert_close(gradients(found.kernel, leaves(model)), gradients(expected, leaves(own)))


def test_precisions() -> None:
    """Gradients come in the dtype of each tensor, and are as exact as the evaluation."""
    model = mlp(5, 16, 3)
    x = torch.randn(4, 5, dtype=torch.float64).requires_grad_()
    wanted = gradients(empirical_ntk(model, x, differentiable=True), leaves(model, x))
    single = mlp(5, 16, 3).float()
    for kind, options, tolerance in (
        (torch.float32, {}, 1e-5),
        (torch.float32, {"dtype": torch.float64}, 2e-6),
        (torch.float32, {"accumulate": torch.float64}, 1e-5),
        (torch.bfloat16, {}, 5e-2),
    ):
        single.to(kind).load_state_dict(model.state_dict())
        y = x.detach().to(kind).requires_grad_()
        kernel = empirical_ntk(single, y, differentiable=True, **options)  # type: ignore[call-overload]
        found = gradients(kernel, leaves(single, y))
        assert {g.dtype for g in found} == {kind}
        assert_close([g.double() for g in found], wanted, tolerance)


def test_batches_with_targets() -> None:
    """Inputs in a dictionary, and a loss of each sample that depends on them."""
    model, own = mlp(5, 6, 3), mlp(5, 6, 3)
    own.load_state_dict(model.state_dict())
    x, y = (torch.randn(3, n, dtype=torch.float64).requires_grad_() for n in (5, 3))

    def losses(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return (net(batch["x"]) - batch["y"]).square().mean(1)

    kernel = empirical_ntk(model, {"x": x, "y": y}, forward_fn=losses, differentiable=True)
    both = torch.cat([x, y], dim=1)
    whole = Lambda(lambda net, xy: losses(net, {"x": xy[:, :5], "y": xy[:, 5:]}), own)
    j = jacobian_with_graph(whole, both)
    wanted = gradients(contract_full(j, j), [*leaves(own), x, y])
    assert_close(gradients(kernel, [*leaves(model), x, y]), wanted)


def test_coupled_batches_in_train_mode() -> None:
    """Batch normalization with the statistics of the batch: every sample moves every row."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)).double()
    x = torch.randn(4, 4, dtype=torch.float64).requires_grad_()
    before = snapshot(model, x)
    kernel = empirical_ntk(model, x, coupled=True, training=True, differentiable=True)
    found = gradients(kernel, leaves(model, x))
    assert snapshot(model, x) == before
    rows = []
    for f in model(x).flatten():
        grads = torch.autograd.grad(f, list(model.parameters()), create_graph=True)
        rows.append(torch.cat([g.flatten() for g in grads]))
    j = torch.stack(rows).view(4, 2, -1)
    assert_close(found, gradients(contract_full(j, j), leaves(model, x)))


def test_kernels_of_optimizers() -> None:
    """P is constant, also where it was made of the parameters."""
    model, own = mlp(5, 6, 3), mlp(5, 6, 3)
    own.load_state_dict(model.state_dict())
    x = torch.randn(3, 5, dtype=torch.float64)
    p = {n: torch.rand_like(t) + 0.5 for n, t in model.named_parameters()}
    kernel = empirical_ntk(model, x, precondition=p, differentiable=True)
    j = jacobian_with_graph(own, x)
    scaled = j * torch.cat([t.flatten() for t in p.values()]).sqrt()
    wanted = gradients(contract_full(scaled, scaled), leaves(own))
    assert_close(gradients(kernel, leaves(model)), wanted)


def test_leaves_no_trace_until_the_backward_pass() -> None:
    """Which finds the model in train mode and with a hook, and gives the same all the same."""
    case = by_name("batchnorm1d")
    model, x = in_training(case), case.inputs(3).requires_grad_()
    own = case.build()
    before = snapshot(model, x)
    kernel = empirical_ntk(model, x, output="mean", differentiable=True)
    assert snapshot(model, x) == before
    for p in model.parameters():
        p.grad = None
    empirical_ntk(model, x)  # measurements in between change nothing
    hook = model[0].register_forward_hook(lambda module, given, out: out * 2)
    with torch.autocast("cpu"):
        kernel.sum().backward()
    hook.remove()
    assert all(m.training for m in model.modules())
    j = jacobian_with_graph(own, x.detach())
    reduced(contract_full(j, j), "mean").sum().backward()
    found = [p.grad for p in model.parameters()]
    wanted = [torch.zeros_like(p) if p.grad is None else p.grad for p in own.parameters()]
    found = [torch.zeros_like(w) if f is None else f for f, w in zip(found, wanted, strict=True)]
    assert_close(found, wanted)
    assert x.grad is not None


def test_a_penalty_is_trained() -> None:
    """The condition number of a kernel falls while it is minimized."""
    model = mlp(3, 16, 1)
    x = torch.randn(6, 3, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    conditions = []
    for _ in range(15):
        kernel = empirical_ntk(model, x, output="mean", differentiable=True)
        eigenvalues = torch.linalg.eigvalsh(kernel)
        loss = (eigenvalues[-1] / eigenvalues[0]).log()
        conditions.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert conditions[-1] < conditions[0] - 0.5


class Detached(torch.autograd.Function):
    """The square, with a backward that autograd cannot follow and that says nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g * ctx.saved_tensors[0].detach()


class Once(Detached):
    """The same, which says so; torch notices only where the cotangent requires grad."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g * ctx.saved_tensors[0]


class WithOwn(nn.Module):
    def __init__(self, use: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.use = nn.Linear(3, 2).double(), use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.linear(x))


def test_what_is_refused() -> None:
    x = torch.randn(3, 3, dtype=torch.float64)
    model = WithOwn(torch.tanh)
    with torch.no_grad(), pytest.raises(ValueError, match=r"`differentiable`.*no_grad"):
        empirical_ntk(model, x, differentiable=True)
    with pytest.raises(TypeError, match="`differentiable` must be True or False"):
        empirical_ntk(model, x, differentiable=1)  # type: ignore[call-overload]
    model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"no parameter and no input requires grad"):
        empirical_ntk(model, x, params=["linear.weight"], differentiable=True)
    other = torch.ones((), dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"reaches a float64 tensor of shape \(\)"):
        empirical_ntk(WithOwn(lambda f: f * other), x, differentiable=True)
    for use in (Detached.apply, Once.apply):
        empirical_ntk(WithOwn(use), x)
        with pytest.raises(ValueError, match=r"in a direction is .*, and .* by a difference of"):
            empirical_ntk(WithOwn(use), x, differentiable=True)
    tokens, case = by_name("embedding_bag_max").inputs(2), by_name("embedding_bag_max")
    with pytest.raises(ValueError, match=r"cannot differentiate twice.*_embedding_bag_backward"):
        empirical_ntk(case.build(), tokens, differentiable=True)


def test_a_model_that_has_changed_meanwhile() -> None:
    x = torch.randn(3, 3, dtype=torch.float64)
    model = WithOwn(torch.tanh)
    kernel = empirical_ntk(model, x, differentiable=True)
    model.use = F.gelu
    with pytest.raises(ValueError, match="in the backward pass what it was"):
        kernel.sum().backward()
    model.use = torch.tanh
    kernel = empirical_ntk(model, x, differentiable=True)
    with torch.no_grad():
        model.linear.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kernel.sum().backward()
