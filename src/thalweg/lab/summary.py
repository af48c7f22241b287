"""What a comparison found, as plain data: the terminal table and the HTML report draw this and nothing else.

Built from stored records by :mod:`thalweg.lab.compare`.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Metric:
    """A test metric: ``goal`` is ``"max"`` or ``"min"``; ``log`` asks for a logarithmic axis."""

    name: str
    goal: str
    unit: str = ""
    log: bool = False

    def better(self, a: float, b: float) -> bool:
        """Whether ``a`` is a strictly better value than ``b``.

        >>> Metric("accuracy", "max").better(0.9, 0.8), Metric("loss", "min").better(0.9, 0.8)
        (True, False)
        """
        return a > b if self.goal == "max" else a < b


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds with the half-width of its 95 % confidence interval (``None``: fewer than two values)."""

    mean: float
    half_width: float | None
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """Mean and 95 % confidence limits over the seeds, at each recorded step."""

    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One optimizer in one table.

    ``test`` is ``None`` when no seed finished, ``settings`` is ``None`` when no trial did.
    ``steps_to_target`` and ``seconds_to_target`` average over the ``reached`` seeds that got there.
    """

    optimizer: str
    settings: dict[str, float] | None
    test: Interval | None
    steps_to_target: float | None
    seconds_to_target: float | None
    reached: int
    seeds: int
    failed_seeds: int
    trials: int
    failed_trials: int
    seconds: float | None
    validation: Curve | None
    train_loss: Curve | None
    tuning: tuple[tuple[dict[str, float], float | None], ...] = ()
    """Every trial: its settings and its validation metric (``None``: failed)."""


@dataclass(frozen=True, slots=True)
class Table:
    """All optimizers on one task at one batch size, best first."""

    task: str
    title: str
    batch_size: int
    train_examples: int | None
    steps: int
    metric: Metric
    target: float
    rows: tuple[Row, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    """Optimizers that do not apply to this task, and why."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything a report shows."""

    tables: tuple[Table, ...]
    trials: int
    seeds: int
    command: str
    created: str
    environment: dict[str, str]
    protocol: tuple[str, ...]
    """The rules of the comparison, one sentence each."""
