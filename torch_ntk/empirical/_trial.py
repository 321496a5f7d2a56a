"""A few cheap forward passes that find out what the model does before anything costly starts."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import ArgumentError, type_error, value_error
from .._functional import (
    ModelFunction,
    agree,
    failure,
    is_checkpointing,
    plain_name,
)
from ..memory import is_out_of_memory
from ._known import Signature, known
from ._stages import stage
from ._watch import Costs, NoWrites, WrittenError, storages

# Embeddings with `max_norm` write with this; derivatives in forward mode stay what they are.
_ONLY_VALUES = (torch.ops.aten.embedding_renorm_,)


@dataclass(frozen=True)
class Trial:
    """What one sample costs.

    Attributes:
        outputs: Number of outputs O per sample.
        flops: Floating-point operations of one forward pass, matrix products and convolutions.
        activation_bytes: Bytes of all intermediate results of one forward pass.
        signature: Of the operations of the forward pass; see `_known`.
        writes: Whether the forward writes to its parameters in place, and forward mode follows.
    """

    outputs: int
    flops: int
    activation_bytes: int
    signature: Hashable = None
    writes: bool = False


def try_out(fn: ModelFunction, name: str, x: Tensor) -> Trial:
    """Evaluate `fn` on the first sample of the batch `x`, called `name` in errors.

    Raises:
        TypeError: The model does not take these inputs, or does not return one tensor.
        ValueError: Its outputs are not finite, are random, depend on the other samples of the
            batch or on parameters that `functional_call` cannot replace.
        MemoryError: One forward pass does not fit in memory.
        WrittenError: It writes to a parameter whose memory is `shared`.
    """
    with stage("trial"):
        if fn.shared:
            return _try_out(fn, name, x, NoWrites(storages(fn.shared.values())))
        try:
            guard = NoWrites(storages(fn.params.values()), but=_ONLY_VALUES)
            return _try_out(fn, name, x, guard)
        except WrittenError:
            return _try_out(fn, name, x, NoWrites(frozenset()), writes=True)


def _try_out(
    fn: ModelFunction, name: str, x: Tensor, guard: NoWrites, writes: bool = False
) -> Trial:
    states = _random_states(fn.device)
    first = x[:1]
    with Costs(Signature(fn), guard) as costs:
        one = _forward(fn, name, first)
    if one.shape[1] == 0:
        raise value_error("model", "a function with outputs", one, "")
    if not bool(torch.isfinite(one).all()):
        raise value_error(
            "model",
            f"a function with finite outputs on `{name}`",
            "NaN or infinite outputs for its first sample",
            "Look for an overflow, or for a log or a division of zero in the forward.",
        )
    after = _random_states(fn.device)
    drawn = any(not torch.equal(a, b) for a, b in zip(states, after, strict=True))
    # The second pass finds what no generator of torch's shows: NumPy's, a counter, the time.
    with torch.enable_grad(), guard:
        again = _forward(fn, name, first)
    if drawn or not agree([one], [again.detach()]):
        raise _not_deterministic()
    _check_no_other_way(fn, again)
    signature, proved = costs.signature.key(), known(fn).uncoupled
    if signature not in proved:
        with guard:
            is_uncoupled = _check_uncoupled(fn, name, x)
        # What larger batches have written is in place for this sample too.
        if writes and not agree([one], [_forward(fn, name, first)]):
            raise _not_deterministic()
        if is_uncoupled:
            proved.add(signature)
    return Trial(one.shape[1], costs.flops, costs.bytes, signature, writes)


def _not_deterministic() -> ValueError:
    return value_error(
        "model",
        "deterministic in eval mode",
        "a forward whose outputs change from call to call, or that draws random numbers",
        "Use nn.Dropout instead of F.dropout(x, training=True), or draw the noise "
        "outside of the model.",
    )


def _forward(fn: ModelFunction, name: str, x: Tensor) -> Tensor:
    try:
        return fn.batch(fn.params, x)
    except WrittenError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError(
                f"The forward pass of the model on {x.shape[0]} samples needs more memory than "
                f"there is: {_first_line(error)}."
            ) from error
        if isinstance(error, ArgumentError):
            raise
        if is_checkpointing(error):
            raise failure(error, "call the model") from error
        kind = str(x.dtype).removeprefix("torch.")
        if not x.is_floating_point() and ("dtype" in str(error) or "Float" in str(error)):
            raise type_error(
                name,
                "floating-point for this model",
                f"{kind} samples, on which its forward fails ({_first_line(error)})",
                f"Convert it with {name}.to({fn.result_dtype}).",
            ) from error
        raise value_error(
            name,
            "a batch of inputs that the model takes",
            f"{kind} samples of shape {tuple(x.shape[1:])}, on which its forward fails with "
            f"{type(error).__name__}: {_first_line(error)}",
            "Give it inputs [N, ...] as in training."
            if fn.module is not None
            else "The function is called as f(params, x) with a batch x [N, ...].",
        ) from error


def _check_no_other_way(fn: ModelFunction, out: Tensor) -> None:
    """The forward must find its parameters where `functional_call` puts others in their place.

    Copies that do not require grad stand there now. If the outputs do, the forward has reached
    a parameter itself, in a list or a closure, which would then count as a constant.
    """
    nodes, seen = [out.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes.extend(following for following, _ in node.next_functions)
        name = fn.originals.get(id(getattr(node, "variable", None)))
        if name is not None and fn.module is None:
            raise value_error(
                "model",
                "a function f(params, x) that uses its parameters from `params`",
                f"one that reaches {name!r} by itself, through a closure",
                "For a module write lambda p, x: torch.func.functional_call(model, p, (x,)), "
                "or pass the module itself.",
            )
        if name is not None:
            raise value_error(
                "model",
                "a module that uses its parameters as attributes (self.weight)",
                f"a forward that uses {plain_name(name)!r} through another reference, such "
                "as a list, a closure or a tensor computed from it before",
                "Use the attribute, or nn.ParameterList instead of a list.",
            )


def _check_uncoupled(fn: ModelFunction, name: str, x: Tensor) -> bool:
    """The outputs of a sample must not change with the samples before and after it.

    Returns whether this was seen; a single sample may leave it open.

    Compared are two batches of the same size, in which a function of one sample at a time gives
    the same digits: a sample alone and in a batch may differ by rounding, which cancellation in
    the last layer magnifies.
    """
    first, (other, made_up) = x[:1], _another(x)
    if other is None:
        return False

    def changes(own: Tensor, neighbour: Tensor) -> bool:
        among_equals = _forward(fn, name, torch.cat([own, own, own]))[1]
        among_others = _forward(fn, name, torch.cat([neighbour, own, neighbour]))[1]
        # What is not finite is reported with the kernel, by its index.
        return bool(among_equals.isfinite().all()) and not agree([among_equals], [among_others])

    try:
        coupled = changes(first, other) or changes(other, first)
    except (TypeError, ValueError):
        if made_up:
            return (
                False  # the caller's only sample was fine alone; nothing says that others must be
            )
        raise
    if coupled:
        raise value_error(
            "model",
            "a function of one sample at a time",
            "outputs of a sample that change with the other samples of its batch",
            "Replace statistics over the batch (batch normalization without running "
            "statistics, x - x.mean(0), …) by statistics over one sample, and check which "
            "dimension the model takes for the batch (batch_first=True).",
        )
    return not made_up


def _another(x: Tensor) -> tuple[Tensor | None, bool]:
    """A sample unlike the first `[1, ...]`, and whether it is made up for lack of one."""
    n = x.shape[0]
    unlike = (x[1:] != x[:1]).reshape(n - 1, x[0].numel()).any(dim=1)
    if bool(unlike.any()):
        k = 1 + int(unlike.nonzero()[0])
        return x[k : k + 1], False
    first = x[:1]
    if first.is_floating_point():
        made = first / 2 if bool(first.any()) else torch.ones_like(first)
    else:  # indices stay valid when they change places
        made = first.reshape(-1).flip(0).reshape(first.shape)
    return (None if torch.equal(made, first) else made), True


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
