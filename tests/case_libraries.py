"""Networks of other libraries for the table of cases, few layers of each, with random weights.

The libraries are imported where they are used, so that one row needs no other row's.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from case_models import with_statistics
from torch import Tensor, nn

SIZES = {"vocab_size": 11, "max_position_embeddings": 8, "hidden_size": 8, "intermediate_size": 12}
HEADS = {"num_hidden_layers": 1, "num_attention_heads": 2}


def shaken(model: nn.Module) -> nn.Module:
    """With parameters that are not so small that outputs hardly depend on the inputs."""
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return model


def tokens(x: Tensor) -> dict[str, Tensor]:
    return {"input_ids": x}


def masked_tokens(x: Tensor) -> dict[str, Tensor]:
    """Of different lengths; the first of the tokens decides which."""
    length = 2 + x[:, :1] % (x.shape[1] - 1)
    mask = torch.arange(x.shape[1], device=x.device) < length
    return {"input_ids": x, "attention_mask": mask.long()}


def last_tokens(model: nn.Module, batch: Any) -> Tensor:
    """Log-probabilities of the last two tokens, given those before."""
    log_p = model(**batch).logits[:, -3:-1].log_softmax(-1)
    return log_p.gather(-1, batch["input_ids"][:, -2:, None])[..., 0]


def gpt2() -> nn.Module:
    import transformers

    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=8, vocab_size=11, n_positions=8, bos_token_id=1, eos_token_id=2
    )
    return shaken(transformers.GPT2LMHeadModel(config))


def bert() -> nn.Module:
    import transformers

    config = transformers.BertConfig(**SIZES, **HEADS, num_labels=2)
    return shaken(transformers.BertForSequenceClassification(config))


def llama() -> nn.Module:
    """LLaMA, of which only the normalization is another: its own converts to float32."""
    import transformers
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    config = transformers.LlamaConfig(**SIZES, **HEADS, num_key_value_heads=1)
    model = shaken(transformers.LlamaForCausalLM(config))
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LlamaRMSNorm):
                norm = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm)
    return model


def lora() -> nn.Module:
    import peft

    kind = peft.LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["query", "value"])
    return shaken(peft.get_peft_model(bert(), kind))  # LoRA's second factor begins at zero


def timm_vit() -> nn.Module:
    import timm

    return timm.models.vision_transformer.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=2
    )


def efficientnet() -> nn.Module:
    """Two blocks of it, with squeeze and excitation."""
    import timm

    net = timm.create_model("efficientnet_b0", num_classes=2)
    del net.blocks[2:], net.blocks[1][1:]
    head = timm.layers.BatchNormAct2d(net.blocks[1][-1].bn3.num_features)
    net.conv_head, net.bn2 = nn.Identity(), head
    net.classifier = nn.Linear(head.num_features, 2)
    return with_statistics(net)


def graph(x: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes in a ring, the first of them joined to all, and as many edges as that makes."""
    nodes = torch.arange(len(x), device=x.device)
    ring = torch.stack([nodes, nodes.roll(1)])
    return x, torch.cat([ring, torch.stack([nodes.new_zeros(len(x)), nodes])], dim=1)


class GraphNetwork(nn.Module):
    """Two convolutions over the edges of a graph."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it compiles a class with TorchScript, now deprecated
            import torch_geometric.nn as gnn

        layer = getattr(gnn, kind)
        self.first, self.second = layer(3, 4), layer(4, 2)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(F.elu(self.first(x, edge_index)), edge_index)
