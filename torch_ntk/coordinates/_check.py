"""`CoordinateCheck`: sizes by width, and the slopes that are fitted to them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ._training import Kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES: dict[Kind, str] = {
    "activation": "size at initialization, RMS of the entries",
    "change": "change, RMS of the entries",
    "movement": "movement of weights, ‖W_t - W_0‖ / ‖W_0‖",
    "kernel": "kernel: RMS of Θ_0, and ‖Θ_t - Θ_0‖ / ‖Θ_0‖",
}


@dataclass(frozen=True, eq=False)
class CoordinateSizes:
    """The size of one module's outputs, of a weight's movement or of a kernel, for several widths.

    Attributes:
        kind: `"activation"`: the root mean square of a module's outputs at the start; `"change"`:
            the root mean square of their change after the steps; `"movement"`: the relative
            movement of a weight, `‖W_t - W_0‖_F / ‖W_0‖_F`; `"kernel"`: the root mean square of the
            entries of Θ_0, and `‖Θ_t - Θ_0‖_F / ‖Θ_0‖_F`.
        name: The name of the module (`"output"` for the network), of the parameter
            (`"all parameters"` for all of them), or of the kernel.
        widths: The widths `[W]`, ascending.
        values: The sizes `[S, W]`, float64, with a row for each seed.
        fit_from: The smallest width to which slopes are fitted.
    """

    kind: Kind
    name: str
    widths: tuple[int, ...]
    values: Tensor
    fit_from: int

    @property
    def mean(self) -> Tensor:
        """The geometric mean over seeds `[W]`."""
        return self.values.log().mean(0).exp()

    @property
    def slope(self) -> float:
        """The exponent p of `size ∝ width**p`, by a least-squares fit of logarithms.

        It is NaN if a size is 0, like that of outputs after a readout of zeros, or not finite, as
        in a training that diverges.
        """
        return float(np.mean(self._slopes))

    @property
    def standard_error(self) -> float:
        """The standard error of the slope over seeds; NaN for a single seed."""
        slopes = self._slopes
        return (
            float(np.std(slopes, ddof=1) / math.sqrt(len(slopes))) if len(slopes) > 1 else math.nan
        )

    @property
    def _slopes(self) -> list[float]:
        """The slope of each seed."""
        if not bool((self.values.isfinite() & (self.values > 0)).all()):
            return [math.nan] * len(self.values)
        used = [k for k, width in enumerate(self.widths) if width >= self.fit_from]
        w = torch.tensor(self.widths, dtype=torch.float64)[used].log()
        w = w - w.mean()
        return [float(w @ row[used].log() / (w @ w)) for row in self.values]


@dataclass(frozen=True, eq=False)
class CoordinateCheck:
    """The result of `coordinate_check`; it is printed as a table.

    Attributes:
        widths: The widths, ascending.
        steps: The number of training steps after which changes were measured.
        sizes: All measured sizes, in the order of the forward pass.
    """

    widths: tuple[int, ...]
    steps: int
    sizes: tuple[CoordinateSizes, ...]

    def __getitem__(self, key: tuple[str, str]) -> CoordinateSizes:
        """The sizes of a kind and name: `check["change", "output"]`.

        Raises:
            KeyError: Nothing was measured under this kind and name.
        """
        for size in self.sizes:
            if (size.kind, size.name) == tuple(key):
                return size
        known = ", ".join(f"{(s.kind, s.name)}" for s in self.sizes)
        raise KeyError(f"{key!r} was not measured; there are {known}")

    def slope(self, kind: str, name: str = "output") -> float:
        """The exponent `check[kind, name].slope` of a size."""
        return self[kind, name].slope

    def plot(self) -> tuple[Figure, Any]:
        """Plot each kind of sizes against the width by `plotting.plot_coordinates`."""
        from ..plotting import plot_coordinates

        return plot_coordinates(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: for each size its values, its slope and the slope's error."""
        return {
            "widths": list(self.widths),
            "steps": self.steps,
            "sizes": [
                {
                    "kind": size.kind,
                    "name": size.name,
                    "values": size.values.tolist(),
                    "slope": size.slope,
                    "standard_error": size.standard_error,
                }
                for size in self.sizes
            ],
        }

    def __str__(self) -> str:
        """A table with a line for each size: its values by width, and its slope."""
        longest = max(len(size.name) for size in self.sizes)
        head = " ".join(f"{width:>9}" for width in self.widths)
        lines = []
        for kind, title in TITLES.items():
            own = [size for size in self.sizes if size.kind == kind]
            if not own:
                continue
            after = (
                f" after {self.steps} step{'s' * (self.steps > 1)}" if kind != "activation" else ""
            )
            lines += ["", f"{title}{after}", f"{'width':<{longest}} {head}       slope"]
            lines += [_line(size, longest) for size in own]
        return "\n".join(lines[1:])

    __repr__ = __str__


def _line(size: CoordinateSizes, longest: int) -> str:
    values = " ".join(f"{value:>9.3g}" for value in size.mean.tolist())
    error = "" if math.isnan(size.standard_error) else f" ± {size.standard_error:.2f}"
    slope = "        -" if math.isnan(size.slope) else f"{size.slope:>+9.2f}{error}"
    return f"{size.name:<{longest}} {values}   {slope}"
