"""Methods that are E at some setting, against the other side's own code, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytorch_optimizer
import torch
from torch import Tensor
from torch.nn import Parameter

from thalweg import ESGD, E
from thalweg.theory import mars, nesterov_instead_of_momentum, quasi_hyperbolic

if TYPE_CHECKING:
    from torch.optim import Optimizer

STEPS = 200
START = torch.linspace(-1.0, 2.0, 12, dtype=torch.float64).reshape(3, 4)
NOISE = torch.randn(STEPS, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def gradient(theta: Tensor, k: int) -> Tensor:
    """Of a bent bowl, with noise; of norm below 1."""
    return (torch.tanh(theta) + 0.3 * torch.sin(3.0 * theta) + 0.5 * NOISE[k]) / 10.0


def path(optimizer: Optimizer, p: Parameter) -> Tensor:
    points = []
    for k in range(STEPS):
        p.grad = gradient(p.detach(), k)
        optimizer.step()
        points.append(p.detach().clone())
    return torch.stack(points)


def new() -> Parameter:
    return Parameter(START.clone())


def assert_same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-13) -> None:
    assert (theirs[-1] - START).abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("nu", [0.05, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("momentum", [0.3, 0.9, 0.99])
def test_quasi_hyperbolic_momentum(nu, momentum):
    p, q = new(), new()
    ours = ESGD([p], 0.3, **quasi_hyperbolic(nu, momentum)._asdict())
    assert_same(path(ours, p), path(pytorch_optimizer.QHM([q], lr=0.3, momentum=momentum, nu=nu), q))


def test_the_papers_large_batch_default_is_nearly_all_gradient():
    alpha, beta = quasi_hyperbolic(nu=5 * 0.01 / 0.99, momentum=0.99)
    assert (alpha, beta) == (pytest.approx(-5.0), 0.99)


@pytest.mark.parametrize("momentum", [0.3, 0.9, 0.99])
def test_nesterov_instead_of_momentum(momentum):
    p, q = new(), new()
    lr = 0.03
    ours = E(torch.optim.SGD([p], lr / (1 - momentum)), *nesterov_instead_of_momentum(momentum))
    assert_same(path(ours, p), path(torch.optim.SGD([q], lr, momentum=momentum, nesterov=True), q))


@pytest.mark.parametrize("momentum", [0.3, 0.9, 0.99])
def test_nesterov_in_front_of_momentum(momentum):
    p, q = new(), new()
    ours = E(torch.optim.SGD([p], 0.03, momentum=momentum), alpha=momentum, beta=0.0)
    assert_same(path(ours, p), path(torch.optim.SGD([q], 0.03, momentum=momentum, nesterov=True), q))


@pytest.mark.parametrize(("gamma", "momentum"), [(0.025, 0.95), (0.1, 0.8)])
def test_mars_without_its_clip(gamma, momentum):
    p, q = new(), new()
    options = {"lr": 0.01, "betas": (momentum, 0.99), "weight_decay": 0.1, "eps": 0.0}  # whose place differs
    ours = E(torch.optim.AdamW([p], **options), *mars(gamma, momentum))
    theirs = pytorch_optimizer.MARS([q], **options, gamma=gamma, mars_type="adamw", optimize_1d=True)
    assert_same(path(ours, p), path(theirs, q), 1e-9)  # MARS adds 1e-15 to the second moment, of 1e-6 and more


@pytest.mark.parametrize(("derivative", "momentum"), [(5.0, 0.9), (0.5, 0.1), (50.0, 0.99)])
def test_pid_without_its_integral(derivative, momentum):
    p, q = new(), new()
    ours = ESGD([p], 0.3, alpha=derivative, beta=momentum)
    ours.state[p]["explore_ema"] = gradient(START, 0)
    theirs = pytorch_optimizer.PID([q], lr=0.3, momentum=momentum, derivative=derivative, integral=0.0)
    assert_same(path(ours, p), path(theirs, q))


@pytest.mark.parametrize(("alpha", "beta"), [(-5.0, 0.99), (-5.0, 0.9), (0.5, 0.01), (3.0, 0.75)])
def test_look_ahead(alpha, beta):
    lr, p = 0.3, new()
    optimizer = ESGD([p], lr, alpha=alpha, beta=beta)
    y = START.clone()
    for k in range(STEPS):
        g = gradient(p.detach(), k)
        p.grad = g.clone()
        optimizer.step()
        y -= lr * g  # plain SGD, with gradients from elsewhere
        offset = lr * alpha * optimizer.state[p]["explore_ema"]
        torch.testing.assert_close(p.detach() + offset, y, rtol=0.0, atol=1e-13)


def test_adams_bashforth_is_three_halves_less_one_half():
    p, q = new(), START.clone()
    optimizer = ESGD([p], 0.3, alpha=0.5, beta=0.0)
    before = optimizer.state[p]["explore_ema"] = gradient(START, 0)
    points = []
    for k in range(STEPS):
        g = gradient(q, k)
        q = q - 0.3 * (1.5 * g - 0.5 * before)
        before = g
        points.append(q)
    assert_same(path(optimizer, p), torch.stack(points))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quasi_hyperbolic(3.0, 0.5), "nu must be a number in (-2, 2), as |nu| < 1/momentum, got 3.0"),
        (lambda: quasi_hyperbolic(0.5, 0.0), "momentum must be a number in (0, 1), got 0.0"),
        (lambda: quasi_hyperbolic(0.5, 1.0), "momentum must be a number in (0, 1), got 1.0"),
        (lambda: nesterov_instead_of_momentum(-0.1), "momentum must be a number in (0, 1), got -0.1"),
        (lambda: mars(-1.0, 0.5), "gamma must be a number in [0, inf), got -1.0"),
        (
            lambda: mars(1.0, 0.75),
            "gamma must be a number in [0, 0.333333), as gamma < (1 - momentum)/momentum, got 1.0",
        ),
        (lambda: mars(0.5, 1.0), "momentum must be a number in [0, 1), got 1.0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the text is compared whole)
        call()
    assert str(error.value) == message
