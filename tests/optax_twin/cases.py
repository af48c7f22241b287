"""Optimizers of torch and what they are called in optax: the one table behind both sides of every comparison.

Parameters and gradients are drawn once, in NumPy. A case that treats parameters differently does so by position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import optax
import torch

import thalweg
import thalweg.jax as tj

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.nn import Parameter
    from torch.optim import Optimizer

STEPS = 300
SHAPES = ((5,), (), (2, 3, 1, 2), (4, 3))
AT_ZERO = 3  # the position of a layer that starts at zero
DECAYED = [True, False, False, True]
AXES = [None, (), (-2, -1), (-1,)]


def parameters() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape) * (i != AT_ZERO) for i, shape in enumerate(SHAPES)]


def gradients(steps: int = STEPS) -> list[np.ndarray]:
    """One array for each parameter, its first axis the steps; with a mean, so that the parameters go somewhere."""
    rng = np.random.default_rng(1)
    return [rng.standard_normal((steps, *shape)) + rng.standard_normal(shape) for shape in SHAPES]


@dataclass(frozen=True)
class Case:
    """``torch(params)`` and ``optax()`` build the two; ``schedule(optimizer, k)`` sets torch's group before step k."""

    name: str
    torch: Callable[[list[Parameter]], Optimizer]
    optax: Callable[[], optax.GradientTransformation]
    schedule: Callable[[Optimizer, int], None] = lambda optimizer, k: None


def by_position(params: Sequence[Parameter], *options: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"params": [p], **option} for p, option in zip(params, options, strict=True)]


PAPER = ((-5.0, 0.99), (0.5, 0.01))
PAIRS = (*PAPER, (3.0, 0.75), (0.5, 0.0))


def e_over(
    name: str, pairs: Any, base: type[Optimizer], plain: Callable[[], optax.GradientTransformation], **options: Any
) -> list[Case]:
    return [
        Case(
            f"E({name}) alpha={alpha} beta={beta}",
            lambda params, a=alpha, b=beta: thalweg.E(base(params, **options), alpha=a, beta=b),
            lambda a=alpha, b=beta: optax.chain(tj.scale_by_exploration(a, b), plain()),
        )
        for alpha, beta in pairs
    ]


def alto(name: str, torch_options: dict[str, Any], optax_options: dict[str, Any], **schedule: Any) -> Case:
    common_torch = {"lr": 0.01, "betas": (0.9, 0.99), "beta": 0.99, "weight_decay": 0.1, "trust_eps": 0.01}
    common_optax = {"learning_rate": 0.01, "b1": 0.9, "b2": 0.99, "beta": 0.99, "weight_decay": 0.1, "trust_eps": 0.01}
    groups = torch_options.pop("groups", None)
    return Case(
        f"ALTO {name}",
        lambda params: thalweg.ALTO(
            params if groups is None else by_position(params, *groups), **{**common_torch, **torch_options}
        ),
        lambda: tj.alto(**{**common_optax, **optax_options}),
        **schedule,
    )


def lr_at(k: Any) -> Any:
    return 0.02 / (1.0 + 0.1 * k)


def alpha_at(k: Any) -> Any:
    return -5.0 + 0.05 * k


def decay_at(k: Any) -> Any:
    return 0.001 * k


def set_everywhere(key: str, value: Callable[[int], float]) -> Callable[[Optimizer, int], None]:
    def schedule(optimizer: Optimizer, k: int) -> None:
        for group in optimizer.param_groups:
            group[key] = value(k)

    return schedule


ADAM: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6}
OPTAX_ADAM: dict[str, Any] = {"learning_rate": 0.01, "b1": 0.9, "b2": 0.99, "eps": 1e-6}

