"""Descriptions of kernels: the same for the same kernel, and only for it."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scale_kernels import quadratic, slow
from torch import Tensor, nn

from torch_ntk import CNTK, MLP, NTKRNN, analytic_ntk, empirical_ntk
from torch_ntk.scale._describe import describe
from torch_ntk.scale._manifest import digest_of


class Scaled:
    """A kernel that is an object."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return self.factor * (a @ b.T)


class Other(Scaled):
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return self.factor + (a @ b.T)


def closed(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: factor * (a @ b.T)


def model(seed: int = 0, frozen: bool = False, slope: float = 0.1) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 3), nn.LeakyReLU(slope), nn.Linear(3, 1))
    net[0].requires_grad_(not frozen)
    return net


DIFFERENT: list[Any] = [
    CNTK(3),
    CNTK(4),
    CNTK(3, pooling="gap"),
    CNTK(3, dtype=torch.float32),
    functools.partial(analytic_ntk, MLP([2, 3, 1])),
    functools.partial(empirical_ntk, model(), output="mean"),
    functools.partial(empirical_ntk, model(), output="pseudo"),
    functools.partial(empirical_ntk, model(1), output="mean"),
    functools.partial(empirical_ntk, model(frozen=True), output="mean"),
    functools.partial(empirical_ntk, model(slope=0.2), output="mean"),
    *(quadratic, slow, Scaled(1.0), Scaled(2.0), Other(1.0), closed(1.0), closed(2.0)),
    lambda a, b: a @ b.T,
    lambda a, b: a @ b.T + 1,
]


def test_different_kernels_have_different_descriptions() -> None:
    found = [digest_of(describe(kernel)) for kernel in DIFFERENT]
    assert len(set(found)) == len(DIFFERENT)
    assert found == [digest_of(describe(kernel)) for kernel in DIFFERENT]


def test_how_it_is_computed_is_no_part_of_it() -> None:
    a = functools.partial(empirical_ntk, model(), output="mean", progress=True, max_memory="1GB")
    b = functools.partial(empirical_ntk, model(), output="mean")
    assert describe(a) == describe(b)
    assert describe(CNTK(3, progress=True)) == describe(CNTK(3))


def test_weights_are_no_part_of_a_kernel_of_infinite_width() -> None:
    """Nor how ordinary layers are drawn, unless it is said: then their widths are too."""

    def kernel(n: int = 4, slope: float = 0.1, **options: Any) -> Any:
        rnn = NTKRNN(n, 4, batch_first=True)  # which has its parameters in two places
        net = nn.Sequential(nn.Linear(2, n), nn.LeakyReLU(slope), rnn)
        return functools.partial(analytic_ntk, net, **options)

    assert describe(kernel()) == describe(kernel())
    said = [kernel(standard=s) for s in ("torch", "lecun", (1.0, 0.1), {"0": (1.0, 0.1)})]
    others = [kernel(), kernel(5), kernel(slope=0.2), *said]
    assert len({digest_of(describe(k)) for k in others}) == len(others)
    empirical = [functools.partial(empirical_ntk, k.args[0]) for k in (kernel(), kernel())]
    assert describe(empirical[0]) != describe(empirical[1])


def test_another_process_finds_the_same(tmp_path: Path) -> None:
    """Other hashes of strings, other addresses."""
    code = (
        "import sys, test_scale_describe as t\n"
        "from torch_ntk.scale._describe import describe\n"
        "from torch_ntk.scale._manifest import digest_of\n"
        "print(*(digest_of(describe(k)) for k in t.DIFFERENT))"
    )
    command = [sys.executable, "-c", code]
    folder = Path(__file__).parent
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    # This module under its own name, as the other process has it.
    from test_scale_describe import DIFFERENT as SAME

    assert done.stdout.split() == [digest_of(describe(kernel)) for kernel in SAME]


def test_a_name_is_the_whole_description() -> None:
    assert describe(quadratic, "mine") == describe(slow, "mine") == {"name": "mine"}


def test_what_cannot_be_described_is_refused() -> None:
    with pytest.raises(TypeError, match=r"`kernel\.args\[0\]` must be .* Pass name="):
        describe(functools.partial(quadratic, object()))
