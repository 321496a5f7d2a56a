"""Checks of the arguments that all monitors share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._checks import check_choice, check_positive_int, describe, type_error, value_error
from .._types import ParameterSelection
from ._scalars import METRICS, OPTIONAL

_OUTPUTS = ("mean", "trace", "pseudo", "full")
_METHODS = ("auto", "structured", "jacobian", "vector_product")


def check_metrics(metrics: object) -> tuple[str, ...]:
    """The metrics by name, each once.

    Raises:
        TypeError: Not a sequence of names.
        ValueError: A name is unknown.
    """
    known = (*METRICS, *OPTIONAL)
    if isinstance(metrics, str) or not isinstance(metrics, Sequence) or not metrics:
        raise type_error(
            "metrics",
            "a sequence of metric names",
            describe(metrics),
            f"Choose from {', '.join(known)}, as in metrics=('drift',).",
        )
    return tuple(dict.fromkeys(check_choice("metrics", name, known) for name in metrics))


def check_measurement(*, output: object, batch_size: object, dtype: object, method: object) -> None:
    """Refuse a kernel that cannot be measured.

    Raises:
        TypeError, ValueError: An argument is wrong.
    """
    if batch_size is not None:
        check_positive_int("batch_size", batch_size)
    check_choice("output", output, _OUTPUTS)
    check_choice("method", method, _METHODS)
    if dtype not in (None, torch.float32, torch.float64):
        raise value_error("dtype", "None, torch.float32 or torch.float64", str(dtype), "")


def check_selection(params: ParameterSelection) -> ParameterSelection:
    """What can be told of `params` before there is a network.

    Raises:
        TypeError: Neither None, names nor a predicate.
    """
    is_list = isinstance(params, Sequence) and not isinstance(params, (str, bytes))
    if params is None or callable(params):
        return params
    if not is_list or not all(isinstance(name, str) for name in params):
        raise type_error("params", "None, names of parameters or a predicate", describe(params), "")
    return params


def check_conduct(
    *, on_error: object, prefix: object, input_fn: object, forward_fn: object
) -> None:
    """Refuse what no run could use.

    Raises:
        TypeError, ValueError: An argument is wrong.
    """
    check_choice("on_error", on_error, ("raise", "warn"))
    if not isinstance(prefix, str) or not prefix:
        raise value_error("prefix", "a non-empty string", describe(prefix), "The default is 'ntk'.")
    if input_fn is not None and not callable(input_fn):
        raise type_error(
            "input_fn",
            "a function of a batch",
            describe(input_fn),
            "Pass input_fn=lambda batch: (x, y).",
        )
    if forward_fn is not None and not callable(forward_fn):
        raise type_error(
            "forward_fn",
            "a function of a network and its inputs",
            describe(forward_fn),
            "Pass forward_fn=lambda net, x: net(x)['logits'], for example.",
        )