CASES: tuple[Case, ...] = (
    *e_over("SGD", PAIRS, torch.optim.SGD, lambda: optax.sgd(0.02), lr=0.02),
    *e_over(
        "Nesterov",
        PAIRS[2:3],
        torch.optim.SGD,
        lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.02, momentum=0.9, nesterov=True)),
        lr=0.02,
        momentum=0.9,
        nesterov=True,
        weight_decay=0.1,
    ),
    *e_over("Adam", PAPER, torch.optim.Adam, lambda: optax.adam(**OPTAX_ADAM), **ADAM),
    *e_over(
        "AdamW",
        PAPER,
        torch.optim.AdamW,
        lambda: optax.adamw(**OPTAX_ADAM, weight_decay=0.1),
        **ADAM,
        weight_decay=0.1,
    ),
    Case(
        "E(AdamW) with a schedule of alpha",
        lambda params: thalweg.E(torch.optim.AdamW(params, **ADAM, weight_decay=0.1), alpha=-5.0, beta=0.9),
        lambda: optax.chain(tj.scale_by_exploration(alpha_at, 0.9), optax.adamw(**OPTAX_ADAM, weight_decay=0.1)),
        set_everywhere("explore_alpha", lambda k: alpha_at(k)),
    ),
    alto("", {}, {}),
    alto("small batches", {"alpha": 0.5, "beta": 0.01}, {"alpha": 0.5, "beta": 0.01}),
    alto(
        "betas", {"alpha": 0.5, "betas": (0.0, 0.999), "beta": 0.0}, {"alpha": 0.5, "b1": 0.0, "b2": 0.999, "beta": 0.0}
    ),
    alto("alpha=0", {"alpha": 0.0}, {"alpha": 0}),
    alto("eps", {"eps": 0.1}, {"eps": 0.1}),
    alto("no decay, no trust_eps", {"weight_decay": 0.0, "trust_eps": 0.0}, {"weight_decay": 0.0, "trust_eps": 0.0}),
    alto("trust_clip", {"trust_clip": (0.5, 1.0)}, {"trust_clip": (0.5, 1.0)}),
    alto("ratio_clip", {"ratio_clip": (0.1, 0.3)}, {"ratio_clip": (0.1, 0.3)}),
    alto("bias_correction=False", {"bias_correction": False}, {"bias_correction": False}),
    alto(
        "decoupled_decay with a mask and schedules",
        {"decoupled_decay": True, "groups": [{} if decayed else {"weight_decay": 0.0} for decayed in DECAYED]},
        {"decoupled_decay": True, "mask": DECAYED, "learning_rate": lr_at},
        schedule=set_everywhere("lr", lr_at),
    ),
    alto(
        "decoupled_decay on a schedule, not adapted",
        {"decoupled_decay": True, "groups": [{"trust_ratio": len(shape) > 1} for shape in SHAPES]},
        {
            "decoupled_decay": True,
            "weight_decay": decay_at,
            "trust_mask": lambda params: [p.ndim > 1 for p in params],
        },
        schedule=set_everywhere("weight_decay", decay_at),
    ),
    alto(
        "mask",
        {"groups": [{} if decayed else {"weight_decay": 0.0} for decayed in DECAYED]},
        {"mask": DECAYED},
    ),
    alto(
        "trust_mask by function",
        {"groups": [{"trust_ratio": len(shape) > 1} for shape in SHAPES]},
        {"trust_mask": lambda params: [p.ndim > 1 for p in params]},
    ),
    alto(
        'trust_ratio="decayed"',
        {"trust_ratio": "decayed", "groups": [{} if decayed else {"weight_decay": 0.0} for decayed in DECAYED]},
        {"mask": DECAYED, "trust_mask": DECAYED},
    ),
    Case(
        "ALTO maximize",
        lambda params: thalweg.ALTO(params, lr=0.01, maximize=True),
        lambda: optax.chain(optax.scale(-1.0), tj.alto(0.01)),
    ),
    alto(
        "norm_axes",
        {"groups": [{"norm_dims": axes} if axes else {} for axes in AXES]},
        {"norm_axes": AXES},
    ),
    alto(
        "schedule of the learning rate",
        {},
        {"learning_rate": lr_at},
        schedule=set_everywhere("lr", lr_at),
    ),
    alto(
        "schedule of alpha",
        {"beta": 0.9},
        {"alpha": alpha_at, "beta": 0.9},
        schedule=set_everywhere("alpha", alpha_at),
    ),
    alto(
        "schedule of weight decay",
        {},
        {"weight_decay": decay_at},
        schedule=set_everywhere("weight_decay", decay_at),
    ),
    Case(
        "LAMB",
        lambda params: thalweg.Lamb(params, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1, trust_eps=0.01),
        lambda: tj.lamb(0.01, 0.9, 0.99, weight_decay=0.1, trust_eps=0.01),
    ),
    Case("ALTO by default", lambda params: thalweg.ALTO(params, lr=0.01), lambda: tj.alto(0.01)),
)
