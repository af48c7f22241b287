"""pytorch_optimizer's factory makes ALTO by name, as the line of docs/frameworks.md says."""

import copy

import pytest
import torch
from pytorch_optimizer import create_optimizer
from pytorch_optimizer.optimizer import OPTIMIZERS
from support import assert_same

from thalweg import ALTO, param_groups


@pytest.mark.parametrize("options", [{}, {"alpha": 0.5, "beta": 0.01}])
def test_alto_by_name_is_alto_with_param_groups(options, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "alto", ALTO)
    torch.manual_seed(0)
    models = [torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))]
    models.append(copy.deepcopy(models[0]))
    by_name = create_optimizer(models[0], "alto", lr=0.01, weight_decay=0.01, trust_ratio="decayed", **options)
    by_hand = ALTO(param_groups(models[1], 0.01), lr=0.01, **options)
    for _ in range(3):
        x = torch.randn(16, 4)
        for model, optimizer in zip(models, (by_name, by_hand), strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    assert_same(*(list(model.parameters()) for model in models))
