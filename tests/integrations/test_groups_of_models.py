"""Which parameters of models that people train are vectors, and which hold experts: every one is listed."""

from __future__ import annotations

import re
import warnings

import pytest
import transformers

from thalweg import ALTO, check_coverage, param_groups

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 11}
EXPERTS = {**SMALL, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
ATTENTION = "{query,key,value}"

# The class, its configuration, the vectors, and the experts: weights, and biases.
MODELS = {
    "Bert": (
        {**SMALL, "max_position_embeddings": 5},
        f"""embeddings.LayerNorm.{{weight,bias}} encoder.layer.0.attention.self.{ATTENTION}.bias
        encoder.layer.0.attention.output.dense.bias encoder.layer.0.attention.output.LayerNorm.{{weight,bias}}
        encoder.layer.0.{{intermediate,output}}.dense.bias encoder.layer.0.output.LayerNorm.{{weight,bias}}
        pooler.dense.bias""",
    ),
    "GPT2LMHead": (
        {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 11, "bos_token_id": 1, "eos_token_id": 2},
        """transformer.h.0.ln_{1,2}.{weight,bias} transformer.h.0.attn.{c_attn,c_proj}.bias
        transformer.h.0.mlp.{c_fc,c_proj}.bias transformer.ln_f.{weight,bias}""",
    ),
    "ViT": (
        {**SMALL, "image_size": 8, "patch_size": 4},
        """embeddings.cls_token embeddings.patch_embeddings.projection.bias
        layers.0.attention.{q_proj,k_proj,v_proj,o_proj}.bias
        layers.0.{layernorm_before,layernorm_after}.{weight,bias} layers.0.mlp.{fc1,fc2}.bias layernorm.{weight,bias}
        pooler.dense.bias""",
    ),
    "ConvNextV2": (
        {"hidden_sizes": [4], "depths": [1], "num_stages": 1},
        """embeddings.patch_embeddings.bias embeddings.layernorm.{weight,bias}
        encoder.stages.0.layers.0.{dwconv,pwconv1,pwconv2}.bias encoder.stages.0.layers.0.layernorm.{weight,bias}
        encoder.stages.0.layers.0.grn.{weight,bias} layernorm.{weight,bias}""",
    ),
    "ConvNext": (
        {"hidden_sizes": [4], "depths": [1], "num_stages": 1},
        """embeddings.patch_embeddings.bias embeddings.layernorm.{weight,bias}
        encoder.stages.0.layers.0.{dwconv,pwconv1,pwconv2}.bias encoder.stages.0.layers.0.layernorm.{weight,bias}
        encoder.stages.0.layers.0.layer_scale_parameter layernorm.{weight,bias}""",
    ),
    "Swinv2": (
        {"image_size": 8, "patch_size": 2, "embed_dim": 4, "depths": [1], "num_heads": [2], "window_size": 2},
        """embeddings.patch_embeddings.projection.bias embeddings.norm.{weight,bias}
        encoder.layers.0.blocks.0.attention.self.{logit_scale,continuous_position_bias_mlp.0.bias}
        encoder.layers.0.blocks.0.attention.self.{query,value}.bias
        encoder.layers.0.blocks.0.{attention.output,intermediate,output}.dense.bias
        encoder.layers.0.blocks.0.{layernorm_before,layernorm_after}.{weight,bias} layernorm.{weight,bias}""",
    ),
    "T5": (
        {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2, "vocab_size": 11},
        """encoder.block.0.layer.{0,1}.layer_norm.weight decoder.block.0.layer.{0,1,2}.layer_norm.weight
        {encoder,decoder}.block.0.layer.0.SelfAttention.relative_attention_bias.weight
        {encoder,decoder}.final_layer_norm.weight""",
    ),
    "Swin": (
        {"image_size": 8, "patch_size": 2, "embed_dim": 4, "depths": [1], "num_heads": [2], "window_size": 2},
        """embeddings.patch_embeddings.projection.bias embeddings.norm.{weight,bias}
        encoder.layers.0.blocks.0.attention.relative_position_bias.relative_position_bias_table
        encoder.layers.0.blocks.0.attention.{q_proj,k_proj,v_proj,o_proj}.bias
        encoder.layers.0.blocks.0.mlp.{fc1,fc2}.bias
        encoder.layers.0.blocks.0.{layernorm_before,layernorm_after}.{weight,bias} layernorm.{weight,bias}""",
    ),
    "Mamba": (
        {"hidden_size": 8, "num_hidden_layers": 1, "state_size": 4, "vocab_size": 11, "time_step_rank": 2},
        "layers.0.norm.weight layers.0.mixer.{A_log,D,conv1d.bias,dt_proj.bias} norm_f.weight",
    ),
    "Wav2Vec2": (
        {
            **SMALL,
            "conv_dim": (4,),
            "conv_kernel": (3,),
            "conv_stride": (2,),
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
        },
        """masked_spec_embed feature_extractor.conv_layers.0.layer_norm.{weight,bias}
        feature_projection.layer_norm.{weight,bias} feature_projection.projection.bias
        encoder.pos_conv_embed.conv.{bias,parametrizations.weight.original0} encoder.layer_norm.{weight,bias}
        encoder.layers.0.attention.{k_proj,v_proj,q_proj,out_proj}.bias
        encoder.layers.0.{layer_norm,final_layer_norm}.{weight,bias}
        encoder.layers.0.feed_forward.{intermediate_dense,output_dense}.bias""",
    ),
    "Cohere": (
        {**SMALL, "use_qk_norm": True, "bos_token_id": 1, "eos_token_id": 2},
        "layers.0.self_attn.{q_norm,k_norm}.weight layers.0.input_layernorm.weight norm.weight",
    ),
    "Mixtral": (
        {**EXPERTS, "num_local_experts": 4},
        "layers.0.{input,post_attention}_layernorm.weight norm.weight",
        "layers.0.mlp.experts.{gate_up_proj,down_proj}",
    ),
    "Qwen3Moe": (
        {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 6, "head_dim": 4},
        "layers.0.self_attn.{q_norm,k_norm}.weight layers.0.{input,post_attention}_layernorm.weight norm.weight",
        "layers.0.mlp.experts.{gate_up_proj,down_proj}",
    ),
    "JetMoe": (
        {**EXPERTS, "num_local_experts": 4, "kv_channels": 4},
        """layers.0.mlp.bias layers.0.self_attention.experts.bias layers.0.{input,post_attention}_layernorm.weight
        norm.weight""",
        "layers.0.{mlp,self_attention.experts}.{input,output}_linear.weight",
    ),
    "GptOss": (
        {**EXPERTS, "num_local_experts": 4, "head_dim": 4},
        """layers.0.self_attn.sinks layers.0.self_attn.{q_proj,k_proj,v_proj,o_proj}.bias layers.0.mlp.router.bias
        layers.0.{input,post_attention}_layernorm.weight norm.weight""",
        "layers.0.mlp.experts.{gate_up_proj,down_proj}",
        "layers.0.mlp.experts.{gate_up_proj,down_proj}_bias",
    ),
}


def expand(names: str) -> set[str]:
    """Names with all choices of what is in braces."""
    found = set()
    for name in names.split():
        brace = re.search(r"{([^{}]*)}", name)
        choices = brace[1].split(",") if brace else ()
        found |= expand(" ".join(name.replace(brace[0], choice, 1) for choice in choices)) if brace else {name}
    return found


@pytest.mark.parametrize("name", MODELS)
def test_the_groups_of_a_model(name):
    config, *expected = MODELS[name]
    vectors, experts, their_biases = (expand(names) for names in (*expected, "", "")[:3])
    config = getattr(transformers, name.removesuffix("LMHead") + "Config")(**config)
    model = getattr(transformers, name + "Model")(config)
    names = {id(p): name for name, p in model.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        groups = param_groups(model, 0.1)
    found = {
        (group["weight_decay"], group["trust_ratio"], group.get("norm_dims")): {names[id(p)] for p in group["params"]}
        for group in groups
    }
    matrices = set(names.values()) - vectors - experts - their_biases
    assert found == {
        kind: members
        for kind, members in {
            (0.1, True, None): matrices,
            (0.1, True, (-2, -1)): experts,
            (0.0, False, None): vectors,
            (0.0, False, (-1,)): their_biases,
        }.items()
        if members
    }
    check_coverage(model, ALTO(groups, lr=0.1))


def test_marks_of_a_model_that_is_trained_as_mamba_is():
    """Its training code marks the logarithms and D, and biases that start at a time step."""
    config = transformers.MambaConfig(hidden_size=8, num_hidden_layers=1, state_size=4, vocab_size=11, time_step_rank=2)
    model = transformers.MambaModel(config)
    model.layers[0].mixer.dt_proj.weight._optim = {"lr": 1e-3}
    model.layers[0].mixer.x_proj.weight._no_weight_decay = True
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [
        ({**group, "params": None}, {names[id(p)] for p in group["params"]}) for group in param_groups(model, 0.1)
    ]
    own_lr, plain = groups[1], groups[0]
    assert own_lr == (
        {"params": None, "weight_decay": 0.1, "trust_ratio": True, "lr": 1e-3},
        {"layers.0.mixer.dt_proj.weight"},
    )
    assert "layers.0.mixer.in_proj.weight" in plain[1]
    assert {"layers.0.mixer.A_log", "layers.0.mixer.D", "layers.0.mixer.x_proj.weight"} <= groups[2][1]
    assert groups[2][0] == {"params": None, "weight_decay": 0.0, "trust_ratio": False}
