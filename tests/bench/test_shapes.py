"""The shapes are those of the models themselves, as transformers builds them."""

from __future__ import annotations

from collections import Counter
from math import prod

import pytest
import torch
import transformers as tr

from thalweg.bench.shapes import MODELS, TINY, model
from thalweg.records.errors import UserError

GRANITE = {
    "hidden_size": 1024,
    "intermediate_size": 512,
    "num_local_experts": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_hidden_layers": 1,
}
QWEN = {  # of Qwen1.5-MoE-A2.7B: 2048, 1408, 5632, 60, 16, 16, 24, 151936
    "hidden_size": 2048 // 16,
    "moe_intermediate_size": 1408 // 16,
    "shared_expert_intermediate_size": 5632 // 16,
    "num_experts": 60,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_hidden_layers": 64,
    "vocab_size": 151_936,
}
BUILT = {
    "gpt2-23m": lambda: tr.GPT2LMHeadModel(tr.GPT2Config(n_embd=256, n_layer=12, n_head=4)),
    "gpt2-small": lambda: tr.GPT2LMHeadModel(tr.GPT2Config()),
    "gpt2-medium": lambda: tr.GPT2LMHeadModel(tr.GPT2Config(n_embd=1024, n_layer=24, n_head=16)),
    "resnet50": lambda: tr.ResNetForImageClassification(tr.ResNetConfig(num_labels=1000)),
    "bert-base": lambda: tr.BertModel(tr.BertConfig()),
    "moe-block": lambda: tr.GraniteMoeModel(tr.GraniteMoeConfig(**GRANITE)).layers[0],
    "moe-narrow": lambda: tr.Qwen2MoeForCausalLM(tr.Qwen2MoeConfig(**QWEN)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_shapes_are_the_models(name):
    with torch.device("meta"):
        built = BUILT[name]()
    assert Counter(MODELS[name].shapes) == Counter(tuple(p.shape) for p in built.parameters())


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [
        ("gpt2-23m", 148, 22_605_568),
        ("gpt2-small", 148, 124_439_808),
        ("gpt2-medium", 292, 354_823_168),
        ("resnet50", 161, 25_557_032),
        ("bert-base", 199, 109_482_240),
        ("moe-narrow", 1027, 182_042_752),
    ],
)
def test_known_numbers(name, tensors, parameters):
    assert len(MODELS[name].shapes) == tensors
    assert MODELS[name].parameters == parameters


def test_the_experts_alone_are_stacked():
    assert MODELS["moe-block"].stacked == ((32, 1024, 1024), (32, 1024, 512))
    assert MODELS["moe-narrow"].stacked == ((60, 176, 128), (60, 128, 88)) * 64
    assert all(not one.stacked for name, one in MODELS.items() if not name.startswith("moe"))


def test_the_largest():
    assert MODELS["gpt2-23m"].largest == 50257 * 256
    assert TINY.largest == prod((64, 32))


def test_tiny_is_there_but_not_advertised():
    assert model("tiny") is TINY
    with pytest.raises(UserError, match=r"unknown model 'vgg': choose from gpt2-23m, .*, moe-block, moe-narrow$"):
        model("vgg")
