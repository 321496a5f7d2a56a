"""The code on every page runs, and does what the page says where that is more than running."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from doc_pages import DOCS, code_of, pages, run, text_of

from torch_ntk import empirical_ntk

# Pages whose code is run by a test of their own, which looks at more.
ELSEWHERE = {
    "README.md": "tests/examples/test_readme.py",
    "docs/loops.md": "tests/monitor/test_loops_page.py",
    "docs/plotting.md": "tests/plotting/test_plotting_page.py",
}
PAGES = [page for page in pages() if page not in ELSEWHERE and code_of(text_of(page))]


def _large(names: dict[str, Any], folder: Path) -> None:
    kernel = names["operator"].to_dense()
    ridge = 0.01 * kernel.trace() / 600 * torch.eye(600).double()
    expected = torch.linalg.solve(kernel + ridge, names["y"].flatten())
    assert (names["solution"].x.flatten() - expected).norm() < 1e-5 * expected.norm()
    off = names["determinant"] - torch.logdet(kernel + ridge)
    assert abs(off) < 5 * names["standard_error"] + 1e-6
    samples = names["samples"].tensors[0]
    exact = empirical_ntk(names["net"], samples[:5], samples[:7], output="mean")
    assert float(((names["estimate"] - exact).abs() <= 2 * names["error"]).float().mean()) > 0.9
    assert (folder / "phi.safetensors").stat().st_size > 1000 * 512 * 4


def _monitor(names: dict[str, Any], folder: Path) -> None:
    assert {"step", "ntk/drift"} <= names["monitor"].history.keys()
    assert names["monitor"].history["ntk/drift"][0] == 0.0
    assert names["monitor"].history["step"][-1] == 10


LOOKED_AT: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "docs/howto/large.md": _large,
    "docs/howto/monitor.md": _monitor,
}


@pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning", "ignore:.*treespec.*:FutureWarning")
@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] * p.endswith(".ipynb")) for p in PAGES]
)
def test_the_code_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "torch_ntk.scale" in text_of(page):
        pytest.importorskip("zarr")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    names = run(page)
    if page in LOOKED_AT:
        LOOKED_AT[page](names, tmp_path)


def test_no_page_is_left_out() -> None:
    assert len(PAGES) > 15
    assert LOOKED_AT.keys() <= set(PAGES)
    for page, test in ELSEWHERE.items():
        assert Path(page).name in (DOCS.parent / test).read_text(encoding="utf-8")
        assert code_of(text_of(page))
