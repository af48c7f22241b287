"""What is compared: how each optimizer is built and searched.

Every optimizer has the same kind of search over its learning rate, its weight decay, its momentum, the decay of its
second moment and, with E in front, α and β1: ranges of one width, the learning rate's placed around the optimizer's
usual scale. Biases and normalisation parameters are never decayed.
"""

from __future__ import annotations

from functools import cache

import thalweg
from thalweg.arguments import did_you_mean
from thalweg.lab.contenders.builtin import CONTENDERS, DEFAULTS, Contender
from thalweg.lab.contenders.dotted import by_dotted_name
from thalweg.lab.contenders.pinned import base_of, pinned
from thalweg.lab.contenders.space import Point, Settings, Space
from thalweg.records.errors import UserError

__all__ = ["CONTENDERS", "DEFAULTS", "Contender", "Point", "Settings", "Space", "base_of", "contender", "defaults"]


@cache
def contender(name: str) -> Contender:
    """The contender of this name, or any optimizer class by its dotted name; ``:SETTING=VALUE`` after it gives some.

    Raises:
        UserError: no such name, or a class that cannot be driven this way.
    """
    if ":" in name:
        return pinned(name, contender(base_of(name)))
    if name in CONTENDERS:
        return CONTENDERS[name]
    module, dot, attribute = name.rpartition(".")
    if not (dot and module and attribute):
        raise UserError(
            f"unknown optimizer {name!r}: choose from {', '.join(CONTENDERS)}, or give the dotted name of a class"
            f"{did_you_mean(name, CONTENDERS)}"
        )
    return by_dotted_name(name)


def defaults(chosen: Contender, batch_size: int) -> Settings:
    """The settings of one run where nothing else is said: the middle of each axis, of E the paper's α and β1."""
    found = chosen.settings({axis.name: axis.at(0.5) for axis in chosen.space})
    if "gain" in {axis.name for axis in chosen.space}:
        paper = thalweg.paper_defaults(batch_size)
        ahead = base_of(chosen.name) == "ema-nesterov"  # which knows no other way
        found |= {"alpha": abs(paper["alpha"]) if ahead else paper["alpha"], "beta": paper["beta"]}
    return found | chosen.fixed
