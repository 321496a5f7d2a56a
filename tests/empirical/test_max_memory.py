"""A limit on memory is followed, changes no result, and is refused when it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import by_name
from oracles import relative_error

from torch_ntk import MLP, empirical_ntk
from torch_ntk.empirical import NTKOperator
from torch_ntk.memory import _budget, in_bytes, limit, limited

METHODS = ["structured", "jacobian", "vector_product", "auto"]
OUTPUTS = ["full", "trace", "mean", "diagonal", "pseudo"]


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (12, 12),
        ("12B", 12),
        ("2GB", 2_000_000_000),
        ("1.5 kB", 1500),
        ("512MiB", 512 * 1024**2),
        (" 2 gib ", 2 * 1024**3),
        ("1TB", 10**12),
    ],
)
def test_sizes_in_words(given: int | str, size: int) -> None:
    assert in_bytes(given) == size


@pytest.mark.parametrize("given", [0, -5, "0B", "many", "2", "2GG", "GB", "-1GB", "1e3MB"])
def test_sizes_that_are_none(given: int | str) -> None:
    with pytest.raises(ValueError, match=r"`max_memory` must be None.*'2GB' or '512MiB'"):
        empirical_ntk(MLP([3, 2]), torch.randn(2, 3), max_memory=given)


@pytest.mark.parametrize("given", [True, 1e9, [1]])
def test_sizes_of_another_type(given: object) -> None:
    with pytest.raises(TypeError, match="`max_memory`"):
        empirical_ntk(MLP([3, 2]), torch.randn(2, 3), max_memory=given)
    assert limit() is None


COMBINATIONS = [
    (["mlp", "conv_groups_dilation"][(i + k) % 2], method, output)
    for i, method in enumerate(METHODS)
    for k, output in enumerate(OUTPUTS)
]


@pytest.mark.parametrize(("name", "method", "output"), COMBINATIONS)
def test_limits_change_no_result(name: str, method: str, output: str) -> None:
    case = by_name(name)
    model, x1, x2 = case.build(), case.inputs(6), case.inputs(5, 1)
    for other in (None, x2):
        expected = empirical_ntk(model, x1, other, output=output, method=method)
        refused, accepted = 0, 0
        for size in ("10kB", "60kB", "10MB"):
            try:
                kernel = empirical_ntk(
                    model, x1, other, output=output, method=method, max_memory=size
                )
            except ValueError as error:
                assert "`max_memory` must be larger by" in str(error)  # noqa: PT017
                assert not accepted  # more memory is never worse
                refused += 1
            else:
                accepted += 1
                assert relative_error(kernel, expected) < 1e-12
        assert accepted
    assert limit() is None


def test_the_number_in_the_refusal_is_enough() -> None:
    """A limit raised by what the message asks for is accepted."""
    case = by_name("mlp")
    model, x = case.build(), case.inputs(6)
    for method in METHODS:
        with pytest.raises(ValueError, match=r"larger by [\d.]+ KiB.*a single sample takes") as e:
            empirical_ntk(model, x, method=method, max_memory=5000)
        more = float(str(e.value).split("larger by ")[1].split(" KiB")[0]) * 1024
        enough = int(5000 + more) + 100
        empirical_ntk(model, x, method=method, max_memory=enough)


def test_a_result_beyond_the_limit_is_refused() -> None:
    model, x = MLP([5, 8, 3]), torch.randn(20, 5)
    with pytest.raises(ValueError, match=r"`output`.*max_memory, 10.0 KiB; got 'full'.*14.1 KiB"):
        empirical_ntk(model, x, max_memory=10 * 1024)
    with pytest.raises(ValueError, match=r"4 kernels \[20, 20\] of 6.2 KiB"):
        empirical_ntk(model, x, output="mean", by="parameter", max_memory=5000)


@pytest.mark.parametrize("output", ["full", "mean"])
def test_operators_follow_a_limit(output: str) -> None:
    model, x = MLP([5, 40, 3]).double(), torch.randn(12, 5).double()
    theta = NTKOperator(model, x, output=output)
    small = NTKOperator(model, x, output=output, max_memory="100kB")
    with limited(100_000):
        vectors, samples = small._map.left.sizes(50)
    assert vectors < 50
    assert samples < 12
    v = torch.randn(theta.shape[0], 8, dtype=torch.float64)
    assert relative_error(small @ v, theta @ v) < 1e-12
    assert relative_error(small.to_dense(), theta.to_dense()) < 1e-12
    with pytest.raises(ValueError, match="`max_memory` must be larger"):
        NTKOperator(model, x, output=output, max_memory="10kB") @ v


def test_a_limit_above_what_is_free_is_no_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_budget, "free_memory", lambda device: 1000)
    with limited(10**9):
        assert _budget.budget(torch.device("cpu")) == 1000


PEAK = """
import re, sys, torch
from pathlib import Path
from torch import nn
from torch_ntk import empirical_ntk
from torch_ntk.empirical import NTKOperator
torch.set_num_threads(1)
kind, runs = sys.argv[1], sys.argv[2:]
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
    nn.Flatten(), nn.Linear(64 * 64, 10),
)
def run(n, limit):
    x = torch.randn(n, 3, 8, 8)
    maximum = None if limit == "none" else limit
    if kind == "operator":
        theta = NTKOperator(model, x, max_memory=maximum)
        theta @ torch.ones(theta.shape[0], 4)
    else:
        empirical_ntk(model, x, output="mean", method=kind, max_memory=maximum)
def peak():
    # Of this program alone; what getrusage counts begins with the peak of the process before it.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024
run(1, "none")
before = peak()
for text in runs:
    limit, n = text.split(":")
    run(int(n), limit)
    print(peak() - before)
"""


def peaks(kind: str, *runs: str) -> list[int]:
    """Bytes by which a process has grown at most after each of some kernels, "limit:samples"."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, kind, *runs],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    return [int(line) for line in done.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts what Linux counts")
def test_peak_memory_follows_the_limit() -> None:
    small, free = peaks("structured", "60MB:96", "none:96")
    assert small < 60e6
    assert free > 1.5 * small


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts what Linux counts")
def test_an_operator_takes_the_memory_of_a_few_batches() -> None:
    """The Jacobian of 256 samples and 10 outputs alone would take 1.3 GB."""
    small, many, free = peaks("operator", "60MB:96", "200MB:256", "none:96")
    assert small < 90e6
    assert many < 100e6
    assert free > 2 * small
