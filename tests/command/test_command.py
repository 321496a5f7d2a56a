"""The command `torch-ntk` on stores of kernels, in this process."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

pytest.importorskip("zarr")
pytest.importorskip("distributed")

from torch_ntk import CNTK, MLP, NTKClassifier, analytic_ntk, empirical_ntk, mlp_kernels
from torch_ntk.command import main
from torch_ntk.info import main as print_info
from torch_ntk.scale import KernelStore, compute_kernel

MODULE = """
import time
import torch
from torch_ntk import MLP

def factory():
    return MLP([64, 7, 3])

def kernel(a, b):
    return (a.double().flatten(1) @ b.double().flatten(1).T) ** 2

def ordinary():
    return torch.nn.Sequential(torch.nn.Linear(64, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))

def broken(a, b):
    raise RuntimeError("out of order")

def patient(a, b):
    time.sleep(0.05)
    return kernel(a, b)
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own.py").write_text(MODULE)
    monkeypatch.delitem(sys.modules, "own", raising=False)


def run(*arguments: object, status: int = 0) -> None:
    assert main([str(a) for a in arguments]) == status


def kernel(*arguments: object, store: str = "k.zarr", **status: int) -> None:
    run("kernel", "--store", store, "--tile", 16, "--quiet", *arguments, **status)


def digits(n: int) -> tuple[torch.Tensor, Any]:
    x, y = load_digits(return_X_y=True)
    return torch.as_tensor(x[:n], dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, y[:n]


def test_a_kernel_is_computed_and_solved(capsys: pytest.CaptureFixture[str]) -> None:
    kernel("--preset", "mlp-3", "--data", "digits", "--n", 150, "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["shape"], found["tiles"]) == ([150, 150], 55)
    x, y = digits(150)
    expected = mlp_kernels(x, depth=3).ntk
    store = KernelStore("k.zarr")
    assert (store.to_dense() - expected).abs().max() < 1e-9
    run("info", "--store", "k.zarr", "--json")
    info = json.loads(capsys.readouterr().out)
    assert (info["finished"], info["complete"], info["tile"]) == (55, True, 16)
    run("verify", "--store", "k.zarr", "--json", "--quiet")
    whole = {"finished": 55, "missing": 0, "damaged": [], "samples": []}
    assert json.loads(capsys.readouterr().out) == whole

    plain = NTKClassifier("precomputed").fit(expected[:110, :110].numpy(), y[:110])
    accuracy = plain.score(expected[110:, :110].numpy(), y[110:])
    assert 0.7 < accuracy <= 1
    for more in ((), ("--method", "dask"), ("--time", 1e9)):
        run("solve", "--store", "k.zarr", "--train", 110, "--json", *more)
        found = json.loads(capsys.readouterr().out)
        assert (found["train"], found["test"], found["accuracy"]) == (110, 40, accuracy)
        assert found.get("remainder", 0) < 1e-3
    test = ("--data", "digits", "--skip", 110, "--n", 40, "--against", "train.zarr")
    kernel("--preset", "mlp-3", "--data", "digits", "--n", 110, store="train.zarr")
    kernel("--preset", "mlp-3", *test, store="test.zarr")
    capsys.readouterr()
    run("solve", "--store", "train.zarr", "--test", "test.zarr", "--json")
    assert json.loads(capsys.readouterr().out)["accuracy"] == accuracy
    run("plot", "--store", "k.zarr", "-o", "k.png", "--samples", 30, "--eigenvalues", 5)
    assert Path("k.png").read_bytes().startswith(b"\x89PNG")

    tile = Path("k.zarr/kernel/c/0/3")
    tile.write_bytes(b"?" + tile.read_bytes()[1:])
    image = Path("k.zarr/x1/c/2/0/0/0")
    image.write_bytes(image.read_bytes()[1:])
    run("verify", "--store", "k.zarr", "--json", "--quiet", status=1)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["damaged"], found["samples"]) == ([[0, 3]], [["x1", 2]])
    kernel("--preset", "mlp-3", "--data", "digits", "--n", 150)
    run("verify", "--store", "k.zarr", "--quiet")


def test_kernels_of_every_kind() -> None:
    x, _ = digits(20)
    flat = x.flatten(1)
    data = ("--data", "x.npy")
    np.save("x.npy", flat.numpy())
    model = MLP([64, 7, 3])
    save_file(model.state_dict(), "state.safetensors")
    cases: dict[str, tuple[tuple[object, ...], torch.Tensor]] = {
        "a": (("--kernel", "own:kernel"), (flat.double() @ flat.double().T) ** 2),
        "b": (("--model", "own:factory"), analytic_ntk(model, flat)),
        "c": (
            ("--model", "own:factory", "--state", "state.safetensors"),
            empirical_ntk(model, flat, output="mean"),
        ),
        "d": (
            ("--model", "own:factory", "--state", "state.safetensors", "--output", "pseudo"),
            empirical_ntk(model, flat, output="pseudo"),
        ),
    }
    ordinary = nn.Sequential(nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 2))
    for name, text, scheme in (("e", "lecun", "lecun"), ("f", "1.3,0.2", (1.3, 0.2))):
        standard = ("--model", "own:ordinary", "--standard", text)
        cases[name] = (standard, analytic_ntk(ordinary, flat, standard=scheme))
    for name, (arguments, expected) in cases.items():
        kernel(*arguments, *data, store=name)
        kernel(*arguments, *data, store=name)  # also of a model that is drawn anew
        found = KernelStore(name).to_dense()
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max(), name
    images, _ = digits(9)
    size = torch.nn.functional.interpolate(images, (4, 4), mode="bilinear", antialias=True)
    size = (size - size.mean()) / size.std()
    changed = ("--n", 9, "--size", 4, "--standardize", "--dtype", "float32")
    kernel("--preset", "cntk-v-3", "--data", "digits", *changed, store="v")
    found = KernelStore("v").to_dense()
    assert found.dtype == torch.float32
    assert (found - CNTK(3)(size)).abs().max() < 1e-5


