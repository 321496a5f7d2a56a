"""Names for the types that public functions share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from torch import Tensor, nn

Output: TypeAlias = Literal["full", "trace", "mean", "diagonal", "pseudo"]
"""What is kept of the output indices of Θ[n, m, i, j]; see `torch_ntk.empirical_ntk`."""

Method: TypeAlias = Literal["auto", "structured", "jacobian", "vector_product"]
"""How an empirical kernel is computed; see `torch_ntk.empirical_ntk`."""

Parameters: TypeAlias = dict[str, Tensor]
"""Parameter tensors by name, as `torch.func.functional_call` takes them."""

FunctionOfParameters: TypeAlias = Callable[[Parameters, Tensor], Tensor]
"""`f(params, x)`: a batch `[N, ...]` to outputs `[N, ...]`, each row from its own sample alone."""

ModelLike: TypeAlias = nn.Module | FunctionOfParameters

ParameterSelection: TypeAlias = Sequence[str] | Callable[[str, Tensor], bool] | Parameters | None
"""Which parameters a kernel differentiates by: names, a predicate `(name, tensor) -> bool`, or,
with a function instead of a module, the parameters themselves."""
