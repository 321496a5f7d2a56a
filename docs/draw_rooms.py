"""Draw `docs/images/rooms.png`, the picture of the rooms: `python docs/draw_rooms.py`.

The rows are those that `tests/test_structure.py` holds the imports to.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from test_structure import ROWS  # noqa: E402

WHAT = {
    "_checks": "errors that name\nthe argument",
    "_types": "names of types",
    "memory": "budgets, block sizes,\nback-off",
    "info": "versions,\ndevices",
    "_optimizers": "by what they\nmultiply gradients",
    "_functional": "a module as a function,\nevaluated without a trace",
    "activations": "dual functions of\nactivations",
    "linalg": "eigenvalues, factors",
    "nn": "NTK layers,\nparameterizations",
    "analytic": "kernels of infinite width:\nlift, operations, engine",
    "empirical": "kernels of finite networks,\nchecked on every call",
    "linearize": "networks linearized\nin their parameters",
    "features": "random projections\nof gradients",
    "metrics": "drift, rank,\nalignment",
    "predict": "training in\nclosed form",
    "sampling": "kernels by\nrandom draws",
    "plotting": "figures",
    "scale": "tiles, stores,\nclusters",
    "monitor": "what is mea-\nsured, when",
    "coordinates": "sizes against\nthe width",
    "estimators": "scikit-learn's\ninterface",
    "forecasting": "loss curves\nfrom a kernel",
    "tensorboard_plugin": "the page\nof a training",
    "callbacks": "the Trainer's hooks",
    "command": "torch-ntk",
    "integrations": "other libraries",
}
COLOURS = ("#eef1f4", "#dfe9f3", "#c9dff0", "#fbe8cf", "#f6d3bd")
PATH = ("arguments", "inspect", "methods", "structured", "checksum", "contract", "outputs")
DOES = (
    "checked in\n_empirical_ntk",
    "one sample:\nshapes, costs,\nrandomness",
    "which way",
    "cotangents,\nby the rules of\noperations",
    "against a plain\nbackward pass",
    "products of\nfactors, block\nby block",
    "axes in order",
)


def box(ax: Axes, x: float, y: float, width: float, name: str, text: str, colour: str) -> None:
    """A room of height 0.8 whose lower left corner is at (x, y)."""
    shape = FancyBboxPatch(
        (x, y), width, 0.8, boxstyle="round,pad=0,rounding_size=0.06", fc=colour, ec="#4a5a68"
    )
    ax.add_patch(shape)
    ax.text(x + width / 2, y + 0.62, name, ha="center", va="center", weight="bold", size=9.5)
    ax.text(x + width / 2, y + 0.27, text, ha="center", va="center", size=8)


def main() -> None:
    """Write the picture."""
    fig, ax = plt.subplots(figsize=(15.0, 8.2))
    total = 7.0
    for k, row in enumerate(ROWS):
        rooms = [name for group in row for name in group.split() if name != "_version"]
        width = total / len(rooms)
        for i, name in enumerate(rooms):
            title = name.replace("_plugin", "\n_plugin")  # wider than its room otherwise
            box(ax, i * width + 0.04, -1.0 * k, width - 0.08, title, WHAT[name], COLOURS[k])
    ax.annotate(
        "",
        xy=(-0.25, 0.8),
        xytext=(-0.25, -len(ROWS) + 1.0),
        arrowprops={"arrowstyle": "-|>", "color": "#4a5a68", "lw": 1.5},
    )
    ax.text(-0.4, -1.6, "imports", rotation=90, va="center", ha="center", size=10)
    y = -len(ROWS) - 0.75
    ax.text(
        0.04,
        y + 1.15,
        "A call of empirical_ntk walks through empirical/ from left to right:",
        size=10,
    )
    width = total / len(PATH)
    for i, (name, text) in enumerate(zip(PATH, DOES, strict=True)):
        x = i * width
        box(ax, x + 0.04, y, width - 0.14, name, text, COLOURS[2])
        if i:
            ax.annotate(
                "",
                xy=(x + 0.05, y + 0.4),
                xytext=(x - 0.11, y + 0.4),
                arrowprops={"arrowstyle": "-|>", "color": "#4a5a68"},
            )
    ax.set_xlim(-0.55, total + 0.05)
    ax.set_ylim(y - 0.1, 0.95)
    ax.axis("off")
    fig.savefig(ROOT / "docs/images/rooms.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
