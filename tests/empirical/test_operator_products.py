"""Products with a kernel that is never formed equal those with the formed one."""

from __future__ import annotations

import warnings

import case as case_module
import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case, by_name
from oracles import contract_full, ntk_loop, reduced, relative_error
from torch import Tensor, nn
from traces import snapshot

from torch_ntk import MLP, empirical_ntk
from torch_ntk.empirical import NTKOperator
from torch_ntk.empirical.operator import _products

OUTPUTS = ["full", "trace", "mean", "pseudo"]


def as_matrix(kernel: Tensor) -> Tensor:
    """`[N, N, O, O]` with entry (n, i) at n·O + i."""
    if kernel.ndim == 2:
        return kernel
    n, o = kernel.shape[0], kernel.shape[2]
    return kernel.permute(0, 2, 1, 3).reshape(n * o, n * o)


def test_agrees_with_autograd(case: Case, oracle) -> None:
    """All of the kernel, and one of the other outputs in turn."""
    model, x = case.build(), case.inputs(4)
    j, _ = oracle(case)
    for output in ("full", OUTPUTS[1 + CASES.index(case) % 3]):
        expected = as_matrix(reduced(contract_full(j, j), output))
        before = snapshot(model, x)
        theta = NTKOperator(model, x, output=output, **case.options)
        assert theta.shape == expected.shape
        assert theta.dtype == torch.float64
        v = torch.randn(expected.shape[0], 3, dtype=torch.float64)
        there = v.to(case_module.DEVICE)
        state = torch.get_rng_state()
        assert relative_error(theta @ there, expected @ v) < 1e-10
        assert relative_error(theta @ there[:, 0], expected @ v[:, 0]) < 1e-10
        assert relative_error(theta.to_dense(), expected) < 1e-10
        assert torch.equal(torch.get_rng_state(), state)
        before["torch random"] = snapshot(model, x)["torch random"]  # drawn by this test
        assert snapshot(model, x) == before
        if case.slow:
            break


METHODS = {
    "mlp": "FunctionalProducts",
    "gru": "FunctionalProducts",
    "weight_norm_hook": "FunctionalProducts",
    "gradient_stopped_by_no_grad": "PlainProducts",
    "function_of_the_old_kind": "PlainProducts",
    "counts_in_a_tensor": "PlainProducts",
    "embedding_bag": "FunctionalProducts",
    "embedding_bag_max": "DenseProducts",
}


@pytest.mark.parametrize("name", list(METHODS))
def test_the_method_that_a_model_allows(name: str) -> None:
    case = by_name(name)
    theta = NTKOperator(case.build(), case.inputs(4))
    theta @ torch.ones(theta.shape[0], dtype=theta.dtype)
    assert type(theta._map.left._methods[0]).__name__ == METHODS[name]


BLOCKS = [
    (name, output, 1 if (i + k) % 2 else 16)
    for i, name in enumerate(METHODS)
    for k, output in enumerate(OUTPUTS)
    if (i + k) % 4 < 2 or name == "mlp"
]


