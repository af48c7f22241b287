"""The order at which E(SGD) follows gradient flows, against an ODE solver. Buffers start at the first gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from theory_settings import Setting
from torch.nn import Parameter

from thalweg import ESGD
from thalweg.theory import implicit_regularization

pytestmark = pytest.mark.filterwarnings("ignore:.* is stable only up to")
START = np.array([0.9, -0.7])
TIME = 2.0
STEPS = (600, 1200)


def gradient(theta: np.ndarray) -> np.ndarray:
    """Of u²/2 + v² + u²v/2 + u⁴/4."""
    u, v = theta
    return np.array([u + u * v + u**3, 2 * v + u * u / 2])


def hessian(theta: np.ndarray) -> np.ndarray:
    u, v = theta
    return np.array([[1 + v + 3 * u * u, u], [u, 2.0]])


def flow(penalty: float) -> np.ndarray:
    """Where the flow of L + penalty ‖∇L‖² is after TIME."""

    def velocity(_: float, theta: np.ndarray) -> np.ndarray:
        g = gradient(theta)
        return -(g + 2 * penalty * hessian(theta) @ g)

    return solve_ivp(velocity, (0.0, TIME), START, rtol=1e-12, atol=1e-14, method="DOP853").y[:, -1]


def descend(s: Setting, steps: int) -> np.ndarray:
    p = Parameter(torch.tensor(START))
    lr = TIME / steps * (1 - s.momentum)  # torch's momentum is a sum
    optimizer = ESGD([p], lr, s.momentum, nesterov=s.nesterov, alpha=s.alpha, beta=s.beta)
    first = torch.from_numpy(gradient(START))
    optimizer.state[p]["explore_ema"] = first.clone()
    if s.momentum > 0.0:
        optimizer.state[p]["momentum_buffer"] = first / (1 - s.momentum)
    for _ in range(steps):
        p.grad = torch.from_numpy(gradient(p.detach().numpy()))
        optimizer.step()
    return p.detach().numpy()


def order(ends: list[np.ndarray], strength: float) -> float:
    """The slope of log distance to the flow of L + η/4 · strength · ‖∇L‖² over log η."""
    distances = [np.linalg.norm(end - flow(TIME / n / 4 * strength)) for n, end in zip(STEPS, ends, strict=True)]
    return float(np.polyfit(-np.log(STEPS), np.log(distances), 1)[0])


CASES = [
    Setting(0.0, 0.0),
    Setting(-5.0, 0.9),
    Setting(-1.9, 0.5),
    Setting(1.5, 0.5),
    Setting(1.0, 0.2),
    Setting(0.0, 0.0, 0.5),
    Setting(0.9, 0.0, 0.5),
    Setting(-1.5, 0.5, 0.5),
    Setting(-1.0, 0.5, 0.8),
    Setting(0.0, 0.0, 0.5, nesterov=True),
    Setting(-1.5, 0.5, 0.5, nesterov=True),
]


@pytest.mark.parametrize("s", CASES, ids=str)
def test_second_order_to_the_flow_with_the_penalty_and_first_order_without(s):
    ends = [descend(s, n) for n in STEPS]
    assert order(ends, implicit_regularization(s.alpha, **s.base)) == pytest.approx(2.0, abs=0.05)
    assert order(ends, 0.0) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.5, False), (0.8, False), (0.5, True), (0.8, True)])
def test_an_alpha_without_penalty_integrates_the_flow_to_second_order(momentum, nesterov):
    alpha = implicit_regularization(0.0, momentum=momentum, nesterov=nesterov) / 2.0
    s = Setting(alpha, max(0.0, 1 - 0.6 / alpha), momentum, nesterov)  # at momentum 0: Adams-Bashforth 2
    assert order([descend(s, n) for n in STEPS], 0.0) == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize(("alpha", "momentum", "strength"), [(0, 0, 1), (-5, 0, 11), (0, 0.9, 19), (-5, 0.9, 29)])
def test_numbers_on_record(alpha, momentum, strength):
    assert implicit_regularization(alpha, momentum=momentum) == pytest.approx(strength)


def test_nesterov_is_e_here_too():
    for momentum in (0.0, 0.3, 0.9):
        as_e = implicit_regularization(momentum, momentum=momentum)
        assert implicit_regularization(0.0, momentum=momentum, nesterov=True) == pytest.approx(as_e)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: implicit_regularization(float("nan")), "alpha must be a number in (-inf, inf), got nan"),
        (lambda: implicit_regularization(0.0, momentum=1.0), "momentum must be a number in [0, 1), got 1.0"),
        (lambda: implicit_regularization(0.0, nesterov=0), "nesterov must be True or False, got 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the text is compared whole)
        call()
    assert str(error.value) == message
