"""Triton kernels: right interpreted, compiled without a GPU, given up where they are wrong."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from small_nets import conv
from torch import Tensor, nn
from triton_interpreted import NETS

from torch_ntk import CNTK
from torch_ntk.analytic._api import evaluation_mode
from torch_ntk.analytic.engine import _kernels, _run, fused
from torch_ntk.analytic.engine._plan import plan
from torch_ntk.analytic.engine._task import Task
from torch_ntk.analytic.engine.triton import KernelEvaluation, _evaluation, suitable
from torch_ntk.analytic.engine.triton._module import load
from torch_ntk.analytic.lift import read

HERE = Path(__file__).parent
FOR_LINUX = "Triton is for Linux"


@pytest.mark.slow
@pytest.mark.parametrize("group", NETS)
def test_kernels_in_the_interpreter(group: str) -> None:
    pytest.importorskip("triton", reason=FOR_LINUX)
    done = subprocess.run(
        [sys.executable, str(HERE / "triton_interpreted.py"), group],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == sum(len(dtypes) for *_, dtypes in NETS[group].values())
    for name, dtype, in_kernel, error in rows:
        assert in_kernel, name
        assert error < (1e-13 if dtype == "torch.float64" else 1e-6), (name, dtype, error)


@pytest.mark.parametrize(
    ("pooling", "activation", "padding"),
    [
        ("gap", "relu", "zeros"),
        ("flatten", "relu", "zeros"),
        ("gap", "tanh", "circular"),
        ("flatten", "relu", "circular"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kernels_compile_without_a_gpu(
    pooling: str,
    activation: str,
    padding: str,
    dtype: torch.dtype,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    triton: Any = pytest.importorskip("triton", reason=FOR_LINUX)
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    evaluation = kernel(
        CNTK(3, pooling=pooling, activation=activation, sigma_b=0.1, dtype=dtype), dtype
    )
    text, function = evaluation._source.text, load(evaluation._source.text)
    number = "*fp64" if dtype == torch.float64 else "*fp32"
    numbers = {"buffers", "numbers", "ones", "twos", "external", "outputs", "totals"}
    types = {name: number if name in numbers else "*i32" for name in function.arg_names}
    constants = {"FULL": pooling == "gap", "DISTANCE": pooling == "flatten", "BLOCK": 512}
    types.update(dict.fromkeys(constants, "constexpr"))
    found = triton.compile(
        ASTSource(
            function,
            types,
            constexprs={(function.arg_names.index(k),): v for k, v in constants.items()},
        ),
        target=GPUTarget("cuda", 90, 32),
    )
    # Coefficients have all their digits: Triton takes numbers as float32 where it can.
    kind, prefix = (">d", "0d") if dtype == torch.float64 else (">f", "0f")
    given = [float(v) for v in re.findall(r"tl\.full\(\[\], ([\d.e+-]+), tl", text)]
    odd = [v for v in given if 1000 * v % 1]
    assert len(odd) > 5 or activation == "tanh"
    for v in odd:
        either = {prefix + struct.pack(kind, w).hex().upper() for w in (v, -v)}
        assert any(form in found.asm["ptx"] for form in either), v


def kernel(net: CNTK, dtype: torch.dtype) -> KernelEvaluation:
    x = torch.randn(2, 3, 6, 6, dtype=dtype)
    with evaluation_mode(x, None, None):
        program = net.program(x, None)
        planned = plan(program)
        parts = suitable(program, fused.partition(program, planned, dtype == torch.float64))
    (region,) = parts.regions
    return KernelEvaluation(Task(program, planned, True, True), region, x)


class Silent:
    """A kernel that computes nothing."""

    def __getitem__(self, grid: tuple[int]) -> Any:
        return lambda *given, **options: None


def broken(source: str) -> Any:
    raise RuntimeError("no such instruction\nand more")


@pytest.mark.parametrize(
    ("fake", "cause"),
    [
        (lambda source: Silent(), "differs from tensor operations by"),
        (broken, r"failed \(RuntimeError: no such instruction\)"),
    ],
    ids=["wrong", "broken"],
)
def test_tensor_operations_take_the_place_of_a_wrong_kernel(
    fake: Any, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    net = CNTK(3, pooling="flatten")
    wanted = net(x)
    monkeypatch.setattr(_kernels, "_problems", {})
    monkeypatch.setattr(_evaluation, "load", fake)
    monkeypatch.setattr(_run, "unusable", lambda device: "")
    with pytest.warns(RuntimeWarning, match=cause) as told:
        found = net(x)
    assert len(told) == 1
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        torch.testing.assert_close(net(x[:2]), wanted[:2, :2], rtol=1e-12, atol=0)
        explained = net.explain(x)
    assert not any(step.loop for step in explained.steps)
    assert re.search(cause, explained.steps[0].how)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([conv(2, 2, padding=1), nn.ReLU(), nn.AvgPool2d(2)], "averages over some positions"),
    ],
    ids=["windows"],
)
def test_regions_without_a_kernel(layers: list[nn.Module], reason: str) -> None:
    x: Tensor = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    net = nn.Sequential(*layers, nn.Flatten())
    with evaluation_mode(x, None, net):
        program = read(net, x, None, torch.float64, None, False)
        parts = fused.partition(program, plan(program), True)
        kept = suitable(program, parts)
    assert any(region.layout is not None for region in parts.regions)
    assert not kept.regions
    assert sorted(u for u in kept.units if isinstance(u, int)) == sorted(kept.reasons)
    assert any(reason in why for why in kept.reasons.values())
