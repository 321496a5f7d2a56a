"""Names for the types that public functions share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer

Output: TypeAlias = Literal["full", "trace", "mean", "diagonal", "pseudo"]
"""What is kept of the output indices of Θ[n, m, i, j]; see `torch_ntk.empirical_ntk`."""

Method: TypeAlias = Literal["auto", "structured", "jacobian", "vector_product"]
"""How an empirical kernel is computed; see `torch_ntk.empirical_ntk`."""

Parameters: TypeAlias = dict[str, Tensor]
"""Parameter tensors by name, as `torch.func.functional_call` takes them."""


class DataclassLike(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


BatchLike: TypeAlias = Tensor | Mapping[Any, Any] | tuple[Any, ...] | list[Any] | DataclassLike
"""N samples: a tensor `[N, ...]`, or any nesting of mappings (also Hugging Face's `BatchEncoding`),
tuples, lists and dataclasses. Every tensor in it has the samples on its first axis; everything else
in it is the same for all of them.

A mapping is given as `model(**batch)`, a tuple or list as `model(*batch)`, anything else as
`model(batch)`."""

ForwardFn: TypeAlias = Callable[[Any, Any], Tensor]
"""`forward_fn(model, batch)`: the outputs `[N, ...]` of a batch, in the caller's form, that are
meant, in place of the usual call."""

FunctionOfParameters: TypeAlias = Callable[[Parameters, Any], Tensor]
"""`f(params, batch)`: a batch of N samples to outputs `[N, ...]`, each row from its own sample
alone."""

ModelLike: TypeAlias = nn.Module | FunctionOfParameters

ParameterSelection: TypeAlias = Sequence[str] | Callable[[str, Tensor], bool] | Parameters | None
"""Which parameters a kernel differentiates by: names or patterns like `"layers.1.*"`, a predicate
`(name, tensor) -> bool`, or, with a function instead of a module, the parameters themselves."""

PreconditionLike: TypeAlias = Optimizer | Mapping[str, Tensor] | None
"""P of the kernel J P Jᵀ: an optimizer, or tensors by the names of parameters. None is P = 1."""
