"""How the code is laid out: which way imports point, and what every file has.

Read from the source, so that a mistake is found in code that no other test runs. Each test goes
over all files and lists everything that breaks its rule.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "torch_ntk"

# The folders and modules of the package, from the lowest row to the highest. A folder may import
# from the rows above it in this table, and within its row from the groups that come before its own.
ROWS: tuple[tuple[str, ...], ...] = (
    ("_version _types _checks", "memory _optimizers info", "_functional"),
    ("activations linalg nn",),
    ("analytic empirical linearize", "features"),
    (
        *("metrics predict sampling", "plotting scale tensorboard_plugin", "monitor"),
        "coordinates estimators forecasting",
    ),
    ("callbacks command integrations",),
)
# The same within a folder, for the files and folders in it that are named here. To order the
# contents of another folder, add a line: its path below the package, and its groups.
INSIDE: dict[str, tuple[str, ...]] = {
    "analytic": (
        *("operations", "_program", "lift engine", "_explanation", "_api"),
        "_cntk _mlp",
    ),
    "analytic/operations": (
        "_taps _state",
        "_fused",
        "_operation",
        "_input _affine _activation _weighted_sum _pool _flatten _normalization",
        "_unshared _attention _recurrence",
    ),
    "analytic/engine": (
        *("_options _plan", "_task", "_variances fused", "triton", "_evaluate", "_within"),
        *("_blocks", "_matrix", "_kernels", "_run"),
    ),
    "analytic/engine/fused": (
        *("_shifts _module _threads _drivers _packed _windows", "_layout", "_region", "_reach"),
        *("_regions _source", "_assembly", "_pairs", "_evaluation"),
    ),
    "analytic/engine/triton": ("_formulas _suitable _module", "_source _averages", "_evaluation"),
    "empirical": (
        "_recorder",
        *(
            "_cuda_graph _outputs _parts _precondition _stages rules",
            "inspect",
            "_job _result_size",
            "contract",
        ),
        *(
            "checksum",
            "_checked_blocks",
            "structured",
            "gradient methods",
            "_probed _output_groups",
            "_coupled",
            "_repetition",
        ),
        *("_computation", "_empirical_ntk"),
        *("_explain _nngp _oracle operator", "_verify"),
    ),
    "features": (
        *(
            "_projection _samples _store _zarr_store",
            "_dense _sjlt _error",
            "_method",
            "_ntk_features",
        ),
    ),
    "empirical/operator": (
        "_symmetric_product _stochastic_trace _vectors",
        *("_lanczos _lanczos_quadrature _nystroem _product_check", "_products"),
        *("_kernel_map", "_jacobian _log_determinant _solve _spectral_density", "_operator"),
    ),
    "coordinates": ("_recorder", "_training", "_check", "_coordinate_check"),
    "forecasting": ("_curvature _forecast _loss", "_from_kernel", "_from_model session"),
    "command": (
        "_options _datasets",
        "_kernels",
        "_info _kernel _plot _report _solve _verify",
        "_main",
        "__main__",
    ),
    "scale": (
        *("_packages _grid _describe", "_chunks _sources _manifest", "_folder", "_job", "_worker"),
        *("_cluster", "_run", "_tile_store", "_factor _product _predict", "_kernel_store"),
        "_compute_kernel _compute_features",
    ),
    "monitor": ("probe stability", "reference", "measure", "figures page", "loop"),
    "monitor/measure": (
        *(
            "_adapted_network _observation _verdict",
            "_evaluation _statistics",
            "_linearization _last_step _infinite_kernel",
            "_moment",
        ),
        *("_metric", "_metrics", "_record"),
    ),
}
# The shell around the library: what it may use of the library's private modules.
PRIVATE_FOR_CALLBACKS = {"_checks", "_types"}


@dataclass(frozen=True)
class Source:
    """A file of the repository.

    Attributes:
        path: Relative to the repository.
        module: The name under which it is imported, for example `torch_ntk.callbacks._base`.
    """

    path: str
    module: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse((ROOT / self.path).read_text(encoding="utf-8"), self.path)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @property
    def is_package(self) -> bool:
        return self.path.endswith("__init__.py")

    @property
    def component(self) -> str:
        """The folder or module directly below the package; empty for the package itself."""
        parts = self.module.split(".")
        return parts[1] if len(parts) > 1 else ""

    @cached_property
    def imports(self) -> list[tuple[int, str]]:
        """Line and full dotted name of everything that is imported, at whatever depth."""
        found: list[tuple[int, str]] = []
        for node in self.nodes:
            if isinstance(node, ast.Import):
                found += [(node.lineno, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parts = self.module.split(".")
                    above = len(parts) - node.level + self.is_package
                    base = ".".join([*parts[:above], *([base] if base else [])])
                found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
        return found

    @property
    def own_imports(self) -> Iterator[tuple[int, list[str]]]:
        """Imports from this package: line and the parts of the name below the package."""
        for line, name in self.imports:
            parts = name.split(".")
            if parts[0] == PACKAGE and len(parts) > 1:
                yield line, parts[1:]


def _sources(folder: str, prefix: str | None = None) -> list[Source]:
    """Files below a folder, without those behind a link.

    `prefix` comes before the dotted path; scripts, which are imported by their file's name alone,
    have None.
    """
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        relative = path.relative_to(ROOT)
        if any((ROOT / parent).is_symlink() for parent in relative.parents):
            continue
        dotted = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        module = path.stem if prefix is None else f"{prefix}{dotted}"
        found.append(Source(relative.as_posix(), module))
    return found


LIBRARY = _sources(PACKAGE, "") + _sources("callbacks", f"{PACKAGE}.")
EXAMPLES = _sources("examples")
BENCHMARKS = _sources("benchmarks")
TESTS = _sources("tests")


def _expect_none(wrong: list[str]) -> None:
    assert not wrong, "\n" + "\n".join(wrong)


def _places(groups: tuple[str, ...]) -> dict[str, int]:
    return {name: place for place, group in enumerate(groups) for name in group.split()}


def _rows() -> dict[str, tuple[int, int]]:
    """Of each folder its row, and its group in the row."""
    return {
        name: (row, place)
        for row, groups in enumerate(ROWS)
        for name, place in _places(groups).items()
    }


def test_the_tables_name_what_there_is() -> None:
    components = {s.component for s in LIBRARY} - {""}
    assert set(_rows()) == components, "ROWS lacks a folder, or names one that does not exist"
    for folder, groups in INSIDE.items():
        here = {p.stem for p in (ROOT / PACKAGE / folder).iterdir()}
        assert set(_places(groups)) <= here, f"INSIDE names what {folder} does not have"
    seen = {(s.component, parts[0]) for s in LIBRARY for _, parts in s.own_imports}
    assert ("empirical", "_functional") in seen  # relative imports are resolved
    assert ("callbacks", "monitor") in seen  # and those behind the link


def test_a_folder_imports_only_from_rows_above_it() -> None:
    rows = _rows()
    wrong = [
        f"{source.path}:{line}: {source.component} imports {target}"
        for source in LIBRARY
        if source.component  # the package itself gathers the public names of all
        for line, (target, *_) in source.own_imports
        if target != source.component and not rows[target] < rows[source.component]
    ]
    _expect_none(wrong)


def test_imports_inside_of_a_folder_keep_to_its_order() -> None:
    wrong = []
    for folder, groups in INSIDE.items():
        places, depth = _places(groups), len(folder.split("/"))
        for source in LIBRARY:
            parts = source.module.split(".")[1:]
            if "/".join(parts[:depth]) != folder or len(parts) == depth:
                continue
            for line, target in source.own_imports:
                own, other = parts[depth], target[depth] if len(target) > depth else ""
                if target[:depth] != parts[:depth] or own == other:
                    continue
                if own in places and other in places and not places[other] < places[own]:
                    wrong.append(f"{source.path}:{line}: {own} imports {other}")
    _expect_none(wrong)


def test_nothing_imports_in_a_circle() -> None:
    circles = [
        circle
        for sources in (LIBRARY, EXAMPLES, BENCHMARKS, TESTS)
        for circle in _circles(_graph(sources))
    ]
    _expect_none([" ⇄ ".join(sorted(circle)) for circle in circles])


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"e"}, "e": {"f"}, "f": {"d"}}
    assert _circles(graph) == [{"b", "c"}, {"d", "e", "f"}]
    benchmarks = _graph(BENCHMARKS)
    assert "common" in benchmarks["empirical"]
    assert "empirical_report" in benchmarks["empirical"]  # imported inside of a function


def _graph(sources: list[Source]) -> dict[str, set[str]]:
    """Of each module those that it names in its imports, without itself."""
    modules = {s.module for s in sources}
    graph: dict[str, set[str]] = {}
    for source in sources:
        graph[source.module] = set()
        for _, name in source.imports:
            while name and name not in modules:  # a name in a module, or in none of these
                name = name.rpartition(".")[0]
            graph[source.module] |= {name} - {source.module, ""}
    return graph


def _circles(graph: Mapping[str, set[str]]) -> list[frozenset[str]]:
    """Sets of at least two modules that all lead to each other."""
    reach = {start: _reachable(graph, start) for start in graph}
    groups = {frozenset({m, *(n for n in reach[m] if m in reach[n])}) for m in graph}
    return sorted((g for g in groups if len(g) > 1), key=sorted)


def _reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    ahead = list(graph[start])
    while ahead:
        module = ahead.pop()
        if module not in seen:
            seen.add(module)
            ahead += graph[module]
    return seen


def test_callbacks_use_public_names() -> None:
    wrong = [
        f"{source.path}:{line} imports {'.'.join(parts)}"
        for source in LIBRARY
        if source.component == "callbacks"
        for line, parts in source.own_imports
        if parts[0] not in {"callbacks", *PRIVATE_FOR_CALLBACKS}
        and any(p.startswith("_") for p in parts)
    ]
    _expect_none(wrong)


def test_only_callbacks_import_lightning() -> None:
    wrong = [
        f"{source.path}:{line} imports {name}"
        for source in LIBRARY
        if source.component != "callbacks"
        for line, name in source.imports
        if name.partition(".")[0] in {"lightning", "pytorch_lightning"}
    ]
    _expect_none(wrong)


def test_a_public_folder_lists_its_names() -> None:
    """`__all__` is what the folder re-exports, no more and no less, each name as itself."""
    wrong = []
    for source in LIBRARY:
        if not source.is_package or source.module.count(".") != 1:
            continue
        if source.component.startswith("_"):
            continue
        names: list[str] = []
        exported: list[str] = []
        for node in source.tree.body:
            if isinstance(node, ast.ImportFrom) and node.level:
                exported += [alias.name for alias in node.names]
                wrong += [f"{source.path}: {a.name}" for a in node.names if a.asname != a.name]
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names = ast.literal_eval(node.value)
        if not names or sorted(names) != sorted(set(exported)):
            wrong.append(
                f"{source.path}: __all__ and imports differ in {set(names) ^ set(exported)}"
            )
    _expect_none(wrong)


def test_annotations_are_not_evaluated() -> None:
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.AnnAssign)
    wrong = [
        source.path
        for source in LIBRARY + EXAMPLES + BENCHMARKS + TESTS
        if any(isinstance(node, definitions) for node in source.nodes)
        and "__future__.annotations" not in {name for _, name in source.imports}
    ]
    _expect_none(wrong)


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def test_files_and_public_things_are_documented() -> None:
    wrong = [s.path for s in LIBRARY + EXAMPLES + BENCHMARKS + TESTS if not _says(s.tree)]
    wrong += [
        f"{source.path}:{node.lineno} {node.name}"
        for source in LIBRARY + EXAMPLES + BENCHMARKS
        for node in _public(source.tree)
        if not _says(node)
    ]
    _expect_none(wrong)


def _public(scope: ast.Module | ast.ClassDef) -> Iterator[Definition]:
    """Definitions with public names, and those in public classes; not functions in functions."""
    for node in scope.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public(node)


def _says(node: Definition | ast.Module) -> bool:
    """Whether it has a docstring, or is the setter or an overload of something that has."""
    decorators = [] if isinstance(node, ast.Module) else node.decorator_list
    if any(ast.unparse(d).endswith((".setter", "overload")) for d in decorators):
        return True
    return ast.get_docstring(node) is not None


def test_the_library_does_not_print() -> None:
    wrong = [
        f"{source.path}:{node.lineno}"
        for source in LIBRARY
        for node in source.nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name | ast.Attribute)
        and ast.unparse(node.func) in {"print", "sys.stdout.write", "sys.stderr.write"}
    ]
    _expect_none(wrong)


def test_folders_are_packages_and_those_of_tests_are_not() -> None:
    """Without packages in `tests/`, pytest cannot tell two files of one name apart."""
    folders = {(ROOT / s.path).parent for s in LIBRARY}
    wrong = [str(folder) for folder in folders if not (folder / "__init__.py").exists()]
    names = [Path(s.path).name for s in TESTS if not s.path.endswith("conftest.py")]
    wrong += {name for name in names if names.count(name) > 1}
    wrong += [s.path for s in TESTS if s.is_package]
    _expect_none(wrong)
