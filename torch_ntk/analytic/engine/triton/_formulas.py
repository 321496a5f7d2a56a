"""Formulas as functions of Triton."""

from __future__ import annotations

import ast

_FUNCTIONS = {
    "abs": "tl.abs", "min": "tl.minimum", "max": "tl.maximum", "floor": "tl.floor",
    "power_of_two": "power_of_two",
}  # fmt: skip


class _ToTriton(ast.NodeTransformer):
    """Selections, functions and numbers in the language of Triton."""

    def __init__(self, double: bool) -> None:
        self._double = double

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        return _call("tl.where", node.test, node.body, node.orelse)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        assert isinstance(node.func, ast.Name)
        if node.func.id == "sqrt":  # of float32 `tl.sqrt` is an approximation
            return _call("tl.sqrt" if self._double else "tl.sqrt_rn", *node.args)
        return _call(_FUNCTIONS[node.func.id], *node.args)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        # A number that is assigned to a name would be float32 whatever it meets later.
        number = f"tl.full([], {node.value!r}, tl.float{64 if self._double else 32})"
        return ast.parse(number, mode="eval").body


def _call(name: str, *arguments: ast.expr) -> ast.AST:
    text = f"{name}({', '.join(map(ast.unparse, arguments))})"
    return ast.parse(text, mode="eval").body


def translated(lines: tuple[str, ...], double: bool) -> list[str]:
    """The statements of a formula as lines of a kernel."""
    tree = _ToTriton(double).visit(ast.parse("\n".join(lines)))
    return ast.unparse(ast.fix_missing_locations(tree)).split("\n")
