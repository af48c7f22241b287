"""How a run is carried out, which decides nothing of what it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Execution:
    """How a run is carried out, without changing what it computes (but for rounding).

    ``micro_batch``: at most so many examples at a time on each process, the gradients accumulated. ``sharding``:
    one of :data:`~thalweg.records.regimen.SHARDINGS`, where there are several processes. ``workers``: processes that
    load data. ``checkpoint_seconds``: between two checkpoints. ``trackers``: Accelerate's names of them.
    ``observer``: a ``thalweg.lab.instruments.Panel``, which looks at gradients and updates, on the first process.
    ``save_model``: a safetensors file for the weights that were scored last, written by the first process when the run
    has finished. ``init_from``: such a file to start from, whose hash
    (:func:`thalweg.lab.engine.weights.hash_of`) is the spec's ``init``.
    """

    micro_batch: int | None = None
    sharding: str = "ddp"
    workers: int = 0
    checkpoint_seconds: float = 30.0
    trackers: tuple[str, ...] = ()
    observer: Any = None
    save_model: Path | None = None
    init_from: Path | None = None
