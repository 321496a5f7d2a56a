"""The argument `standard=`: how `nn.Linear` and `nn.ConvNd` are initialized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from torch import nn

from ..._checks import check_choice, check_finite_number, describe, type_error, value_error
from ...nn._inventory import StandardAffine

Scheme: TypeAlias = Literal["torch", "kaiming", "lecun"] | tuple[float, float]
"""How the weights and biases of one layer are initialized; see `variances`."""

StandardLike: TypeAlias = Scheme | Mapping[str, Scheme] | None
"""A scheme for all layers in standard parameterization, or schemes by the names of modules.

None refuses such layers."""

NAMES = ("torch", "kaiming", "lecun")
ORDINARY: tuple[type[nn.Module], ...] = get_args(StandardAffine)
"""The layers in standard parameterization, by exact type."""

_EXPECTED = (
    "'torch', 'kaiming', 'lecun', a pair (sigma_w, sigma_b), or a mapping of names of modules to "
    "these"
)


def variances(scheme: Scheme, fan_in: int) -> tuple[float, float]:
    """Return the variances of each weight and each bias of a layer with fan-in n.

    - `"torch"`, the default of `nn.Linear` and `nn.ConvNd`: both are uniform on [-1/√n, 1/√n]
      (for the weights, `kaiming_uniform_(a=√5)`: the gain is √(2/(1 + 5)) and the bound √3 times
      gain/√n), so both variances are 1/(3n). `nn.ConvTransposeNd` draws them with
      n = `out_channels / groups · prod(kernel_size)`;
    - `"kaiming"`: N(0, 2/n), biases 0 (He et al. 2015);
    - `"lecun"`: N(0, 1/n), biases 0 (LeCun et al. 1998);
    - `(sigma_w, sigma_b)`: N(0, sigma_w²/n) and N(0, sigma_b²), as `standard_init_` draws.
    """
    if isinstance(scheme, tuple):
        return scheme[0] ** 2 / fan_in, scheme[1] ** 2
    if scheme == "torch":
        return 1 / (3 * fan_in), 1 / (3 * fan_in)
    return (2 if scheme == "kaiming" else 1) / fan_in, 0.0


@dataclass(frozen=True)
class Standard:
    """The initialization of a network's layers in standard parameterization.

    Attributes:
        schemes: The scheme of each layer for which one is given, by the layer's id.
        given: Whether the caller passed `standard=`.
    """

    schemes: Mapping[int, Scheme] = field(default_factory=dict)
    given: bool = False

    def of(self, module: nn.Module) -> Scheme | None:
        """Return the scheme of a layer; None if there is none."""
        return self.schemes.get(id(module))


def checked_standard(standard: Any, model: nn.Module) -> Standard:
    """Check the argument `standard=`, and return the schemes of a network's layers.

    Raises:
        TypeError: It has none of the possible forms.
        ValueError: A scheme is unknown, or a name is not that of a module with such layers.
    """
    if standard is None:
        return Standard()
    layers = {name: m for name, m in model.named_modules() if type(m) in ORDINARY}
    if not isinstance(standard, Mapping):
        scheme = _checked_scheme("standard", standard)
        return Standard({id(m): scheme for m in layers.values()}, True)
    schemes: dict[int, Scheme] = {}
    # The name of a module stands for all layers in it. Longer names come later and prevail.
    for name in sorted(standard, key=lambda n: len(n) if isinstance(n, str) else 0):
        scheme = _checked_scheme(f"standard[{name!r}]", standard[name])
        found = [m for n, m in layers.items() if n == name or name == "" or _is_in(n, name)]
        if not found:
            raise value_error(
                "standard",
                "a mapping of names of modules with nn.Linear or nn.ConvNd layers",
                f"the name {name!r}",
                f"The network has {', '.join(map(repr, layers)) or 'no such layer'}.",
            )
        schemes.update({id(m): scheme for m in found})
    return Standard(schemes, True)


def _is_in(name: str, part: Any) -> bool:
    return isinstance(part, str) and name.startswith(f"{part}.")


def _checked_scheme(name: str, scheme: Any) -> Scheme:
    if isinstance(scheme, str):
        return check_choice(name, scheme, NAMES)  # type: ignore[return-value]
    if not isinstance(scheme, (tuple, list)) or len(scheme) != 2:
        raise type_error(name, _EXPECTED, describe(scheme))
    sigma_w, sigma_b = (
        check_finite_number(f"{name}[{i}]", sigma, minimum=0.0) for i, sigma in enumerate(scheme)
    )
    if sigma_w == 0:
        remedy = "With 0 the layer would not depend on its input."
        raise value_error(f"{name}[0]", "a finite number greater than 0", "0", remedy)
    return sigma_w, sigma_b
