"""The package's own optimizers on a quadratic: stable just below the limit, divergent just above.

A setting is a parameter group. Its one parameter has an element for the real and the imaginary part of each of the
three modes of the linear map, started in that mode, at a curvature just below the limit, and the same just above it.
So each pair of elements, seen as one complex number, has to follow z^k for its eigenvalue z. The modes span all starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from theory_settings import Setting, one_step, random_settings
from torch import Tensor
from torch.nn import Parameter

from thalweg import ALTO, ESGD, E, EAdam, EAdamW, Lamb
from thalweg import equations as eq
from thalweg.theory import damping, stability_limit

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim import Optimizer

pytestmark = pytest.mark.filterwarnings("ignore:.* is stable only up to")
SHARES = (0.98, 1.02)
STEPS = 20
LATE = 1e13  # a step count at which nothing is left of bias correction, which float32 holds, and adds 1 to in vain
FROZEN = 1.0 - 1e-11  # the second moment's decay: it keeps its value
SCALE = 1e-12  # of the modes, so that their squares do not move the second moment


@dataclass
class Modes:
    """Starts (θ, m, b), each of 12 elements: 2 curvatures, 3 modes, real and imaginary part."""

    x: Tensor
    theta: Tensor
    m: Tensor
    b: Tensor
    z: np.ndarray

    @classmethod
    def of(cls, s: Setting) -> Modes:
        limit = stability_limit(s.alpha, s.beta, **s.base)
        x, states, zs = [], [], []
        for share in SHARES:
            values, vectors = np.linalg.eig(one_step(share * limit, s))
            for z, v in zip(values, vectors.T, strict=True):
                v = v / max(abs(v[0]), 1e-3)
                x += [share * limit] * 2
                states += [v.real, v.imag]
                zs.append(z)
        theta, m, b = SCALE * torch.tensor(np.array(states), dtype=torch.float64).T
        return cls(torch.tensor(x, dtype=torch.float64), theta, m, b, np.array(zs).reshape(len(SHARES), 3))


@dataclass(frozen=True)
class Case:
    """How to build an optimizer of many groups, and what to make of a mode: parameter, curvature, state."""

    name: str
    optimizer: Callable[[list[dict[str, Any]]], Optimizer]
    group: Callable[[Setting], dict[str, Any]]
    start: Callable[[Setting, Modes], tuple[Tensor, Tensor, dict[str, Any]]]
    settings: dict[str, Any]
    anchored: bool = False


def of_e(s: Setting) -> dict[str, Any]:
    return {"explore_alpha": s.alpha, "explore_beta": s.beta}


def start_sgd(s: Setting, modes: Modes) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """torch's momentum is a sum: η = lr/(1-μ), and its buffer m/(1-μ)."""
    curvature = modes.x * (1.0 - s.momentum) / 0.125  # lr
    state = {"explore_ema": curvature * modes.b}
    if s.momentum > 0.0:
        state["momentum_buffer"] = curvature * modes.m / (1.0 - s.momentum)
    return modes.theta, curvature, state


