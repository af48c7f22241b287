"""One colour an optimizer, in every report and picture; blue is E with α < 0, orange E with α > 0.

A style is a number from 0 to 31: modulo 8 it is the colour, and by whole eights the dash of lines; markers change with
it, and differ where colours are the same. The reports' style sheet has the colours for light and for dark pages;
:data:`COLOURS` are for pictures that lie on either. No two of them are hard to tell apart, and there are no more such.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

ORANGE, BLUE, GREEN, MAGENTA = "#d55e00", "#1c7fc4", "#0f9d3c", "#cf1fcf"
OLIVE, VIOLET, ROSE, GREY = "#7a7a10", "#8b63f5", "#e8467c", "#75828c"
COLOURS = (ORANGE, BLUE, GREEN, MAGENTA, OLIVE, VIOLET, ROSE, GREY)
AMBER, SKY = "#b07d00", "#2b9ab8"
"""Of what is no optimizer: minima, libraries."""
INK = "#787d85"
"""Of words and axes in pictures."""
ON_BRIGHT = "#111111"
"""Of words on a bright field that is itself drawn."""

EXPLOITS, EXPLORES = 0, 1
DASHES = ("-", (0, (6, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKERS = ("o", "s", "D", "^", "v", "*", "P")
COUNT = len(COLOURS) * len(DASHES)
STYLES = {
    "alto": 3, "e-adamw": 14, "e-muon": 12, "e-sgd": 15, "e-orscale": 13, "e-adamh": 21, "alto-bf16": 9, "alto-8bit": 8,
    "lamb": 2, "lamb-uncorrected": 10, "nesterov-lamb": 18, "schedule-free": 26,
    "adamw": 6, "nadamw": 11, "ademamix": 22, "mars": 30,
    "muon": 4, "momentum": 20, "soap": 29, "orscale": 28,
    "sgd": 7, "ema-nesterov": 23, "adabelief": 19, "adamh": 31,
    "adam": 5, "rmsprop": 24, "adagrad": 25, "spsa": 27,
}  # fmt: skip
"""Of those that the lab and its measurements know by name."""


def is_ours(name: str) -> bool:
    """Whether E is in front, by an optimizer's name in a comparison.

    >>> is_ours("alto:alpha=-5:beta=0.99"), is_ours("thalweg.EAdam"), is_ours("lamb")
    (True, True, False)
    """
    own = _own(name)
    return own.startswith(("e-", "alto")) or own in ("e", "eadam", "eadamw", "esgd")


def styles(names: Iterable[str]) -> dict[str, int]:
    """A style for each name, each its own up to 32: that of the optimizer wherever it is drawn, if it is known.

    With E in front and α given it is that of α's sign.

    >>> styles(["lamb", "alto:alpha=-5:beta=0.99", "alto:alpha=-1:beta=0.5", "my.Optimizer"])
    {'lamb': 2, 'alto:alpha=-5:beta=0.99': 1, 'alto:alpha=-1:beta=0.5': 9, 'my.Optimizer': 31}
    """
    names = list(dict.fromkeys(names))
    free = _free()
    found: dict[str, int] = {}
    for name in [*filter(_wanted, names), *(one for one in names if not _wanted(one))]:
        if not free:
            free = _free()
        style = next((one for one in _wanted(name) if one in free), free[0])
        free.remove(style)
        found[name] = style
    return {name: found[name] for name in names}


def _free() -> list[int]:
    """The styles that an unknown optimizer may take, E's colours and the most usual ones last."""
    return sorted(range(COUNT), key=lambda style: (style % 8 < 2, -style))


def line(name: str, style: int) -> dict[str, Any]:
    """Colour, dashes, marker and width of a line in matplotlib: those with E in front are heavier."""
    return {
        "color": COLOURS[style % 8], "linestyle": DASHES[style // 8], "linewidth": 2.2 if is_ours(name) else 1.4,
        "marker": MARKERS[style % len(MARKERS)], "markersize": 5,
    }  # fmt: skip


def colour(name: str) -> str:
    """The colour of a known optimizer."""
    return COLOURS[STYLES[name] % 8]


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
        return tuple(range(sign, COUNT, len(COLOURS)))
    own = _own(name)
    return (STYLES[own],) if own in STYLES else ()
