"""How the code is laid out: which way imports point, and what every file has.

Read from the source, so that a mistake is found in code that no other test runs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "torch_ntk"

# A folder or module may import itself and what stands in the rows above it.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"_types", "_checks", "_functional", "_version", "memory"}),
    frozenset({"nn", "linalg", "activations"}),
    frozenset({"empirical", "analytic", "linearize"}),
    frozenset({"predict", "metrics", "plotting", "monitor", "sampling", "scale"}),
    frozenset({"estimators", "forecasting", "integrations"}),
    frozenset({"callbacks"}),
)
# Besides these, (importer, imported), within a row.
WITHIN_A_LAYER = {
    ("_functional", "_checks"),
    ("_functional", "_types"),
    ("_functional", "memory"),
    ("memory", "_checks"),
    ("plotting", "metrics"),
    ("monitor", "metrics"),
    ("monitor", "plotting"),
}
# The shell around the library: what it may use of the library's private modules.
PRIVATE_FOR_CALLBACKS = {"_checks", "_types"}


@dataclass(frozen=True)
class Source:
    """A file of the repository.

    Attributes:
        path: Relative to the repository.
        module: Its dotted name, for example `torch_ntk.callbacks._base`.
    """

    path: str
    module: str

    @property
    def text(self) -> str:
        return (ROOT / self.path).read_text(encoding="utf-8")

    @property
    def tree(self) -> ast.Module:
        return _parsed(self.path)

    @property
    def is_package(self) -> bool:
        return self.path.endswith("__init__.py")

    @property
    def component(self) -> str:
        """The folder or module directly below the package; empty for the package itself."""
        parts = self.module.split(".")
        return parts[1] if len(parts) > 1 else ""


@cache
def _parsed(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), path)


def _sources(folder: str, prefix: str = "") -> list[Source]:
    """Files below a folder, without those behind a link."""
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        relative = path.relative_to(ROOT)
        if any((ROOT / parent).is_symlink() for parent in relative.parents):
            continue
        module = f"{prefix}{'.'.join(relative.with_suffix('').parts)}".removesuffix(".__init__")
        found.append(Source(relative.as_posix(), module))
    return found


LIBRARY = _sources(PACKAGE) + _sources("callbacks", f"{PACKAGE}.")
EXAMPLES = _sources("examples")
TESTS = _sources("tests")

each_library_file = pytest.mark.parametrize("source", LIBRARY, ids=lambda s: s.path)


def imports(source: Source) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that is imported, at whatever depth."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = source.module.split(".")
                above = len(parts) - node.level + source.is_package
                base = ".".join([*parts[:above], *([base] if base else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def own_imports(source: Source) -> Iterator[tuple[int, list[str]]]:
    """Imports from this package: line and the parts of the name below the package."""
    for line, name in imports(source):
        parts = name.split(".")
        if parts[0] == PACKAGE and len(parts) > 1:
            yield line, parts[1:]


def layer(component: str) -> int:
    for number, names in enumerate(LAYERS):
        if component in names:
            return number
    raise AssertionError(f"{component!r} stands in no layer: add it to LAYERS")


def test_the_rules_see_the_whole_library() -> None:
    components = {s.component for s in LIBRARY} - {""}
    assert {"_checks", "nn", "empirical", "linearize", "metrics", "callbacks"} <= components
    assert all(layer(c) >= 0 for c in components)
    seen = {(s.component, parts[0]) for s in LIBRARY for _, parts in own_imports(s)}
    assert seen >= WITHIN_A_LAYER, "an exception that nobody needs"
    assert ("empirical", "_functional") in seen  # relative imports are resolved
    assert ("callbacks", "monitor") in seen  # and those behind the link


@each_library_file
def test_imports_point_downwards(source: Source) -> None:
    if not source.component:  # the package itself gathers the public names of all layers
        return
    own = layer(source.component)
    for line, (target, *_) in own_imports(source):
        if target == source.component or (source.component, target) in WITHIN_A_LAYER:
            continue
        assert layer(target) < own, (
            f"{source.path}:{line}: {source.component} (layer {own}) imports {target} "
            f"(layer {layer(target)})"
        )


@pytest.mark.parametrize(
    "source", [s for s in LIBRARY if s.component == "callbacks"], ids=lambda s: s.path
)
def test_callbacks_use_public_names(source: Source) -> None:
    for line, parts in own_imports(source):
        if parts[0] in {"callbacks", *PRIVATE_FOR_CALLBACKS}:
            continue
        private = [p for p in parts if p.startswith("_")]
        assert not private, f"{source.path}:{line} imports {'.'.join(parts)}"


@each_library_file
def test_lightning_is_known_to_callbacks_only(source: Source) -> None:
    if source.component == "callbacks":
        return
    for line, name in imports(source):
        top = name.partition(".")[0]
        assert top not in {"lightning", "pytorch_lightning"}, f"{source.path}:{line}"


def test_every_folder_is_a_package() -> None:
    folders = {(ROOT / s.path).parent for s in LIBRARY}
    for folder in folders:
        assert (folder / "__init__.py").exists(), f"{folder} has no __init__.py"


@pytest.mark.parametrize(
    "source",
    [s for s in LIBRARY if s.is_package and s.module == f"{PACKAGE}.{s.component}"],
    ids=lambda s: s.path,
)
def test_a_public_folder_lists_its_names(source: Source) -> None:
    """`__all__` is what the folder re-exports, no more and no less."""
    if source.component.startswith("_"):
        return
    listed: set[str] = set()
    exported: set[str] = set()
    for node in source.tree.body:
        if isinstance(node, ast.ImportFrom) and (
            node.level or f"{node.module}".startswith(PACKAGE)
        ):
            for alias in node.names:
                assert alias.asname == alias.name, f"{source.path}: import {alias.name} as itself"
                exported.add(alias.name)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
            listed = set(names)
            assert len(listed) == len(names), f"{source.path}: a name stands twice in __all__"
    assert listed, f"{source.path} has no __all__"
    assert listed == exported, f"{source.path}: {sorted(listed ^ exported)}"


@pytest.mark.parametrize("source", LIBRARY + EXAMPLES + TESTS, ids=lambda s: s.path)
def test_annotations_are_not_evaluated(source: Source) -> None:
    defines = any(
        isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.AnnAssign))
        for n in ast.walk(source.tree)
    )
    names = {name for _, name in imports(source)}
    assert not defines or "__future__.annotations" in names, source.path


@pytest.mark.parametrize("source", LIBRARY + EXAMPLES + TESTS, ids=lambda s: s.path)
def test_a_file_says_what_it_is(source: Source) -> None:
    assert ast.get_docstring(source.tree), f"{source.path} has no docstring"


@pytest.mark.parametrize("source", LIBRARY + EXAMPLES, ids=lambda s: s.path)
def test_public_things_are_documented(source: Source) -> None:
    bare = [f"{source.path}:{n.lineno} {n.name}" for n in _public(source.tree) if not _says(n)]
    assert not bare, f"no docstring: {bare}"


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _public(scope: ast.Module | ast.ClassDef) -> Iterator[Definition]:
    """Definitions with public names, and those in public classes; not functions in functions."""
    for node in scope.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public(node)


def _says(node: Definition) -> bool:
    """Whether it has a docstring, or is the setter or an overload of something that has."""
    decorators = [ast.unparse(d) for d in node.decorator_list]
    if any(d.endswith((".setter", "overload")) for d in decorators):
        return True
    return ast.get_docstring(node) is not None


@each_library_file
def test_the_library_does_not_print(source: Source) -> None:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"print", "sys.stdout.write", "sys.stderr.write"}, (
                f"{source.path}:{node.lineno} prints"
            )


def test_names_of_test_files_are_unique() -> None:
    """Without packages in `tests/`, pytest cannot tell two files of one name apart."""
    names = [Path(s.path).name for s in TESTS if not s.path.endswith("conftest.py")]
    assert len(set(names)) == len(names)
    assert not any(s.is_package for s in TESTS)
