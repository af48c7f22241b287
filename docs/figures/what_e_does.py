"""The pictures of docs/what-e-does.md that need no training: python docs/figures/what_e_does.py (half a minute)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from thalweg.report import drawing, palette
from thalweg.report.palette import AMBER, BLUE, INK, ORANGE, SKY, VIOLET
from thalweg.theory import damping, fastest_damping, fixed_length_orbit, implicit_regularization, stability_limit

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.contour import QuadContourSet
    from matplotlib.figure import Figure

OUT = Path(__file__).parents[1] / "images" / "theory"
PAPER = {"α = -5, β1 = .99": (-5.0, 0.99, "o"), "α = .5, β1 = .01": (0.5, 0.01, "s")}
HORIZONS = np.geomspace(1.0, 200.0, 161)
GAINS = np.linspace(-0.9999, 0.9999, 241)


def main() -> None:
    """Draw all."""
    OUT.mkdir(parents=True, exist_ok=True)
    for draw in (look_ahead, stability_map, damping_map, penalty, orbits):
        draw()
        print(f"written: {OUT / draw.__name__}.png")


def look_ahead() -> None:
    """What E passes on of a gradient that rises and falls slowly, and of one that jumps every step."""
    figure, axes = _figure(2, 3.4)
    steps = np.arange(120)
    slow = np.sin(2 * np.pi * steps / 60.0)
    for alpha, beta, colour, dashes in ((-5, 0.9, BLUE, "--"), (5, 0.9, ORANGE, "-.")):
        axes[0].plot(steps, passed_on(slow, alpha, beta), dashes, color=colour, label=f"α = {alpha}, β1 = {beta}")
    axes[0].plot(steps, slow, color=INK, linewidth=1.2, label="the gradient g")
    axes[0].set(
        xlim=(40, 119),
        xlabel="step",
        ylabel="gradient, in its own units",
        title="Slow changes: early or late by |α| steps",
    )
    axes[0].legend(loc="upper right", fontsize=8)
    periods = np.geomspace(2.0, 2000.0, 400)
    for alpha, beta, colour, dashes in (
        (0.5, 0.01, AMBER, ":"),
        (5, 0.9, ORANGE, "-."),
        (-5, 0.99, SKY, "-"),
        (-5, 0.9, BLUE, "--"),
        (-3, 0.75, VIOLET, (0, (5, 1, 1, 1, 1, 1))),
    ):
        axes[1].plot(
            periods,
            np.abs(response(periods, alpha, beta)),
            linestyle=dashes,
            color=colour,
            label=f"α = {alpha:g}, β1 = {beta:g}",
        )
    axes[1].axhline(1.0, color=INK, linewidth=0.8)
    axes[1].set(
        xscale="log",
        yscale="log",
        xlabel="period of the change, steps",
        ylabel="size of g' over size of g",
        title="Fast changes: damped (α < 0) or amplified (α > 0)",
    )
    axes[1].yaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2]))
    axes[1].yaxis.set_major_formatter(FuncFormatter(_plain))
    axes[1].yaxis.set_minor_locator(NullLocator())
    axes[1].xaxis.set_major_formatter(FuncFormatter(_plain))
    axes[1].legend(loc="lower right", fontsize=8)
    _save(figure, "look_ahead")


def passed_on(g: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """g' = g + α(1-β1)(g - b), step by step."""
    b, result = 0.0, []
    for value in g:
        result.append(value + alpha * (1 - beta) * (value - b))
        b = beta * b + (1 - beta) * value
    return np.array(result)


