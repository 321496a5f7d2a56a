"""Checks of the arguments that all callbacks share, and of callbacks against each other."""

from __future__ import annotations

from collections.abc import Iterable

from torch_ntk._checks import check_choice, describe, message


def check_settings(
    *,
    on_error: object,
    prefix: object,
    network: object,
    input_fn: object,
    forward_fn: object,
    log_figures: object,
) -> None:
    """Refuse what no run could use.

    Raises:
        TypeError, ValueError: An argument is wrong.
    """
    check_choice("on_error", on_error, ("raise", "warn"))
    if not isinstance(prefix, str) or not prefix:
        raise ValueError(
            message("prefix", "a non-empty string", describe(prefix), "The default is 'ntk'.")
        )
    if network is not None and not isinstance(network, str):
        raise TypeError(
            message(
                "network",
                "the name of a submodule, or None",
                describe(network),
                "Pass network='encoder' for what the LightningModule has as self.encoder.",
            )
        )
    if input_fn is not None and not callable(input_fn):
        raise TypeError(
            message(
                "input_fn",
                "a function of a batch",
                describe(input_fn),
                "Pass input_fn=lambda batch: (x, y).",
            )
        )
    if forward_fn is not None and not callable(forward_fn):
        raise TypeError(
            message(
                "forward_fn",
                "a function of a network and its inputs",
                describe(forward_fn),
                "Pass forward_fn=lambda net, x: net(x)['logits'], for example.",
            )
        )
    if not isinstance(log_figures, bool):
        raise TypeError(message("log_figures", "True or False", describe(log_figures)))


def refuse_shared_names(
    prefix: str, name: str, metrics: Iterable[str], other: str, other_metrics: Iterable[str]
) -> None:
    """Raise if callback `other` with the same prefix writes to the curves or state of `name`.

    Raises:
        ValueError: The two are of one kind, or measure the same.
    """
    if name == other or set(metrics) & set(other_metrics):
        raise ValueError(
            message(
                "prefix",
                "different for callbacks of a Trainer that measure the same",
                f"prefix={prefix!r} for {name} and {other}",
                "Pass prefix='...' to each, or their curves and states would mix.",
            )
        )
