"""Blocks of any size agree; memory that runs out costs time, not the result."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from cases import by_name
from oracles import relative_error
from torch import Tensor

from torch_ntk import empirical_nngp, empirical_ntk
from torch_ntk.empirical import _result_size
from torch_ntk.empirical._outputs import symmetrize_
from torch_ntk.empirical.contract._piece_sizes import ON_CPU, ON_GPU
from torch_ntk.memory import Backoff, _budget, free_memory, plan
from torch_ntk.memory._budget import _control_group_free

METHODS = ["structured", "jacobian", "vector_product"]
OUTPUTS = ["full", "trace", "mean", "diagonal", "pseudo"]


# Every two of network, method and output together, though not every three.
NAMES = ["mlp", "ntk_conv", "writes_into_zeros", "function_of_the_old_kind"]
COMBINATIONS = [
    (NAMES[(i + k) % len(NAMES)], method, output)
    for i, method in enumerate([*METHODS, "auto"])
    for k, output in enumerate(OUTPUTS)
]


@pytest.mark.parametrize(("name", "method", "output"), COMBINATIONS)
def test_block_sizes_agree(name: str, method: str, output: str) -> None:
    case = by_name(name)
    model, x1, x2 = case.build(), case.inputs(5), case.inputs(3, 1)
    whole = empirical_ntk(model, x1, x2, output=output, method=method)
    square = empirical_ntk(model, x1, output=output, method=method)
    for size in (1, 2, 100):
        kernel = empirical_ntk(model, x1, x2, output=output, method=method, batch_size=size)
        assert relative_error(kernel, whole) < 1e-12
        kernel = empirical_ntk(model, x1, output=output, method=method, batch_size=size)
        assert relative_error(kernel, square) < 1e-12
        mirrored = kernel.permute(1, 0, 3, 2) if output == "full" else kernel.transpose(0, 1)
        assert torch.equal(kernel, mirrored)


@pytest.mark.parametrize("method", METHODS)
def test_few_outputs_at_a_time(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little memory makes blocks of single samples, rows and outputs."""
    case = by_name("ntk_conv")
    model, x1, x2 = case.build(), case.inputs(5), case.inputs(3, 1)
    expected = {o: empirical_ntk(model, x1, x2, method=method, output=o) for o in OUTPUTS}
    monkeypatch.setattr(_budget, "_MOST_BYTES", 1)
    for output in OUTPUTS:
        kernel = empirical_ntk(model, x1, x2, method=method, output=output)
        assert relative_error(kernel, expected[output]) < 1e-12


def _out_of_memory_on_cpu() -> Exception:
    """The very error of torch, by asking for more than any machine has."""
    try:
        torch.empty(2**55, dtype=torch.uint8)
    except RuntimeError as error:
        return error
    raise AssertionError("there is a machine with 32 PiB of memory")


ERRORS: dict[str, Callable[[], Exception]] = {
    "cpu": _out_of_memory_on_cpu,
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "python": lambda: MemoryError(),
}


