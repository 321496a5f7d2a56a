"""What the arguments mean: parameters, precision, methods, functions, progress."""

from __future__ import annotations

import functools
import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest
import torch
from cases import Case, by_name
from oracles import contract_full, jacobian_loop, ntk_loop, reduced, relative_error
from torch import Tensor, nn
from torch.func import functional_call
from tqdm.auto import tqdm
from traces import in_training, snapshot

from torch_ntk import empirical_nngp, empirical_ntk
from torch_ntk.empirical.methods import JacobianMethod, _auto
from torch_ntk.empirical.structured import StructuredMethod

METHODS = ["structured", "jacobian", "vector_product"]
OUTPUTS = ["full", "trace", "mean", "diagonal", "pseudo"]


@pytest.mark.parametrize("method", METHODS)
def test_params_select(method: str) -> None:
    case = by_name("mlp")
    x1, x2 = case.inputs(4), case.inputs(3, 1)

    def check(params, names: list[str]) -> None:
        kernel = empirical_ntk(case.build(), x1, x2, params=params, method=method)
        assert relative_error(kernel, ntk_loop(case.build(), x1, x2, names)) < 1e-10

    check(["0.weight"], ["0.weight"])
    check(("2.bias", "0.weight"), ["0.weight", "2.bias"])
    check(lambda name, p: p.ndim == 1, ["0.bias", "2.bias"])
    check(lambda name, p: name.startswith("2"), ["2.weight", "2.bias"])
    parts = [
        empirical_ntk(case.build(), x1, x2, params=[n], method=method)
        for n, _ in case.build().named_parameters()
    ]
    whole = empirical_ntk(case.build(), x1, x2, method=method)
    assert relative_error(sum(parts), whole) < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_params_may_be_frozen_ones(method: str) -> None:
    case = by_name("frozen_parameters")
    x = case.inputs(3)
    kernel = empirical_ntk(case.build(), x, params=["0.weight"], method=method)
    assert relative_error(kernel, ntk_loop(case.build(), x, x, ["0.weight"])) < 1e-10


@pytest.mark.parametrize("name", ["first.weight", "second.weight"])
def test_a_tied_parameter_answers_to_all_its_names(name: str) -> None:
    case = by_name("tied_weights")
    x = case.inputs(3)
    kernel = empirical_ntk(case.build(), x, params=[name])
    assert relative_error(kernel, ntk_loop(case.build(), x, x, [name])) < 1e-10


def test_data_parallel_modules_are_unwrapped() -> None:
    case = by_name("mlp")
    model, x = case.build(), case.inputs(3)
    assert torch.equal(empirical_ntk(nn.DataParallel(model), x), empirical_ntk(model, x))


@pytest.mark.parametrize("case_name", ["compiled", "compiled_inside"])
def test_names_inside_of_compiled_modules(case_name: str) -> None:
    case = by_name(case_name)
    x = case.inputs(3)
    name = "0.weight" if case_name == "compiled" else "0.0.weight"
    full = (
        name.replace("0.", "_orig_mod.0.", 1) if case_name == "compiled" else "0._orig_mod.0.weight"
    )
    kernel = empirical_ntk(case.build(), x, params=[name])
    assert relative_error(kernel, ntk_loop(case.build(), x, x, [full])) < 1e-10
    assert torch.equal(empirical_ntk(case.build(), x, params=[full]), kernel)
    seen: list[str] = []
    empirical_ntk(case.build(), x, params=lambda n, p: not seen.append(n))
    assert name in seen


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_function_of_parameters(method: str, oracle) -> None:
    case = by_name("layer_twice")
    model = case.build()
    params = dict(model.named_parameters())

    def f(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, p, (x,))

    j1, j2 = oracle(case)
    for output in OUTPUTS:
        options = {"params": params, "method": method, "output": output}
        kernel = empirical_ntk(f, case.inputs(4), case.inputs(3, 1), **options)
        assert relative_error(kernel, reduced(contract_full(j1, j2), output)) < 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_function_that_empties_its_dictionary_and_writes_to_its_input(method: str) -> None:
    def f(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return x.mul_(2.0) * p.pop("w") + 0 * p.pop("v")

    w = torch.tensor(3.0, requires_grad=True)
    x = torch.tensor([[1.0], [2.0]])
    params = {"w": w, "v": torch.ones(1)}
    kernel = empirical_ntk(f, x, params=params, method=method, output="trace")
    assert torch.equal(kernel, torch.tensor([[4.0, 8.0], [8.0, 16.0]]))
    assert torch.equal(x, torch.tensor([[1.0], [2.0]]))
    assert list(params) == ["w", "v"]
    assert w.grad is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 2, 1)])
