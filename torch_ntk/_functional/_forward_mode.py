"""Choose the implementations of operations that have derivatives of both kinds."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ._recurrent import PlainRecurrent

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)

# What torch says about itself while it transforms; the caller can do nothing about it.
_ABOUT_ITSELF = (
    "There is a performance drop because we have not yet implemented the batching rule",
    "RNN module weights are not part of single contiguous chunk of memory",
    "None of the inputs have requires_grad=True",  # checkpointing, which is refused by name
    "`torch.jit.script` is deprecated",  # torch's own rules for forward mode, when first loaded
)


@contextlib.contextmanager
def forward_mode(network: nn.Module | None) -> Iterator[None]:
    """Within it, attention and recurrent layers can be differentiated forwards and backwards.

    The fused attention kernels and the transformer fast path have no forward-mode derivative,
    neither have oneDNN's LSTM and the fused cells of a GPU; cuDNN's recurrent layers have no
    backward in eval mode. The choices are put back afterwards, also after an exception.
    """
    found = [] if network is None else [m for m in network.modules() if isinstance(m, _RECURRENT)]
    recurrent = any(isinstance(m, nn.RNNBase) for m in found)
    fastpath = torch.backends.mha.get_fastpath_enabled()
    mkldnn, cudnn = bool(torch.backends.mkldnn.enabled), torch.backends.cudnn.enabled
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        if recurrent:
            _enable_mkldnn(False)
            torch.backends.cudnn.enabled = False
        plain = PlainRecurrent() if found else contextlib.nullcontext()
        with sdpa_kernel(SDPBackend.MATH), plain, warnings.catch_warnings():
            for text in _ABOUT_ITSELF:
                warnings.filterwarnings("ignore", message=text)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        if recurrent:
            _enable_mkldnn(mkldnn)
            torch.backends.cudnn.enabled = cudnn


def _enable_mkldnn(value: bool) -> None:
    """Set the flag alone; `backends.mkldnn.flags` also sets TF32, with a warning."""
    torch.backends.mkldnn.enabled = value  # type: ignore[assignment]
