"""The network at the step from which its movement is measured."""

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
    """What the network is compared with: θ_0 and what was computed there.

    In saved states it stands under the key `"anchor"`, and its step is logged as `anchor_step`.

    Attributes:
        step: The optimizer step at which it was taken, 0 for a run watched from its start.
        trained: Names of the parameters by which the kernel is taken.
        params: θ_0, every floating-point parameter by name.
        buffers: Every buffer by name; Θ_0, f_0 and the linearization are taken with these.
        probe: The samples.
        size: O, the number of outputs of a sample.
        outputs: f_0 on the probe, `[N, O]`; None if they are too many to be kept.
        kernel: Θ_0 on the probe, or None if no metric needs it.
        parts: Its parts by module, or None if no metric needs them.
        infinite: The kernel of the limit of infinite width, or None.
        held: Bytes of the activations of a sample; 0 if that is not known.
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
        """Raise `ValueError` if `network` has other parameters than the reference."""
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
        """A copy with every tensor on `device`."""

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
        """Tensors and plain values only, so that a checkpoint loads with `weights_only=True`."""
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
        """The inverse of `state_dict`.

        Raises:
            KeyError: Something is missing from the state.
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
    """Own copies: the optimizer writes into the originals."""
    return {n: t.detach().clone() for n, t in tensors.items()}


def has_diverged(network: nn.Module) -> bool:
    """Whether a parameter is NaN or infinite, or a buffer NaN (an infinite one may be a mask)."""
    weights = [p for p in network.parameters() if p.is_floating_point()]
    buffers = [b for b in network.buffers() if b.is_floating_point()]
    return any(not bool(p.isfinite().all()) for p in weights) or any(
        bool(b.isnan().any()) for b in buffers
    )
