"""What is marked on a parameter or declared by a model is obeyed, in one order."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from thalweg import ALTO, Lamb, param_groups


class Model(nn.Module):
    """Two matrices and a bias, an inner model, and what is declared of them."""

    def __init__(self, inner=None, **declared):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.ones(1, 3, 4))
        self.head = nn.Linear(4, 3)
        if inner is not None:
            self.inner = inner
        self.__dict__.update(declared)


def options(model, *args, **kwargs):
    """The options of each parameter by its name: of decay and the trust ratio in one, and the others."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = param_groups(model, 0.1, *args, **kwargs)
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(names)
    return {
        names[id(p)]: {key: value for key, value in group.items() if key != "params"}
        for group in groups
        for p in group["params"]
    }


MATRIX = {"weight_decay": 0.1, "trust_ratio": True}
VECTOR = {"weight_decay": 0.0, "trust_ratio": False}


def vectors(model, **kwargs):
    found = options(model, **kwargs)
    assert all(each in (MATRIX, VECTOR) for each in found.values())
    return {name for name, each in found.items() if each == VECTOR}


def test_a_mark_on_a_parameter_takes_decay_and_trust_ratio_off():
    model = Model()
    assert vectors(model) == {"head.bias"}
    model.head.weight._no_weight_decay = True
    model.pos_embed._no_weight_decay = False
    assert vectors(model) == {"head.bias", "head.weight"}
    model.head.bias._no_weight_decay = True
    assert vectors(model) == {"head.bias", "head.weight"}


def test_a_mark_on_experts_leaves_their_norms_apart():
    model = type("Experts", (nn.Module,), {})()
    model.w = nn.Parameter(torch.ones(2, 3, 4))
    assert options(model) == {"w": {**MATRIX, "norm_dims": (-2, -1)}}
    model.w._no_weight_decay = True
    assert options(model) == {"w": {**VECTOR, "norm_dims": (-2, -1)}}


DECLARED = [
    lambda: {"pos_embed", "cls_token"},  # what timm's models return, also of variants that have no class token
    lambda: ["pos_embed"],
    lambda: {"pos_*"},
    {"pos_embed": None},
    ("pos_embed",),
]


@pytest.mark.parametrize("declared", DECLARED)
def test_a_model_names_what_is_not_decayed(declared):
    assert vectors(Model(no_weight_decay=declared)) == {"head.bias", "pos_embed"}


def test_names_are_whole_and_keywords_are_parts_of_them():
    assert vectors(Model(no_weight_decay=lambda: {"pos", "head", "weight", "embed"})) == {"head.bias"}
    assert vectors(Model(no_weight_decay_keywords=lambda: {"head.w", "table"})) == {"head.bias", "head.weight"}
    both = Model(no_weight_decay=lambda: {"pos_embed"}, no_weight_decay_keywords=lambda: {"weight"})
    assert vectors(both) == {"head.bias", "head.weight", "pos_embed"}
    for nothing in (lambda: None, lambda: set(), None, ()):
        assert vectors(Model(no_weight_decay=nothing)) == {"head.bias"}


def test_names_are_those_within_the_module_that_declares_them():
    biases = {"head.bias", "inner.head.bias"}
    inner = Model(no_weight_decay=lambda: {"pos_embed"}, no_weight_decay_keywords=lambda: {"inner"})
    assert vectors(Model(inner)) == biases | {"inner.pos_embed"}
    assert vectors(Model(Model(), no_weight_decay=lambda: {"inner.pos_embed"})) == biases | {"inner.pos_embed"}
    assert vectors(Model(Model(), no_weight_decay=lambda: {"pos_embed"})) == biases | {"pos_embed"}
    assert vectors(Model(inner, no_weight_decay=lambda: {"pos_embed"})) == biases | {"inner.pos_embed", "pos_embed"}
    model = nn.Sequential(nn.Identity(), Model(no_weight_decay=lambda: {"pos_embed"}))
    assert vectors(model) == {"1.head.bias", "1.pos_embed"}
    # "inner" begins a name here as well, and is another module
    model = Model(Model(no_weight_decay=lambda: {"*"}))
    model.inner_head = nn.Linear(3, 3)
    assert vectors(model) == {"head.bias", "inner_head.bias", "inner.pos_embed", "inner.head.weight", "inner.head.bias"}


def test_a_tied_parameter_may_be_named_in_any_of_its_places():
    model = Model(Model())
    model.inner.head.weight = model.head.weight
    for place in ("head.weight", "inner.head.weight"):
        model.__dict__["no_weight_decay"] = lambda place=place: {place}
        assert vectors(model) == {"head.bias", "inner.head.bias", "head.weight"}


def test_a_module_in_two_places_declares_in_both():
    inner = Model(no_weight_decay=lambda: {"pos_embed"})
    model = nn.ModuleDict({"a": inner, "b": inner})
    assert vectors(model) == {"a.head.bias", "a.pos_embed"}
    model = nn.ModuleDict({"a": Model(), "b": inner})
    model["a"].pos_embed = inner.pos_embed
    assert vectors(model) == {"a.head.bias", "b.head.bias", "a.pos_embed"}


def test_a_compiled_model_declares_what_the_model_does():
    compiled = torch.compile(Model(no_weight_decay=lambda: {"pos_embed"}))
    assert vectors(compiled) == {"_orig_mod.head.bias", "_orig_mod.pos_embed"}


