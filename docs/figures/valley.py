"""The picture that opens the README: python docs/figures/valley.py (a few seconds).

LAMB walks on a function whose valley is a ring: alone, and with E in front at an α of either sign. All else is the
same: start, learning rate, and E's β1. The first of a hundred walks is drawn; where they end is printed,
at other learning rates too.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.patches import FancyBboxPatch

from thalweg.landscape import landscape
from thalweg.landscape.plots import draw_landscape, draw_walk
from thalweg.landscape.walks import Walk, default_lr, numbers, starts, walk
from thalweg.report import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OUT = Path(__file__).parents[1] / "images" / "valley.svg"
ALPHA, BETA, STEPS, WALKERS = 50.0, 0.99, 300, 100


def main() -> None:
    """Draw the first walk of each setting, and say where all end."""
    panels = {"LAMB alone": 0.0, "E, α < 0: explores": -ALPHA, "E, α > 0: exploits": ALPHA}
    drawn = drawing.figure(8.0, 2.94)
    drawn.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.01)  # type: ignore[union-attr]
    for ax, (title, alpha) in zip(drawn.subplots(1, len(panels)), panels.items(), strict=True):
        walked = walks(alpha)
        draw_landscape(ax, walked.function)
        draw_walk(ax, walked, linewidth=2.6)
        ax.set(title=title, xlim=(-1.45, 1.45), ylim=(-1.35, 1.35))
        ax.title.set(fontsize=15, fontweight="bold")
        _round(ax)
        found = numbers(walked)
        print(f"{title}: {found.found_lowest.value:.0%} of {WALKERS} walks end in the lowest minimum, "
              f"{found.along.value:.2f} of the floor's 6.28 walked")  # fmt: skip
    for factor in (0.5, 10.0):
        shares = [numbers(walks(alpha, factor)).found_lowest.value for alpha in panels.values()]
        print(f"at {factor:g} times the learning rate: {', '.join(f'{share:.0%}' for share in shares)}")
    print(f"written: {drawing.save(drawn, OUT)}")


def _round(ax: Axes) -> None:
    """A panel with round corners and no frame."""
    ax.set_axis_off()
    card = FancyBboxPatch((0.05, 0.05), 0.9, 0.9, "round,pad=0.05", transform=ax.transAxes)
    for artist in (*ax.collections, *ax.lines):
        artist.set_clip_path(card)


def walks(alpha: float, factor: float = 1.0) -> Walk:
    """From the ring's start, and places around it, at ``factor`` times the learning rate of the picture."""
    ring = landscape("closed")
    with warnings.catch_warnings():  # that such α need small learning rates
        warnings.simplefilter("ignore", UserWarning)
        return walk(
            ring, "lamb", alpha, BETA if alpha else 0.0, lr=factor * default_lr(ring, "lamb"), steps=STEPS,
            begin=starts(ring, WALKERS),
        )  # fmt: skip


if __name__ == "__main__":
    main()
