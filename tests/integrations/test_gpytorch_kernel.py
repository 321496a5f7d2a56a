"""The kernel for GPyTorch: values, gradients, and a Gaussian process that is trained with it."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_ntk import CNTK, NTKLinear, analytic_ntk, mlp_kernels
from torch_ntk.integrations.gpytorch import NTKKernel
from torch_ntk.integrations.gpytorch import gpytorch as library

GENERATOR = torch.Generator().manual_seed(2)
X1 = torch.randn(10, 16, generator=GENERATOR, dtype=torch.float64)
X2 = torch.randn(4, 16, generator=GENERATOR, dtype=torch.float64)
SHALLOW = partial(mlp_kernels, depth=2)


@pytest.fixture
def gpytorch() -> ModuleType:
    """As the adapter imports it: without the warnings of deprecation that it comes with."""
    return library


class Counted:
    """An MLP's kernel that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        self.calls += 1
        return SHALLOW(a, b).ntk


def test_values() -> None:
    kernel = NTKKernel(SHALLOW)
    assert torch.equal(kernel(X1).to_dense(), SHALLOW(X1).ntk)
    assert torch.equal(kernel(X1, X2).to_dense(), SHALLOW(X1, X2).ntk)
    assert torch.allclose(kernel(X1, diag=True), SHALLOW(X1).ntk.diagonal(), rtol=1e-12)
    nngp = NTKKernel(SHALLOW, which="nngp")
    assert torch.equal(nngp(X1, X2).to_dense(), SHALLOW(X1, X2).nngp)
    chosen = NTKKernel(SHALLOW, active_dims=(0, 3))
    assert torch.equal(chosen(X1).to_dense(), SHALLOW(X1[:, [0, 3]]).ntk)


def test_images_and_networks() -> None:
    kernel = NTKKernel(CNTK(2), input_shape=(1, 4, 4))
    assert torch.equal(kernel(X1).to_dense(), CNTK(2)(X1.reshape(-1, 1, 4, 4)))
    net = nn.Sequential(NTKLinear(16, 5), nn.Tanh(), NTKLinear(5, 1))
    lifted = NTKKernel(net)
    assert torch.equal(lifted(X1, X2).to_dense(), analytic_ntk(net, X1, X2))
    plain = nn.Sequential(nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 1))
    wanted = analytic_ntk(plain, X1, X2, standard="torch")
    assert torch.equal(NTKKernel(plain, standard="torch")(X1, X2).to_dense(), wanted)
    assert list(lifted.parameters()) == []  # the network's weights are no hyperparameters

    before = lifted(X1).to_dense()
    net[0].requires_grad_(False)  # which takes a term from the tangent kernel
    assert not torch.allclose(analytic_ntk(net, X1), before)
    assert torch.equal(lifted(X1).to_dense(), before)


def test_batches() -> None:
    """Three sets of rows against one and against each their own."""
    kernel = NTKKernel(SHALLOW)
    batch = torch.stack([X1, 2 * X1, X1.flip(0)])
    found = kernel(batch, X2).to_dense()
    assert torch.equal(found, torch.stack([SHALLOW(x, X2).ntk for x in batch]))
    own = kernel(batch).to_dense()
    assert torch.equal(own, torch.stack([SHALLOW(x).ntk for x in batch]))
    diagonal = kernel(batch, diag=True)
    assert torch.allclose(diagonal, own.diagonal(dim1=1, dim2=2), rtol=1e-12)


def test_gradients_in_the_inputs() -> None:
    x = X1[:4].clone().requires_grad_()
    (found,) = torch.autograd.grad(NTKKernel(SHALLOW)(x, X2).to_dense().sum(), x)
    (expected,) = torch.autograd.grad(SHALLOW(x, X2).ntk.sum(), x)
    assert torch.allclose(found, expected, rtol=1e-12)
    # Equal values, but another tensor: half of the derivative belongs to it.
    twin = x.detach().clone()
    (half,) = torch.autograd.grad(NTKKernel(SHALLOW)(x, twin).to_dense().sum(), x)
    (whole,) = torch.autograd.grad(SHALLOW(x).ntk.sum(), x)
    assert torch.allclose(2 * half, whole, rtol=1e-8)


