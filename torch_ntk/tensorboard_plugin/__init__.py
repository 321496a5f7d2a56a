"""The page of monitored trainings, as TensorBoard's tab "NTK" and as a file.

The folder `static/` contains the page as plain ES modules: one for elements and scales, one for
charts, one for the page, and one with the function `render` that TensorBoard calls. A callback
writes the data that the page shows (a document) into the folder of the run.
`torch_ntk.monitor.Monitor.report` writes page and data into one HTML file. This package does not
import PyTorch.
"""

from ._files import document_name as document_name
from ._files import find_documents as find_documents
from ._files import read_document as read_document
from ._files import write_document as write_document
from ._plugin import NTKPlugin as NTKPlugin

__all__ = [
    "NTKPlugin",
    "document_name",
    "find_documents",
    "read_document",
    "write_document",
]
