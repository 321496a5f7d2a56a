"""Implementations of operations that can be differentiated in forward and in reverse mode."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ._recurrent import PlainRecurrent

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)

# Warnings that torch gives during transformations and that the caller can do nothing about.
_IGNORED_WARNINGS = (
    "There is a performance drop because we have not yet implemented the batching rule",
    "RNN module weights are not part of single contiguous chunk of memory",
    "None of the inputs have requires_grad=True",  # checkpointing, which is refused by name
    "`torch.jit.script` is deprecated",  # torch's own rules for forward mode, when first loaded
)


@contextlib.contextmanager
def forward_mode(network: nn.Module | None) -> Iterator[None]:
    """A context in which attention and recurrent layers have forward- and reverse-mode derivatives.

    The fused attention kernels, the transformer fast path, oneDNN's LSTM and the fused recurrent
    cells of a GPU have no forward-mode derivative. cuDNN's recurrent layers have no backward pass
    in eval mode. The settings of recurrent layers are changed only if the network has such layers.
    """
    found = [] if network is None else [m for m in network.modules() if isinstance(m, _RECURRENT)]
    recurrent = any(isinstance(m, nn.RNNBase) for m in found)
    fastpath = torch.backends.mha.get_fastpath_enabled()
    mkldnn, cudnn = bool(torch.backends.mkldnn.enabled), torch.backends.cudnn.enabled
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        if recurrent:
            # Only the flag: `backends.mkldnn.flags` would also set TF32, with a warning.
            torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
            torch.backends.cudnn.enabled = False
        plain = PlainRecurrent() if found else contextlib.nullcontext()
        with sdpa_kernel(SDPBackend.MATH), plain, warnings.catch_warnings():
            for text in _IGNORED_WARNINGS:
                warnings.filterwarnings("ignore", message=text)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        if recurrent:
            torch.backends.mkldnn.enabled = mkldnn  # type: ignore[assignment]
            torch.backends.cudnn.enabled = cudnn
