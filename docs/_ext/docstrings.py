"""Docstrings are written as Markdown with Google's sections; Sphinx reads reStructuredText.

Three things differ in what the docstrings of this package use: a table of pipes, code that is
indented by four more, and a `|` in the text (as in |x|), which would begin a substitution.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

_SECTION = re.compile(
    r"(Args|Arguments|Attributes|Example|Examples|Keyword Args|Note|Notes|Raises|References|Returns"
    r"|Warns|Yields):\s*$"
)


def to_restructured(lines: list[str]) -> list[str]:
    r"""The lines of a docstring, in the language of Sphinx.

    >>> to_restructured(["|x| is", "", "    y = |x|"])
    ['\\|x\\| is', '', '::', '', '    y = |x|']
    """
    found: list[str] = []
    in_section = in_code = False
    table: list[str] = []
    for line, after in zip([*lines, ""], [*lines[1:], "", ""], strict=True):
        if line.startswith("|") and (table or re.match(r"\|[-:| ]+\|$", after)):
            table.append(line)
            continue
        if table:
            found += _as_list_table(table)
            table = []
        indented = line.startswith("    ")
        if line and not indented:
            in_section, in_code = bool(_SECTION.match(line)), False
        elif indented and not in_section and not in_code and not (found and found[-1]):
            in_code = True
            found += ["::", ""]
        found.append(line if in_code or line.lstrip().startswith(">>>") else _escaped(line))
    return found[:-1]


def _escaped(line: str) -> str:
    """Outside of backticks, of which lines have whole pairs."""
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(p if p.startswith("`") else p.replace("|", "\\|") for p in parts)


def _as_list_table(rows: list[str]) -> list[str]:
    cells = [re.split(r"(?<!\\)\|", row.strip()[1:-1]) for row in rows]
    lines = ["", ".. list-table::", "   :header-rows: 1", ""]
    for row in [cells[0], *cells[2:]]:
        for i, cell in enumerate(row):
            lines.append(("   * - " if i == 0 else "     - ") + _escaped(cell.strip()))
    return [*lines, ""]


def _process(
    app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]
) -> None:
    lines[:] = to_restructured(lines)


def _skip(
    app: Sphinx, what: str, name: str, value: object, skip: bool, options: object
) -> bool | None:
    """scikit-learn gives its estimators methods that this package has not written."""
    return True if re.fullmatch(r"set_\w+_request", name) else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Before napoleon, which reads the sections."""
    app.connect("autodoc-process-docstring", _process, priority=100)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
