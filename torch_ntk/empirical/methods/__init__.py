"""The methods that compute a kernel: functions of a job that return its kernels."""

from __future__ import annotations

from collections.abc import Callable

from ..._types import Method
from .._job import KernelJob
from .._parts import Kernels
from ..structured import UseRecorder
from ._auto import OnePrecisionError as OnePrecisionError
from ._auto import by_auto as by_auto
from ._auto import by_structure as by_structure
from ._jacobian import JacobianMethod as JacobianMethod
from ._product_methods import PRODUCT_METHODS as PRODUCT_METHODS
from ._vector_product import by_vector_products as by_vector_products

METHODS: dict[Method, Callable[[KernelJob, UseRecorder], Kernels]] = {
    "auto": by_auto,
    "structured": by_structure,
    "jacobian": lambda job, recorder: JacobianMethod(job).kernel(),
    "vector_product": lambda job, recorder: by_vector_products(job),
}

__all__ = [
    "METHODS",
    "PRODUCT_METHODS",
    "JacobianMethod",
    "OnePrecisionError",
    "by_auto",
    "by_vector_products",
]
