"""Checks of the arguments that all callbacks share, and of callbacks against each other."""

from __future__ import annotations

from collections.abc import Iterable

from torch_ntk._checks import check_choice, check_positive_int, describe, type_error, value_error


def check_settings(
    *,
    network: object,
    log_figures: object,
    figure_every: object,
    tensorboard_layout: object,
    theta_0: object,
) -> None:
    """Refuse what no run could use.

    Raises:
        TypeError, ValueError: An argument is wrong.
    """
    if network is not None and not isinstance(network, str):
        raise type_error(
            "network",
            "the name of a submodule, or None",
            describe(network),
            "Pass network='encoder' for what the LightningModule has as self.encoder.",
        )
    check_choice(
        "theta_0",
        theta_0,
        ("inside", "beside"),
        "It is kept inside each checkpoint, or in one file.",
    )
    for name, value in (("log_figures", log_figures), ("tensorboard_layout", tensorboard_layout)):
        if not isinstance(value, bool):
            raise type_error(name, "True or False", describe(value))
    if figure_every is not None:
        check_positive_int(
            "figure_every", figure_every, "None draws at the 1st, 2nd, 4th, … point."
        )


def refuse_shared_names(
    prefix: str, name: str, metrics: Iterable[str], other: str, other_metrics: Iterable[str]
) -> None:
    """Raise if callback `other` with the same prefix writes to the curves or state of `name`.

    Raises:
        ValueError: The two are of one kind, or measure the same.
    """
    if name == other or set(metrics) & set(other_metrics):
        raise value_error(
            "prefix",
            "different for callbacks of a Trainer that measure the same",
            f"prefix={prefix!r} for {name} and {other}",
            "Pass prefix='...' to each, or their curves and states would mix.",
        )
