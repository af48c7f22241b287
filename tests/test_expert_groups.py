"""Experts and other layers that share a parameter: each is adapted by its own norm."""

from __future__ import annotations

import pytest
import torch
from support import assert_near
from torch import nn

from thalweg import ALTO, Lamb, param_groups


def experts(name="Experts", count=None, sizes=((4, 3, 2), (4, 2, 3), (4, 3)), **others):
    module = type(name, (nn.Module,), {})()
    for i, size in enumerate(sizes):
        module.register_parameter(f"p{i}", nn.Parameter(torch.ones(size)))
    for key, value in {**({count: 4} if count else {}), **others}.items():
        setattr(module, key, value)
    return module


def norm_dims(model, **kwargs):
    names = {id(p): name for name, p in model.named_parameters()}
    groups = param_groups(model, **kwargs)
    return {names[id(p)]: (g.get("norm_dims"), g["trust_ratio"]) for g in groups for p in g["params"]}


STACK = {"p0": ((-2, -1), True), "p1": ((-2, -1), True), "p2": ((-1,), False)}


@pytest.mark.parametrize(
    "module",
    [
        experts("MixtralExperts"),
        experts("ParallelExperts"),
        experts("MoE", "num_experts"),
        experts("MoE", "num_local_experts"),
        experts("MoE", "n_experts"),
        experts("MoE", "n_shared_experts"),
        experts("MoE", "moe_num_experts"),
        experts("MoE", "total_experts", num_routed_experts=2),
    ],
    ids=lambda module: f"{type(module).__name__} {'_'.join(k for k in vars(module) if 'experts' in k)}",
)
def test_experts_that_share_a_parameter_are_told_apart_and_their_biases_from_their_weights(module):
    assert norm_dims(module) == STACK
    undone = {"p0": ((-3, -2, -1), True), "p1": ((-3, -2, -1), True), "p2": ((-2, -1), True)}
    assert norm_dims(module, patterns={"*": {"stacked": 0}}) == {name: (None, how) for name, (_, how) in undone.items()}
    ALTO(param_groups(module))


@pytest.mark.parametrize(
    "module",
    [
        experts("Attention"),
        experts("MoE", "num_experts_per_tok"),
        experts("MoE", "expert_dim"),
        experts("MoE", "num_experts", sizes=((8, 3, 2), (8, 2, 3), (8, 3))),  # whatever they are
        experts("Router", "num_experts", sizes=((4, 8),)),
        nn.Conv1d(3, 4, 2),
    ],
    ids=lambda module: f"{type(module).__name__} {'_'.join(k for k in vars(module) if 'expert' in k)}",
)
def test_other_parameters_of_three_axes_are_one_layer(module):
    assert {dims for dims, _ in norm_dims(module).values()} == {None}


def test_experts_take_the_step_that_they_would_take_apart():
    torch.manual_seed(0)
    stacked = experts("MixtralExperts")
    apart = [experts("MLP", sizes=((3, 2), (2, 3), (3,))) for _ in range(4)]
    for p, layers in zip(stacked.parameters(), zip(*(e.parameters() for e in apart), strict=True), strict=True):
        p.data, p.grad = torch.randn_like(p, dtype=torch.float64), None
        p.grad = torch.randn_like(p)
        for i, layer in enumerate(layers):
            layer.data = p.detach()[i].clone()
            layer.grad = p.grad[i].clone()
    Lamb(param_groups(stacked, 0.5), lr=0.1).step()
    Lamb([group for e in apart for group in param_groups(e, 0.5)], lr=0.1).step()
    for p, layers in zip(stacked.parameters(), zip(*(e.parameters() for e in apart), strict=True), strict=True):
        assert_near(list(p.detach()), list(layers), 1e-14)


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
