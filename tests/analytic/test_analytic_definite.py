"""Kernel matrices are positive semidefinite in float64, however deep, however alike the inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torch_ntk import CNTK, mlp_kernels

DEPTH = 21


def alike(shape: tuple[int, ...], distances: tuple[float, ...]) -> Tensor:
    """Samples, exact copies of them, and copies as far away as `distances` say."""
    first = torch.randn(4, *shape, dtype=torch.float64)
    copies = [first[:2]]
    copies += [first + d * torch.randn(4, *shape, dtype=torch.float64) for d in distances]
    return torch.cat([first, *copies])


def lowest(k: Tensor) -> float:
    """λ_min / λ_max."""
    assert torch.equal(k, k.T)
    values = torch.linalg.eigvalsh(k)
    return float(values[0] / values[-1])


KERNELS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], tuple[Tensor, ...]]]] = {
    "mlp": ((5,), lambda x: mlp_kernels(x, depth=DEPTH)),
    "mlp without bias": ((5,), lambda x: mlp_kernels(x, depth=DEPTH, sigma_b=0.0)),
    "erf": ((5,), lambda x: mlp_kernels(x, depth=DEPTH, activation="erf", sigma_w=1.5)),
    "abs": ((5,), lambda x: mlp_kernels(x, depth=DEPTH, activation="abs", sigma_w=1.0)),
    "tanh": ((5,), lambda x: mlp_kernels(x, depth=7, activation="tanh", sigma_w=1.3)),
    "cntk": ((2, 3, 4), lambda x: (CNTK(DEPTH)(x),)),
    "cntk with bias": ((2, 3, 4), lambda x: (CNTK(DEPTH, sigma_b=0.2)(x),)),
    "cntk gap": ((2, 3, 4), lambda x: (CNTK(DEPTH, pooling="gap")(x),)),
    "cntk gap fixed": ((2, 3, 3), lambda x: (CNTK(DEPTH, pooling="gap", trained_ends=False)(x),)),
}  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("distances", [(), (1e-9, 1e-8, 1e-7), (1e-6, 1e-5, 1e-3)])
def test_nearly_equal_inputs(name: str, distances: tuple[float, ...]) -> None:
    shape, kernels = KERNELS[name]
    x = alike(shape, distances)
    for k in kernels(x):
        assert lowest(k) > -1e-10


@pytest.mark.parametrize("name", KERNELS)
def test_exact_copies_have_equal_rows(name: str) -> None:
    shape, kernels = KERNELS[name]
    x = alike(shape, ())
    for k in kernels(x):
        torch.testing.assert_close(k[:2], k[4:6], rtol=1e-13, atol=0)


def test_a_second_tensor_of_the_same_images() -> None:
    x = alike((2, 3, 4), ())
    kernel = CNTK(DEPTH, pooling="gap")
    torch.testing.assert_close(kernel(x, x.clone()), kernel(x), rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", ["mlp without bias", "abs", "cntk", "cntk gap"])
def test_multiples_of_an_input(name: str) -> None:
    """Without biases the kernel of x, 2x and 3x has rank one."""
    shape = KERNELS[name][0]
    first = torch.randn(4, *shape, dtype=torch.float64)
    # |x| and |-x| are equal only after a subtraction that leaves an angle of 1e-8.
    opposite = [] if name == "abs" else [-first]
    x = torch.cat([first, 3 * first, 2 * first, 0.1 * first, *opposite])
    if name.startswith("cntk"):
        kernels = (CNTK(DEPTH, pooling="gap" if "gap" in name else "flatten")(x),)
    else:
        activation = "abs" if name == "abs" else "relu"
        kernels = mlp_kernels(x, depth=DEPTH, sigma_b=0, activation=activation)
    for k in kernels:
        # Correlations of different positions, which an average needs, leave angles of 1e-8.
        assert lowest(k) > (-5e-10 if "gap" in name else -1e-10)


@pytest.mark.parametrize("pooling", ["flatten", "gap"])
def test_many_images(pooling: str) -> None:
    x = torch.rand(40, 1, 4, 4, dtype=torch.float64)
    assert lowest(CNTK(11, pooling=pooling)(x)) > 0


def test_a_tiny_distance_keeps_its_digits() -> None:
    """Θ(x, x) + Θ(x', x') - 2 Θ(x, x') of inputs 1e-6 apart, which covariances cannot resolve."""
    x = torch.randn(1, 5, dtype=torch.float64)
    direction = torch.randn(1, 5, dtype=torch.float64)
    near = torch.cat([x, x + 1e-6 * direction])
    far = torch.cat([x, x + 1e-3 * direction])
    angles = []
    for pair, step in ((near, 1e-6), (far, 1e-3)):
        k = mlp_kernels(pair, depth=3, sigma_b=0.0).ntk
        angles.append(float(k[0, 0] + k[1, 1] - 2 * k[0, 1]) / step)
    # With a kink the distance falls like the step and not like its square.
    assert abs(angles[0] / angles[1] - 1) < 0.01