def response(periods: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """g' over g for waves of these periods: ((1+c)z - (β1+c)) / (z - β1) on the unit circle."""
    z, c = np.exp(2j * np.pi / periods), alpha * (1 - beta)
    return ((1 + c) * z - (beta + c)) / (z - beta)


def stability_map() -> None:
    """The stability limit over that of the base alone."""
    figure, axes = _figure(2, 4.2)
    for ax, momentum in zip(axes, (0.0, 0.9), strict=True):
        alone = stability_limit(0.0, 0.0, momentum=momentum)
        found = over_gains(partial(stability_limit, momentum=momentum)) / alone
        levels = np.log2([1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1 / 1.1, 1.1, 2, 4, 8, 16])
        image = _map(ax, np.log2(found), levels, "PuOr_r", INK, TwoSlopeNorm(0.0, -6.0, 4.0))
        _contour(ax, found, [0.1], palette.ON_BRIGHT)
        ax.set_title(
            f"momentum {momentum:g}: {alone:.3g} without E" if momentum else f"no momentum: {alone:g} without E"
        )
    bar = figure.colorbar(image, ax=axes, ticks=levels, fraction=0.05)
    bar.ax.set_yticklabels([_times(2.0**level) for level in levels])
    bar.set_label("stability limit, times that without E")
    drawing.legend(figure, "outside lower center", columns=2)
    _save(figure, "stability_map")


def damping_map() -> None:
    """Steps in which an error along a flat direction halves."""
    figure, axes = _figure(2, 4.2)
    x = 0.02
    levels = [16, 20, 25, 30, 40, 60, 80, 100, 150]
    for ax, momentum in zip(axes, (0.0, 0.9), strict=True):
        found = over_gains(partial(damping, x, momentum=momentum))
        steps = np.where(found > 0.0, np.log(2.0) / found, 1e6)
        image = _map(ax, np.log(steps), np.log(levels), "cividis_r", "white")
        best = fastest_damping(x, momentum=momentum)
        where = (best.alpha * (1 - best.beta), 1 / (1 - best.beta))
        ax.plot(*where, "*", color=ORANGE, markersize=14, markeredgecolor="white", clip_on=False, zorder=5)
        alone = np.log(2.0) / damping(x, 0.0, 0.0, momentum=momentum)
        name = f"momentum {momentum:g}" if momentum else "no momentum"
        ax.set_title(f"{name}: {alone:.2g} without E, {np.log(2.0) / best.damping:.2g} at the star")
    bar = figure.colorbar(image, ax=axes, ticks=np.log(levels), fraction=0.05)
    bar.ax.set_yticklabels([str(level) for level in levels])
    bar.set_label(f"steps in which an error halves at ηλ = {x:g}")
    drawing.legend(figure, "outside lower center", columns=2)
    _save(figure, "damping_map")


def penalty() -> None:
    """S over α, for three momenta."""
    figure, axes = _figure(1, 3.4)
    ax = axes[0]
    alphas = np.linspace(-40, 20, 200)
    for momentum, colour, dashes in (
        (0.0, palette.colour("sgd"), "-"),
        (0.5, AMBER, "--"),
        (0.9, palette.colour("momentum"), "-."),
    ):
        values = [implicit_regularization(float(alpha), momentum=momentum) for alpha in alphas]
        ax.plot(alphas, values, dashes, color=colour, label=f"momentum {momentum:g}" if momentum else "no momentum")
        for name, (alpha, _, marker) in PAPER.items():
            at = implicit_regularization(alpha, momentum=momentum)
            ax.plot(alpha, at, marker, color=colour, label=f"the paper's {name}" if momentum == 0.9 else None)
    ax.axhline(0.0, color=INK, linewidth=0.8)
    ax.axvline(0.0, color=INK, linewidth=0.8)
    ax.text(-39, 3, "S > 0: flat regions favoured", fontsize=8, color=INK)
    ax.text(-39, -8, "S < 0: steep regions favoured", fontsize=8, color=INK)
    ax.set(xlabel="α, steps", ylabel="S", title="Penalty (η/4) S ‖∇L‖² that steps of size η add to the loss")
    ax.legend(fontsize=8)
    _save(figure, "penalty")


def orbits() -> None:
    """ηλ of LAMB's orbits on a quadratic over their period, beside the limit."""
    figure, axes = _figure(1, 3.6)
    ax = axes[0]
    for alpha, beta, colour, marker in ((0, 0, INK, "o"), (0.5, 0.01, ORANGE, "s"), (-0.4, 0.5, VIOLET, "D")):
        found = [(period, fixed_length_orbit(period, alpha, beta, momentum=0.9)) for period in range(2, 24, 2)]
        lasting = [(period, orbit.eta_lambda) for period, orbit in found if orbit.lasts]
        ax.plot(*zip(*lasting, strict=True), marker, color=colour, markersize=6,
                label=f"α = {alpha:g}, β1 = {beta:g}" if alpha else "no E")  # fmt: skip
        ax.axhline(stability_limit(alpha, beta, momentum=0.9), color=colour, linewidth=0.9, linestyle="--")
    ax.set(yscale="log", xlabel="period of the orbit, steps", ylabel="ηλ", xlim=(1, 20))
    ax.set_title("Steps of a given length, momentum 0.9; dashed: the limit")
    ax.xaxis.set_major_locator(FixedLocator(range(2, 20, 2)))
    ax.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50]))
    ax.yaxis.set_major_formatter(FuncFormatter(_plain))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.legend(fontsize=8)
    _save(figure, "orbits")


def _figure(columns: int, height: float) -> tuple[Figure, np.ndarray]:
    figure = drawing.figure(5.0 * columns if columns > 1 else 6.5, height)
    return figure, np.atleast_1d(figure.subplots(1, columns))


def over_gains(quantity: Callable[[float, float], float]) -> np.ndarray:
    """The quantity over gains (columns) and horizons (rows)."""
    return np.array([[quantity(gain * horizon, 1.0 - 1.0 / horizon) for gain in GAINS] for horizon in HORIZONS])


def _map(
    ax: Axes,
    values: np.ndarray,
    levels: np.ndarray,
    colours: str,
    lines: str,
    norm: Normalize | None = None,
) -> QuadContourSet:
    """Over gain and horizon, with lines of equal α."""
    image = ax.contourf(GAINS, HORIZONS, values, levels=levels, norm=norm, cmap=colours, extend="both")
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100, 200]))
    ax.yaxis.set_minor_locator(NullLocator())
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(_plain))
    ax.set(xlim=(-1, 1), ylim=(1, 200), xlabel="gain α(1-β1)", ylabel="horizon 1/(1-β1), steps")
    alphas = ax.contour(
        GAINS,
        HORIZONS,
        GAINS * HORIZONS[:, None],
        levels=[-50, -20, -5, -1, 1, 5, 20, 50],
        colors=lines,
        linewidths=0.6,
    )
    ax.clabel(alphas, fmt=lambda level: f"α = {level:g}", fontsize=7)
    for name, (alpha, beta, marker) in PAPER.items():
        where = (alpha * (1 - beta), 1 / (1 - beta))
        label = f"the paper's {name}"
        ax.plot(*where, marker, color="white", markeredgecolor="black", label=label, clip_on=False, zorder=4)
    return image


def _contour(ax: Axes, values: np.ndarray, levels: list[float], colour: str) -> None:
    lines = ax.contour(GAINS, HORIZONS, values, levels=levels, colors=colour, linewidths=1.2, linestyles="--")
    ax.clabel(lines, fmt="1/10, warned beyond", fontsize=7)


def _times(value: float) -> str:
    return f"{value:.3g}" if value >= 1 or value > 0.9 else f"1/{1 / value:.3g}"


def _plain(value: float, _: object = None) -> str:
    return f"{value:g}"


def _save(figure: Figure, name: str) -> None:
    drawing.save(figure, OUT / f"{name}.png", dpi=120)


if __name__ == "__main__":
    main()
