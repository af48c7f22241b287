"""ALTO and E follow the authors' own package, e-optimizer-adaptor, on a network in float32."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import ALTO as AUTHORS_ALTO
import E as AUTHORS_E
import pytest
import torch
from support import WAYS, assert_moved, assert_near
from torch import nn

from thalweg import ALTO, E

if TYPE_CHECKING:
    from torch.optim import Optimizer

STEPS = 100
TOLERANCE = 1e-4
SETTINGS = [(-5.0, 0.99), (0.5, 0.01), (3.0, 0.75)]


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.LayerNorm(12), nn.Linear(12, 3))
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)  # no layer starts at zero
    return model


def train(model: nn.Module, optimizer: Optimizer) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(16, 6, generator=generator)
        y = x[:, :3].sin()
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(("alpha", "beta"), SETTINGS)
def test_alto_follows_the_authors(alpha, beta, how):
    start = network()
    theirs, ours = copy.deepcopy(start), copy.deepcopy(start)
    common = {"lr": 0.01, "eps": 1e-6, "weight_decay": 0.05}
    train(theirs, AUTHORS_ALTO.ALTO(theirs.parameters(), alp=alpha, betas=(beta, 0.9, 0.99), **common))
    options = {"alpha": alpha, "beta": beta, "trust_eps": 0.0, "max_grad_norm": 1.0, **WAYS[how]}
    train(ours, ALTO(ours.parameters(), **common, **options))
    assert_moved(theirs.parameters(), start.parameters())
    assert_near(ours.parameters(), theirs.parameters(), TOLERANCE)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(("alpha", "beta"), SETTINGS)
def test_e_around_adamw_follows_the_authors(alpha, beta, how):
    start = network()
    theirs, ours = copy.deepcopy(start), copy.deepcopy(start)
    common = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.05}
    train(theirs, AUTHORS_E.E(torch.optim.AdamW(theirs.parameters(), **common), alpha=alpha, beta=beta))
    base = torch.optim.AdamW(ours.parameters(), **WAYS[how], **common)
    train(ours, E(base, alpha=alpha, beta=beta))
    assert_moved(theirs.parameters(), start.parameters())
    assert_near(ours.parameters(), theirs.parameters(), TOLERANCE)
