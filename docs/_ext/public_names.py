"""`.. public-names:: torch_ntk.metrics`: a module's docstring and all names in its `__all__`.

What the package itself offers too (`torch_ntk.empirical_ntk`) is described under that name; what
another folder has defined and shares is left to that folder. So each thing has one place, and a
new public name is in the reference without anything written for it.
"""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import stringify_signature
from typing_extensions import get_overloads

PACKAGE = "torch_ntk"
# Shared by folders that come first in the reference.
ELSEWHERE = {"torch_ntk.predict.SingularKernelWarning": "torch_ntk.linalg.SingularKernelWarning"}


def place_of(module: str, name: str) -> str:
    """The full name under which a public name is described."""
    public, value = import_module(PACKAGE), getattr(import_module(module), name)
    if name in public.__all__ and getattr(public, name) is value:
        return f"{PACKAGE}.{name}"
    return ELSEWHERE.get(f"{module}.{name}", f"{module}.{name}")


class PublicNames(SphinxDirective):
    """A table of the names, and below it each of them in full."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Write what an author would write by hand, and let Sphinx read it."""
        module = self.arguments[0]
        places = [place_of(module, name) for name in import_module(module).__all__]
        own = [p for p in places if p not in ELSEWHERE.values() or p.startswith(f"{module}.")]
        described = [p for p in own if not _is_value(p)]
        lines = [f".. automodule:: {module}", "   :no-members:", "   :no-index:", ""]
        lines += [".. autosummary::", "   :nosignatures:", "", *(f"   ~{p}" for p in described), ""]
        for place in own:
            lines += [*_entry(module, place), ""]
        node = nodes.container()
        source = StringList(lines, source=self.get_source_info()[0])
        self.state.nested_parse(source, self.content_offset, node, match_titles=True)
        return node.children


def _look_up(place: str) -> Any:
    module, _, name = place.rpartition(".")
    return getattr(import_module(module), name)


def _is_value(place: str) -> bool:
    """Whether it is a constant or an alias of types: nothing with a docstring of its own."""
    value = _look_up(place)
    return not (inspect.isclass(value) or inspect.isroutine(value) or hasattr(value, "__code__"))


def _entry(module: str, place: str) -> list[str]:
    value = _look_up(place)
    if inspect.isclass(value):
        bases = [] if value.__bases__ == (object,) else ["   :show-inheritance:"]
        return [f".. autoclass:: {place}", "   :members:", *bases]
    if not _is_value(place):
        return [f".. autofunction:: {place}{_signature(value)}"]
    home, _, name = place.rpartition(".")
    lines = [f".. py:currentmodule:: {home}", "", f".. py:data:: {name}"]
    if isinstance(value, int | str) or (
        isinstance(value, tuple) and all(isinstance(v, str) for v in value)
    ):
        lines.append(f"   :value: {value!r}")
    lines.append("")
    lines += [f"   {line}" for line in _comment(home, name)]
    if isinstance(value, dict):
        lines += [
            "",
            *(f"   - ``{key}``: {text}".replace("|", "\\|") for key, text in value.items()),
        ]
    return lines


def _signature(value: Any) -> str:
    """Of a function with overloads the one signature that has all arguments; else Sphinx's own."""
    if not get_overloads(value):
        return ""
    return stringify_signature(inspect.signature(value), unqualified_typehints=True)


def _comment(module: str, name: str) -> list[str]:
    """The string below an assignment, where the name comes from."""
    analyzer = ModuleAnalyzer.for_module(module)
    analyzer.analyze()
    found = analyzer.attr_docs.get(("", name))
    if found:
        return list(found)
    for parent, _ in _imports(module, name):
        return _comment(parent, name)
    return []


def _imports(module: str, name: str) -> list[tuple[str, str]]:
    source = import_module(module)
    tree = ast.parse(inspect.getsource(source))
    found = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and any(a.name == name for a in node.names):
            is_package = hasattr(source, "__path__")
            parts = module.split(".")
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            found.append((".".join([*base, *([node.module] if node.module else [])]), name))
    return found


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive."""
    app.add_directive("public-names", PublicNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
