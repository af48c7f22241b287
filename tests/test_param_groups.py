"""Groups are built by the type of a module and the shape of a parameter, not by names."""

from __future__ import annotations

import pytest
import torch
from support import clone_params
from torch import nn

from thalweg import ALTO, Lamb, check_coverage, param_groups


def split(model, **kwargs):
    """The names of the weights and of the others."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = param_groups(model, **kwargs)
    found = {group["trust_ratio"]: {names[id(p)] for p in group["params"]} for group in groups}
    return found.get(True, set()), found.get(False, set())


class Attention(nn.Module):
    """Names that would mislead a helper that reads them."""

    def __init__(self):
        super().__init__()
        self.norm_projection = nn.Linear(4, 4)
        self.biased = nn.Linear(4, 4, bias=False)
        self.first = nn.LayerNorm(4)
        self.scale_shift = nn.LayerNorm((3, 4))
        self.second = nn.RMSNorm((2, 4))
        self.bias_table = nn.Parameter(torch.zeros(2, 3))
        self.temperature = nn.Parameter(torch.ones(()))
        self.gain = nn.Parameter(torch.ones(4))


def test_names_play_no_part():
    weights, others = split(Attention())
    assert weights == {"norm_projection.weight", "biased.weight", "bias_table"}
    assert others == {
        "norm_projection.bias",
        "first.weight",
        "first.bias",
        "scale_shift.weight",
        "scale_shift.bias",
        "second.weight",
        "temperature",
        "gain",
    }


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm((3, 4)),
        nn.RMSNorm((3, 4)),
        nn.GroupNorm(2, 4),
        nn.BatchNorm1d(4),
        nn.BatchNorm2d(4),
        nn.BatchNorm3d(4),
        nn.SyncBatchNorm(4),
        nn.InstanceNorm2d(4, affine=True),
    ],
)
def test_parameters_of_normalisation_modules_are_neither_decayed_nor_adapted(norm):
    weights, others = split(norm)
    assert weights == set()
    assert others == {name for name, _ in norm.named_parameters()} >= {"weight"}


def test_a_subclass_of_a_normalisation_module_is_one():
    class Custom(nn.LayerNorm):
        pass

    assert split(Custom((2, 3))) == (set(), {"weight", "bias"})


@pytest.mark.parametrize("size", [{}, {"kdim": 3, "vdim": 2, "add_bias_kv": True}])
def test_multihead_attention_has_its_matrices_adapted_and_its_biases_not(size):
    weights, others = split(nn.MultiheadAttention(4, 2, **size))
    projections = {"q_proj_weight", "k_proj_weight", "v_proj_weight"} if size else {"in_proj_weight"}
    assert projections | {"out_proj.weight"} <= weights
    assert others == {"in_proj_bias", "out_proj.bias"}


def test_convolutions_embeddings_and_recurrences_are_weights():
    model = nn.ModuleDict({"conv": nn.Conv2d(2, 3, 1), "lookup": nn.Embedding(5, 3), "memory": nn.LSTM(3, 2)})
    weights, others = split(model)
    assert weights == {"conv.weight", "lookup.weight", "memory.weight_ih_l0", "memory.weight_hh_l0"}
    assert others == {"conv.bias", "memory.bias_ih_l0", "memory.bias_hh_l0"}


def test_a_tied_embedding_appears_once():
    model = nn.Sequential(nn.Embedding(5, 3), nn.LayerNorm(3), nn.Linear(3, 5, bias=False))
    model[2].weight = model[0].weight
    groups = param_groups(model)
    assert [len(group["params"]) for group in groups] == [1, 2]
    assert groups[0]["params"][0] is model[0].weight
    ALTO(groups)  # torch refuses a parameter that appears twice


def test_a_frozen_parameter_keeps_its_place():
    model = nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    assert [group["params"] for group in param_groups(model)] == [[model.weight], [model.bias]]


def test_every_parameter_is_in_exactly_one_group_in_the_order_of_the_model():
    model = Attention()
    ids = [[id(p) for p in group["params"]] for group in param_groups(model)]
    order = {id(p): i for i, p in enumerate(model.parameters())}
    assert sorted(ids[0] + ids[1], key=order.get) == list(order)
    assert all(group == sorted(group, key=order.get) for group in ids)


def test_weights_are_decayed_as_told_and_the_others_never():
    model = nn.Linear(3, 2)
    for kwargs, decay in (({}, 0.01), ({"weight_decay": 0.3}, 0.3), ({"weight_decay": 0.0}, 0.0)):
        groups = param_groups(model, **kwargs)
        assert [(g["weight_decay"], g["trust_ratio"]) for g in groups] == [(decay, True), (0.0, False)]


def test_an_empty_group_is_left_out():
    assert [group["trust_ratio"] for group in param_groups(nn.Linear(3, 2, bias=False))] == [True]
    assert [group["trust_ratio"] for group in param_groups(nn.LayerNorm(3))] == [False]


def test_the_groups_do_in_lamb_what_they_say():
    """Adapted: a weight moves by lr·‖θ‖. Not adapted, not decayed: a bias moves by lr·sign(g) at the first step."""
    model = nn.Linear(4, 3).double()
    weight, bias = clone_params(model.parameters())
    optimizer = Lamb(param_groups(model, 0.5), lr=0.1, eps=1e-37, trust_eps=0.0)
    for p in model.parameters():
        p.grad = torch.full_like(p, -2.0)
    optimizer.step()
    assert (model.weight - weight).norm().item() == pytest.approx(0.1 * weight.norm().item(), rel=1e-14)
    assert torch.allclose(model.bias, bias + 0.1, rtol=0.0, atol=1e-15)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"^weight_decay must be a number in \[0, inf\), got -0\.1$"):
        param_groups(nn.Linear(2, 2), weight_decay=-0.1)
    with pytest.raises(ValueError, match=r"^model must have at least one parameter, got none$"):
        param_groups(nn.ReLU())


def test_the_first_pattern_that_matches_wins_and_overrides():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
    groups = param_groups(model, 0.1, patterns={"2.*": {"lr": 0.5, "trust_ratio": False}, "*.weight": {"lr": 0.25}})
    told = [({k: v for k, v in g.items() if k != "params"}, [tuple(p.shape) for p in g["params"]]) for g in groups]
    assert told == [
        ({"weight_decay": 0.1, "trust_ratio": True, "lr": 0.25}, [(3, 2), (3, 3)]),
        ({"weight_decay": 0.0, "trust_ratio": False}, [(3,), (3,)]),
        ({"weight_decay": 0.1, "trust_ratio": False, "lr": 0.5}, [(1, 3)]),
        ({"weight_decay": 0.0, "trust_ratio": False, "lr": 0.5}, [(1,)]),
    ]


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"patterns that match a parameter of Linear, got \['wieght'\]$"):
        param_groups(torch.nn.Linear(1, 1), patterns={"weight": {}, "wieght": {}})


def test_stacked_layers_are_told_apart_from_their_stack():
    model = torch.nn.Module()
    model.experts_w = torch.nn.Parameter(torch.ones(4, 3, 2))
    model.experts_b = torch.nn.Parameter(torch.ones(4, 3))  # a matrix by its shape, four vectors in truth
    groups = param_groups(model, 0.1, patterns={"experts_*": {"stacked": 1}})
    told = [{k: v for k, v in g.items() if k != "params"} for g in groups]
    assert told == [
        {"weight_decay": 0.1, "trust_ratio": True, "norm_dims": (-2, -1)},
        {"weight_decay": 0.0, "trust_ratio": False, "norm_dims": (-1,)},
    ]
    assert "norm_dims" in ALTO(groups).param_groups[0]


@pytest.mark.parametrize("stacked", [2, -1, 1.0, True])
def test_a_stack_of_axes_that_are_not_there_is_an_error(stacked):
    with pytest.raises(ValueError, match=r"stacked of 'weight' must be an integer in \[0, 2\) for weight of 2 axes"):
        param_groups(torch.nn.Linear(2, 3), patterns={"weight": {"stacked": stacked}})


def test_coverage_names_what_is_left_out_doubled_or_foreign():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    model[1].bias.requires_grad_(False)  # frozen: may be left out
    check_coverage(model, ALTO(param_groups(model)))
    check_coverage(model, ALTO([p for p in model.parameters() if p.requires_grad]))
    stray = torch.nn.Parameter(torch.ones(7))
    optimizer = torch.optim.SGD([model[0].weight, stray], lr=0.1)
    optimizer.param_groups[0]["params"].append(model[0].weight)
    with pytest.raises(
        ValueError, match=r"left out: 0\.bias, 1\.weight; doubled: 0\.weight; not the model's: one of shape \(7,\)$"
    ):
        check_coverage(model, optimizer)
