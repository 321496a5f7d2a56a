"""An HTML file with the page and its data."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..._checks import value_error
from ._document import is_document

STATIC = Path(__file__).parents[2] / "tensorboard_plugin" / "static"
_MODULES = ("svg.js", "charts.js", "page.js")  # each one after the modules that it imports
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./[a-z]+\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(async )?function|const)", re.MULTILINE)

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main id="page"></main>
<script type="application/json" id="runs">{data}</script>
<script type="module">
{script}
show(document.getElementById("page"), embedded(document.getElementById("runs")));
</script>
</body>
</html>
"""


def report_page(documents: Sequence[Mapping[str, Any]]) -> str:
    """The page with some trainings as HTML, which needs no other files and no network.

    Args:
        documents: The documents of the trainings (see `document`). The first one is shown, next to
            the second one if there are several.

    Raises:
        ValueError: There are no documents, or one of them does not have the present version.
    """
    if not documents or not all(map(is_document, documents)):
        raise value_error(
            "documents",
            "documents of monitored trainings, in the form of this version",
            f"{len(documents)} of them" if documents else "none",
            "Train with NTKMonitor and a TensorBoardLogger, which writes ntk.json.",
        )
    modules = [(STATIC / name).read_text(encoding="utf-8") for name in _MODULES]
    names = " and ".join(str(found["name"]) for found in documents[:2])
    # Without `<`, the text can neither end the script element nor begin a comment.
    data = json.dumps(list(documents), allow_nan=False).replace("<", "\\u003c")
    return _PAGE.format(
        title=html.escape(f"NTK of {names}"),
        style=(STATIC / "page.css").read_text(encoding="utf-8"),
        data=data,
        script="\n".join(_EXPORT.sub("", _IMPORT.sub("", text)) for text in modules),
    )


def write_report(path: str | os.PathLike[str], documents: Sequence[Mapping[str, Any]]) -> Path:
    """Write `report_page(documents)` under a temporary name, and rename the complete file.

    Args:
        path: The path of the file.
        documents: The documents of the trainings.

    Returns:
        The path of the file.

    Raises:
        ValueError: There are no documents, or one of them does not have the present version. No
            file is written then.
        OSError: The file cannot be written.
    """
    page, target = report_page(documents), Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    beside.write_text(page, encoding="utf-8")
    beside.replace(target)
    return target