class Scarce:
    """`f(params, x)` that fails in some of its evaluations, after those of the first look."""

    def __init__(self, kind: str, fails: Callable[[int], bool]) -> None:
        self.kind, self.fails, self.calls = kind, fails, 0

    def __call__(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        self.calls += 1
        if self.fails(self.calls):
            raise ERRORS[self.kind]()
        return torch.tanh(x @ params["w"])


# Evaluations that only look at what the function is like.
LOOKS = {"structured": 1, "jacobian": 1, "vector_product": 3}
PARAMS = {"w": torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(5, 2)}
X1 = torch.linspace(-2, 2, 40, dtype=torch.float64).reshape(8, 5)
X2 = torch.linspace(-1, 3, 30, dtype=torch.float64).reshape(6, 5)


# Every two of output, method and error together, as above.
SHORTAGES = [
    (output, method, list(ERRORS)[(i + k) % len(ERRORS)])
    for i, method in enumerate(METHODS)
    for k, output in enumerate(OUTPUTS)
]


@pytest.mark.parametrize(("output", "method", "kind"), SHORTAGES)
def test_goes_on_with_smaller_blocks(output: str, method: str, kind: str) -> None:
    good = Scarce(kind, lambda call: False)
    for x2 in (None, X2):
        expected = empirical_ntk(good, X1, x2, params=PARAMS, method=method, output=output)
        start = LOOKS[method]
        for first in range(start + 1, start + 5):
            scarce = Scarce(kind, lambda call, first=first: call in (first, first + 3))
            with pytest.warns(RuntimeWarning, match="Out of memory.*blocks of [12] samples") as w:
                kernel = empirical_ntk(
                    scarce, X1, x2, params=PARAMS, method=method, output=output, batch_size=5
                )
            assert relative_error(kernel, expected) < 1e-12
            assert w[0].filename == __file__
            if x2 is None:
                assert torch.equal(kernel, kernel.transpose(0, 1)) or output == "full"


@pytest.mark.parametrize("kind", list(ERRORS))
@pytest.mark.parametrize("method", METHODS)
def test_not_even_one_sample_fits(method: str, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(MemoryError, match="single sample"):
            empirical_ntk(Scarce(kind, lambda call: call > 1), X1, params=PARAMS, method=method)
    with pytest.raises(MemoryError, match="forward pass"):
        empirical_ntk(Scarce(kind, lambda call: True), X1, params=PARAMS, method=method)


@pytest.mark.parametrize("kind", list(ERRORS))
def test_nngp_goes_on_with_smaller_blocks(kind: str) -> None:
    expected = empirical_nngp(Scarce(kind, lambda call: False), X1, params=PARAMS)
    with pytest.warns(RuntimeWarning, match="Out of memory") as w:
        kernel = empirical_nngp(Scarce(kind, lambda call: call == 3), X1, params=PARAMS)
    assert relative_error(kernel, expected) < 1e-12
    assert w[0].filename == __file__


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    backoff, calls = Backoff(4, 4), []

    def fail(start: int, stop: int) -> None:
        calls.append((start, stop))
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        backoff.run(fail)
    assert calls == [(0, 4)]


def test_pieces_inside_of_a_block_are_halved_too() -> None:
    backoff, sizes = Backoff(3, 1, within=5), []

    def block(start: int, stop: int) -> None:
        sizes.append((start, backoff.cut(5)))
        if backoff.cut(5) > 1:
            raise MemoryError

    with pytest.warns(RuntimeWarning):
        backoff.run(block)
    assert sizes == [(0, 5), (0, 2), (0, 1), (1, 1), (2, 1)]


def test_a_result_that_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    case = by_name("mlp")
    model, x = case.build(), case.inputs(20)
    monkeypatch.setattr(_result_size, "free_memory", lambda device: 5000)
    with pytest.raises(
        ValueError, match=r"(?s)`output`.*4.9 KiB.*'full', a kernel \[20, 20, 3, 3\]"
    ):
        empirical_ntk(model, x)
    with pytest.raises(ValueError, match=r"28.1 KiB.*output='diagonal' is 3 times smaller"):
        empirical_ntk(model, x)
    with pytest.raises(ValueError, match=r"9.4 KiB.*'mean', 'trace' and 'pseudo' are 3 times"):
        empirical_ntk(model, x, output="diagonal")
    assert empirical_ntk(model, x, output="mean").shape == (20, 20)
    monkeypatch.setattr(_result_size, "free_memory", lambda device: 100)
    with pytest.raises(ValueError, match="fewer samples"):
        empirical_ntk(model, x, output="mean")


GIB = 1024**3


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"memory.max": "max\n", "memory.current": "123\n", "memory.stat": ""}, None),
        ({"memory.max": "1000\n", "memory.current": "400\n", "memory.stat": "anon 4\n"}, 600),
        (
            {"memory.max": "1000", "memory.current": "990", "memory.stat": "inactive_file 500\n"},
            510,
        ),
        ({"memory.max": "1000", "memory.current": "1200", "memory.stat": ""}, 0),
        (
            {
                "memory/memory.limit_in_bytes": "1000\n",
                "memory/memory.usage_in_bytes": "300\n",
                "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 100\n",
            },
            800,
        ),
    ],
)
def test_limits_of_control_groups(files: dict[str, str], free: int | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _control_group_free(tmp_path) == free


def test_free_memory_is_the_smaller_of_machine_and_group(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(_budget, "_READ_AGAIN_AFTER", 1e-9)
    monkeypatch.setattr(_budget, "_control_group_free", lambda: GIB // 64)
    assert free_memory(cpu) == GIB // 64
    monkeypatch.setattr(_budget, "_control_group_free", lambda: None)
    assert GIB // 64 < free_memory(cpu) <= psutil.virtual_memory().total
    monkeypatch.setattr(_budget, "_control_group_free", lambda: 1000)
    assert plan(50, 100, cpu) == 4
    assert plan(3, 100, cpu) == 3
    assert plan(50, 10**6, cpu) == 1


@pytest.mark.parametrize("shape", [(5, 5), (5, 5, 3), (5, 5, 3, 3), (1, 1, 1, 1)])
@pytest.mark.parametrize("strided", [True, False])
def test_the_upper_triangle_is_copied_to_the_lower(shape: tuple[int, ...], strided: bool) -> None:
    whole = torch.randn(*(2 * s for s in shape))
    kernel = whole[tuple(slice(0, s) for s in shape)]
    kernel = kernel if strided else kernel.contiguous()
    before = kernel.clone()
    symmetrize_(kernel)
    n, o = shape[0], shape[-1] if len(shape) == 4 else 1
    for a, b in itertools.product(range(n), repeat=2):
        for i, j in itertools.product(range(o), repeat=2):
            first, second = sorted([(a, i), (b, j)])
            if len(shape) == 4:
                assert kernel[a, b, i, j] == before[first[0], second[0], first[1], second[1]]
            else:
                assert torch.equal(kernel[a, b], before[first[0], second[0]])


def test_samples_of_a_backward_pass() -> None:
    """As many as are small together, a few that are not, and two of the largest."""
    most = ON_CPU.backward
    assert most is not None
    each = [0, 1, most // 100, most // 4, most // 2, most, 4 * most // 3, 2 * most, 100 * most]
    assert [ON_CPU.samples(e) for e in each] == [most, most, 100, 4, 4, 4, 3, 2, 2]
    assert ON_GPU.samples(100 * most) > 2**40
