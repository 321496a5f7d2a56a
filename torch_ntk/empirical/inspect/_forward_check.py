"""One forward pass of the user's own module on one sample: shapes, costs and randomness."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..._checks import ArgumentError, type_error, value_error
from ..._functional import (
    Around,
    Batch,
    ModelFunction,
    PlainPass,
    first_line,
    forward_hooks_matter,
    leaves_reached,
    plain_name,
    refuse_kept_tensors,
    refused_arguments,
    run_forward_hooks,
)
from ..._types import Parameters
from ...memory import is_out_of_memory
from .._stages import stage
from ..rules import RuleError
from ._dispatch_modes import ForwardRecord, Operations


@dataclass(frozen=True)
class Inspection:
    """The number of outputs and the costs of one sample.

    Attributes:
        outputs: The number O of outputs per sample.
        activation_bytes: The bytes of all intermediate results of one forward pass.
        largest_bytes: The bytes of the largest intermediate result.
        precision: float32 if a forward pass in float64 rounds to it internally, as some
            normalizations do, so that differences of this size are no errors. Otherwise float64.
        keeps_hooks: Whether forward hooks of the user run, because they change the outputs.
    """

    outputs: int
    activation_bytes: int
    largest_bytes: int
    precision: torch.dtype
    keeps_hooks: bool = False

    def eps(self, dtype: torch.dtype) -> float:
        """Return the relative rounding error of an evaluation in `dtype`."""
        return max(torch.finfo(dtype).eps, torch.finfo(self.precision).eps)


class Follower(TorchFunctionMode):
    """A mode that sees every function call of a forward pass, and knows the parameters in use."""

    def follow(self, leaves: Parameters) -> None:
        """Set the parameters by name, right before the forward pass."""

    @contextlib.contextmanager
    def following(self, leaves: Parameters) -> Iterator[None]:
        """A context for the forward pass with these parameters, by name."""
        self.follow(leaves)
        with self:
            yield

    def unused(self) -> list[str]:
        """Return the names of the parameters that the pass has not used."""
        return []


def inspect_forward(
    fn: ModelFunction,
    name: str,
    x: Batch,
    follower: Follower | None = None,
    *,
    differentiated: bool = True,
) -> Inspection:
    """Evaluate the model on the first sample of the batch `x`, called `name` in errors.

    A model is refused that does not take these inputs or return one tensor, or whose outputs are
    not finite, are random, or have no derivatives although these are needed (`differentiated`). The
    mode `follower` observes the pass.
    """
    with stage("inspect"):
        keeps_hooks = keep_hooks_that_matter(fn, x)
        states = _random_states(fn.device)
        record = ForwardRecord()

        @contextlib.contextmanager
        def around(leaves: Parameters) -> Iterator[None]:
            followed = contextlib.nullcontext() if follower is None else follower.following(leaves)
            with record, followed:
                yield

        outputs, is_connected = _forward(fn, name, x[:1], around)
        after = _random_states(fn.device)
    if outputs.shape[1] == 0:
        raise value_error("model", "a function with outputs", outputs)
    if not bool(torch.isfinite(outputs).all()):
        x.check_finite(name, "Remove or impute those entries.")
        raise value_error(
            "model",
            f"a function with finite outputs on `{name}`",
            "NaN or infinite outputs for its first sample",
            "Look for an overflow, or for a log or a division of zero in the forward.",
        )
    if any(not torch.equal(a, b) for a, b in zip(states, after, strict=True)):
        raise not_deterministic()
    if differentiated and not is_connected and _has_every_parameter(fn):
        raise _not_connected(fn)
    module = fn.module if fn.plain.is_own else None
    if (
        follower is not None
        and module is not None
        and not any(m.training for m in module.modules())
    ):
        refuse_kept_tensors(
            module,
            follower.unused(),
            x,
            lambda batch, around: fn.plain.run(batch, lambda found: None, around),
        )
    precision = torch.float32 if record.rounds else torch.float64
    return Inspection(outputs.shape[1], record.bytes, record.largest, precision, keeps_hooks)


def forward_operations(fn: ModelFunction, x: Batch) -> int:
    """Return the floating-point operations of one forward pass of one sample."""
    with Operations() as operations:
        fn.batch(fn.params, x[:1])
    return int(operations.count)


def not_deterministic() -> ArgumentError:
    """Return the error for outputs that change from call to call."""
    return value_error(
        "model",
        "deterministic in eval mode, or in train mode with training=True",
        "a forward whose outputs change from call to call, or that draws random numbers",
        "Use nn.Dropout instead of F.dropout(x, training=True) (with p=0 for training=True), draw "
        "the noise outside of the model, and reset or pass in a state that a call leaves for the "
        "next one.",
    )


def _has_every_parameter(fn: ModelFunction) -> bool:
    """Whether the kernel includes all trained parameters; some of them may have no influence."""
    return all(n in fn.params for n, p in fn.plain.own.items() if p.requires_grad)


def _not_connected(fn: ModelFunction) -> ArgumentError:
    """Return the error for outputs that autograd connects to no parameter of the kernel."""
    names = [plain_name(n) for n in fn.params]
    of_which = repr(names[0]) if len(names) == 1 else f"{names[0]!r} … {names[-1]!r}"
    return value_error(
        "model",
        "a function whose outputs depend on the parameters of the kernel",
        f"outputs that autograd connects to none of them ({of_which})",
        "Either the forward leaves autograd: look for .detach(), torch.no_grad(), an argmax or a "
        "conversion to NumPy. Or it uses the parameters of another module: forward_fn has to call "
        "the model that it is given.",
    )


def keep_hooks_that_matter(fn: ModelFunction, x: Batch) -> bool:
    """Keep the forward hooks of the user if they change the outputs.

    To find this out, they run once, without gradients and on the first sample.

    Returns:
        Whether they run for the rest of the evaluation.
    """
    module = fn.module
    if module is None or not forward_hooks_matter(module, lambda: fn.batch(fn.params, x[:1])):
        return False
    run_forward_hooks(module)
    return True


def _forward(fn: ModelFunction, name: str, x: Batch, around: Around) -> tuple[Tensor, bool]:
    """Return the outputs, and whether autograd connects them to a parameter of the kernel."""

    def used(found: PlainPass) -> tuple[Tensor, bool]:
        reached = leaves_reached(found.outputs)
        return found.outputs.detach(), any(id(p) in reached for p in found.leaves.values())

    try:
        return fn.plain.run(x, used, around)
    except (ArgumentError, RuleError):
        raise
    except Exception as error:  # anything that a user's forward may raise
        if is_out_of_memory(error):
            raise MemoryError(
                f"The forward pass of the model on {len(x)} samples needs more memory than "
                f"there is: {first_line(error)}."
            ) from error
        if isinstance(error, TypeError):
            refused = refused_arguments(name, fn.model, x.value, fn.forward_fn)
            if refused is not None:
                raise refused from error
        is_one = len(x.tensors) == 1
        if is_one and not x.floating and ("dtype" in str(error) or "Float" in str(error)):
            raise type_error(
                name,
                "floating-point for this model",
                f"{x}, on which its forward fails ({first_line(error)})",
                f"Convert it with {name}.to({fn.result_dtype}).",
            ) from error
        if fn.coupled:
            raise value_error(
                name,
                "a batch that the model takes as one input, as coupled=True says",
                f"one on which its forward fails with {type(error).__name__}: {first_line(error)}",
            ) from error
        if fn.forward_fn is not None:
            raise value_error(
                "forward_fn",
                f"a function forward_fn(model, batch) that takes {x}, the first of the samples",
                f"one that fails with {type(error).__name__}: {first_line(error)}",
                "Samples are evaluated one at a time too, as batches [1, ...]; every tensor that "
                "belongs to them, such as targets, has them on its first axis. Of samples that "
                "depend on each other: coupled=True.",
            ) from error
        raise value_error(
            name,
            "a batch of inputs that the model takes",
            f"{x}, on which its forward fails with {type(error).__name__}: {first_line(error)}",
            "Samples are also evaluated one at a time, as batches [1, ...]. A model that needs "
            "several rows at once, as one input (the nodes of a graph, statistics of a batch): "
            "coupled=True. One for a fixed number of rows can be wrapped in a module that takes "
            "them as one sample."
            if fn.module is not None
            else "The function is called as f(params, x) with a batch x [N, ...].",
        ) from error


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states
