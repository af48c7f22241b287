"""Where an optimizer is searched: axes, and the hyperparameters at a point on them.

All share the same axes with the same widths; only the learning rate's centre is the optimizer's own. Centres are
about the geometric means of the best rates in the tables of ``docs/results``: of SGD, of AdamW, of LAMB and ALTO, of
Muon. Within a factor of 8 around its own two thirds of LAMB's and ALTO's trials there closed half of the gap between
chance and the best, beyond it a ninth; on no other axis was most of the range without use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from thalweg.records.results import Axis

Point: TypeAlias = Mapping[str, float]
Settings: TypeAlias = dict[str, float]
Space: TypeAlias = tuple[Axis, ...]

LR_FACTOR = 8.0  # the learning rate is searched from centre / 8 to centre · 8, 1.8 decades; rounds go beyond
SGD_LR, ADAM_LR, LAMB_LR, MUON_LR = 5e-2, 1e-2, 3e-2, 1.6e-2
DECOUPLED = Axis("weight_decay", 1e-4, 2.0, log=True)
COUPLED = Axis("weight_decay", 1e-6, 2e-2, log=True)
MOMENTUM = Axis("forgetting", 0.01, 0.5, log=True)
SECOND_MOMENT = Axis("forgetting2", 0.001, 0.3, log=True)
E_AXES = Axis("gain", -0.9, 0.9), Axis("horizon", 1.01, 3000.0, log=True)


def space(
    lr: float, decay: Axis | None, *more: Axis, momentum: bool = True, second: bool = True, e: bool = False
) -> Space:
    """The axes of an optimizer whose usual learning rate is ``lr``."""
    axes = [Axis("lr", lr / LR_FACTOR, lr * LR_FACTOR, log=True)]
    if decay is not None:
        axes.append(decay)
    if momentum:
        axes.append(MOMENTUM)
    if second:
        axes.append(SECOND_MOMENT)
    return (*axes, *(E_AXES if e else ()), *more)


def settings(point: Point) -> Settings:
    """The hyperparameters at a point: momentum = 1 - ``forgetting``, beta2 = 1 - ``forgetting2``; of E, α and β1.

    ``gain`` is c = α(1-β1), ``horizon`` 1/(1-β1). Any other coordinate is a hyperparameter as it is.

    >>> settings({"lr": 0.1, "forgetting": 0.25, "gain": 0.5, "horizon": 4.0})
    {'lr': 0.1, 'momentum': 0.75, 'alpha': 2.0, 'beta': 0.75}
    """
    found: Settings = {}
    for name, value in point.items():
        if name == "forgetting":
            found["momentum"] = 1.0 - value
        elif name == "forgetting2":
            found["beta2"] = 1.0 - value
        elif name == "gain":
            found["alpha"] = value * point["horizon"]
        elif name == "mix":  # AdEMAMix's own alpha
            found["alpha"] = value
        elif name == "horizon":
            found["beta"] = 1.0 - 1.0 / value
        else:
            found[name] = value
    return found
