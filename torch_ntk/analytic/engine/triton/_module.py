"""From source code to a kernel. Triton keeps what it compiled, in a folder of its own."""

from __future__ import annotations

import hashlib
import linecache
import sys
import types
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=64)
def load(source: str) -> Any:
    """The function `kernel` that generated code defines; whatever it contains is run."""
    name = "torch_ntk_kernel_" + hashlib.sha256(source.encode()).hexdigest()[:32]
    filename = f"<{name}>"
    module = types.ModuleType(name)
    module.__file__ = filename
    sys.modules[name] = module
    # Triton reads a function's source again, from where Python keeps lines of code without a file.
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec"), vars(module))
    return module.kernel