def start_adam(s: Setting, modes: Modes) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Second moments of three sizes; what counts is the curvature over their roots."""
    root = torch.tensor([0.5, 2.0, 8.0], dtype=torch.float64).repeat_interleave(2).repeat(2)
    curvature = modes.x * root / 0.125
    return (
        modes.theta,
        curvature,
        {
            "step": torch.tensor(LATE),
            "exp_avg": curvature * modes.m,
            "exp_avg_sq": root**2,
            "explore_ema": curvature * modes.b,
        },
    )


def start_rmsprop(s: Setting, modes: Modes) -> tuple[Tensor, Tensor, dict[str, Any]]:
    theta, curvature, state = start_adam(s, modes)
    curvature = curvature * (1.0 - s.momentum)  # its momentum is a sum, too, of what is divided already
    return (
        theta,
        curvature,
        {
            "step": state["step"],
            "square_avg": state["exp_avg_sq"],
            "momentum_buffer": modes.x / 0.125 * modes.m,
            "explore_ema": curvature * modes.b,
        },
    )


def start_nadam(s: Setting, modes: Modes) -> tuple[Tensor, Tensor, dict[str, Any]]:
    theta, curvature, state = start_adam(s, modes)
    return theta, curvature, {**state, "mu_product": torch.tensor(0.0)}


def start_adamax(s: Setting, modes: Modes) -> tuple[Tensor, Tensor, dict[str, Any]]:
    theta, curvature, state = start_adam(s, modes)
    del state["exp_avg_sq"]
    return theta, curvature, {**state, "exp_inf": curvature * 0.125 / modes.x}


def start_lamb(s: Setting, modes: Modes) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """One more element, far out on a slope of 1, makes ‖θ‖ and ‖r‖, and so the ratio of the layer, constant."""
    far = 1000.0
    far_norm, one = torch.tensor([[far], [1.0]], dtype=torch.float64)
    ratio = eq.trust_ratio(far_norm, one, eps=1e-6, clip=None)
    curvature = modes.x / (1e-10 * ratio)
    small = 1e-9  # so that curvature times θ is small beside the slope
    return (
        torch.cat([modes.theta * small, far * one]),
        torch.cat([curvature, 0 * one]),
        {
            "step": torch.tensor(LATE),
            "exp_avg": torch.cat([curvature * modes.m * small, one]),
            "exp_avg_sq": torch.cat([torch.ones_like(curvature), one]),
            "explore_ema": torch.cat([curvature * modes.b * small, one]),
        },
    )


ADAM = {"lr": 0.125, "eps": 1e-30, "weight_decay": 0.0}
SGD = {"optimizer": lambda groups: ESGD(groups, lr=0.125), "start": start_sgd}


def of_adam(s: Setting) -> dict[str, Any]:
    return {**of_e(s), "betas": (s.momentum, FROZEN)}


def of_alto(s: Setting) -> dict[str, Any]:
    return {"alpha": s.alpha, "beta": s.beta, "betas": (s.momentum, FROZEN)}


CASES = [
    Case("ESGD", **SGD, group=of_e, settings={"momentum": (0.0, 0.0)}),
    Case("ESGD, momentum", **SGD, group=lambda s: {**of_e(s), "momentum": s.momentum}, settings={}),
    Case(
        "ESGD, Nesterov",
        **SGD,
        group=lambda s: {**of_e(s), "momentum": s.momentum, "nesterov": s.nesterov},
        settings={"nesterov": True, "momentum": (0.01, 0.99)},
    ),
    Case("EAdam", lambda groups: EAdam(groups, **ADAM), of_adam, start_adam, {}),
    Case("EAdamW", lambda groups: EAdamW(groups, **ADAM), of_adam, start_adam, {}),
    Case("EAdamW, foreach", lambda groups: EAdamW(groups, **ADAM, foreach=True), of_adam, start_adam, {}),
    Case("E(RAdam)", lambda groups: E.of(torch.optim.RAdam)(groups, **ADAM), of_adam, start_adam, {}),
    Case(
        "E(NAdam)",
        lambda groups: E.of(torch.optim.NAdam)(groups, **ADAM),
        of_adam,
        start_nadam,
        {"nesterov": True, "momentum": (0.01, 0.99)},
    ),
    Case("E(Adamax)", lambda groups: E.of(torch.optim.Adamax)(groups, **ADAM), of_adam, start_adamax, {}),
    Case(
        "E(RMSprop)",
        lambda groups: E.of(torch.optim.RMSprop)(groups, **ADAM),
        lambda s: {**of_e(s), "momentum": s.momentum, "alpha": FROZEN},
        start_rmsprop,
        {},
    ),
    Case(
        "ALTO without trust ratio",
        lambda groups: ALTO(groups, **ADAM, trust_ratio=False),
        of_alto,
        start_adam,
        {},
    ),
    Case(
        "ALTO",
        lambda groups: ALTO(groups, lr=1e-10, eps=1e-30, weight_decay=0.0),
        of_alto,
        start_lamb,
        {},
        anchored=True,
    ),
    Case(
        "Lamb",
        lambda groups: Lamb(groups, lr=1e-10, eps=1e-30, weight_decay=0.0),
        lambda s: {"betas": (s.momentum, FROZEN)},
        start_lamb,
        {"gain": 0.0},
        anchored=True,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_stable_just_below_the_limit_and_divergent_just_above(case):
    settings = random_settings(200, seed=len(case.name), **case.settings)
    modes = [Modes.of(s) for s in settings]
    starts = [case.start(s, m) for s, m in zip(settings, modes, strict=True)]
    params = [Parameter(theta.clone()) for theta, _, _ in starts]
    groups = [{"params": [p], **case.group(s)} for p, s in zip(params, settings, strict=True)]
    optimizer = case.optimizer(groups)
    for p, (_, _, state) in zip(params, starts, strict=True):
        optimizer.state[p] = dict(state)
    for _ in range(STEPS):
        for p, (_, curvature, _) in zip(params, starts, strict=True):
            p.grad = curvature * p.detach()
            if case.anchored:
                p.grad[-1] = 1.0
        optimizer.step()
    for s, mode, p, (start, _, _) in zip(settings, modes, params, starts, strict=True):
        before, after = (complex_of(t.detach()[:12]) for t in (start, p))
        size = abs(before).max(axis=1, keepdims=True)
        scale = np.maximum(abs(mode.z) ** STEPS, 1.0) * np.maximum(abs(before), size)
        assert (abs(after - before * mode.z**STEPS) / scale).max() < 1e-5, s
        rate = abs(mode.z)
        assert rate[0].max() < 1.0 < rate[1].max(), s


def test_plain_starts_converge_just_below_the_limit_and_diverge_just_above():
    def quick(s: Setting) -> bool:
        limit = stability_limit(s.alpha, s.beta, **s.base)
        below, above = (damping(limit * f, s.alpha, s.beta, **s.base) for f in (0.95, 1.05))
        return below > 0.05 and above < -0.05

    drawn = random_settings(600, seed=0, momentum=(0.0, 0.9), horizon=20.0)
    settings = [s for s in drawn if quick(s)][:200]
    assert len(settings) == 200
    params = [Parameter(torch.ones(2, dtype=torch.float64)) for _ in settings]
    groups = [{"params": [p], **of_e(s), "momentum": s.momentum} for p, s in zip(params, settings, strict=True)]
    optimizer = ESGD(groups, lr=1.0)
    limits = [stability_limit(s.alpha, s.beta, **s.base) for s in settings]
    curvatures = [x * (1 - s.momentum) * torch.tensor([0.95, 1.05]) for x, s in zip(limits, settings, strict=True)]
    for _ in range(250):
        for p, curvature in zip(params, curvatures, strict=True):
            p.grad = curvature * p.detach()
        optimizer.step()
    below, above = torch.stack([p.detach() for p in params]).abs().T
    assert below.max() < 1e-2
    assert above.min() > 1e2


def complex_of(theta: Tensor) -> np.ndarray:
    pairs = theta.reshape(len(SHARES), 3, 2).numpy()
    return pairs[..., 0] + 1j * pairs[..., 1]
