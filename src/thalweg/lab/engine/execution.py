"""How a run is carried out, which decides nothing of what it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thalweg.records.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from thalweg.sharding.plan import Mesh


@dataclass(frozen=True, slots=True)
class Execution:
    """How a run is carried out, without changing what it computes (but for rounding).

    ``micro_batch``: at most so many examples at a time on each process, the gradients accumulated. ``sharding``:
    one of :data:`~thalweg.records.regimen.SHARDINGS`, where there are several processes. ``mesh``: how many processes
    there are along each axis of it, where these are not all along one. ``reshard``: one of
    :data:`~thalweg.records.regimen.RESHARDS`. ``activation_checkpointing``: backward computes each block again, instead
    of keeping what is within it. ``compile``: by torch, each block of the model. ``workers``: processes that
    load data. ``checkpoint_seconds``: between two checkpoints. ``trackers``: Accelerate's names of them.
    ``observer``: a ``thalweg.lab.instruments.Panel``, which looks at gradients and updates, on the first process.
    ``save_model``: a safetensors file for the weights that were scored last, written by the first process when the run
    has finished. ``init_from``: such a file to start from, whose hash
    (:func:`thalweg.lab.saved.weights.hash_of`) is the spec's ``init``.

    Raises:
        UserError: of options one would be ignored.
    """

    micro_batch: int | None = None
    sharding: str = "ddp"
    workers: int = 0
    checkpoint_seconds: float = 30.0
    trackers: tuple[str, ...] = ()
    observer: Any = None
    save_model: Path | None = None
    init_from: Path | None = None
    mesh: Mesh | None = None
    reshard: str = "each"
    activation_checkpointing: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.mesh is not None and self.sharding == "ddp":
            raise UserError(f"--mesh is for --sharding fsdp2 or fsdp2+ep, got {self.sharding}")
        if self.mesh is not None and self.sharding == "fsdp2+ep" and self.mesh.expert == 1:
            raise UserError(f"--mesh must have an axis expert with --sharding fsdp2+ep, got {self.mesh}")
        if self.reshard != "each" and (self.sharding == "ddp" or self.micro_batch is None):
            raise UserError(
                f"--reshard {self.reshard} is for --sharding fsdp2 or fsdp2+ep with --micro-batch, got --sharding "
                f"{self.sharding} and {'no --micro-batch' if self.micro_batch is None else 'one'}"
            )
