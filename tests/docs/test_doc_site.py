"""The documentation site: it builds without a warning, and what it consists of.

What is tested is what a reader gets: the HTML files, read with the parser of the standard library.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from browser import CHROMIUM, browser
from doc_pages import DOCS, pages

import torch_ntk

pytestmark = pytest.mark.slow  # the site is built once, by the first of these tests


class _Reader(HTMLParser):
    """What of a page can be linked to, what it links to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.formulas = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.formulas += tag == "math"
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") != "canonical":
            self.loaded.append(values.get("href", ""))
        elif tag in ("script", "img", "iframe", "source") and values.get("src"):
            self.loaded.append(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built with warnings as errors and as if there were no network."""
    out, kept = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("doctrees")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-b", "html"]
    nowhere = "http://127.0.0.1:9"  # what asks for a page all the same is refused at once
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), nowhere)
    env = {**os.environ, **proxies, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "-d", kept, DOCS, out], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def read(site: Path) -> dict[str, _Reader]:
    """Every page by its path in the site."""
    return {
        path.relative_to(site).as_posix(): _Reader(path.read_text(encoding="utf-8"))
        for path in site.rglob("*.html")
    }


def test_every_document_is_a_page(read: dict[str, _Reader]) -> None:
    documents = {p.removeprefix("docs/") for p in pages() if p.endswith(".md")} - {"README.md"}
    assert {name.removesuffix(".md") + ".html" for name in documents} <= read.keys()


def test_every_link_leads_somewhere(site: Path, read: dict[str, _Reader]) -> None:
    wrong = []
    for name, page in read.items():
        for link in page.links:
            target = urlsplit(link)
            if target.scheme or target.netloc:
                assert target.scheme in ("https", "mailto"), link
                continue
            path = (site / name).parent / unquote(target.path) if target.path else site / name
            path = Path(os.path.normpath(path))
            if not path.is_file():
                wrong.append(f"{name}: {link}")
            elif target.fragment and path.suffix == ".html":
                there = read[path.relative_to(site).as_posix()].anchors
                if unquote(target.fragment) not in there | {"", "top"}:
                    wrong.append(f"{name}: {link}")
    assert not wrong, "\n".join(wrong)


def test_nothing_is_loaded_from_the_network(site: Path, read: dict[str, _Reader]) -> None:
    wrong = [
        f"{name}: {link}" for name, page in read.items() for link in page.loaded if "//" in link
    ]
    styles = [path for path in site.rglob("*.css") if "@import url(http" in path.read_text("utf-8")]
    assert not wrong + styles


def test_formulas_are_drawn_by_the_browser(site: Path, read: dict[str, _Reader]) -> None:
    assert read["concepts/dynamics.html"].formulas > 20
    assert not (site / "_static" / "mathjax").exists()


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    """By identity: a name that several modules share is described once."""
    described = {id(_look_up(name)) for name in _inventory(site / "objects.inv")}
    missing = [
        f"{module.__name__}.{name}"
        for module in _public_modules()
        for name in module.__all__
        if id(getattr(module, name)) not in described and not name.startswith("__")
        if not isinstance(getattr(module, name), type(sys))
    ]
    assert not missing, "\n".join(missing)


def _public_modules() -> Iterator[Any]:
    yield torch_ntk
    for found in pkgutil.iter_modules(torch_ntk.__path__, "torch_ntk."):
        if not found.name.rpartition(".")[2].startswith("_"):
            module = importlib.import_module(found.name)
            if hasattr(module, "__all__"):
                yield module
    for name in ("gpytorch", "transformers"):
        yield importlib.import_module(f"torch_ntk.integrations.{name}")


def _inventory(path: Path) -> Iterator[str]:
    """The Python names that Sphinx wrote down: name, kind, priority, place, title."""
    data = path.read_bytes().split(b"\n", 4)[4]
    for line in zlib.decompress(data).decode().splitlines():
        name, kind, *_ = line.split(" ")
        if kind.startswith("py:") and kind != "py:module":
            yield name


def _look_up(name: str) -> object:
    """The object of a full name; of what is no attribute of a module, the name itself."""
    module, _, last = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), last)
    except (ImportError, AttributeError):
        return name


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
def test_pages_fit_a_phone(site: Path, read: dict[str, _Reader], tmp_path: Path) -> None:
    """Wide tables, formulas and code scroll by themselves; the page as a whole never does."""
    wide = []
    with browser(tmp_path) as page:
        for name in sorted(read):
            page.open((site / name).as_uri(), "document.readyState === 'complete'", width=390)
            width = page.ask("document.documentElement.scrollWidth")
            if width > 390:
                wide.append(f"{name}: {width}")
    assert not wide, wide