@pytest.mark.parametrize(("name", "output", "few"), BLOCKS)
def test_any_blocks(name: str, output: str, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of samples and of vectors, down to one of each."""
    case = by_name(name)
    model, x = case.build(), case.inputs(5)
    theta = NTKOperator(model, x, output=output)
    v = torch.randn(theta.shape[0], 4, dtype=torch.float64)
    expected = theta @ v
    for size in (1, 2, 5, 9):
        blocks = NTKOperator(model, x, output=output, batch_size=size)
        assert relative_error(blocks @ v, expected) < 1e-12
    monkeypatch.setattr(_products, "_FEW", few)
    for size in (1, 3000, 20_000):
        monkeypatch.setattr(_products, "_CPU_BYTES", size)
        assert relative_error(theta @ v, expected) < 1e-12


def test_sizes_follow_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    products = NTKOperator(MLP([5, 30, 3]).double(), torch.randn(40, 5).double())._map.left
    assert products.sizes(7) == (7, 40)
    monkeypatch.setattr(_products, "_CPU_BYTES", 1)
    assert products.sizes(7) == (1, 1)
    need = products._methods[0].bytes_per_sample(products._fn, products._forward)
    monkeypatch.setattr(_products, "_CPU_BYTES", 2 * 16 * need * 3)
    vectors, samples = products.sizes(7)
    assert 1 <= vectors <= 3
    assert 16 <= samples <= 40


def test_a_layer_that_vmap_gets_wrong() -> None:
    """As many outputs as samples, or directions, for an operation whose batching rule errs."""
    model = nn.PReLU(4).double()
    nn.init.normal_(model.weight)
    for n in range(1, 7):
        x = torch.randn(n, 4, dtype=torch.float64)
        expected = as_matrix(ntk_loop(nn.PReLU(4).double(), x, x))
        theta = NTKOperator(model, x)
        for m in range(1, 7):
            v = torch.randn(4 * n, m, dtype=torch.float64)
            assert relative_error(theta @ v, expected @ v) < 1e-12


def test_training_does_not_change_an_operator() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2))
    x = torch.randn(8, 5)
    theta = NTKOperator(model, x)
    v = torch.randn(16)
    before = theta @ v
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    x.zero_()
    assert torch.equal(theta @ v, before)
    assert relative_error(NTKOperator(model, x + 1) @ v, before) > 0.01


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(5, 2), 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale


def test_a_changed_attribute_is_noticed() -> None:
    model = Scaled()
    theta = NTKOperator(model, torch.randn(3, 5))
    model.scale = 2.0
    with pytest.raises(RuntimeError, match=r"computes something else.*Make a new operator"):
        theta @ torch.ones(6)


def test_functions_and_selections(oracle) -> None:
    case = by_name("mlp")
    model, x = case.build(), case.inputs(4)
    v = torch.randn(12, dtype=torch.float64)
    some = NTKOperator(model, x, params=["0.weight"])
    expected = as_matrix(ntk_loop(case.build(), x, x, ["0.weight"]))
    assert relative_error(some @ v, expected @ v) < 1e-10
    params = {k: p.detach() for k, p in model.named_parameters()}

    def f(p, z):
        return torch.func.functional_call(model, p, (z,))

    j, _ = oracle(case)
    whole = as_matrix(contract_full(j, j))
    assert relative_error(NTKOperator(f, x, params=params) @ v, whole @ v) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision(dtype: torch.dtype) -> None:
    model, x = MLP([5, 8, 3]), torch.randn(4, 5)
    theta = NTKOperator(model, x, dtype=dtype)
    assert theta.dtype == dtype
    expected = as_matrix(empirical_ntk(model, x, dtype=dtype))
    v = torch.randn(12, dtype=dtype)
    assert relative_error(theta @ v, expected @ v) < 1e3 * torch.finfo(dtype).eps
    half = NTKOperator(MLP([5, 8, 3]).bfloat16(), x.bfloat16())
    assert half.dtype == torch.float32


SURROUNDINGS = {
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "enable_grad": torch.enable_grad,
}


@pytest.mark.parametrize("surrounding", list(SURROUNDINGS))
def test_surroundings_change_nothing(surrounding: str) -> None:
    case = by_name("batchnorm2d")
    model, x = case.build().float(), case.inputs(3).float()
    v = torch.randn(NTKOperator(model, x).shape[0])
    expected = NTKOperator(model, x) @ v
    with SURROUNDINGS[surrounding]():
        before = snapshot(model, x)
        product = NTKOperator(model, x) @ (v + 0).requires_grad_(surrounding == "enable_grad")
        assert snapshot(model, x) == before
    assert torch.equal(product, expected)
    assert not product.requires_grad
    assert not product.is_inference()


def test_goes_on_with_smaller_blocks() -> None:
    calls = 0

    def scarce(p, x):
        nonlocal calls
        calls += 1
        if x.shape[0] > 3:
            raise MemoryError
        return F.linear(x, p["w"])

    x, w = torch.randn(8, 5).double(), torch.randn(2, 5).double()
    with pytest.warns(RuntimeWarning, match="Out of memory.*blocks of [24] samples"):
        theta = NTKOperator(scarce, x, params={"w": w})
    v = torch.randn(16, 2, dtype=torch.float64)
    expected = torch.kron(x @ x.T, torch.eye(2, dtype=torch.float64)) @ v
    with pytest.warns(RuntimeWarning, match="Out of memory.*blocks of [24] samples") as w:
        product = theta @ v
    assert relative_error(product, expected) < 1e-12
    assert w[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            relative_error(
                NTKOperator(
                    scarce, x, params={"w": torch.ones(1, 5)}, dtype=torch.float64, batch_size=2
                )
                @ v[:8],
                (x @ x.T) @ v[:8],
            )
            < 1e-12
        )


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    theta = NTKOperator(MLP([5, 8, 3]), torch.randn(4, 5), progress=True, output="mean")
    theta @ torch.ones(4)
    assert "sample" in capsys.readouterr().err
