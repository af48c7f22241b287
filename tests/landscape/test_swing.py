"""The sharpness over the last steps: against orbits in closed form, and dense Hessians at the places passed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from thalweg import ALTO, E, Lamb
from thalweg.landscape import Swing, preconditioned_sharpness
from thalweg.theory import fixed_length_orbit, stability_limit

LONG_AGO = torch.tensor(1e15, dtype=torch.float64)  # a step at which nothing is left of bias correction


def a_step(loss, optimizer):
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (0.5, 0.01), (-5.0, 0.99)])
def test_lamb_that_changes_sign_at_every_step_is_at_the_limit(alpha, beta):
    """Two layers, second moments live. θ = ±e, with e = s/(2√n) in each entry: m = g (1-β2)/(1+β2), and v = g²."""
    torch.manual_seed(0)
    part = torch.rand(7, 7, dtype=torch.float64)
    hessian = part @ part.T + torch.eye(7, dtype=torch.float64)  # without a negative entry: e is its top, scaled
    first, second = (nn.Parameter(torch.full((n,), 0.05 / n**0.5, dtype=torch.float64)) for n in (3, 4))
    theta = torch.cat([first, second]).detach()

    def loss():
        both = torch.cat([first, second])
        return both @ hessian @ both / 2

    optimizer = ALTO(
        [first, second], lr=0.1, betas=(0.9, 0.99), alpha=alpha, beta=beta, eps=1e-14, trust_eps=0.0,
        trust_clip=(1.0, 1.0), weight_decay=0.0, fused=False,
    )  # fmt: skip
    share = (1 + 2 * alpha * (1 - beta) / (1 + beta)) if alpha else 1.0  # of E, in what changes sign at each step
    for p, g in zip([first, second], (hessian @ theta).split([3, 4]), strict=True):
        optimizer.state[p] = {
            "step": LONG_AGO.clone(), "exp_avg": -share * g * 0.1 / 1.9, "exp_avg_sq": (share * g).square(),
            **({"explore_ema": -g * (1 - beta) / (1 + beta)} if alpha else {}),
        }  # fmt: skip
    swing = Swing(optimizer)
    for _ in range(10):
        a_step(loss, optimizer)
        theta = -theta
        torch.testing.assert_close(torch.cat([first, second]).detach(), theta, rtol=1e-8, atol=0.0)
    assert swing.steps == 10
    found = swing.sharpness(loss)
    assert found.limit == stability_limit(alpha, beta, momentum=0.9)
    assert found.share == pytest.approx(1.0, rel=1e-8)
    torch.testing.assert_close(torch.cat([first, second]).detach(), theta, rtol=1e-8, atol=0.0)


def test_a_slow_orbit_is_at_the_rate_of_its_period_whatever_its_phase():
    """θ = s, 0, -s, 0 with second moments that stand still."""
    p = nn.Parameter(torch.tensor([0.1], dtype=torch.float64))
    optimizer = Lamb(
        [p], lr=0.1, betas=(0.9, 1 - 1e-13), trust_eps=0.0, trust_clip=(1.0, 1.0), weight_decay=0.0, fused=False
    )
    m = 0.1 * 0.9 * 3.0 * -0.1 / 1.81  # what momentum has before the first step of the orbit, of gradients 3θ
    moments = {"exp_avg": torch.tensor([m], dtype=torch.float64), "exp_avg_sq": torch.ones(1, dtype=torch.float64)}
    optimizer.state[p] = {"step": LONG_AGO.clone(), **moments}
    swing = Swing(optimizer, steps=4)
    once, over = set(), set()
    for step in range(12):
        a_step(lambda: 1.5 * p.square().sum(), optimizer)
        assert p.item() == pytest.approx([0.0, -0.1, 0.0, 0.1][step % 4], abs=1e-9)
        if step >= 8:
            once.add(round(preconditioned_sharpness(lambda: 1.5 * p.square().sum(), optimizer).eta_lambda.item(), 6))
            over.add(round(swing.sharpness(lambda: 1.5 * p.square().sum()).eta_lambda.item(), 6))
    assert len(once) == 2
    assert over == {round(fixed_length_orbit(4, 0.0, 0.0, momentum=0.9).eta_lambda, 6)} == {19.0}


def network():
    torch.manual_seed(3)
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 2, dtype=torch.float64)
    params = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((3, 6), (6, 2))]

    def of(v, w):
        return (torch.tanh(x @ v) @ w - y).square().mean()

    return params, of


MAKE = {
    "lamb": lambda params: Lamb(params, lr=0.1, weight_decay=0.0),
    "alto": lambda params: ALTO(params, lr=0.1, weight_decay=0.0, alpha=0.5, beta=0.01),
    "adam": lambda params: E(torch.optim.Adam(params, lr=0.1, betas=(0.8, 0.9)), alpha=0.5, beta=0.5),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.05),
}


@pytest.mark.parametrize("name", MAKE)
def test_it_is_that_of_the_dense_hessians_and_of_rates_weighted_by_momentum(name):
    params, of = network()
    optimizer = MAKE[name](params)
    swing = Swing(optimizer, steps=5)
    seen = []
    for _ in range(9):
        here = torch.cat([p.detach().reshape(-1) for p in params])
        a_step(lambda: of(*params), optimizer)
        there = torch.cat([p.detach().reshape(-1) for p in params])
        hessian = torch.func.hessian(lambda f: of(f[:18].view(3, 6), f[18:].view(6, 2)))(here)
        state = (optimizer.base if name == "adam" else optimizer).state
        m = torch.cat([(state[p]["exp_avg"] if name != "rmsprop" else p.grad).reshape(-1).double() for p in params])
        seen.append(((here - there) / m, m.square(), hessian))
    rates, squares, hessians = (torch.stack(column) for column in zip(*seen[-5:], strict=True))
    scale = ((rates * squares).sum(0) / squares.sum(0)).sqrt()
    expected = torch.linalg.eigvalsh(scale[:, None] * hessians.mean(0) * scale).flip(0)
    before = [p.detach().clone() for p in params]
    random = torch.get_rng_state()
    found = swing.sharpness(lambda: of(*params), 3)
    torch.testing.assert_close(found.eta_lambda, expected[:3], rtol=1e-5, atol=0.0)
    assert found.limit == preconditioned_sharpness(lambda: of(*params), optimizer).limit
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))
    assert torch.equal(torch.get_rng_state(), random)


def test_a_parameter_that_joins_begins_anew_and_a_closed_swing_sees_nothing():
    p, late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    optimizer = Lamb([p, late], lr=0.1)
    swing = Swing(optimizer, steps=2)
    for _ in range(2):
        a_step(lambda: p.square().sum(), optimizer)
    assert len(swing.last) == 2
    a_step(lambda: p.square().sum() + late.square().sum(), optimizer)
    with pytest.raises(ValueError, match="optimizer must be one seen for 2 steps, got 'one seen for 1 steps'"):
        swing.sharpness(lambda: p.square().sum())
    swing.close()
    a_step(lambda: p.square().sum(), optimizer)
    assert len(swing.last) == 1


@pytest.mark.parametrize(
    ("says", "optimizer", "steps"),
    [
        ("optimizer must be SGD or .*, got 'Adagrad'", torch.optim.Adagrad, 4),
        ("steps must be an integer .*, got 1", torch.optim.Adam, 1),
    ],
)
def test_bad_input(says, optimizer, steps):
    made = optimizer([nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match=says):
        Swing(made, steps)


@pytest.mark.parametrize(("momentum", "steps"), [(0.0, 2), (0.9, 10), (0.99, 100)])
def test_it_is_as_long_as_the_momentum(momentum, steps):
    assert Swing(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1, momentum=momentum)).steps == steps
