"""The contenders by name: how each is built on a model, and its usual learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer

import thalweg
from thalweg.lab.contenders.ema_nesterov import EMANesterov
from thalweg.lab.contenders.hyperball import Hyperball, without_decay
from thalweg.lab.contenders.matrices import lacks_hidden_layers
from thalweg.lab.contenders.muon import MuonAdamW
from thalweg.lab.contenders.orscale import OrScaleAdamW
from thalweg.lab.contenders.space import (
    ADAM_LR,
    COUPLED,
    DECOUPLED,
    E_AXES,
    LAMB_LR,
    MUON_LR,
    SGD_LR,
    Point,
    Settings,
    Space,
    settings,
    space,
)
from thalweg.records.results import Axis

Groups: TypeAlias = list[dict[str, Any]]
Build: TypeAlias = Callable[[nn.Module, Settings], Optimizer]


@dataclass(frozen=True, slots=True)
class Contender:
    """An optimizer in a comparison.

    ``build`` gets a model and the settings at a point of ``space``. ``schedule`` is the optimizer's own, for one that
    replaces schedules (None: the comparison's). ``fixed`` are hyperparameters that are given and not searched.
    """

    name: str
    space: Space
    build: Build
    says: str = ""
    lacks: Callable[[nn.Module], str | None] = lambda model: None
    """Why the optimizer does not apply to a model, or None."""
    schedule: str | None = None
    fixed: Settings = field(default_factory=dict, hash=False)

    def settings(self, point: Point) -> Settings:
        """The hyperparameters at a point of ``space``, with those that are given."""
        known = dict(point)
        if "beta" in self.fixed:
            known["horizon"] = 1.0 / (1.0 - self.fixed["beta"])
        return settings(known) | self.fixed

    @property
    def grid(self) -> int | None:
        """How many points the space has where every axis is a list of values; None where it has no end."""
        return math.prod(len(axis.values) for axis in self.space) if all(axis.values for axis in self.space) else None


def groups(model: nn.Module, s: Settings) -> Groups:
    """Decayed and undecayed parameters, for optimizers that know nothing of trust ratios."""
    return [
        {"params": group["params"], "weight_decay": group["weight_decay"]}
        for group in thalweg.param_groups(model, s["weight_decay"])
    ]


def _betas(s: Settings) -> tuple[float, float]:
    return s["momentum"], s["beta2"]


def _sgd(model: nn.Module, s: Settings) -> Optimizer:
    return torch.optim.SGD(groups(model, s), lr=s["lr"], momentum=s["momentum"], nesterov=True)


def _adam(model: nn.Module, s: Settings) -> Optimizer:
    return torch.optim.Adam(groups(model, s), lr=s["lr"], betas=_betas(s))


def _adamw(model: nn.Module, s: Settings) -> Optimizer:
    return torch.optim.AdamW(groups(model, s), lr=s["lr"], betas=_betas(s))


def _nadamw(model: nn.Module, s: Settings) -> Optimizer:
    """With β1 as it is given: torch's own schedule of it begins at β1/2 and stays there for hundreds of steps."""
    return torch.optim.NAdam(
        groups(model, s), lr=s["lr"], betas=_betas(s), decoupled_weight_decay=True, momentum_decay=1e6
    )


def _peer(name: str, **options: Any) -> Build:
    """An optimizer of ``pytorch_optimizer`` that takes ``lr`` and ``betas``."""

    def build(model: nn.Module, s: Settings) -> Optimizer:
        import pytorch_optimizer

        own = {key: s[key] for key in ("gamma",) if key in s}
        made: Optimizer = getattr(pytorch_optimizer, name)(
            groups(model, s), lr=s["lr"], betas=_betas(s), **own, **options
        )
        return made

    return build


def _ademamix(model: nn.Module, s: Settings) -> Optimizer:
    from pytorch_optimizer import AdEMAMix

    made: Optimizer = AdEMAMix(
        groups(model, s), lr=s["lr"], betas=(*_betas(s), s["beta"]), alpha=s["alpha"], weight_decouple=True
    )
    return made


def _lamb(model: nn.Module, s: Settings) -> Optimizer:
    return thalweg.Lamb(thalweg.param_groups(model, s["weight_decay"]), lr=s["lr"], betas=_betas(s), eps=1e-6)


def _alto(**options: Any) -> Build:
    def build(model: nn.Module, s: Settings) -> Optimizer:
        decayed = thalweg.param_groups(model, s["weight_decay"])
        return thalweg.ALTO(decayed, lr=s["lr"], betas=_betas(s), alpha=s["alpha"], beta=s["beta"], eps=1e-6, **options)

    return build


def _nesterov_lamb(model: nn.Module, s: Settings) -> Optimizer:
    """E looks ahead by the momentum itself: α = β2 and β1 = 0."""
    return _alto()(model, s | {"alpha": s["momentum"], "beta": 0.0})


def _adamh(model: nn.Module, s: Settings) -> Optimizer:
    base = torch.optim.AdamW(without_decay(groups(model, s), model), lr=s["lr"], betas=_betas(s))
    return Hyperball(base, model)


def _with_e(base: Build) -> Build:
    return lambda model, s: thalweg.E(base(model, s), alpha=s["alpha"], beta=s["beta"])


def _ema_nesterov(model: nn.Module, s: Settings) -> Optimizer:
    return EMANesterov(_adamw(model, s), alpha=s["alpha"], beta=s["beta"])


AHEAD = Axis("gain", 0.0, 0.9), E_AXES[1]  # E's axes, where they look ahead
MIX = Axis("mix", 0.1, 20.0, log=True)
ALTO_SPACE = space(LAMB_LR, DECOUPLED, e=True)
GAMMA = Axis("gamma", 0.0025, 0.5, log=True)

CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        Contender("sgd", space(SGD_LR, COUPLED, second=False), _sgd, "SGD with Nesterov momentum"),
        Contender("adam", space(ADAM_LR, COUPLED), _adam, "Adam, decay in the gradient"),
        Contender("adamw", space(ADAM_LR, DECOUPLED), _adamw, "AdamW"),
        Contender("nadamw", space(ADAM_LR, DECOUPLED), _nadamw, "AdamW with Nesterov momentum"),
        Contender("adabelief", space(ADAM_LR, DECOUPLED), _peer("AdaBelief"), "AdaBelief"),
        Contender("lamb", space(LAMB_LR, DECOUPLED), _lamb, "bias-corrected LAMB"),
        Contender(
            "lamb-uncorrected",
            space(LAMB_LR, DECOUPLED),
            _peer("Lamb", adam_debias=True, weight_decouple=False),
            "pytorch_optimizer's LAMB without bias correction, as the slides' baseline",
        ),
        Contender("nesterov-lamb", space(LAMB_LR, DECOUPLED), _nesterov_lamb, "LAMB with Nesterov momentum"),
        Contender(
            "muon",
            space(MUON_LR, DECOUPLED),
            MuonAdamW,
            "torch's Muon on hidden layers, AdamW on the rest at its rate",
            lacks_hidden_layers,
        ),
        Contender(
            "orscale",
            space(MUON_LR, DECOUPLED),
            OrScaleAdamW,
            "OrScale: Muon with a trust ratio, AdamW on the rest at its rate",
            lacks_hidden_layers,
        ),
        Contender(
            "adamh",
            space(LAMB_LR, DECOUPLED),
            _adamh,
            "AdamW whose hidden layers keep their norms (Hyperball)",
            lacks_hidden_layers,
        ),
        Contender("soap", space(ADAM_LR, DECOUPLED), _peer("SOAP"), "SOAP: Adam in Shampoo's eigenbasis"),
        Contender(
            "schedule-free",
            space(ADAM_LR, DECOUPLED),
            _peer("ScheduleFreeAdamW"),
            "Schedule-Free AdamW, at a constant rate after warm-up",
            schedule="constant",
        ),
        Contender(
            "ademamix",
            space(ADAM_LR, DECOUPLED, MIX, E_AXES[1]),
            _ademamix,
            "AdEMAMix: AdamW with a second, slow momentum",
        ),
        Contender(
            "mars",
            space(ADAM_LR, DECOUPLED, GAMMA),
            _peer("MARS", optimize_1d=True),
            "MARS-AdamW, approximate variance reduction",
        ),
        Contender(
            "ema-nesterov",
            (*space(ADAM_LR, DECOUPLED), *AHEAD),
            _ema_nesterov,
            "AdamW that looks ahead along the average of its moves",
        ),
        Contender("alto", ALTO_SPACE, _alto(), "ALTO: E in front of LAMB"),
        Contender("alto-bf16", ALTO_SPACE, _alto(state_dtype="bfloat16"), "ALTO with its state in bfloat16"),
        Contender("alto-8bit", ALTO_SPACE, _alto(state_dtype="8bit"), "ALTO with its state in 8 bits"),
        Contender("e-adamw", space(ADAM_LR, DECOUPLED, e=True), _with_e(_adamw), "E around AdamW"),
        Contender("e-sgd", space(SGD_LR, COUPLED, second=False, e=True), _with_e(_sgd), "E around SGD"),
        *(
            Contender(f"e-{name}", space(lr, DECOUPLED, e=True), _with_e(build), says, lacks_hidden_layers)
            for name, lr, build, says in (
                ("muon", MUON_LR, MuonAdamW, "E around Muon"),
                ("orscale", MUON_LR, OrScaleAdamW, "E around OrScale"),
                ("adamh", LAMB_LR, _adamh, "E around AdamW with Hyperball"),
            )
        ),
    )
}

DEFAULTS = (
    "sgd", "adamw", "nadamw", "lamb", "muon", "soap", "schedule-free", "ademamix", "mars", "ema-nesterov", "alto",
    "e-adamw", "e-muon",
)  # fmt: skip
