"""Memory: how much is free, how much a computation may use, and smaller blocks when it runs out."""

from ._backoff import ONE_SAMPLE as ONE_SAMPLE
from ._backoff import Backoff as Backoff
from ._backoff import even as even
from ._backoff import is_out_of_memory as is_out_of_memory
from ._backoff import plan as plan
from ._backoff import ranges as ranges
from ._backoff import within as within
from ._budget import budget as budget
from ._budget import free_memory as free_memory
from ._limit import aim as aim
from ._limit import aiming_at as aiming_at
from ._limit import check_enough as check_enough
from ._limit import in_bytes as in_bytes
from ._limit import limit as limit
from ._limit import limited as limited
from ._limit import size_in_words as size_in_words

__all__ = [
    "ONE_SAMPLE",
    "Backoff",
    "aim",
    "aiming_at",
    "budget",
    "check_enough",
    "even",
    "free_memory",
    "in_bytes",
    "is_out_of_memory",
    "limit",
    "limited",
    "plan",
    "ranges",
    "size_in_words",
    "within",
]
