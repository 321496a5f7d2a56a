"""Where our time goes: operations and time by stage, beside the speed of a large product."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from common import best
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

STAGES = {
    "backward": "forward and backward passes",
    "jacobian": "forming Jacobians",
    "products": "products between samples",
    "check": "comparison with a plain pass",
    "": "the rest",
}
_RANGE = "torch_ntk::"
_RUNS = 10


class Account(TorchDispatchMode):
    """Adds up operations and seconds of everything that is executed, by the innermost stage."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: dict[str, int] = defaultdict(int)
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "_record_function_enter_new":
            self._inside.append(args[0].removeprefix(_RANGE))
        elif name == "_record_function_exit":
            self._inside.pop()
        start = time.perf_counter()
        out = func(*args, **kwargs)
        stage = self._inside[-1] if self._inside else ""
        self.seconds[stage] += time.perf_counter() - start
        # In place the same is computed as out of place, but counted under that name only.
        formula = flop_registry.get(getattr(torch.ops.aten, name.rstrip("_"), None))
        if formula is not None:
            self.flops[stage] += int(formula(*args, **kwargs, out_val=out))
        return out


def account(run: Callable[[], Any]) -> dict[str, Any]:
    """GFLOP and ms by stage, and the speed of the fastest matrix product in GFLOP/s.

    Operations are those that are executed, from the shapes of matrix products and convolutions;
    a multiplication and an addition are two. The time of a stage is that inside of its operations
    in the fastest of some watched runs, and the rest that by which the fastest of as many runs
    that are not watched takes longer: watching costs time itself.
    """
    for _ in range(4):  # from then on the operations are recorded ones
        run()
    whole = inside = float("inf")
    fastest = Account()
    for _ in range(_RUNS):
        start = time.perf_counter()
        run()
        whole = min(whole, time.perf_counter() - start)
        with Account() as found:
            run()
        in_stages = sum(v for k, v in found.seconds.items() if k)
        if in_stages < inside:
            inside, fastest = in_stages, found
    fastest.seconds[""] = max(0.0, whole - inside)
    return {
        "stages": {
            k: {"gflop": fastest.flops[k] / 1e9, "ms": 1e3 * fastest.seconds[k]}
            for k in STAGES
            if k in fastest.seconds
        },
        "gflop": sum(fastest.flops.values()) / 1e9,
        "ms": 1e3 * whole,
        "gemm": fastest_product(),
    }


def operations(run: Callable[[], Any]) -> dict[str, Any]:
    """GFLOP, ms, and the speed of a large product on a GPU, without times of the stages."""
    run()
    start = time.perf_counter()
    run()
    whole = time.perf_counter() - start
    with Account() as found:
        run()
    a = torch.randn(8192, 8192, device="cuda")

    def product() -> None:
        a @ a.T
        torch.cuda.synchronize()

    return {
        "stages": {},
        "gflop": sum(found.flops.values()) / 1e9,
        "ms": 1e3 * whole,
        "gemm": 2e-9 * 8192**3 / best(product, most=1.0),
    }


def fastest_product(size: int = 2048) -> float:
    """GFLOP/s of the faster one of a matrix product and of the same product as a convolution."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    image, filters = a.view(1, 1, size, size).permute(0, 3, 1, 2), b.view(size, size, 1, 1)
    ways = (lambda: a @ b.T, lambda: F.conv2d(image, filters))
    return 2e-9 * size**3 / min(best(way, most=2.0) for way in ways)


def lines(found: dict[str, Any]) -> list[str]:
    """The account of one kernel as text."""
    floor = 1e3 * found["gflop"] / found["gemm"]
    text = [
        f"    {found['gflop']:.1f} GFLOP; {floor:.1f} ms at the {found['gemm']:.0f} GFLOP/s of a "
        "large matrix product"
    ]
    for stage, each in found["stages"].items():
        speed = f", {1e3 * each['gflop'] / each['ms']:.0f} GFLOP/s" if each["gflop"] > 0.01 else ""
        text.append(f"    {STAGES[stage]}: {each['ms']:.1f} ms, {each['gflop']:.2f} GFLOP{speed}")
    return text
