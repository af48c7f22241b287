"""One colour an optimizer, in every report and picture; blue is E with α < 0, orange E with α > 0.

A style is a number from 0 to 19: its last digit is the colour, and from 10 on the lines are drawn in another dash. The
reports' style sheet has the colours for light and for dark pages; :data:`COLOURS` are for pictures that lie on either.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

ORANGE, BLUE, GREEN, PINK, SKY = "#d55e00", "#1c7fc4", "#0e9468", "#c2639b", "#2b9ab8"
AMBER, OLIVE, VIOLET, GREY, BROWN = "#b07d00", "#7d7d2c", "#9a5fc4", "#7b828c", "#9a6642"
COLOURS = (ORANGE, BLUE, GREEN, PINK, SKY, AMBER, OLIVE, VIOLET, GREY, BROWN)
INK = "#787d85"
"""Of words and axes in pictures."""
ON_BRIGHT = "#111111"
"""Of words on a bright field that is itself drawn."""

EXPLOITS, EXPLORES = 0, 1
STYLES = {
    "alto": 4, "e-adamw": 14, "e-muon": 11, "e-sgd": 10, "alto-bf16": 1, "alto-8bit": 0,
    "lamb": 2, "lamb-uncorrected": 12, "adamw": 3, "nadamw": 13, "muon": 5, "soap": 15, "schedule-free": 6,
    "ademamix": 16, "adam": 7, "mars": 17, "sgd": 8, "ema-nesterov": 18, "momentum": 9, "adabelief": 19,
    "rmsprop": 15, "adagrad": 16, "spsa": 14,
}  # fmt: skip
"""Of those that the lab and its measurements know by name."""
DASHES = ("-", (0, (6, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
AGAIN = (0, (9, 2.5))


def is_ours(name: str) -> bool:
    """Whether E is in front, by an optimizer's name in a comparison.

    >>> is_ours("alto:alpha=-5:beta=0.99"), is_ours("thalweg.EAdam"), is_ours("lamb")
    (True, True, False)
    """
    own = _own(name)
    return own.startswith(("e-", "alto")) or own in ("e", "eadam", "eadamw", "esgd")


def styles(names: Iterable[str]) -> dict[str, int]:
    """A style for each name, each its own up to twenty: that of the optimizer wherever it is drawn, if it is known.

    With E in front and α given it is that of α's sign.

    >>> styles(["lamb", "alto:alpha=-5:beta=0.99", "alto:alpha=-1:beta=0.5", "my.Optimizer"])
    {'lamb': 2, 'alto:alpha=-5:beta=0.99': 1, 'alto:alpha=-1:beta=0.5': 11, 'my.Optimizer': 19}
    """
    names = list(dict.fromkeys(names))
    free = list(range(20))
    found: dict[str, int] = {}
    for name in [*filter(_wanted, names), *(one for one in names if not _wanted(one))]:
        if not free:
            free = list(range(20))
        style = next((one for one in _wanted(name) if one in free), free[-1])
        free.remove(style)
        found[name] = style
    return {name: found[name] for name in names}


def line(name: str, style: int) -> dict[str, Any]:
    """Colour, dashes and width of a line in matplotlib: those with E in front are heavier."""
    ours = is_ours(name)
    dashes = (AGAIN if style >= 10 else "-") if ours else DASHES[style % len(DASHES)]
    return {"color": COLOURS[style % 10], "linestyle": dashes, "linewidth": 2.2 if ours else 1.4}


def colour(name: str) -> str:
    """The colour of a known optimizer."""
    return COLOURS[STYLES[name] % 10]


def of_alpha(alpha: float) -> str:
    """The colour of E in front with this α, not 0."""
    return COLOURS[EXPLORES if alpha < 0.0 else EXPLOITS]


def _own(name: str) -> str:
    return name.split(":")[0].lower().removeprefix("thalweg.")


def _wanted(name: str) -> tuple[int, ...]:
    """The styles of an optimizer, the best first."""
    alpha = dict(pair.partition("=")[::2] for pair in name.split(":")[1:]).get("alpha", "")
    if is_ours(name) and alpha and "|" not in alpha:
        sign = EXPLORES if float(alpha) < 0.0 else EXPLOITS
        return sign, sign + 10
    own = _own(name)
    return (STYLES[own],) if own in STYLES else ()
