"""What may look at a run while it trains, and leaves it as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from thalweg.lab.engine.loop import Training


class Watch(Protocol):
    """Looks at some steps between their gradient and their update; changes neither, nor draws random numbers.

    What it finds is a line of ``NAME.jsonl`` beside ``metrics.jsonl``, and ``NAME/...`` of the trackers. What it takes
    is no training time. Of several processes the first alone looks.
    """

    name: str

    def begin(self, training: Training) -> None:
        """On all processes: the run begins, or goes on after ``training.step`` steps with ``training.watched``.

        Raises:
            UserError: it cannot be looked at.
        """

    def due(self, step: int) -> bool:
        """Whether to look at a step (from 1)."""

    def part(self, training: Training, examples: int, share: float) -> None:
        """In a step that is due: a part's gradient, times its share of the batch, has been added to ``p.grad``."""

    def gradient(self, training: Training) -> dict[str, float | None]:
        """In a step that is due: all of the gradient is there, clipped; the update comes. What was found."""
