"""Tensors that a module has computed from its parameters before, and keeps in eval mode.

A weight that is derived from a parameter in every step of training, and once in eval mode, is a
constant there as soon as it has been computed without gradients: the parameter then seems to take
no part, and no derivative shows it. What shows it is another forward pass, in train mode, which
uses the parameter and does without the tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..._checks import value_error
from ..._functional import Batch, ModelFunction, plain_name
from ..._types import Parameters


class _Reads(TorchFunctionMode):
    """Which tensors a forward pass reads that it has not made itself."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters: set[str] = set()
        self.constants: set[int] = set()
        self._names: dict[int, str] = {}
        self._made: dict[int, Tensor] = {}  # kept alive, so that no other tensor gets its number

    def around(self, leaves: Parameters) -> _Reads:
        """To surround the forward pass, with its parameters by name."""
        self._names = {id(p): n for n, p in leaves.items()}
        return self

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, (Tensor, tuple, list)):
            given = list(_tensors((args, list((kwargs or {}).values()))))
            self.parameters.update(self._names[id(t)] for t in given if id(t) in self._names)
            self.constants.update(
                id(t)
                for t in given
                if id(t) not in self._names and id(t) not in self._made and t.is_floating_point()
            )
            self._made.update((id(t), t) for t in _tensors(out))
        return out


def refuse_kept_tensors(fn: ModelFunction, x: Batch, unused: Sequence[str]) -> None:
    """Raise if parameters are unused only because tensors computed from them are kept.

    Args:
        fn: The function.
        x: A batch.
        unused: Parameters that a forward pass in eval mode does not use.
    """
    module = fn.module
    if module is None or not unused or not fn.plain.is_own:
        return
    if any(m.training for m in module.modules()):
        return
    in_eval = _reads(fn, module, x[:1], training=False)
    # Normalization in train mode needs two samples.
    in_train = _reads(fn, module, x[:1].join(x[-1:]), training=True)
    if in_eval is None or in_train is None:
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


def _reads(fn: ModelFunction, module: nn.Module, x: Batch, training: bool) -> _Reads | None:
    """What a forward pass reads; None if it fails."""
    reads = _Reads()
    try:
        for m in module.modules():
            m.training = training
        fn.plain.run(x, lambda found: None, reads.around)
    except Exception:  # anything that a user's forward may raise in train mode
        return None
    finally:
        for m in module.modules():
            m.training = False
    return reads


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in _tensors(v)]
    return []
