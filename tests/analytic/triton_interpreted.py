"""Kernels in Triton's interpreter beside tensor operations; prints the errors as JSON.

    TRITON_INTERPRET=1 python triton_interpreted.py GROUP

A process of its own: `TRITON_INTERPRET=1` must be there before Triton is imported.
"""

from __future__ import annotations

import json
import sys
import warnings

import torch
from kernel_nets import AVERAGES, NETS

from torch_ntk import analytic_explain, analytic_kernels
from torch_ntk.analytic.engine import _run, _within
from torch_ntk.analytic.engine.fused import unfused


@torch.no_grad()
def main() -> None:
    warnings.simplefilter("error")
    on_a_gpu, divided = _run.unusable, _run.divided
    _within._POSITIONS = 0  # so that variances come from kernels too
    generator = torch.Generator().manual_seed(0)
    for name, (net, size, dtypes) in NETS[sys.argv[1]].items():
        x1, x2 = torch.randn(2, 1, 2, *size, generator=generator, dtype=torch.float64)
        x2 = torch.cat([2 * x2, x1])  # a copy, which the kernel has exactly
        for dtype in dtypes:
            _run.unusable = on_a_gpu
            loops = analytic_explain(net, x1, x2, dtype=dtype, training=True)
            _run.unusable = lambda device: ""  # also on the CPU, where the interpreter is
            kernels = analytic_explain(net, x1, x2, dtype=dtype, training=True)
            found = analytic_kernels(net, x1, x2, dtype=dtype, training=True)
            _run.divided = lambda program, like: unfused(program, "")
            wanted = analytic_kernels(net, x1, x2, training=True)
            _run.divided = divided
            error = max(
                float((one - two).abs().max() / two.abs().max())
                for one, two in zip(found, wanted, strict=True)
            )
            # Vectors are for tensor operations: see `_suitable.py`.
            both = [
                (one, two)
                for one, two in zip(loops.steps, kernels.steps, strict=True)
                if one.positions != (1, 1)
            ]
            in_kernel = all((one.loop is None) == (two.loop is None) for one, two in both)
            in_kernel &= any("in a Triton kernel" in two.how for _, two in both)
            if sys.argv[1] == AVERAGES and dtype == torch.float64:
                # Whatever the number of pairs, sums have one order.
                again = analytic_kernels(net, x1, x2[1:], dtype=dtype, training=True)
                in_kernel &= all(
                    torch.equal(one[:, 1:], two) for one, two in zip(found, again, strict=True)
                )
            print(json.dumps([name, str(dtype), in_kernel, error]), flush=True)


if __name__ == "__main__":
    main()