def test_inputs_of_any_number_of_dimensions(method: str, shape: tuple[int, ...]) -> None:
    x = torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape)
    params = {"w": torch.tensor(0.5)}
    kernel = empirical_ntk(lambda p, x: p["w"] * x, x, params=params, method=method, output="trace")
    rows = x.reshape(3, -1)
    assert torch.equal(kernel, rows @ rows.T)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["ntk_mlp", "batchnorm2d", "layer_norm", "gru"])
def test_half_precision_models_are_computed_in_float32(
    name: str, method: str, half: torch.dtype
) -> None:
    case = by_name(name)
    model, x = case.build().to(half), case.inputs(3).to(half)
    kernel = empirical_ntk(model, x, method=method)
    assert kernel.dtype == half
    exact = empirical_ntk(case.build().to(half).double(), x.double(), method=method)
    # Only the one rounding of the result.
    assert relative_error(kernel, exact) <= torch.finfo(half).eps
    precise = empirical_ntk(model, x, method=method, dtype=torch.float64)
    assert precise.dtype == torch.float64
    assert relative_error(precise, exact) < 1e-12


def test_a_buffer_of_another_precision_stays_as_it_is() -> None:
    class Fine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)
            self.register_buffer("offset", torch.tensor(1e8 + 1, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer((x.double() + self.offset - 1e8).float())

    x = torch.zeros(1, 2)
    assert empirical_ntk(Fine(), x).item() == 3.0  # float32 would lose the 1 in 1e8 + 1


def test_auto_takes_every_method_where_it_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def watched(name, real):
        return lambda *a: (taken.append(name), real(*a))[1]

    for kind in (StructuredMethod, JacobianMethod):
        monkeypatch.setattr(kind, "kernel", watched(kind.__name__, kind.kernel))
    real = _auto.by_vector_products
    monkeypatch.setattr(_auto, "by_vector_products", watched("vector_product", real))
    wide = nn.Linear(3, 50)  # each weight used once per sample, many outputs
    x = torch.randn(20, 3)
    expected = empirical_ntk(wide, x)
    assert taken == ["StructuredMethod"]
    monkeypatch.setattr(StructuredMethod, "bytes_per_sample", lambda *_: 2**60)
    assert relative_error(empirical_ntk(wide, x), expected) < 1e-5
    shared = nn.Conv1d(1, 1, 3)  # few weights used many times
    empirical_ntk(shared, torch.randn(4, 1, 40), output="trace")
    assert taken == ["StructuredMethod", "vector_product", "JacobianMethod"]


@pytest.mark.parametrize("name", ["function_of_the_old_kind", "gradient_stopped_by_no_grad"])
def test_auto_falls_back_to_the_reference(
    name: str, monkeypatch: pytest.MonkeyPatch, oracle
) -> None:
    case = by_name(name)
    monkeypatch.setattr(StructuredMethod, "bytes_per_sample", lambda *_: 2**60)
    monkeypatch.setattr(_auto, "choose", lambda *_: "vector_product")
    j1, j2 = oracle(case)
    kernel = empirical_ntk(case.build(), case.inputs(4), case.inputs(3, 1), progress=True)
    assert relative_error(kernel, contract_full(j1, j2)) < 1e-10


@pytest.mark.parametrize(
    "name", ["gru", "lstm_cell_loop", "writes_into_zeros", "embedding_max_norm"]
)
def test_methods_agree_where_vmap_gives_up(name: str) -> None:
    case = by_name(name)
    model, x = case.build(), case.inputs(4)
    first, *others = (empirical_ntk(model, x, method=m) for m in METHODS)
    assert all(relative_error(first, other) < 1e-12 for other in others)


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("method", METHODS)
def test_prelu_with_any_number_of_samples(method: str, samples: int) -> None:
    """vmap's rule for prelu mixes up dimensions of the same length without an error."""
    models = (
        nn.PReLU(3),
        nn.PReLU(),
        nn.Sequential(nn.Linear(3, 3), nn.PReLU(3), nn.Linear(3, 3), nn.PReLU()),
    )
    x = torch.randn(samples, 3, dtype=torch.float64)
    for model in models:
        j = jacobian_loop(model.double(), x)
        for output in ("full", OUTPUTS[1 + samples % 4]):
            kernel = empirical_ntk(model, x, method=method, output=output, batch_size=samples)
            assert relative_error(kernel, reduced(contract_full(j, j), output)) < 1e-10


def outputs_of_each(case: Case, n: int, seed: int = 0) -> torch.Tensor:
    """`[n, O]`, one sample at a time unless the batch is one input."""
    model, numbers = case.build().train("training" in case.options), case.numbers(n, seed)
    parts = [numbers] if case.is_one_input else numbers.split(1)
    found = [case.outputs(model, case.batch(part.clone())).detach() for part in parts]
    return torch.cat([f.reshape(n if case.is_one_input else 1, -1) for f in found])


def test_nngp_is_the_product_of_outputs(case: Case) -> None:
    x1, x2 = case.inputs(4), case.inputs(3, 1)
    f1, f2 = outputs_of_each(case, 4), outputs_of_each(case, 3, 1)
    model = in_training(case)
    before = snapshot(model, x1, x2)
    options = {"batch_size": None if case.is_one_input else 2, **case.options}
    cross = empirical_nngp(model, x1, x2, **options)
    assert snapshot(model, x1, x2) == before
    assert relative_error(cross, f1 @ f2.T / f1.shape[1]) < 1e-12
    kernel = empirical_nngp(model, x1, **options)
    assert relative_error(kernel, f1 @ f1.T / f1.shape[1]) < 1e-12
    assert torch.equal(kernel, kernel.T)


def test_nngp_takes_frozen_models_and_refuses_a_selection() -> None:
    model, x = nn.Linear(5, 2).requires_grad_(False), torch.randn(3, 5)
    f = model(x)
    assert relative_error(empirical_nngp(model, x), f @ f.T / 2) < 1e-6
    with pytest.raises(TypeError, match="`params` must be None when `model` is a module"):
        empirical_nngp(model, x, params=["weight"])


@pytest.mark.parametrize("method", METHODS)
def test_progress_goes_to_stderr_and_closes(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tqdm.auto.tqdm", functools.partial(tqdm, mininterval=0))
    case = by_name("mlp")
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        quiet = empirical_ntk(case.build(), case.inputs(4), method=method)
        assert err.getvalue() == ""
        shown = empirical_ntk(
            case.build(), case.inputs(4), method=method, progress=True, batch_size=2
        )
    assert out.getvalue() == ""
    assert "empirical NTK" in err.getvalue()
    assert all(f"{done}/4" in err.getvalue() for done in (0, 2, 4))
    assert err.getvalue().endswith("\r")  # the line is cleared
    assert relative_error(shown, quiet) < 1e-12
    assert not tqdm._instances


def test_import_and_use_emit_no_warning() -> None:
    code = """
import torch, torch_ntk
torch.manual_seed(0)
lstm = torch.nn.LSTM(3, 2, batch_first=True)
class Last(torch.nn.Module):
    def __init__(self):
        super().__init__(); self.lstm = lstm; self.act = torch.nn.GELU()
    def forward(self, x):
        return self.act(self.lstm(x)[0][:, -1])
for method in ("jacobian", "vector_product", "auto"):
    torch_ntk.empirical_ntk(Last(), torch.randn(2, 4, 3), method=method)
torch_ntk.empirical_nngp(Last(), torch.randn(2, 4, 3))
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert run.stdout == ""
