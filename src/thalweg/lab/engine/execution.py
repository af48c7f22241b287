"""How a run is carried out, which decides nothing of what it computes, and who may look at it meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path


class Observer(Protocol):
    """Looks at some steps between their gradient and their update; changes neither, nor draws random numbers.

    What it finds is a line of ``NAME.jsonl`` beside ``metrics.jsonl``, and ``NAME/...`` of the trackers. What it takes
    is no training time. Of several processes the first alone looks. ``training`` is a
    :class:`~thalweg.lab.engine.loop.Training`.
    """

    name: str

    def begin(self, training: Any) -> None:
        """On all processes: the run begins, or resumes after ``training.step`` steps with ``training.observations``.

        Raises:
            UserError: it cannot be looked at.
        """

    def due(self, step: int) -> bool:
        """Whether to look at a step (from 1)."""

    def part(self, training: Any, examples: int, share: float) -> None:
        """In a step that is due: a part's gradient, times its share of the batch, has been added to ``p.grad``."""

    def gradient(self, training: Any) -> dict[str, float | None]:
        """In a step that is due: all of the gradient is there, clipped; the update comes. What was found."""


@dataclass(frozen=True, slots=True)
class Execution:
    """How a run is carried out, without changing what it computes (but for rounding).

    ``micro_batch``: at most so many examples at a time on each process, the gradients accumulated. ``sharding``:
    one of :data:`~thalweg.records.regimen.SHARDINGS`, where there are several processes. ``workers``: processes that
    load data. ``checkpoint_seconds``: between two checkpoints. ``trackers``: Accelerate's names of them.
    ``observer``: who looks at gradients and updates, on the first process. ``save_model``: a safetensors file for the
    weights that were scored last, written by the first process when the run has finished. ``init_from``: such a file to
    start from, whose hash (:func:`thalweg.lab.engine.weights.hash_of`) is the spec's ``init``.
    """

    micro_batch: int | None = None
    sharding: str = "ddp"
    workers: int = 0
    checkpoint_seconds: float = 30.0
    trackers: tuple[str, ...] = ()
    observer: Observer | None = None
    save_model: Path | None = None
    init_from: Path | None = None
