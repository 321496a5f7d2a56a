"""Detection of tensors that a module has computed from its parameters and keeps in eval mode.

Some modules compute a weight from a parameter in every training step, but only once in eval mode,
and keep the tensor. In eval mode it is then a constant, so that the outputs seem not to depend on
the parameter, and no derivative reveals the mistake. It is found by a forward pass in train mode
that uses the parameter and does not use the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .._checks import value_error
from .._types import Parameters
from ._batch import Batch
from ._graph import tensors_in
from ._unwrap import plain_name


class TensorsRead(TorchFunctionMode):
    """A context that records which parameters and constants a forward pass on x uses.

    A constant is a floating-point tensor that is neither a parameter nor an input, and that was not
    computed in the context.

    Attributes:
        parameters: The names of the parameters that were used.
        constants: The `id` of each constant that was used.
    """

    def __init__(self, module: nn.Module, x: Batch, training: bool) -> None:
        super().__init__()
        self.x = x
        self.parameters: set[str] = set()
        self.constants: set[int] = set()
        self._module, self._training = module, training
        self._names: dict[int, str] = {}
        self._made: dict[int, Tensor] = {}  # kept alive, so that no other tensor gets its `id`

    def around(self, leaves: Parameters) -> TensorsRead:
        """This context for a forward pass that uses the given parameters."""
        self._names = {id(p): n for n, p in leaves.items()}
        return self

    def __enter__(self) -> TensorsRead:
        for m in self._module.modules():
            m.training = self._training
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for m in self._module.modules():
            m.training = False

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, (Tensor, tuple, list)):
            given = list(tensors_in((args, kwargs)))
            self.parameters.update(self._names[id(t)] for t in given if id(t) in self._names)
            self.constants.update(id(t) for t in given if self._is_constant(t))
            self._made.update((id(t), t) for t in tensors_in(out))
        return out

    def _is_constant(self, t: Tensor) -> bool:
        """Whether `t` is a constant, as the class defines it."""
        if id(t) in self._names or id(t) in self._made or not t.is_floating_point():
            return False
        # Results of torch.func are not recorded as made; they are wrapped, or have a `grad_fn`.
        if t.grad_fn is not None or torch._C._functorch.is_functorch_wrapped_tensor(t):
            return False
        return not any(
            t.shape == own.shape and torch.equal(t.to(own.dtype), own) for own in self.x.tensors
        )


def refuse_kept_tensors(
    module: nn.Module,
    unused: Sequence[str],
    x: Batch,
    run: Callable[[Batch, Callable[[Parameters], TensorsRead]], object],
) -> None:
    """Raise an error if parameters are unused because tensors computed from them were kept.

    This is so if a forward pass in train mode uses one of the parameters, and does not use some
    constant that a forward pass in eval mode uses.

    Args:
        module: The network, in eval mode.
        unused: The names of parameters that its outputs do not depend on.
        x: A batch.
        run: Evaluates the network on a batch, within the context that its second argument makes
            from the parameters by name.
    """
    if not unused:
        return
    # Normalization in train mode needs two samples.
    in_eval = TensorsRead(module, x[:1], training=False)
    in_train = TensorsRead(module, x[:1].join(x[-1:]), training=True)
    for reads in (in_eval, in_train):
        try:
            run(reads.x, reads.around)
        except Exception:  # anything that a user's forward may raise in train mode
            return
    derived = [n for n in unused if n in in_train.parameters]
    if derived and in_eval.constants - in_train.constants:
        raise value_error(
            "model",
            "a module whose outputs in eval mode follow from its parameters",
            f"one that has computed a tensor from {plain_name(derived[0])!r} before, keeps it, and "
            "uses it in eval mode instead of the parameter",
            "Empty this cache first, by model.train() if that is sufficient, or by deleting the "
            "tensor from the attribute.",
        )
