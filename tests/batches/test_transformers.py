"""Models of Hugging Face with random weights, against loops of their own backward passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from batch_forms import Call, by_name, full, loop, off
from case_libraries import HEADS, SIZES, bert, gpt2, last_tokens
from torch import Tensor, nn
from traces import snapshot

from torch_ntk import NTKOperator, empirical_nngp, empirical_ntk, explain, verify


def llama() -> nn.Module:
    """As it is: it normalizes in float32, whatever its dtype."""
    config = transformers.LlamaConfig(**SIZES, **HEADS, num_key_value_heads=1)
    return transformers.LlamaForCausalLM(config)


def logits(model: nn.Module, batch: Any) -> Tensor:
    return by_name(model, batch).logits


MODELS: dict[str, tuple[Callable[[], nn.Module], Call | None, float]] = {
    "GPT-2": (gpt2, last_tokens, 1e-10),
    "BERT": (bert, None, 1e-10),
    "LLaMA": (llama, last_tokens, 1e-5),  # 1e-10 in the table of cases, where it is in float64
}


def built(make: Callable[[], nn.Module]) -> nn.Module:
    """The model in float64 and train mode; not so small that its outputs hardly depend on it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = make().double()
        for p in model.parameters():
            p.data += 0.3 * torch.randn_like(p)
    return model.train()


def tokens(seed: int = 0) -> Any:
    """Three samples, two of them padded, as a tokenizer gives them."""
    ids = torch.randint(3, 11, (3, 5), generator=torch.Generator().manual_seed(seed))
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    return transformers.BatchEncoding({"input_ids": ids * mask, "attention_mask": mask})


def one_by_one(batch: Any) -> list[dict[str, Tensor]]:
    each = zip(*(t.split(1) for t in batch.values()), strict=True)
    return [dict(zip(batch.keys(), tensors, strict=True)) for tensors in each]


@pytest.mark.parametrize(
    ("name", "method"),
    [  # all methods on the others are in the table of cases
        *(("GPT-2", "structured"), ("BERT", "structured")),
        *(("LLaMA", "structured"), ("LLaMA", "jacobian"), ("LLaMA", "vector_product")),
    ],
)
def test_kernels(name: str, method: Any) -> None:
    make, forward_fn, tolerance = MODELS[name]
    net, a, b = built(make), tokens(), tokens(1)
    before = snapshot(net, *a.values(), *b.values())
    found = empirical_ntk(net, a, b, method=method, forward_fn=forward_fn)
    assert snapshot(net, *a.values(), *b.values()) == before
    _, j1 = loop(net, one_by_one(a), forward_fn or logits)
    _, j2 = loop(net, one_by_one(b), forward_fn or logits)
    assert off(found, full(j1, j2)) < tolerance


@pytest.mark.parametrize("name", MODELS)
def test_other_functions(name: str) -> None:
    make, forward_fn, tolerance = MODELS[name]
    net, batch = built(make), tokens()
    out, j = loop(net, one_by_one(batch), forward_fn or logits)
    n, o, _ = j.shape
    matrix = full(j, j).permute(0, 2, 1, 3).reshape(n * o, n * o)
    operator = NTKOperator(net, batch, forward_fn=forward_fn)
    assert off(operator @ torch.eye(n * o).double(), matrix) < tolerance
    assert off(empirical_nngp(net, batch, forward_fn=forward_fn), out @ out.T / o) < tolerance
    found = verify(net, batch, forward_fn=forward_fn, output="trace")
    assert found.is_right, str(found)
    assert not [c for c in found.checks if c.refusal], str(found)


@pytest.mark.parametrize("name", MODELS)
def test_rules_cover_all_parameters(name: str) -> None:
    make, forward_fn, _ = MODELS[name]
    lines = explain(built(make), tokens(), forward_fn=forward_fn).lines
    assert [line.parameter for line in lines if not line.uses] == []


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`")  # its new name is newer
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_activation_checkpointing_is_passed_over(name: str, reentrant: bool) -> None:
    make, forward_fn, tolerance = MODELS[name]
    net, batch = built(make), tokens()
    plain = empirical_ntk(net, batch, forward_fn=forward_fn)
    net.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert any(getattr(module, "gradient_checkpointing", False) for module in net.modules())
    assert off(empirical_ntk(net, batch, forward_fn=forward_fn), plain) < 1e-12
    flat = plain.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    operator = NTKOperator(net, batch, forward_fn=forward_fn)
    ones = torch.ones(operator.shape[0]).double()
    assert off(operator @ ones, flat.sum(1)) < tolerance
    for dropout in (m for m in net.modules() if isinstance(m, nn.Dropout)):
        dropout.p = 0.0
    # In training mode, in which these models recompute.
    trained = empirical_ntk(net, batch, forward_fn=forward_fn, training=True, check=False)
    assert off(trained, plain) < 1e-12


def test_an_encoding_with_labels_needs_no_function() -> None:
    net, batch = built(bert), tokens()
    batch["labels"] = torch.tensor([0, 1, 1])
    plain = empirical_ntk(net, tokens(), output="mean")
    assert torch.allclose(empirical_ntk(net, batch, output="mean"), plain, rtol=1e-12)


def test_base_models_ask_which_output_is_meant() -> None:
    net = built(lambda: transformers.BertModel(transformers.BertConfig(**SIZES, **HEADS)))
    with pytest.raises(TypeError, match=r"last_hidden_state: .*model\(\*\*batch\)\['last_hidden"):
        empirical_ntk(net, tokens())
    pooled = empirical_ntk(
        net, tokens(), output="mean", forward_fn=lambda m, b: m(**b)["pooler_output"]
    )
    assert pooled.shape == (3, 3)
