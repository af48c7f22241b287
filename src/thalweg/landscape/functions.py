"""Functions of two numbers with valleys, as data: formula, bounds, valley and minima of each.

A new function is an entry of :data:`FUNCTIONS`, and tested by being there. Those with a valley are, but for the
cardioid and Rosenbrock's, of the form K·F(x, y)² + h: F vanishes on the floor of the valley, and h is how the floor
rises and falls, with a lower minimum further along.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from thalweg.arguments import check_choice
from thalweg.landscape.vectors import Coordinates

Function: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Minimum:
    """A local minimum: where, and the value there."""

    x: float
    y: float
    value: float


@dataclass(frozen=True, slots=True)
class Valley:
    """The floor of a valley as a curve over t in [0, 1]; a closed one ends where it begins."""

    curve: Callable[[Tensor], tuple[Tensor, Tensor]]
    closed: bool = False

    def points(self, count: int = 2001) -> Tensor:
        """Points of the floor at equal distances of t, shape (count, 2), float64."""
        return torch.stack(self.curve(torch.linspace(0.0, 1.0, count, dtype=torch.float64)), dim=-1)


@dataclass(frozen=True, slots=True)
class Landscape:
    """A function of two numbers.

    Attributes:
        name: what it is called.
        formula: the formula, as text.
        bounds: ((lowest x, highest x), (lowest y, highest y)) of what is worth looking at.
        function: f(x, y) of tensors of one shape, elementwise.
        start: where a walk begins.
        minima: the local minima within the bounds; of a floor that is level, some of its points.
        valley: the floor of the valley, or None.
        level: whether all of the floor is a minimum.
        source: where the function is from.
    """

    name: str
    formula: str
    bounds: tuple[tuple[float, float], tuple[float, float]]
    function: Function = field(repr=False)
    start: tuple[float, float]
    minima: tuple[Minimum, ...]
    valley: Valley | None = None
    level: bool = False
    source: str = ""

    def __call__(self, points: Coordinates) -> Tensor:
        """f at points of shape (..., 2): shape (...).

        >>> FUNCTIONS["himmelblau"](torch.tensor([[3.0, 2.0], [0.0, 0.0]]))
        tensor([  0., 170.])
        """
        points = as_points(points)
        if points.shape[-1:] != (2,):
            raise ValueError(f"points must have the shape (..., 2), got {tuple(points.shape)}")
        return self.function(points[..., 0], points[..., 1])

    def hessians(self, points: Tensor) -> Tensor:
        """The Hessians at points of shape (n, 2): shape (n, 2, 2)."""
        found: Tensor = torch.func.vmap(torch.func.hessian(self))(points)
        return found

    @property
    def size(self) -> float:
        """The diagonal of the bounds."""
        (x0, x1), (y0, y1) = self.bounds
        return math.hypot(x1 - x0, y1 - y0)


def landscape(name: str) -> Landscape:
    """The function of this name.

    Raises:
        ValueError: there is none.
    """
    check_choice("name", name, tuple(FUNCTIONS))
    return FUNCTIONS[name]


def as_points(points: Coordinates) -> Tensor:
    """Points as a tensor; of lists of numbers, float64."""
    if isinstance(points, Tensor):
        return points
    return torch.as_tensor(points, dtype=None if hasattr(points, "dtype") else torch.float64)


def _cardioid(x: Tensor, y: Tensor) -> Tensor:
    square = x * x + y * y
    return ((square + x).square() - square).square()


def _cardioid_floor(t: Tensor) -> tuple[Tensor, Tensor]:
    angle = 2.0 * math.pi * t
    r = 1.0 - angle.cos()
    return r * angle.cos(), r * angle.sin()


def _curved(x: Tensor, y: Tensor) -> Tensor:
    stiffness = 2.0 + 20.0 * torch.sigmoid(-2.0 * x)
    return stiffness * (y - x.sin()).square() + _two_wells(x)


def _two_wells(x: Tensor) -> Tensor:
    """The integral of (x+2)(x+1)(x-2)/5, from 2: minima at -2 and 2, a maximum at -1."""
    return (x**4 / 4.0 + x**3 / 3.0 - 2.0 * x * x - 4.0 * x + 28.0 / 3.0) / 5.0


def _branching(x: Tensor, y: Tensor) -> Tensor:
    return 8.0 * (x - y * y).square() + y**4 / 4.0 - y * y / 2.0 - 0.1 * (y**3 / 3.0 - y) + 19.0 / 60.0


def _closed(x: Tensor, y: Tensor) -> Tensor:
    return 6.0 * (x * x + y * y - 1.0).square() + 0.4 * y * y + 0.3 * (2.0 / 3.0 + x - x**3 / 3.0)


def _rosenbrock(x: Tensor, y: Tensor) -> Tensor:
    return (1.0 - x).square() + 100.0 * (y - x * x).square()


def _beale(x: Tensor, y: Tensor) -> Tensor:
    return (1.5 - x + x * y).square() + (2.25 - x + x * y * y).square() + (2.625 - x + x * y**3).square()


def _himmelblau(x: Tensor, y: Tensor) -> Tensor:
    return (x * x + y - 11.0).square() + (x + y * y - 7.0).square()


def _between(low: float, high: float, height: Callable[[Tensor], Tensor]) -> Valley:
    """The valley y = height(x)."""

    def curve(t: Tensor) -> tuple[Tensor, Tensor]:
        x = low + (high - low) * t
        return x, height(x)

    return Valley(curve)


def _fork(t: Tensor) -> tuple[Tensor, Tensor]:
    y = -1.4 + 2.8 * t
    return y * y, y


def _ring(t: Tensor) -> tuple[Tensor, Tensor]:
    angle = 2.0 * math.pi * t
    return angle.cos(), angle.sin()


FUNCTIONS: dict[str, Landscape] = {
    one.name: one
    for one in (
        Landscape(
            "cardioid",
            "((x² + y² + x)² - x² - y²)²",
            ((-2.4, 0.7), (-1.7, 1.7)),
            _cardioid,
            start=(-2.0, 0.6),
            minima=(Minimum(-2, 0, 0), Minimum(0, 1, 0), Minimum(0, -1, 0), Minimum(0, 0, 0)),
            valley=Valley(_cardioid_floor, closed=True),
            level=True,
            source="the square of the cardioid r = 1 - cos φ: the first figure of arXiv 2510.27153, in our coordinates",
        ),
        Landscape(
            "curved",
            "k(x)(y - sin x)² + h(x), k = 2 + 20/(1 + e²ˣ), h' = (x+2)(x+1)(x-2)/5, h(2) = 0",
            ((-3.0, 3.2), (-1.8, 1.8)),
            _curved,
            start=(-2.6, 0.3),
            minima=(Minimum(-2, math.sin(-2), 32 / 15), Minimum(2, math.sin(2), 0)),
            valley=_between(-2.6, 2.8, torch.sin),
        ),
        Landscape(
            "branching",
            "8(x - y²)² + y⁴/4 - y²/2 - (y³/3 - y)/10 + 19/60",
            ((-1.2, 2.2), (-1.6, 1.6)),
            _branching,
            start=(-1.0, 0.1),
            minima=(Minimum(1, 1, 2 / 15), Minimum(1, -1, 0)),
            valley=Valley(_fork),
        ),
        Landscape(
            "closed",
            "6(x² + y² - 1)² + 0.4y² + 0.3(2/3 + x - x³/3)",
            ((-1.6, 1.6), (-1.5, 1.5)),
            _closed,
            start=(1.3, 0.4),
            minima=(Minimum(1, 0, 0.4), Minimum(-1, 0, 0)),
            valley=Valley(_ring, closed=True),
        ),
        Landscape(
            "rosenbrock",
            "(1 - x)² + 100(y - x²)²",
            ((-1.8, 1.8), (-0.8, 2.6)),
            _rosenbrock,
            start=(-1.2, 1.0),
            minima=(Minimum(1, 1, 0),),
            valley=_between(-1.5, 1.5, torch.square),
            source="Rosenbrock 1960",
        ),
        Landscape(
            "beale",
            "(1.5 - x + xy)² + (2.25 - x + xy²)² + (2.625 - x + xy³)²",
            ((-1.0, 4.5), (-2.0, 1.5)),
            _beale,
            start=(0.5, -1.2),
            minima=(Minimum(3, 0.5, 0),),
            source="Beale 1958",
        ),
        Landscape(
            "himmelblau",
            "(x² + y - 11)² + (x + y² - 7)²",
            ((-5.0, 5.0), (-5.0, 5.0)),
            _himmelblau,
            start=(-0.5, -0.5),
            minima=(
                Minimum(3, 2, 0),
                Minimum(-2.805118086952745, 3.131312518250573, 0),
                Minimum(-3.779310253377747, -3.283185991286170, 0),
                Minimum(3.584428340330492, -1.848126526964404, 0),
            ),
            source="Himmelblau 1972",
        ),
    )
}
"""The functions, by name."""
