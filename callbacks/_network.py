"""Selection of the module of a LightningModule that is measured."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from lightning.pytorch import LightningModule
from torch import nn

from torch_ntk._checks import ArgumentTypeError, ArgumentValueError, value_error

# Errors with one of these texts need no general remedies: they say what to pass, or other samples
# or outputs would not help.
_ONE_ARGUMENT = ("Pass input_fn=", "Pass forward_fn=", "`kernel` must be")
_KINDS = (ArgumentTypeError, ArgumentValueError, TypeError, ValueError)


def find_network(pl_module: LightningModule, name: str | None, *, any_form: bool) -> nn.Module:
    """The module whose kernel is measured.

    This is the submodule called `name`. Without a name it is the LightningModule itself if it has a
    `forward`, and otherwise its only submodule with parameters; of several, `any_form` takes the
    LightningModule, since a function of the user calls them.

    Raises:
        ValueError: There is no submodule of this name, or several without a name.
    """
    children = named_parts(pl_module)
    if name is not None:
        try:
            return pl_module.get_submodule(name)
        except AttributeError as error:
            raise value_error(
                "network", f"one of {list(children)}", repr(name), "Name a submodule."
            ) from error
    if type(pl_module).forward is not LightningModule.forward:
        return pl_module
    if len(children) == 1:
        return next(iter(children.values()))
    if any_form:
        return pl_module
    raise value_error(
        "network",
        f"named when {type(pl_module).__name__} has no forward",
        f"{len(children)} submodules with parameters: {list(children)}",
        "Pass network='...', or define forward(self, x) on the LightningModule.",
    )


def named_parts(pl_module: LightningModule) -> dict[str, nn.Module]:
    """The direct submodules that have parameters, by name."""
    return {n: m for n, m in pl_module.named_children() if any(True for _ in m.parameters())}


@contextlib.contextmanager
def first_measurement(callback: str, pl_module: LightningModule) -> Iterator[None]:
    """A context that adds the callback and the possible remedies to a `TypeError` or `ValueError`.

    A network that can be trained may still have no kernel, and the caller of `Trainer.fit` has not
    passed the arguments `model` and `probe` that such an error is about.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = next(kind for kind in _KINDS if isinstance(error, kind))
        remedies = (
            f"Arguments of {callback} that may help: network='...', one of "
            f"{list(named_parts(pl_module))} or of their submodules, measures that part; "
            "forward_fn=lambda net, x: ..., returns the outputs [N, O] where forward takes or "
            "returns something else; input_fn=lambda batch: (x, y), or probe=(x, y), gives inputs "
            "that forward takes; on_error='warn' trains on without measurements."
        )
        if any(argument in str(error) for argument in _ONE_ARGUMENT):
            remedies = "Or on_error='warn' trains on without measurements."
        text = f"{callback} cannot measure {type(pl_module).__name__}: {error} {remedies}"
        raise kind(text) from error
