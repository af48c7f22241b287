"""What is measured on a data set."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Metric:
    """A test metric: ``goal`` is ``"max"`` or ``"min"``; ``log`` asks for a logarithmic axis and geometric intervals.

    ``low`` and ``high`` are the least and the greatest value it can have: no interval reaches beyond them.
    ``resolution`` is the least step between two values, 0 where there is none. A task says that of a single example
    (100 where a right answer scores 100 and a wrong one 0), and :meth:`over` gives that of a mean over many.
    """

    name: str
    goal: str
    unit: str = ""
    log: bool = False
    low: float = -math.inf
    high: float = math.inf
    resolution: float = 0.0

    def __post_init__(self) -> None:
        if self.goal not in ("max", "min"):
            raise ValueError(f"goal must be 'max' or 'min', got {self.goal!r}")
        if not 0.0 <= self.resolution < math.inf:
            raise ValueError(f"resolution must be finite and at least 0, got {self.resolution!r}")

    @property
    def margin(self) -> float | None:
        """The least difference that matters where nobody says another: half a point, .02 nats, None of other metrics.

        >>> Metric("accuracy", "max", "%").margin, Metric("loss", "min", "nats/token").margin
        (0.5, 0.02)
        """
        if self.log:
            return None
        return {"%": 0.5, "nats": 0.02}.get(self.unit.partition("/")[0])

    def over(self, examples: int) -> Metric:
        """The metric of so many examples, of whose scores it is the mean.

        >>> Metric("accuracy", "max", resolution=100.0).over(25_000).resolution
        0.004
        """
        return replace(self, resolution=self.resolution / max(1, examples))

    def better(self, a: float, b: float) -> bool:
        """Whether ``a`` is a strictly better value than ``b``.

        >>> Metric("accuracy", "max").better(0.9, 0.8), Metric("loss", "min").better(0.9, 0.8)
        (True, False)
        """
        return a > b if self.goal == "max" else a < b

    def reached(self, value: float, target: float) -> bool:
        """Whether ``value`` is as good as ``target``.

        >>> Metric("accuracy", "max").reached(0.9, 0.9)
        True
        """
        return not self.better(target, value) and not math.isnan(value)
