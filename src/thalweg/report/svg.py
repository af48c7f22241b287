"""Axes and marks as SVG, in the reader's own colours: every stroke is a class that the page's style sheet paints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from markupsafe import Markup, escape

from thalweg.report.words import short


@dataclass(frozen=True, slots=True)
class AxisScale:
    """Values from ``low`` to ``high`` on an axis; ``log`` only where both are positive."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], *, log: bool = False, room: float = 0.04) -> AxisScale | None:
        """One that shows all finite values, with some room; None where there is none."""
        known = [value for value in values if math.isfinite(value)]
        if not known:
            return None
        log = log and min(known) > 0
        low, high = (math.log(min(known)), math.log(max(known))) if log else (min(known), max(known))
        if high - low <= 1e-12 * max(abs(low), abs(high)):
            pad = math.log(1.5) if log else abs(low) / 10 or 1.0
        else:
            pad = room * (high - low)
        low, high = low - pad, high + pad
        return cls(math.exp(max(low, -700.0)), math.exp(min(high, 700.0)), True) if log else cls(low, high)

    def share(self, value: float) -> float:
        """0 at ``low``, 1 at ``high``; values beyond them are drawn at the edge."""
        if self.log:
            if value <= 0:
                return 0.0
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0)

    def ticks(self, most: int = 6) -> list[float]:
        """Round numbers on the axis.

        >>> AxisScale(0.0, 100.0).ticks(), AxisScale(0.001, 2.0, True).ticks()
        ([0.0, 20.0, 40.0, 60.0, 80.0, 100.0], [0.001, 0.01, 0.1, 1.0])
        """
        if self.log and self.high / self.low >= 20:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            stride = max(1, math.ceil((last - first + 1) / most))
            found = [10.0**power for power in range(first, last + 1, stride)]
            if len(found) >= 2:
                return found
        if self.log and self.high / self.low >= 3:
            tens = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [float(f"{digit}e{ten}") for ten in tens for digit in (1, 2, 5)]
            return [value for value in found if self.low <= value <= self.high]
        step = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(step))
        step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= step * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        found = [float(f"{k * step:.12g}") for k in range(first, first + most + 2)]
        return [value for value in found if value <= self.high + 1e-9 * step]


def tick(value: float) -> str:
    """The label of a tick.

    >>> tick(0.001), tick(20000.0), tick(1e-7), tick(2.5)
    ('0.001', '20k', '1e-7', '2.5')
    """
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:.6g}"


