"""Names for the types of arguments that several public functions have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer

Output: TypeAlias = Literal["full", "trace", "mean", "diagonal", "pseudo"]
"""How the output indices i, j of Θ[n, m, i, j] are reduced; see `torch_ntk.empirical_ntk`."""

Method: TypeAlias = Literal["auto", "structured", "jacobian", "vector_product"]
"""How an empirical kernel is computed; see `torch_ntk.empirical_ntk`."""

Parameters: TypeAlias = dict[str, Tensor]
"""Parameter tensors by name, as `torch.func.functional_call` takes them."""


class DataclassLike(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


BatchLike: TypeAlias = Tensor | Mapping[Any, Any] | tuple[Any, ...] | list[Any] | DataclassLike
"""N samples: a tensor `[N, ...]`, or any nesting of mappings (also Hugging Face's `BatchEncoding`),
tuples, lists and dataclasses. Every tensor in it has the samples on its first axis; other values in
it are the same for all samples.

A mapping is passed as `model(**batch)`, a tuple or list as `model(*batch)`, anything else as
`model(batch)`."""

ForwardFn: TypeAlias = Callable[[Any, Any], Tensor]
"""`forward_fn(model, batch)` calls the model in place of the usual call. It gets the batch in the
caller's form and returns the outputs `[N, ...]` whose kernel is meant."""

FunctionOfParameters: TypeAlias = Callable[[Parameters, Any], Tensor]
"""`f(params, batch)` returns the outputs `[N, ...]` of a batch of N samples. Each row depends on
its own sample only."""

ModelLike: TypeAlias = nn.Module | FunctionOfParameters

ParameterSelection: TypeAlias = Sequence[str] | Callable[[str, Tensor], bool] | Parameters | None
"""The parameters with respect to which outputs are differentiated: names or patterns like
`"layers.1.*"`, a predicate `(name, tensor) -> bool`, or, for a function instead of a module, the
parameters themselves."""

PreconditionLike: TypeAlias = Optimizer | Mapping[str, Tensor] | None
"""P of the kernel J P Jᵀ: an optimizer, or tensors by parameter name. None means P = 1."""
