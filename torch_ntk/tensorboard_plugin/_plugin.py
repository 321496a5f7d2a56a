"""The plugin that TensorBoard loads for its tab "NTK"."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from tensorboard.backend.http_util import Respond  # type: ignore[import-untyped]
from tensorboard.plugins import base_plugin  # type: ignore[import-untyped]
from werkzeug import Request, Response

from ._files import find_documents, read_document

STATIC = Path(__file__).parent / "static"
_TYPES = {".js": "application/javascript", ".css": "text/css"}
App: TypeAlias = Callable[[dict[str, Any], Any], Iterable[bytes]]


class NTKPlugin(base_plugin.TBPlugin):  # type: ignore[misc]  # TensorBoard has no annotations
    """Serves the page, and the documents below TensorBoard's log folder.

    | route | reply |
    |---|---|
    | `/index.js`, … | the files in `static/` |
    | `/runs` | the names of the runs that have a document, last written first |
    | `/data?run=NAME` | the document of one of these runs; 404 for any other name |

    The requested name is looked up among the runs that were found, and is never used as a path. If
    the log folder is not on this machine, there are no runs.
    """

    plugin_name = "ntk"

    def __init__(self, context: base_plugin.TBContext) -> None:
        folder = context.logdir
        self._root = None if not folder or "://" in folder else Path(folder)
        self._was_active = False

    def is_active(self) -> bool:
        """Whether a document has been found, which is not searched again after that."""
        self._was_active = self._was_active or bool(self._found())
        return self._was_active

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """The route of the module with the function `render`, and the name of the tab."""
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name="NTK")

    def get_plugin_apps(self) -> Mapping[str, App]:
        """The WSGI applications by their routes."""
        files = [path for path in STATIC.iterdir() if path.suffix in _TYPES]
        apps: dict[str, Callable[[Request], Response]] = {
            **{f"/{path.name}": partial(_file, path) for path in files},
            "/runs": self._runs,
            "/data": self._data,
        }
        return {route: Request.application(app) for route, app in apps.items()}

    def _found(self) -> dict[str, Path]:
        """The files of the documents by the names of their runs."""
        return {} if self._root is None else find_documents(self._root)

    def _runs(self, request: Request) -> Response:
        return _reply(request, json.dumps(list(self._found())), "application/json")

    def _data(self, request: Request) -> Response:
        name = request.args.get("run", "")
        path = self._found().get(name)
        try:
            found = None if path is None else read_document(path, name)
        except (OSError, ValueError):  # it was removed or replaced after it had been found
            found = None
        if found is None:
            return _reply(request, "There is no such run.", "text/plain", 404)
        return _reply(request, json.dumps(found), "application/json")


def _reply(request: Request, content: str | bytes, kind: str, code: int = 200) -> Response:
    # `Respond` compresses the content if the browser accepts that.
    reply: Response = Respond(request, content, kind, code=code)
    return reply


def _file(path: Path, request: Request) -> Response:
    return _reply(request, path.read_bytes(), _TYPES[path.suffix])