@dataclass
class Plot:
    """A chart with two axes, drawn into from the back to the front."""

    x: AxisScale
    y: AxisScale
    xlabel: str
    ylabel: str
    label: str
    width: int = 560
    height: int = 340
    left: int = 66
    bottom: int = 50
    top: int = 10
    right: int = 18
    parts: list[Markup] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The position of a point in the picture."""
        return (
            self.left + self.x.share(x) * (self.width - self.left - self.right),
            self.height - self.bottom - self.y.share(y) * (self.height - self.bottom - self.top),
        )

    def _path(self, points: Iterable[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)

    def line(self, points: Sequence[tuple[float, float]], css: str, *, steps: bool = False) -> None:
        """A line through points; with ``steps`` it keeps its height until the next one."""
        placed = [self.at(*point) for point in points]
        if steps:
            placed = placed[:1] + [p for a, b in pairwise(placed) for p in ((b[0], a[1]), b)]
        self.parts.append(Markup('<path class="{}" d="{}"/>').format(css, self._path(placed)))

    def band(self, points: Sequence[tuple[float, float, float]], css: str) -> None:
        """The area between two heights."""
        up = [self.at(x, high) for x, _, high in points]
        down = [self.at(x, low) for x, low, _ in reversed(points)]
        self.parts.append(Markup('<path class="{}" d="{}Z"/>').format(css, self._path([*up, *down])))

    def mark(self, x: float, y: float, css: str, symbol: str, says: str = "") -> None:
        """A symbol that says something where the pointer rests on it."""
        px, py = self.at(x, y)
        title = Markup("<title>{}</title>").format(says) if says else Markup("")
        self.parts.append(
            Markup('<use href="#{}" class="{}" x="{}" y="{}">{}</use>').format(
                symbol, css, f"{px:.1f}", f"{py:.1f}", title
            )
        )

    def level(self, y: float, css: str, says: str) -> None:
        """A line across, with its name."""
        _, py = self.at(self.x.low, y)
        self.parts.append(
            Markup('<path class="{}" d="M{} {:.1f}H{}"/><text class="t" x="{}" y="{:.1f}" text-anchor="end">{}</text>')
            .format(css, self.left, py, self.width - self.right, self.width - self.right - 2, py - 4, says)
        )  # fmt: skip

    def draw(self) -> Markup:
        """The whole picture."""
        right, floor = self.width - self.right, self.height - self.bottom
        grid = []
        for value in self.x.ticks(6):
            px, _ = self.at(value, self.y.low)
            grid.append(
                Markup('<path class="g" d="M{0:.1f} {1}V{2}"/><text class="t" x="{0:.1f}" y="{3}" '
                       'text-anchor="middle">{4}</text>').format(px, self.top, floor, floor + 18, tick(value))
            )  # fmt: skip
        for value in self.y.ticks(5):
            _, py = self.at(self.x.low, value)
            grid.append(
                Markup('<path class="g" d="M{0} {1:.1f}H{2}"/><text class="t" x="{3}" y="{4:.1f}" '
                       'text-anchor="end">{5}</text>').format(self.left, py, right, self.left - 6, py + 5, tick(value))
            )  # fmt: skip
        names = Markup('<text class="n" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            (self.left + right) / 2, self.height - 6, self.xlabel
        ) + Markup('<text class="n" transform="translate(15 {}) rotate(-90)" text-anchor="middle">{}</text>').format(
            (self.top + floor) / 2, self.ylabel
        )
        return picture(self.width, self.height, self.label, Markup("").join([*grid, names, *self.parts]))


def picture(width: int, height: int, label: str, inside: Markup) -> Markup:
    """An SVG with a description for those who do not see it."""
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(width, height, label, inside)


def whiskers(
    rows: Sequence[tuple[str, str, str, float, float | None, float | None, Sequence[float]]], scale: AxisScale,
    xlabel: str, label: str,
) -> Markup:  # fmt: skip
    """A row each of (name, class, symbol, mean, low, high, values): dot, whisker and single values."""
    width, left, right, each = 560, 156, 18, 26
    height = each * len(rows) + 52

    def at(value: float) -> float:
        return left + scale.share(value) * (width - left - right)

    floor = height - 46
    parts = [
        Markup('<path class="g" d="M{0:.1f} 4V{1}"/><text class="t" x="{0:.1f}" y="{2}" '
               'text-anchor="middle">{3}</text>').format(at(value), floor, floor + 18, tick(value))
        for value in scale.ticks(6)
    ]  # fmt: skip
    for i, (name, css, symbol, mean, low, high, values) in enumerate(rows):
        y = 16 + each * i
        shown = name if len(name) <= 18 else f"…{name[-17:]}"
        says = f"{name}: {short(mean)}" + ("" if low is None or high is None else f" ({short(low)} to {short(high)})")
        inside = Markup('<text class="r" x="{}" y="{}" text-anchor="end">{}</text>').format(left - 10, y + 4, shown)
        if low is not None and high is not None:
            inside += Markup('<path class="w" d="M{0:.1f} {2}H{1:.1f}M{0:.1f} {3}v8M{1:.1f} {3}v8"/>').format(
                at(low), at(high), y, y - 4
            )
        for value in values:
            inside += Markup('<circle class="v" cx="{:.1f}" cy="{}" r="3"/>').format(at(value), y)
        inside += Markup('<use href="#{}" class="m" x="{:.1f}" y="{}"/>').format(symbol, at(mean), y)
        parts.append(Markup('<g class="{}"><title>{}</title>{}</g>').format(css, says, inside))
    parts.append(
        Markup('<text class="n" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            (left + width - right) / 2, height - 6, escape(xlabel)
        )
    )
    return picture(width, height, label, Markup("").join(parts))