@pytest.mark.parametrize(("cache", "calls"), [(True, 3), (False, 5), (None, 5)])
def test_the_last_matrix_is_kept(cache: bool | None, calls: int) -> None:
    counted = Counted()
    kernel = NTKKernel(counted, cache=cache)
    first = kernel(X1).to_dense()
    first.mul_(0.0)  # what is done to the result is not done to what is kept
    assert torch.equal(kernel(X1.clone()).to_dense(), SHALLOW(X1).ntk)
    x = X1.clone()
    kernel(x, X2).to_dense()
    kernel(x, X2).to_dense()
    x[0] = 0.0
    assert torch.equal(kernel(x, X2).to_dense(), SHALLOW(x, X2).ntk)
    assert counted.calls == calls


def test_what_is_kept_belongs_to_both_inputs() -> None:
    """The same first inputs with two different second ones, of one shape."""
    kernel = NTKKernel(SHALLOW, cache=True)
    for other in (X2, 2 * X2, X1[:4], X2):
        assert torch.equal(kernel(X1, other).to_dense(), SHALLOW(X1, other).ntk)


def exact_gp(gpytorch: ModuleType, x: Tensor, y: Tensor, kernel: Any) -> Any:
    class Process(gpytorch.models.ExactGP):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
            self.mean_module = gpytorch.means.ZeroMean()
            self.covar_module = gpytorch.kernels.ScaleKernel(kernel)

        def forward(self, x: Tensor) -> Any:
            return gpytorch.distributions.MultivariateNormal(
                self.mean_module(x), self.covar_module(x)
            )

    return Process().double()


def test_a_process_is_trained(gpytorch: ModuleType) -> None:
    """Scale and noise are learned; the prediction is the formula at what was learned."""
    torch.manual_seed(0)
    x = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
    y = x[:, 0].abs() + 0.1 * torch.randn(40, dtype=torch.float64)
    counted = Counted()
    process = exact_gp(gpytorch, x, y, NTKKernel(counted, cache=True))
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(process.likelihood, process)
    optimizer = torch.optim.Adam(process.parameters(), lr=0.1)
    process.train()
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = -objective(process(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert counted.calls == 1
    assert losses[-1] < losses[0] - 0.2
    noise = process.likelihood.noise.item()
    assert 0.003 < noise < 0.05  # 0.01 is in the data
    process.eval()
    x_test = torch.tensor([[-1.0], [0.3], [1.5]], dtype=torch.float64)
    with torch.no_grad():
        posterior = process(x_test)
        scale = process.covar_module.outputscale
        k = scale * SHALLOW(x).ntk + noise * torch.eye(40, dtype=torch.float64)
        cross = scale * SHALLOW(x_test, x).ntk
        mean = cross @ torch.linalg.solve(k, y)
        covariance = scale * SHALLOW(x_test).ntk - cross @ torch.linalg.solve(k, cross.T)
    assert torch.allclose(posterior.mean, mean, atol=1e-8)
    assert torch.allclose(posterior.covariance_matrix, covariance, atol=1e-6)
    assert (posterior.mean - x_test[:, 0].abs()).abs().max() < 0.2


def test_it_can_be_copied_and_composed(gpytorch: ModuleType) -> None:
    kernel = copy.deepcopy(NTKKernel(SHALLOW)) + gpytorch.kernels.ScaleKernel(NTKKernel(CNTK(2)))
    assert len(list(kernel.parameters())) == 1
    both = NTKKernel(SHALLOW) + NTKKernel(SHALLOW, which="nngp")
    expected = SHALLOW(X1).ntk + SHALLOW(X1).nngp
    assert torch.allclose(both(X1).to_dense(), expected, rtol=1e-12)


def test_features_as_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="`last_dim_is_batch` must be False"):
        NTKKernel(SHALLOW).forward(X1, X1, last_dim_is_batch=True)


def test_arguments() -> None:
    with pytest.raises(TypeError, match="`cache` must be True, False or None"):
        NTKKernel(SHALLOW, cache=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`input_shape` must be a shape of 16 numbers"):
        NTKKernel(SHALLOW, input_shape=(3, 3))(X1).to_dense()


OPTIONAL = """
import sys
import torch_ntk, torch_ntk.integrations
assert "gpytorch" not in sys.modules
sys.modules["gpytorch"] = None  # as if it were not installed
try:
    import torch_ntk.integrations.gpytorch
except ImportError as error:
    assert "pip install torch_ntk[gpytorch]" in str(error), error
else:
    raise AssertionError("it was imported")
"""


def test_the_dependency_is_optional() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OPTIONAL], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