def test_options_on_a_parameter_are_those_of_its_group():
    model = Model()
    model.pos_embed._optim = {"lr": 0.001, "weight_decay": 0.0}
    model.head.weight._optim = {"lr": 0.002}
    model.head.bias._optim = {"weight_decay": 0.5, "betas": (0.5, 0.9)}
    assert options(model) == {
        "pos_embed": {**VECTOR, "lr": 0.001},
        "head.weight": {**MATRIX, "lr": 0.002},
        "head.bias": {"weight_decay": 0.5, "trust_ratio": False, "betas": (0.5, 0.9)},
    }
    optimizer = ALTO(param_groups(model), lr=0.1)
    assert sorted(group["lr"] for group in optimizer.param_groups) == [0.001, 0.002, 0.1]
    model.head.weight._optim = None
    model.pos_embed._optim = {"weight_decay": 0.0, "trust_ratio": True}
    assert options(model)["head.weight"] == MATRIX
    assert options(model)["pos_embed"] == {"weight_decay": 0.0, "trust_ratio": True}
    model.pos_embed._optim = {"weigth_decay": 0.0}
    with pytest.raises(ValueError, match=r"^a parameter group must be given options by their names, weight_decay, got"):
        Lamb(param_groups(model))


def test_options_on_a_parameter_may_say_that_it_stacks_layers():
    model = Model()
    model.scanned = nn.Parameter(torch.ones(5, 4, 3))
    model.scanned._optim = {"stacked": 1}
    assert options(model)["scanned"] == {**MATRIX, "norm_dims": (-2, -1)}
    model.scanned._optim = {"stacked": 3}
    with pytest.raises(ValueError, match=r"^stacked of 'scanned' must be an integer in \[0, 3\) for scanned of 3 axes"):
        param_groups(model)


def test_patterns_go_before_options_and_these_before_marks_and_declarations():
    model = Model(no_weight_decay=lambda: {"head.weight"})
    model.head.weight._no_weight_decay = True
    model.head.weight._optim = {"weight_decay": 0.2, "lr": 0.5}
    assert options(model)["head.weight"] == {"weight_decay": 0.2, "trust_ratio": False, "lr": 0.5}
    patterns = {"head.weight": {"weight_decay": 0.3, "trust_ratio": True}}
    found = options(model, patterns=patterns)["head.weight"]
    assert found == {"weight_decay": 0.3, "trust_ratio": True, "lr": 0.5}

    model = Model()
    model.head.weight._optim = {"weight_decay": 0.0}
    assert options(model, patterns={"head.weight": {"weight_decay": 0.3}})["head.weight"] == {
        "weight_decay": 0.3,
        "trust_ratio": True,
    }
    assert options(model, patterns={"head.weight": {"lr": 1.0}})["head.weight"] == {**VECTOR, "lr": 1.0}


@pytest.mark.parametrize("attribute", ["no_weight_decay", "no_weight_decay_keywords"])
@pytest.mark.parametrize("bad", [True, 0.1, "pos_embed", lambda: "pos_embed", lambda: [1], lambda: {nn.Linear}])
def test_declarations_that_are_no_names_are_refused(attribute, bad):
    with pytest.raises(ValueError, match=rf"^{attribute} of Model must be a collection of names of parameters, .* got"):
        param_groups(Model(**{attribute: bad}))


@pytest.mark.parametrize("bad", [0.1, [("lr", 0.1)], "lr", {1: 0.1}, {"params": []}])
def test_options_that_are_no_mapping_are_refused(bad):
    model = Model()
    model.head.weight._optim = bad
    with pytest.raises(ValueError, match=r"^_optim of head\.weight must be a mapping of names to options of its group"):
        param_groups(model)


NAMED = [
    *("mixer.A_log", "A_b_log", "A_logs", "attention_biases", "rel_attn_embed.weight", "rel_pos_bias.weight"),
    *("rel_pos_x_bias.weight", "relative_attention_bias", "SelfAttention.relative_attention_bias.weight"),
    "attn.relative_position_bias_table",
]
OTHERS = ["A_logit", "log_A", "bias_table", "relative_embedding.weight", "pos_bias.weight", "A_log.weight", "A_logs.q"]


def with_parameter(name):
    *path, own = name.split(".")
    model = here = nn.Module()
    for part in path:
        here.add_module(part, nn.Linear(4, 3, bias=False) if own == "weight" else nn.Module())
        here = here.get_submodule(part)
    if own != "weight":
        here.register_parameter(own, nn.Parameter(torch.ones(3, 4)))
    return model


def test_logarithms_of_decay_rates_and_tables_of_biases_are_known_by_name():
    for name in NAMED:
        assert vectors(with_parameter(name)) == {name}
    for name in OTHERS:
        assert vectors(with_parameter(name)) == set()
    assert options(with_parameter("mixer.A_log"), patterns={"*A_log": {"trust_ratio": True, "weight_decay": 0.1}}) == {
        "mixer.A_log": MATRIX
    }


def test_a_copy_has_declarations_and_no_marks():
    model = Model(no_weight_decay=lambda: {"pos_embed"})
    model.head.weight._no_weight_decay = True
    assert vectors(model.double()) == {"head.bias", "pos_embed", "head.weight"}
    assert vectors(copy.deepcopy(model)) == {"head.bias", "pos_embed"}


def test_lamb_leaves_what_is_marked_alone_where_its_gradient_is_zero():
    model = Model(no_weight_decay=lambda: {"pos_embed"})
    optimizer = Lamb(param_groups(model, 0.5), lr=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert {name for name, p in model.named_parameters() if torch.equal(p, before[name])} == {"head.bias", "pos_embed"}
