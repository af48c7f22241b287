"""What is compared: how each optimizer is built and searched.

Every optimizer has the same kind of search over its learning rate, its weight decay, its momentum and, with E in front,
α and β1: logarithmic ranges of one width, the learning rate's placed around the optimizer's usual scale. What is not
searched is set alike: second-moment decay 0.99 wherever there is one; biases and normalisation parameters are never
decayed.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from optuna.distributions import BaseDistribution, FloatDistribution
from torch import nn
from torch.optim import Optimizer

import thalweg
from thalweg.lab.errors import UserError

Settings: TypeAlias = dict[str, float]
Groups: TypeAlias = list[dict[str, Any]]

SECOND_MOMENT = 0.99
LR_FACTOR = 18.0  # the learning rate is searched from centre / 18 to centre · 18, two and a half decades
DECOUPLED = FloatDistribution(1e-4, 0.3, log=True)
COUPLED = FloatDistribution(1e-6, 3e-3, log=True)


@dataclass(frozen=True, slots=True)
class Contender:
    """An optimizer in a comparison.

    ``space`` holds Optuna distributions of ``lr`` and ``weight_decay``, and of what is searched in coordinates of its
    own: ``forgetting`` = 1 - momentum; E's ``gain`` c = α(1-β1) and ``horizon`` 1/(1-β1). ``build`` gets a model and
    the settings that :func:`settings` makes of a point in that space.
    """

    name: str
    space: dict[str, BaseDistribution]
    build: Callable[[nn.Module, Settings], Optimizer]
    lacks: Callable[[nn.Module], str | None] = lambda model: None
    """Why the optimizer does not apply to a model, or None."""


def settings(point: Mapping[str, float]) -> Settings:
    """The hyperparameters at a point of the search space.

    >>> settings({"lr": 0.1, "forgetting": 0.25, "gain": 0.5, "horizon": 4.0})
    {'lr': 0.1, 'momentum': 0.75, 'alpha': 2.0, 'beta': 0.75}
    """
    found = {name: point[name] for name in ("lr", "weight_decay") if name in point}
    if "forgetting" in point:
        found["momentum"] = 1.0 - point["forgetting"]
    if "gain" in point:
        found["alpha"] = point["gain"] * point["horizon"]
        found["beta"] = 1.0 - 1.0 / point["horizon"]
    return found


def _space(lr: float, decay: FloatDistribution | None, *, momentum: bool = True, e: bool = False) -> Any:
    space = {"lr": FloatDistribution(lr / LR_FACTOR, lr * LR_FACTOR, log=True)}
    if decay is not None:
        space["weight_decay"] = decay
    if momentum:
        space["forgetting"] = FloatDistribution(0.02, 0.5, log=True)
    if e:
        space["gain"] = FloatDistribution(-0.9, 0.9)
        space["horizon"] = FloatDistribution(1.01, 100.0, log=True)
    return space


def _groups(model: nn.Module, s: Settings) -> Groups:
    """Decayed and undecayed parameters, for optimizers that know nothing of trust ratios."""
    return [
        {"params": group["params"], "weight_decay": group["weight_decay"]}
        for group in thalweg.param_groups(model, s["weight_decay"])
    ]


def _betas(s: Settings) -> tuple[float, float]:
    return s["momentum"], SECOND_MOMENT


def _sgd(model: nn.Module, s: Settings) -> Optimizer:
    return torch.optim.SGD(_groups(model, s), lr=s["lr"], momentum=s["momentum"], nesterov=True)


def _adam(model: nn.Module, s: Settings) -> Optimizer:
    return torch.optim.Adam(_groups(model, s), lr=s["lr"], betas=_betas(s))


def _adamw(model: nn.Module, s: Settings) -> Optimizer:
    return torch.optim.AdamW(_groups(model, s), lr=s["lr"], betas=_betas(s))


def _nadamw(model: nn.Module, s: Settings) -> Optimizer:
    return torch.optim.NAdam(_groups(model, s), lr=s["lr"], betas=_betas(s), decoupled_weight_decay=True)


def _adabelief(model: nn.Module, s: Settings) -> Optimizer:
    from pytorch_optimizer import AdaBelief

    optimizer: Optimizer = AdaBelief(_groups(model, s), lr=s["lr"], betas=_betas(s))
    return optimizer


def _lamb(model: nn.Module, s: Settings) -> Optimizer:
    return thalweg.Lamb(thalweg.param_groups(model, s["weight_decay"]), lr=s["lr"], betas=_betas(s))


def _alto(model: nn.Module, s: Settings) -> Optimizer:
    groups = thalweg.param_groups(model, s["weight_decay"])
    return thalweg.ALTO(groups, lr=s["lr"], betas=_betas(s), alpha=s["alpha"], beta=s["beta"])


def _with_e(base: Callable[[nn.Module, Settings], Optimizer]) -> Callable[[nn.Module, Settings], Optimizer]:
    return lambda model, s: thalweg.E(base(model, s), alpha=s["alpha"], beta=s["beta"])


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The matrices that Muon is for: all two-dimensional parameters but embeddings and the output layer."""
    embeddings = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    heads = [m.weight for m in model.modules() if isinstance(m, nn.Linear)][-1:]
    excluded = {id(p) for p in (*embeddings, *heads)}
    return [p for p in model.parameters() if p.ndim == 2 and id(p) not in excluded]