def test_data_of_every_kind() -> None:
    x, y = digits(12)
    np.save("y.npy", y)
    save_file({"x": x, "labels": torch.as_tensor(y)}, "x.safetensors")
    compute_kernel(lambda a, b: a.flatten(1) @ b.flatten(1).T, x, store="z", tile=5, progress=False)
    expected = mlp_kernels(x, depth=2).ntk
    given: tuple[tuple[object, ...], ...] = (
        ("x.safetensors",),
        ("z/x1", "--labels", "y.npy"),
        ("digits", "--n", 12),
    )
    for arguments in given:
        kernel("--preset", "mlp-2", "--data", *arguments)  # the same store each time
        store = KernelStore("k.zarr")
        assert (store.to_dense() - expected).abs().max() < 1e-12
        assert store.labels is not None
        assert store.labels.tolist() == y.tolist()


def test_regression() -> None:
    x, y = digits(40)
    np.save("x.npy", x.numpy())
    np.save("y.npy", y.astype(float))
    kernel("--preset", "mlp-3", "--data", "x.npy", "--labels", "y.npy")
    run("solve", "--store", "k.zarr", "--train", 30)


def test_mistakes_end_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    kernel("--preset", "mlp-3", "--data", "digits", "--n", 20)
    np.save("x.npy", np.zeros((4, 3)))
    np.save("y.npy", np.zeros(3))
    np.save("pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save("number.npy", np.float64(3))
    np.save("words.npy", np.array(["a"] * 4))
    for name in ("text.npy", "text.safetensors", "state.pt"):
        Path(name).write_text("none")
    save_file({}, "empty.safetensors")
    preset = ("--preset", "mlp-3", "--data")
    model = ("--data", "x.npy", "--model", "own:factory")
    cases: tuple[tuple[tuple[object, ...], str], ...] = (
        (("kernel", "--store", "k.zarr", *preset, "digits", "--n", 21), "which differs"),
        (("kernel", "--store", "a", "--preset", "cntk-9", "--data", "digits"), "cntk-gap-D"),
        (("kernel", "--store", "a", *preset, "imagenet"), "--data must be digits"),
        (("kernel", "--store", "a", *preset, "mnist"), "not below --data-root"),
        (("kernel", "--store", "a", *preset, "k.zarr"), "of a store are in k.zarr/x1"),
        (("kernel", "--store", "a", *preset, "x.npy", "--n", 9), "has 4"),
        (("kernel", "--store", "a", *preset, "x.npy", "--labels", "y.npy"), "3 labels"),
        (("kernel", "--store", "a", *preset, "pickled.npy"), "Python objects are not read"),
        (("kernel", "--store", "a", *preset, "text.npy"), "is no .npy file of numbers"),
        (("kernel", "--store", "a", *preset, "text.safetensors"), "is no .safetensors file"),
        (("kernel", "--store", "a", *preset, "empty.safetensors"), "it has none"),
        (("kernel", "--store", "a", *preset, "number.npy"), "has one number"),
        (("kernel", "--store", "a", *preset, "x.npy", "--labels", "number.npy"), "no labels"),
        (("kernel", "--store", "a", *preset, "x.npy", "--labels", "words.npy"), "<U1 of shape"),
        (("kernel", "--store", "a", *preset, "x.npy", "--split", "test"), "x.npy has no splits"),
        (("kernel", "--store", "a", *preset, "digits", "--size", 0), "--size must be at least 1"),
        (("kernel", "--store", "a", *preset, "x.npy", "--against", "none"), "does not exist"),
        (("kernel", "--store", "a", *preset, "x.npy", "--device", "quda"), "the name of a device"),
        (("kernel", "--store", "a", *preset, "x.npy", "--name", ""), "that is not empty"),
        (("kernel", "--store", "a", *preset, "x.npy", "--state", "s"), "with --model only"),
        (("kernel", "--store", "a", *preset, "x.npy", "--empirical"), "with --model only"),
        (("kernel", "--store", "a", *model, "--output", "trace"), "--state or --empirical only"),
        (("kernel", "--store", "a", *model, "--standard", "torch", "--empirical"), "without --st"),
        (("kernel", "--store", "a", *model, "--state", "state.pt"), "is no .safetensors file"),
        (("kernel", "--store", "a", "--kernel", "own", "--data", "x.npy"), "module:function"),
        (("kernel", "--store", "a", "--kernel", "own:no", "--data", "x.npy"), "cannot be imported"),
        (("info", "--store", "none"), "which does not exist"),
        (("solve", "--store", "k.zarr", "--train", 99), "--train must be from 1 to 20"),
        (("solve", "--store", "k.zarr", "--train", 0), "--train must be from 1 to 20"),
        (("solve", "--store", "k.zarr", "--time", 1, "--method", "dask"), "--method is used wi"),
        (("plot", "--store", "k.zarr", "--samples", 0), "--samples must be at least 1"),
        (("plot", "--store", "k.zarr", "--eigenvalues", -1), "--eigenvalues must be at least 0"),
        (("solve", "--store", "k.zarr", "--test", "k.zarr"), "other training samples"),
        (("kernel", "--store", "a", "--kernel", "own:broken", "--data", "x.npy"), "out of order"),
    )
    for arguments, words in cases:
        capsys.readouterr()
        run(*arguments, status=1)
        error = capsys.readouterr().err
        assert words in error.splitlines()[-1], arguments
        assert "Traceback" not in error
        assert Path("a").exists() == ("own:broken" in arguments), arguments
    scales = ["--store", "a", "--model", "own:ordinary", "--data", "x.npy", "--standard"]
    for wrong in ([], [*scales, "0,1"], [*scales, "1.4"], [*scales, "he"], [*scales, "nan,0"]):
        with pytest.raises(SystemExit) as stop:
            main(["kernel", *wrong])
        assert stop.value.code == 2
        assert ("nor a pair SIGMA_W,SIGMA_B" in capsys.readouterr().err) == bool(wrong)


@pytest.mark.slow
def test_an_error_on_a_worker_is_a_line_too() -> None:
    np.save("x.npy", np.zeros((4, 2)))
    command = [sys.executable, "-m", "torch_ntk.command", "kernel", "--store", "k.zarr", "--quiet"]
    command += ["--kernel", "own:broken", "--data", "x.npy", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    dashboard, *error = done.stderr.splitlines()
    assert dashboard.startswith("dashboard: ")
    assert error == ["torch-ntk: out of order"]


@pytest.mark.slow
def test_the_dashboard_is_at_the_address_that_is_printed() -> None:
    """With the real page if bokeh is there, and else with that of Dask which says so."""
    np.save("x.npy", np.zeros((30, 2)))
    command = [sys.executable, "-m", "torch_ntk.command", "kernel", "--store", "k.zarr"]
    command += ["--kernel", "own:patient", "--data", "x.npy", "--tile", "1", "--workers", "1"]
    without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        name, address, *hint = process.stderr.readline().split(maxsplit=2)
        with without_proxy.open(address, timeout=30) as page:
            shown = page.read().decode()
        process.terminate()
        process.stderr.read()
    assert (process.returncode, name) == (128 + signal.SIGTERM, "dashboard:")
    if importlib.util.find_spec("bokeh") is None:
        assert hint == ["(install bokeh to see it)\n"]
        assert "Dask needs bokeh" in shown
    else:
        assert hint == []
        assert "Dask" in shown


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom torch_ntk.command import main\n"
        "try:\n    main(['kernel', '--help'])\nexcept SystemExit:\n    pass\n"
        "print({'torch', 'dask', 'zarr', 'numpy', 'tensorboard'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_closed_standard_output_is_an_error_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    linear = lambda a, b: a @ b.T  # noqa: E731
    compute_kernel(linear, torch.rand(4, 2), store="k.zarr", tile=2, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)  # as Python sets it where file 1 is closed
        run("info", "--store", "k.zarr", status=1)
        assert print_info([]) == 1
    closed = ": the standard output is closed.\n"
    assert capsys.readouterr().err == f"torch-ntk{closed}torch_ntk.info{closed}"
