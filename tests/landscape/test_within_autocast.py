"""Within autocast, which casts a parameter once and keeps that, estimates are those of a loss that is cast anew."""

from __future__ import annotations

import pytest
import torch
from closed_forms import small_network
from estimators import ESTIMATORS, OF_A_LOSS, by_spsa, that_take_a_loss
from torch import nn
from torch.nn import functional as F

from thalweg.landscape import FixedSample, mean_increase


def network():
    model, x, y = small_network(dtype=torch.float32)
    return model, FixedSample(model, F.cross_entropy, [(x[:20], y[:20]), (x[20:], y[20:])])


def bfloat16(**options):
    return torch.autocast("cpu", dtype=torch.bfloat16, **options)


def test_no_estimator_is_left_out():
    assert set(ESTIMATORS) == that_take_a_loss()


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("kind", ["closure", "sample"])
def test_the_parameters_are_cast_anew(name, kind):
    def found():
        model, sample = network()
        model(torch.ones(1, 5))  # what the user's own pass has cast
        closure = kind == "closure" and name in OF_A_LOSS
        loss = sample.parts()[0][1] if closure else sample  # of one pass: two would share a cast and sum in its dtype
        return ESTIMATORS[name](loss, list(model.parameters()))

    with bfloat16():
        within = found()
    with bfloat16(cache_enabled=False):
        uncached = found()
    assert torch.equal(within, uncached)
    assert not torch.equal(within, found())  # autocast was in effect


@pytest.mark.parametrize("name", OF_A_LOSS)
def test_arithmetic_of_our_own_is_not_cast(name):
    """Of a loss in which autocast has nothing to cast, nothing changes."""
    weights = torch.linspace(1.0, 3.0, 60)
    found = []
    for within in (False, True):
        p, q = (nn.Parameter(torch.linspace(-1.0, x, n)) for x, n in ((1.0, 50), (2.0, 10)))

        def loss(p=p, q=q):
            theta = torch.cat([p, q])
            return (weights * theta.square()).sum() + (theta[1:] * theta[:-1]).square().sum()

        with bfloat16(enabled=within):
            found.append(OF_A_LOSS[name](loss, [p, q]))
    assert torch.equal(*found)


def test_what_was_cast_at_moved_parameters_is_not_left_to_the_user():
    model, sample = network()
    with torch.no_grad(), bfloat16():
        before = model(torch.ones(1, 5))
        mean_increase(sample, model.parameters(), 1.0)
        assert torch.equal(model(torch.ones(1, 5)), before)
        with torch.enable_grad():
            by_spsa(sample, list(model.parameters()))
        assert torch.equal(model(torch.ones(1, 5)), before)


def test_a_region_that_the_closure_opens_within_another_is_cast_anew_too():
    model, x, y = small_network(dtype=torch.float32)

    def loss():
        with bfloat16():
            return F.cross_entropy(model(x).float(), y)

    outside = mean_increase(loss, model.parameters(), 0.1).value
    with bfloat16():
        assert mean_increase(loss, model.parameters(), 0.1).value == outside


@pytest.mark.parametrize("name", OF_A_LOSS)
def test_a_region_without_autocast_in_the_closure_is_differentiated_without_it(name):
    found = []
    for within in (False, True):
        model, x, y = small_network(dtype=torch.float32)

        def loss(model=model, x=x, y=y):
            with bfloat16(enabled=False):
                return F.cross_entropy(model(x), y)

        with bfloat16(enabled=within):
            found.append(OF_A_LOSS[name](loss, list(model.parameters())))
            if within:
                logits = model(x)
    assert torch.equal(*found)
    with bfloat16():
        assert torch.equal(model(x), logits)
