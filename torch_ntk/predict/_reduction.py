"""Whether the loss is a sum or a mean."""

from __future__ import annotations

from typing import Literal, TypeAlias

from .._checks import check_choice

Reduction: TypeAlias = Literal["sum", "mean"]
"""`"sum"`: ½ Σ‖f - y‖²; `"mean"`: ½ (f - y)² averaged over all N·O entries."""


def rate_of(reduction: object, entries: int) -> float:
    """The factor c in ∂loss/∂f = c · (f - y): 1 for the sum, 1/(N·O) for the mean."""
    check_choice(
        "reduction",
        reduction,
        ("sum", "mean"),
        "'sum' is the loss ½ Σ‖f - y‖², 'mean' averages ½ (f - y)² over all N·O entries.",
    )
    return 1.0 if reduction == "sum" else 1.0 / entries
