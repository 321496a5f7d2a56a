"""The documents as tests read them: which there are, and the code that they show.

All ```python blocks of a page run in its order and share their names, as a reader would type them.
What a page leaves to the reader, a model or a loader, stands before in a comment that is not shown:

    <!-- setup
    net = ...
    -->
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
_BLOCK = re.compile(r"^(?:<!-- setup\n(.*?)-->|```python\n(.*?)```)", flags=re.S | re.M)


def pages() -> list[str]:
    """All documents with text of their own and all notebooks, relative to the repository."""
    found = [ROOT / "README.md", *DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def text_of(page: str) -> str:
    """What stands in a page; of a notebook the Markdown that says the same."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if not page.endswith(".ipynb"):
        return text
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
    return "\n".join(f"```python\n{s}\n```\n" if kind == "code" else s for kind, s in cells)


def code_of(text: str) -> list[str]:
    """The code in a text, with what comes before it unseen."""
    return [unseen or shown for unseen, shown in _BLOCK.findall(text)]


def run(page: str, **names: Any) -> dict[str, Any]:
    """Run the code of a page; an error points to its line. Returns all names."""
    text = text_of(page)
    for block in _BLOCK.finditer(text):
        code = block[1] or block[2]
        before = text.count("\n", 0, block.start(1) if block[1] else block.start(2))
        exec(compile("\n" * before + code, page, "exec"), names)
    return names
