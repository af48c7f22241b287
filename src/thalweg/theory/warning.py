"""The one warning of the optimizers: a setting that shrinks the stable range more than tenfold."""

from __future__ import annotations

import math
import sys
import warnings
from typing import TYPE_CHECKING, NamedTuple

from thalweg.theory.stability import stability_limit

if TYPE_CHECKING:
    from collections.abc import Iterable

TOO_NARROW = 10.0
ROUNDING = 1e-9  # exactly tenfold, as at α = -5, β1 = β2 = 0.9, is no more than tenfold


class Filter(NamedTuple):
    """E in front of a momentum."""

    alpha: float
    beta: float
    momentum: float
    nesterov: bool = False


def warn_if_narrow(filters: Iterable[Filter]) -> None:
    """Warn of the first of these whose stable range is less than a tenth of the base's own.

    Only α < 0 in front of momentum comes to that, with β1 short of the momentum's.
    """
    for one in dict.fromkeys(filters):
        if one.alpha >= 0.0 or one.momentum == 0.0:
            continue
        limit = stability_limit(one.alpha, one.beta, momentum=one.momentum, nesterov=one.nesterov)
        alone = stability_limit(0.0, 0.0, momentum=one.momentum, nesterov=one.nesterov)
        if is_narrow(limit, alone):
            warnings.warn(_text(one, limit, alone), stacklevel=_outside())
            return


def is_narrow(limit: float, alone: float) -> bool:
    """Whether a stability limit is less than a tenth of that of the base alone."""
    return limit * TOO_NARROW < alone * (1.0 - ROUNDING)


def enough_alpha(alpha: float, beta: float, *, momentum: float, nesterov: bool) -> float:
    """Of the α < 0 that keep a tenth of the base's stable range, the one nearest to an ``alpha`` that does not.

    Rounded to three digits, towards 0; 0 where a momentum next to 1 leaves none. By bisection: with Nesterov's momentum
    the limit jumps where a swing begins.

    >>> enough_alpha(-3.0, 0.75, momentum=0.9, nesterov=False)
    -1.18
    """
    alone = stability_limit(0.0, 0.0, momentum=momentum, nesterov=nesterov)
    narrow, enough = alpha, 0.0
    for _ in range(50):
        middle = (narrow + enough) / 2.0
        if is_narrow(stability_limit(middle, beta, momentum=momentum, nesterov=nesterov), alone):
            narrow = middle
        else:
            enough = middle
    if enough == 0.0:
        return 0.0
    digits = 2 - math.floor(math.log10(-enough))
    return round(math.ceil(enough * 10.0**digits) / 10.0**digits, digits)


def _text(one: Filter, limit: float, alone: float) -> str:
    alpha, beta, momentum, nesterov = one
    enough = enough_alpha(alpha, beta, momentum=momentum, nesterov=nesterov)
    command = f"thalweg theory --alpha {alpha:g} --beta {beta:g} --momentum {momentum:g}{' --nesterov' * nesterov}"
    keeps = (
        f"At this beta, alpha of at least {enough:g} keeps" if enough < 0.0 else "At this momentum no alpha < 0 keeps"
    )
    return (
        f"alpha={alpha:g} with beta={beta:g} in front of momentum {momentum:g} is stable only up to learning rate x "
        f"curvature = {limit:.3g}, {alone / limit:.3g} times less than without E ({alone:.3g}): expect divergence, or "
        f"to need a smaller learning rate. {keeps} a tenth of the range; "
        f"`{command}` says more"
    )


def _outside() -> int:
    """The stack level of the caller of this package, as seen from :func:`warn_if_narrow`."""
    level, frame = 0, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "thalweg":
        level, frame = level + 1, frame.f_back
    return level + 1
