"""Products of two matrices of rows, by the faster of two public routes, which is measured once.

PyTorch multiplies float32 matrices on a CPU with MKL, which on some processors runs far below what
the machine can do. A convolution with a filter of one tap is the same product, and goes through
oneDNN instead. Small products are not worth the choice. The two routes round differently, and
`torch.use_deterministic_algorithms` leaves only the first.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

_SMALL = 2**22  # multiplications up to which the overhead of a convolution counts
_WORTH = 2**28  # multiplications of a single product that are worth the measurement
_MUCH = 1.1  # by how many times the other route must be faster
_SHAPE = (512, 1024, 512)  # of the products that are timed
_REPEATS = 5


def times_transposed(a: Tensor, b: Tensor) -> Tensor:
    """`a bᵀ` of `[m, k]` and `[n, k]`."""
    return _by_convolution(a, b) if _takes_convolution(a, b) else a @ b.T


def add_times_transposed_(into: Tensor, a: Tensor, b: Tensor) -> None:
    """Add `a bᵀ` to `into` `[m, n]`."""
    if _takes_convolution(a, b):
        into.add_(_by_convolution(a, b))
    else:
        into.addmm_(a, b.T)


def _by_convolution(a: Tensor, b: Tensor) -> Tensor:
    (m, k), n = a.shape, b.shape[0]
    image = a.reshape(1, m, 1, k).permute(0, 3, 1, 2)  # k channels, innermost in memory
    return F.conv2d(image, b.reshape(n, k, 1, 1)).permute(0, 2, 3, 1).reshape(m, n)


def _takes_convolution(a: Tensor, b: Tensor) -> bool:
    if a.device.type != "cpu" or a.dtype != torch.float32 or b.dtype != torch.float32:
        return False
    size = a.shape[0] * b.shape[0] * a.shape[1]
    if size <= _SMALL or torch.are_deterministic_algorithms_enabled():
        return False
    if not torch.backends.mkldnn.enabled:  # as for recurrent networks, or by the caller
        return False
    threads = torch.get_num_threads()
    return (size >= _WORTH or threads in _measured) and _is_faster(threads)


_measured: set[int] = set()
"""Numbers of threads for which the routes were compared."""


@functools.cache
def _is_faster(threads: int) -> bool:
    """Whether the convolution is the faster route, and as exact, with so many threads."""
    _measured.add(threads)
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    m, k, n = _SHAPE
    a = torch.arange(m * k, dtype=torch.float32).remainder_(1009).div_(1009).view(m, k)
    b = torch.arange(n * k, dtype=torch.float32).remainder_(1013).div_(1013).view(n, k)
    expected = a.double() @ b.double().T
    error = (_by_convolution(a, b) - expected).abs().max() / expected.abs().max()
    if float(error) > 1e-5:  # oneDNN has been allowed a lower precision
        return False
    return _MUCH * _seconds(lambda: _by_convolution(a, b)) < _seconds(lambda: a @ b.T)


def _seconds(run: Callable[[], object]) -> float:
    """The best of a few runs."""
    best = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best
