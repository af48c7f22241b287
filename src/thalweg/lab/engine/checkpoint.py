"""Everything a run needs to resume, in one file that is there whole or not at all; loading it executes no code."""

from __future__ import annotations

import io
import pickle
import random
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from thalweg.records.files import Damaged, read_bytes, write_bytes, writing

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from torch.optim import Optimizer

    from thalweg.lab.engine.spec import RunSpec

NAME = "checkpoint.pt"
DAMAGED, OTHER = f"{NAME}.damaged", f"{NAME}.other"
LARGEST = 2**50
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def generators() -> dict[str, Any]:
    """The state of every global generator of this process."""
    kind, keys, *rest = np.random.get_state()
    found = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def set_generators(states: dict[str, Any]) -> None:
    """The inverse of :func:`generators`."""
    torch.set_rng_state(states["torch"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, inner, gauss = states["python"]
    random.setstate((version, tuple(inner), gauss))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def state_of(model: nn.Module, optimizer: Optimizer, *, sharded: bool) -> dict[str, Any]:
    """Model and optimizer; of shards the whole, gathered on rank 0 (all ranks must call)."""
    if sharded:
        parameters, moments = get_state_dict(model, optimizer, options=WHOLE)
        return {"model": parameters, "optimizer": moments}
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def set_state(model: nn.Module, optimizer: Optimizer, state: dict[str, Any], *, sharded: bool) -> None:
    """The inverse of :func:`state_of`."""
    if sharded:
        set_state_dict(
            model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=WHOLE
        )
    else:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write aside, flush to disk, rename; ``id`` names this writing of it."""
    buffer = io.BytesIO()
    torch.save({**state, "id": uuid.uuid4().hex}, buffer)
    with writing(folder):
        write_bytes(folder / NAME, buffer.getvalue())


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """The checkpoint in a folder: its ``state``, or why there is none that this run can resume from.

    ``problem`` is what is wrong with a file that is there, else ""; ``aside`` the name that keeps it.
    """

    state: dict[str, Any] | None = None
    problem: str = ""
    aside: str = ""

    @property
    def step(self) -> int:
        """How many steps are done; -1 where there is nothing to resume from."""
        return -1 if self.state is None else int(self.state["step"])


def find(folder: Path, spec: RunSpec) -> StoredCheckpoint:
    """Read the checkpoint of this very run; the file may be damaged, or another one."""
    path = folder / NAME
    if not path.exists():
        return StoredCheckpoint()
    try:
        state = torch.load(io.BytesIO(read_bytes(path, LARGEST)), map_location="cpu", weights_only=True)
        other = str(state["spec"])
    except pickle.UnpicklingError:
        return StoredCheckpoint(None, "it is no checkpoint, or holds more than tensors, numbers and text", DAMAGED)
    except Exception as error:  # half a file, another format
        said = error.why if isinstance(error, Damaged) else " ".join(str(error).split())[:150]
        return StoredCheckpoint(None, f"it cannot be read: {said or type(error).__name__}", DAMAGED)
    if other != spec.hash:
        return StoredCheckpoint(None, f"it is of another run ({other[:12]}, this is {spec.hash})", OTHER)
    return StoredCheckpoint(state)


def put_aside(folder: Path, found: StoredCheckpoint, step: int) -> str:
    """Rename a file that cannot be used, and return a message about it; ``step`` is where the run resumes, or -1.

    Raises:
        UserError: it cannot be renamed.
    """
    path = folder / NAME
    with writing(path):
        path.replace(folder / found.aside)
    begins = (
        "training begins at step 0"
        if step < 0
        else f"training resumes at step {step} from another process's checkpoint"
    )
    return f"{path} is not used: {found.problem}; kept as {found.aside}, {begins}"


def remove(folder: Path) -> None:
    """The run is over: no checkpoint, and nothing of a write that a kill cut short."""
    for path in (folder / NAME, *folder.glob(".*.tmp")):
        path.unlink(missing_ok=True)
