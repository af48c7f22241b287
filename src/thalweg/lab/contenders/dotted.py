"""Any optimizer class by its dotted name, searched as fairly as the contenders that have a name."""

from __future__ import annotations

import importlib
import inspect
import math
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

import thalweg
from thalweg.arguments import did_you_mean
from thalweg.lab.contenders.builtin import CONTENDERS, Contender, groups
from thalweg.lab.contenders.space import ADAM_LR, COUPLED, DECOUPLED, SGD_LR, Settings, Space, space
from thalweg.records.errors import UserError
from thalweg.records.importing import importable_from_here

NORMALISED_LR = 10.0  # times its default: AdamW's 1e-3 is searched around 1e-2
UNKNOWN_LR = 1e-3


def known() -> dict[type, Space]:
    """The search space of each class that a contender is made of: it is the contender's."""
    names = {
        torch.optim.SGD: "sgd", torch.optim.Adam: "adam", torch.optim.AdamW: "adamw", torch.optim.NAdam: "adam",
        torch.optim.RMSprop: "adam", thalweg.Lamb: "lamb", thalweg.ALTO: "alto", thalweg.EAdamW: "e-adamw",
        thalweg.ESGD: "e-sgd",
    }  # fmt: skip
    return {cls: CONTENDERS[name].space for cls, name in names.items()} | {
        thalweg.EAdam: space(ADAM_LR, COUPLED, e=True)
    }


def by_dotted_name(name: str) -> Contender:
    """The contender that a class makes.

    What it has of learning rate, weight decay, momentum (or the first of ``betas``), second-moment decay (the second
    of ``betas``) and, of thalweg's own, α and β1 is searched over the same ranges as of a contender with a name. An
    optimizer whose first steps grow with the gradient gets SGD's learning rates and decay, any other ten times its
    default learning rate as centre, and the decay of AdamW or of Adam, as its first steps show.

    Raises:
        UserError: no such class, or one that cannot be driven this way.
    """
    module, _, attribute = name.rpartition(".")
    importable_from_here()
    there = None
    try:
        there = importlib.import_module(module)
        found = getattr(there, attribute)
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise UserError(
            f"cannot import optimizer {name!r} ({' '.join(what.split())[:200]}): check the name, and that it is "
            f"installed{did_you_mean(attribute, vars(there) if there else ())}"
        ) from None
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise UserError(f"optimizer {name!r} is not a subclass of torch.optim.Optimizer: name a class that is")
    return _of_class(name, found)


def _of_class(name: str, found: type[Optimizer]) -> Contender:
    arguments = inspect.signature(found).parameters
    closure = inspect.signature(found.step).parameters.get("closure")
    if "lr" not in arguments or (closure is not None and closure.default is inspect.Parameter.empty):
        raise UserError(f"optimizer {name!r} cannot be compared: it needs an argument lr and a step() without closure")
    betas = arguments["betas"].default if "betas" in arguments else None
    if not (isinstance(betas, tuple) and all(isinstance(beta, float) for beta in betas)):
        betas = ()
    own = known().get(found) or _probed(found, arguments["lr"].default, "weight_decay" in arguments, betas, arguments)

    def build(model: nn.Module, s: Settings) -> Optimizer:
        options: dict[str, Any] = {"lr": s["lr"]}
        if betas:
            options["betas"] = (s["momentum"], s.get("beta2", 0.99), *betas[2:])[: len(betas)]
        elif "momentum" in s:
            options["momentum"] = s["momentum"]
            if "beta2" in s:  # RMSprop calls it alpha
                options["alpha"] = s["beta2"]
        options |= {key: s[key] for key in ("alpha", "beta") if key in s}
        return found(groups(model, s) if "weight_decay" in s else model.parameters(), **options)

    return Contender(name, own, build, inspect.getdoc(found) or "")


def _probed(found: type[Optimizer], lr: Any, decays: bool, betas: tuple[float, ...], arguments: Any) -> Space:
    step = _first_steps(found, gradient=1.0)
    like_sgd = step > 0.0 and math.isclose(_first_steps(found, gradient=8.0), 8.0 * step, rel_tol=0.01)
    usual = lr if isinstance(lr, float) and math.isfinite(lr) and 0.0 < lr < 10.0 else UNKNOWN_LR
    decay = None
    if decays:
        shrinks = _first_steps(found, gradient=1.0, weight_decay=0.5) - step
        decay = DECOUPLED if not like_sgd and shrinks > 0.2 * PROBE_LR else COUPLED
    return space(
        SGD_LR if like_sgd else NORMALISED_LR * usual,
        decay,
        momentum=bool(betas) or "momentum" in arguments,
        second=len(betas) > 1,
    )


PROBE_LR = 0.01


def _first_steps(found: type[Optimizer], gradient: float, **options: Any) -> float:
    """How far two steps (of SOAP the first is none) move ones down a constant gradient; 0 if the optimizer refuses."""
    p = nn.Parameter(torch.ones(2, 2))
    try:
        optimizer = found([p], lr=PROBE_LR, **options)  # type: ignore[call-arg]
        for _ in range(2):
            p.grad = torch.full_like(p, gradient)
            optimizer.step()
    except (Exception, SystemExit):
        return 0.0
    return float(1.0 - p.detach().mean())
