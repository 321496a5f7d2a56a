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
from kernel_nets import NETS
from small_nets import conv, dense
from torch import Tensor, nn

from torch_ntk import CNTK
from torch_ntk.analytic._api import evaluation_mode
from torch_ntk.analytic.engine import _kernels, _run, fused
from torch_ntk.analytic.engine._plan import plan
from torch_ntk.analytic.engine._task import Task
from torch_ntk.analytic.engine.triton import KernelEvaluation, _averages, _evaluation, suitable
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


def compiled(function: Any, numbers: set[str], dtype: torch.dtype, **constants: int) -> str:
    """The instructions of a kernel for compute capability 9.0.

    Args:
        function: The kernel.
        numbers: Which of its arguments are addresses of `dtype`; others are of integers.
        dtype: Of the computation.
        constants: Arguments that are known.
    """
    triton: Any = pytest.importorskip("triton", reason=FOR_LINUX)
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    number = "*fp64" if dtype == torch.float64 else "*fp32"
    types = {name: number if name in numbers else "*i32" for name in function.arg_names}
    types.update(dict.fromkeys(constants, "constexpr"))
    known = {(function.arg_names.index(k),): v for k, v in constants.items()}
    source = ASTSource(function, types, constexprs=known)
    return str(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"])


def images(activation: nn.Module, mode: str, *after: nn.Module) -> nn.Module:
    layers = (conv(3, 3, padding=1, padding_mode=mode), activation)
    return nn.Sequential(*layers, conv(3, 3, padding=1, padding_mode=mode), *after, nn.Flatten())


COMPILED = {
    "average": images(nn.ReLU(), "zeros", nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
    "average in circles of a series": images(nn.Tanh(), "circular", nn.AdaptiveAvgPool2d(1)),
    "some positions": images(nn.GELU(), "zeros", nn.AvgPool2d(2)),
    "flat": images(nn.ReLU(), "zeros"),
    "flat, with borders": images(nn.ReLU(), "replicate", nn.ReLU()),
}


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kernels_compile_without_a_gpu(
    name: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason=FOR_LINUX)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    evaluation = kernel(COMPILED[name], dtype)
    full = not name.startswith("flat")
    text = evaluation._source.text
    numbers = {"buffers", "numbers", "ones", "twos", "external", "totals", "outputs", "scratch"}
    ptx = compiled(load(text), numbers, dtype, FULL=full, DISTANCE=not full, BLOCK=512)
    # Coefficients have all their digits: Triton takes numbers as float32 where it can.
    kind, prefix = (">d", "0d") if dtype == torch.float64 else (">f", "0f")
    given = [float(v) for v in re.findall(r"tl\.full\(\[\], ([\d.e+-]+), tl", text)]
    odd = [v for v in given if 1000 * v % 1]
    assert len(odd) > 5 or "series" in name
    for v in odd:
        either = {prefix + struct.pack(kind, w).hex().upper() for w in (v, -v)}
        assert any(form in ptx for form in either), v


def kernel(net: nn.Module, dtype: torch.dtype) -> KernelEvaluation:
    x = torch.randn(2, 3, 6, 6, dtype=dtype)
    with evaluation_mode(x, None, net):
        program = read(net, x, None, dtype, None, False)
        planned = plan(program)
        parts = suitable(program, fused.partition(program, planned, dtype == torch.float64))
    region, *_ = parts.regions
    return KernelEvaluation(Task(program, planned, True, True), region, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_averages_compile_without_a_gpu(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason=FOR_LINUX)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = load(_averages.source(dtype))
    assert "fma.rn" in compiled(function, {"made", "taken", "weights"}, dtype, BLOCK=512)


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


def test_vectors_alone_have_no_kernel() -> None:
    x: Tensor = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    layers = conv(2, 2, padding=1), nn.ReLU(), nn.Flatten(), dense(32, 2), nn.ReLU(), dense(2, 1)
    net = nn.Sequential(*layers)
    with evaluation_mode(x, None, net):
        program = read(net, x, None, torch.float64, None, False)
        parts = fused.partition(program, plan(program), True)
        kept = suitable(program, parts)
    vectors = [region for region in parts.regions if region.layout is None]
    assert vectors
    assert kept.regions == tuple(region for region in parts.regions if region.layout is not None)
    assert sorted(u for u in kept.units if isinstance(u, int)) == sorted(kept.reasons)
    assert set(kept.reasons) >= {i for region in vectors for i in region.steps}