class MuonAdamW(Optimizer):
    """Torch's Muon on hidden matrices and AdamW on the rest, behind one optimizer that holds groups and state."""

    def __init__(self, model: nn.Module, s: Settings) -> None:
        matrices = hidden_matrices(model)
        chosen = {id(p) for p in matrices}
        rest = [{**g, "params": [p for p in g["params"] if id(p) not in chosen]} for g in _groups(model, s)]
        self.muon = torch.optim.Muon(
            matrices,
            lr=s["lr"],
            weight_decay=s["weight_decay"],
            momentum=s["momentum"],
            adjust_lr_fn="match_rms_adamw",
        )
        self.adamw = torch.optim.AdamW([g for g in rest if g["params"]], lr=s["lr"], betas=_betas(s))
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of Muon on the first group and of AdamW on the others."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        for part in (self.muon, self.adamw):
            part.state = self.state
            part.step()  # type: ignore[no-untyped-call]
        return loss


def _needs_matrices(model: nn.Module) -> str | None:
    return None if hidden_matrices(model) else "the model has no hidden matrix"


CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        Contender("sgd", _space(3e-2, COUPLED), _sgd),
        Contender("adam", _space(5e-3, COUPLED), _adam),
        Contender("adamw", _space(5e-3, DECOUPLED), _adamw),
        Contender("nadamw", _space(5e-3, DECOUPLED), _nadamw),
        Contender("adabelief", _space(5e-3, DECOUPLED), _adabelief),
        Contender("lamb", _space(2e-2, DECOUPLED), _lamb),
        Contender("muon", _space(2e-2, DECOUPLED), MuonAdamW, _needs_matrices),
        Contender("alto", _space(2e-2, DECOUPLED, e=True), _alto),
        Contender("e-adamw", _space(5e-3, DECOUPLED, e=True), _with_e(_adamw)),
        Contender("e-sgd", _space(3e-2, COUPLED, e=True), _with_e(_sgd)),
    )
}


def contender(name: str) -> Contender:
    """The contender of this name, or any optimizer class by its dotted name.

    Of a class, the learning rate is searched around its default, and what it has of ``weight_decay``, ``momentum`` and
    the first of ``betas``; everything else stays at its defaults.

    Raises:
        UserError: no such name, or a class that cannot be driven this way.
    """
    if name in CONTENDERS:
        return CONTENDERS[name]
    module, dot, attribute = name.rpartition(".")
    if not dot:
        raise UserError(
            f"unknown optimizer {name!r}: choose from {', '.join(CONTENDERS)}, or give the dotted name of a class"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"cannot import optimizer {name!r} ({error}): check the name and that it is installed"
        ) from None
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise UserError(f"optimizer {name!r} is not a subclass of torch.optim.Optimizer: name a class that is")
    return _of_class(name, found)


def _of_class(name: str, found: type[Optimizer]) -> Contender:
    arguments = inspect.signature(found).parameters
    closure = inspect.signature(found.step).parameters.get("closure")
    if "lr" not in arguments or (closure is not None and closure.default is inspect.Parameter.empty):
        raise UserError(f"optimizer {name!r} cannot be compared: it needs an argument lr and a step() without closure")
    lr, betas = arguments["lr"].default, arguments["betas"].default if "betas" in arguments else None
    tuples = isinstance(betas, tuple)
    space = _space(
        lr if isinstance(lr, float) else 1e-2,
        DECOUPLED if "weight_decay" in arguments else None,
        momentum=tuples or "momentum" in arguments,
    )

    def build(model: nn.Module, s: Settings) -> Optimizer:
        options: dict[str, Any] = {"lr": s["lr"]}
        if tuples:
            options["betas"] = (s["momentum"], *betas[1:])  # type: ignore[index]
        elif "momentum" in s:
            options["momentum"] = s["momentum"]
        groups = _groups(model, s) if "weight_decay" in s else model.parameters()
        return found(groups, **options)

    return Contender(name, space, build)
