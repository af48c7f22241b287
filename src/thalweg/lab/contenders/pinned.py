"""Contenders with some hyperparameters given: ``alto:alpha=-5:beta=0.99``, ``sgd:lr=0.01|0.05|0.1``.

What is given is not searched; what is given several values is searched over these alone. The rest of the space is the
contender's own, so that ``lamb`` and ``alto:alpha=-5:beta=0.99`` start from the very same points.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from thalweg.arguments import did_you_mean
from thalweg.records.errors import UserError
from thalweg.records.results import Axis

if TYPE_CHECKING:
    from thalweg.lab.contenders.builtin import Contender
    from thalweg.lab.contenders.space import Settings

SETTING_OF = {"forgetting": "momentum", "forgetting2": "beta2", "horizon": "beta", "gain": "alpha", "mix": "alpha"}
"""The hyperparameter that an axis decides; of the others it is the one of the axis's own name."""
WANTED = "NAME:SETTING=VALUE, or SETTING=VALUE|VALUE|... to choose among, such as alto:alpha=-5:beta=0.99:lr=0.01|0.02"


def base_of(name: str) -> str:
    """The contender of which ``name`` gives some hyperparameters.

    >>> base_of("alto:alpha=-5"), base_of("torch.optim.AdamW")
    ('alto', 'torch.optim.AdamW')
    """
    return name.partition(":")[0]


def pinned(name: str, base: Contender) -> Contender:
    """The contender ``base`` with the hyperparameters that ``name`` gives.

    Raises:
        UserError: a hyperparameter that ``base`` has not, or something that is no number.
    """
    given = [_given(name, pair) for pair in name.split(":")[1:]]
    known = {axis.name: axis for axis in base.space}
    axes = {SETTING_OF.get(one, one): one for one in known}
    fixed: Settings = {}
    for key, values in given:
        if (axis := axes.get(key)) not in known:
            has = ", ".join(sorted(axes))
            raise UserError(
                f"optimizer {name!r}: {base.name} has no setting {key}; it has {has}{did_you_mean(key, axes)}"
            )
        if len(values) == 1:
            fixed[key] = values[0]
            del known[axis]
        elif axis != key:
            raise UserError(
                f"optimizer {name!r}: {key} takes one value; to choose among several, list the optimizer once for each"
            )
        else:
            known[axis] = Axis(key, min(values), max(values), log=min(values) > 0.0, values=values)
    if "beta" in fixed and not 0.0 <= fixed["beta"] < 1.0:
        raise UserError(f"optimizer {name!r}: beta must be in [0, 1), got {fixed['beta']:g}")
    return replace(base, name=name, space=tuple(known.values()), fixed=fixed)


def _given(name: str, pair: str) -> tuple[str, tuple[float, ...]]:
    key, _, text = pair.partition("=")
    try:
        values = tuple(float(value) for value in text.split("|"))
    except ValueError:
        values = ()
    if not key or not values or not all(map(math.isfinite, values)) or len(set(values)) < len(values):
        raise UserError(f"optimizer {name!r}: {pair!r} is not {WANTED}")
    return key, values
