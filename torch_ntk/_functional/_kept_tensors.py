"""Tensors that a module has computed from its parameters before, and keeps in eval mode.

A weight that is derived from a parameter in every step of training, and once in eval mode, is a
constant there as soon as it has been computed without gradients: the parameter then seems to take
no part, and no derivative shows it. What shows it is another forward pass, in train mode, which
uses the parameter and does without the tensor.
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


class Reads(TorchFunctionMode):
    """Which tensors a forward pass reads that it has not made itself.

    Args:
        module: Evaluated within it.
        x: The batch at which it is, of which forwards are given copies.
        training: In which mode.
    """

    def __init__(self, module: nn.Module, x: Batch, training: bool) -> None:
        super().__init__()
        self.x = x
        self.parameters: set[str] = set()
        self.constants: set[int] = set()
        self._module, self._training = module, training
        self._names: dict[int, str] = {}
        self._made: dict[int, Tensor] = {}  # kept alive, so that no other tensor gets its number

    def around(self, leaves: Parameters) -> Reads:
        """To surround the forward pass, with its parameters by name."""
        self._names = {id(p): n for n, p in leaves.items()}
        return self

    def __enter__(self) -> Reads:
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
        if id(t) in self._names or id(t) in self._made or not t.is_floating_point():
            return False
        # What a forward makes by torch.func is not seen here; it is wrapped, or has a history.
        if t.grad_fn is not None or torch._C._functorch.is_functorch_wrapped_tensor(t):
            return False
        return not any(
            t.shape == own.shape and torch.equal(t.to(own.dtype), own) for own in self.x.tensors
        )


def refuse_kept_tensors(
    module: nn.Module,
    unused: Sequence[str],
    x: Batch,
    run: Callable[[Batch, Callable[[Parameters], Reads]], object],
) -> None:
    """Raise if parameters are unused only because tensors computed from them are kept.

    Args:
        module: The network, in eval mode.
        unused: Parameters that its outputs do not depend on.
        x: A batch.
        run: Evaluates the network at a batch. What surrounds its forward pass is made of the
            parameters that are in place.

    Raises:
        ValueError: A forward pass in train mode uses one of them, and does without a tensor that
            one in eval mode reads.
    """
    if not unused:
        return
    # Normalization in train mode needs two samples.
    in_eval = Reads(module, x[:1], training=False)
    in_train = Reads(module, x[:1].join(x[-1:]), training=True)
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
            f"one that keeps a tensor which it has computed from {plain_name(derived[0])!r} "
            "before, and reads that in eval mode instead of the parameter",
            "Empty this cache first: call model.train() if that does it, or delete the tensor "
            "from the attribute that holds it.",
        )
