"""Predict a training on cross-entropy from the kernel at its start, and draw it over the real one.

    python examples/dynamics_cross_entropy.py
    python examples/dynamics_cross_entropy.py --widths 64 512 4096 --steps 500
    python examples/dynamics_cross_entropy.py --quick

As `dynamics_mse.py`, which has the parts that the two share. For cross-entropy there is no closed
form: the outputs obey ḟ = Θ_0 (y - softmax f) on the training images, an ordinary differential
equation that is solved in the eigenmodes of Θ_0. Step k of the real training is the time lr·k.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from _common import digits
from dynamics_mse import arguments, compare, draw, print_table
from torch.nn import functional as F


def main(argv: Sequence[str] | None = None) -> None:
    """Predict, train, compare."""
    args = arguments(__doc__, lr=1.0, steps=300, out="dynamics_cross_entropy.png", argv=argv)
    data = digits(args.train, 8, args.seed, torch.float32)
    runs = compare(F.cross_entropy, data, data.labels, args)
    print_table(runs, args.steps)
    draw(runs, data, f"Cross-entropy, {args.train} digits, lr {args.lr:g}", args.out)


if __name__ == "__main__":
    main()
