"""Kernels taken from a few of the outputs at a time are those of all outputs at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import jacobian_loop
from torch import Tensor, nn

from torch_ntk import MLP, empirical_ntk
from torch_ntk.empirical._job import KernelJob
from torch_ntk.memory import aiming_at

OUTPUTS = 17


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Flatten(), MLP([6 * 16, 12, OUTPUTS], "tanh")
    ).double()


def images(n: int) -> Tensor:
    return torch.randn(n, 2, 6, 6, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[slice]:
    """The groups of outputs of which a kernel was made."""
    seen: list[slice] = []
    own = KernelJob.of_outputs

    def noted(job: Any, part: slice) -> Any:
        seen.append(part)
        return own(job, part)

    monkeypatch.setattr(KernelJob, "of_outputs", noted)
    return seen


@pytest.mark.parametrize("output", ["trace", "mean", "diagonal"])
@pytest.mark.parametrize("other", [None, images(4)], ids=["square", "rectangle"])
def test_sums_over_groups_are_the_kernel(
    output: str, other: Tensor | None, made: list[slice]
) -> None:
    model, x = net(), images(5)
    with aiming_at(60_000):
        found = empirical_ntk(model, x, other, output=output)  # type: ignore[call-overload]
    assert [part.stop - part.start for part in made[-4:]] == [5, 5, 5, 2]
    a = jacobian_loop(model, x)
    b = a if other is None else jacobian_loop(model, other)
    wanted = torch.einsum("nip,mip->nmi", a, b)
    if output != "diagonal":
        wanted = wanted.sum(-1) / (OUTPUTS if output == "mean" else 1)
    assert float((found - wanted).abs().max()) < 1e-12 * float(wanted.abs().max())


def test_parts_and_optimizers_go_through_groups_too(made: list[slice]) -> None:
    model, x = net(), images(5)
    scales = {n: torch.rand_like(p) + 0.5 for n, p in model.named_parameters()}
    options: dict[str, Any] = {"output": "mean", "by": "module", "precondition": scales}
    wanted = empirical_ntk(model, x, **options)
    assert not made
    with aiming_at(60_000):
        found = empirical_ntk(model, x, **options)
    assert made
    assert set(found) == set(wanted)
    for name, kernel in wanted.items():
        assert float((found[name] - kernel).abs().max()) < 1e-12 * float(kernel.abs().max())


def test_what_is_no_sum_is_taken_whole(made: list[slice]) -> None:
    model, x = net(), images(5)
    with aiming_at(60_000):
        empirical_ntk(model, x, output="full")
        empirical_ntk(model, x, output="pseudo")
        probed = empirical_ntk(model, x, output="probed", probes=4)
        empirical_ntk(model, x, output="mean", method="jacobian")
    assert not made
    again = empirical_ntk(model, x, output="probed", probes=4)
    assert torch.allclose(probed.kernel, again.kernel, rtol=1e-12)
