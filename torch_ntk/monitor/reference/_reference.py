"""`Reference`: the network at the step with which later steps are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..._checks import value_error
from ..._types import Parameters
from ..probe._probe import Probe


@dataclass(frozen=True)
class Reference:
    """The parameters θ_0 with which the network is compared, and quantities computed there.

    In saved states it has the key `"anchor"`, and its step is logged as `anchor_step`.

    Attributes:
        step: The number of optimizer steps before it, which is 0 at the start of a run.
        trained: The names of the parameters by which the kernel is computed.
        params: The parameters θ_0 by name.
        buffers: The buffers by name, with which Θ_0, f_0 and the linearization are computed.
        probe: The samples.
        size: The number O of outputs of a sample.
        outputs: The outputs f_0 `[N, O]` on the probe, or None if they are too many to be stored.
        kernel: The kernel Θ_0 on the probe, or None if no metric needs it.
        parts: The parts of Θ_0 by the names of modules, or None if no metric needs them.
        infinite: The kernel `[N, N]` of the infinitely wide network, or None.
        held: The bytes of the activations of a sample, or 0 if not known.
    """

    step: int
    trained: tuple[str, ...]
    params: Parameters
    buffers: Parameters
    probe: Probe
    size: int
    outputs: Tensor | None
    kernel: Tensor | None
    parts: Parameters | None = None
    infinite: Tensor | None = None
    held: int = 0

    def check_matches(self, network: nn.Module) -> None:
        """Raise a `ValueError` if `network` has other parameters than the reference."""
        current = {n: p.shape for n, p in network.named_parameters()}
        kept = {n: p.shape for n, p in self.params.items()}
        if current != kept:
            names = sorted(set(current.items()) ^ set(kept.items()))
            raise value_error(
                "network",
                f"the one that was observed from step {self.step} on",
                f"other parameters or shapes: {', '.join(sorted({n for n, _ in names})[:6])}",
                "Resume with the same architecture, or start a new run with a new monitor.",
            )

    def to(self, device: torch.device) -> Reference:
        """The reference with every tensor on `device`."""

        def move(tensors: Parameters) -> Parameters:
            return {n: t.to(device) for n, t in tensors.items()}

        return replace(
            self,
            params=move(self.params),
            buffers=move(self.buffers),
            probe=self.probe.to(device),
            outputs=None if self.outputs is None else self.outputs.to(device),
            kernel=None if self.kernel is None else self.kernel.to(device),
            parts=None if self.parts is None else move(self.parts),
            infinite=None if self.infinite is None else self.infinite.to(device),
        )

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain values, which `weights_only=True` can load."""
        return {
            "step": self.step,
            "trained": list(self.trained),
            "params": dict(self.params),
            "buffers": dict(self.buffers),
            **self.probe.state_dict(),
            "size": self.size,
            "outputs": self.outputs,
            "kernel": self.kernel,
            "parts": None if self.parts is None else dict(self.parts),
            "infinite": self.infinite,
            "held": self.held,
        }

    @staticmethod
    def from_state_dict(state: Mapping[str, Any]) -> Reference:
        """The reference of a state that `state_dict` has returned.

        Raises:
            KeyError: The state is incomplete.
        """
        return Reference(
            step=int(state["step"]),
            trained=tuple(state["trained"]),
            params=dict(state["params"]),
            buffers=dict(state["buffers"]),
            probe=Probe.from_state_dict(state),
            size=int(state["size"]) if "size" in state else state["outputs"].shape[1],
            outputs=state["outputs"],
            kernel=state["kernel"],
            parts=state.get("parts"),
            infinite=state.get("infinite"),
            held=int(state.get("held", 0)),
        )


def snapshot(tensors: Mapping[str, Tensor]) -> Parameters:
    """Copies of tensors by name, since the optimizer writes into the originals."""
    return {n: t.detach().clone() for n, t in tensors.items()}


def has_diverged(network: nn.Module) -> bool:
    """Whether a parameter is NaN or infinite, or a buffer is NaN.

    Infinite buffers are allowed, as they may be attention masks.
    """
    weights = [p for p in network.parameters() if p.is_floating_point()]
    buffers = [b for b in network.buffers() if b.is_floating_point()]
    return any(not bool(p.isfinite().all()) for p in weights) or any(
        bool(b.isnan().any()) for b in buffers
    )
