"""Everything a run needs to go on, in one file that is there whole or not at all; loading it executes no code."""

from __future__ import annotations

import io
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from thalweg.records.files import Damaged, read_bytes, write_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from torch.optim import Optimizer

NAME = "checkpoint.pt"
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
    """Write aside, flush to disk, rename."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(folder / NAME, buffer.getvalue())


def load(folder: Path, spec_hash: str) -> dict[str, Any] | None:
    """The checkpoint of this very run, or None: there is none, it is another's, or it cannot be read."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        state = torch.load(io.BytesIO(read_bytes(path, LARGEST)), map_location="cpu", weights_only=True)
    except Damaged:
        return None
    except Exception:  # half a disk, another format, code that would have to run: start anew
        return None
    return state if isinstance(state, dict) and state.get("spec") == spec_hash else None


def remove(folder: Path) -> None:
    """The run is over: no checkpoint, and nothing of a write that a kill cut short."""
    for path in (folder / NAME, *folder.glob(".*.tmp")):
        path.unlink(missing_ok=True)
