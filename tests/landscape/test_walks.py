"""Walks are those of the optimizers alone, and their numbers are what they are called."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from thalweg import ALTO, E
from thalweg.landscape import landscape, walk
from thalweg.landscape.walks import Walk, _until_divergence, default_lr, numbers, starts

CLOSED = landscape("closed")


def alone(f, base, alpha, beta, lr, begin, steps):
    """One walker, the optimizer made anew."""
    p = nn.Parameter(begin.clone())
    if base == "lamb":
        optimizer = ALTO([p], lr, alpha=alpha, beta=beta, weight_decay=0.0)
    else:
        cls = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[base]
        optimizer = E(cls([p], lr, **({"betas": (0.9, 0.99)} if base == "adam" else {})), alpha=alpha, beta=beta)
    for _ in range(steps):
        optimizer.zero_grad()
        f(p).backward()
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize("base", ["sgd", "adam", "lamb"])
@pytest.mark.parametrize("alpha", [-5.0, 0.0, 5.0])
def test_walkers_walk_as_if_alone(base, alpha):
    begin = starts(CLOSED, 4, seed=1)
    assert begin[0].tolist() == list(CLOSED.start)
    lr = default_lr(CLOSED, base)
    found = walk(CLOSED, base, alpha, 0.9, lr=lr, steps=40, begin=begin)
    assert found.places.shape == (41, 4, 2)
    for k in range(4):
        expected = alone(CLOSED, base, alpha, 0.9, lr, begin[k], 40)
        torch.testing.assert_close(found.places[-1, k], expected, rtol=1e-9, atol=1e-10)


def test_noise_is_that_of_the_seed_and_the_same_for_all():
    same = [walk(CLOSED, "sgd", a, 0.9, lr=1e-3, steps=1, noise=2.0, seed=3).places for a in (0.0, 0.0)]
    assert torch.equal(*same)
    begin = torch.tensor([CLOSED.start] * 4000, dtype=torch.float64)
    quiet = walk(CLOSED, "sgd", 0.0, 0.9, lr=1e-3, steps=1, begin=begin).places[1]
    noisy = walk(CLOSED, "sgd", 0.0, 0.9, lr=1e-3, steps=1, begin=begin, noise=2.0).places[1]
    assert ((noisy - quiet) / 1e-3).std().item() == pytest.approx(2.0, rel=0.05)


def by_hand(angles, radius=1.0):
    """Two walkers on the ring, at these angles in degrees."""
    a = torch.tensor(angles, dtype=torch.float64).deg2rad()
    places = radius * torch.stack([a.cos(), a.sin()], dim=-1)[:, None].repeat(1, 2, 1)
    return Walk(CLOSED, "sgd", 0.0, 0.9, 0.1, places)


def test_the_numbers_of_a_walk_by_hand():
    found = numbers(by_hand([0, 60, 30, 120, 178]))
    assert found.along.value == pytest.approx(math.radians(178), abs=0.01)
    assert (found.minima.value, found.found_lowest.value, found.diverged) == (2.0, 1.0, 0.0)
    end = torch.tensor([math.cos(math.radians(178)), math.sin(math.radians(178))], dtype=torch.float64)
    assert found.end_loss.value == pytest.approx(CLOSED(end).item())
    eigenvalues = torch.linalg.eigvalsh(CLOSED.hessians(end[None])[0])
    assert found.end_sharpness.value == pytest.approx(eigenvalues[1].item())
    assert found.end_trace.value == pytest.approx(eigenvalues.sum().item())
    assert found.lowest.value == pytest.approx(found.end_loss.value)
    short = numbers(by_hand([0, -60]))
    assert (short.minima.value, short.found_lowest.value) == (1.0, 0.0)
    across = numbers(by_hand([350, 340, 355, 10]))  # over the point where the floor's curve begins
    assert across.along.value == pytest.approx(math.radians(30), abs=0.01)
    twice = numbers(by_hand(list(range(0, 721, 10))))
    assert twice.along.value == pytest.approx(2 * math.pi, abs=0.01)


def test_divergence_is_counted_not_averaged():
    begin = torch.tensor([[1.3, 0.4], [1.3, 0.5], [40.0, 0.0]], dtype=torch.float64)
    found = walk(CLOSED, "sgd", 0.0, 0.0, lr=0.01, steps=50, begin=begin)
    assert found.places[-1, 2].isnan().all()
    result = numbers(found)
    assert result.diverged == pytest.approx(1 / 3)
    assert result.end_loss.value < 1.0
    assert numbers(walk(CLOSED, "sgd", 0.0, 0.0, lr=0.01, steps=50, begin=begin[2:].repeat(2, 1))).diverged == 1.0


def test_who_has_diverged_does_not_come_back():
    places = torch.zeros(4, 2, 2, dtype=torch.float64)
    places[1, 1] = 100.0 * CLOSED.size
    found = _until_divergence(places, CLOSED)
    assert found[:, 0].eq(0).all()
    assert found[0, 1].eq(0).all()
    assert found[1:, 1].isnan().all()


@pytest.mark.parametrize(
    ("says", "change"),
    [
        ("base must be 'sgd' or 'adam' or 'lamb', got 'muon'", {"base": "muon"}),
        ("alpha must be a number in", {"alpha": 11.0}),
        ("lr must be a number in", {"lr": 0.0}),
        ("steps must be an integer of at least 1, got 0", {"steps": 0}),
        ("noise must be a number in", {"noise": -1.0}),
        (r"begin must have the shape \(walkers, 2\), got \(3,\)", {"begin": torch.zeros(3)}),
    ],
)
def test_bad_input(says, change):
    with pytest.raises(ValueError, match=says):
        walk(CLOSED, **{"base": "sgd", "alpha": 0.0, "beta": 0.9, "lr": 0.1, **change})
