"""A run's checkpoints: what is in one, how it is written while training goes on, and which are kept.

They lie in ``FOLDER/checkpoint``, each in a folder of its own, that ``torch.distributed.checkpoint`` (DCP) writes once:
a file of tensors for each process that holds any, and last ``.metadata``, without which it does not count. What is no
tensor is in the tensor :data:`RUN`, as the bytes of a file of ``torch.save``.
"""

from __future__ import annotations

import copy
import io
import random
import re
import shutil
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from thalweg.lab.ranks import agreement
from thalweg.records.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path

    from torch.optim import Optimizer

NAME, METADATA, RUN = "checkpoint", ".metadata", "run"
DAMAGED, OTHER = f"{NAME}.damaged", f"{NAME}.other"  # what a run cannot resume from
OLD = "checkpoint.pt"  # one file, as runs of before wrote it
OF_STEP = re.compile(r"step-(\d+)-[0-9a-f]{8}")
KEPT = 2

warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)  # DCP of one process


def generators() -> dict[str, Any]:
    """The state of every global generator of this process."""
    kind, keys, *rest = np.random.get_state()
    version, inner, gauss = random.getstate()
    found = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": [version, torch.tensor(inner), gauss],
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
    random.setstate((version, tuple(inner.tolist()), gauss))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def taken_apart(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The state dicts of both, and apart from them, by name, the tensors; of one its shape, dtype and strides are left.

    Strides, as a product with a transposed matrix is not, bit for bit, that with a copy of it in rows.

    A tensor that only some optimizers know, as one of 8 bits, stays where it is. So does one that is spread over the
    processes in another shape than its parameter's, a norm say, but whole: all of them must call.
    """
    tensors: dict[str, Tensor] = {}
    owners = _owners(model, optimizer)

    def take(name: str, value: Any) -> Any:
        owner = owners(name)
        if isinstance(value, DTensor) and isinstance(owner, DTensor) and value.shape != owner.shape:
            return value.full_tensor().cpu()
        if not isinstance(value, DTensor) and (type(value) is not Tensor or value.layout != torch.strided):
            return value
        in_rows = isinstance(value, DTensor) and _in_rows(value)
        tensors[name] = cast("DTensor", value).full_tensor() if in_rows else value.detach()
        if isinstance(value, DTensor):
            return torch.empty(value.shape, dtype=value.dtype, device="meta")
        return torch.empty_like(value, device="meta")

    return _mapped({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, take), tensors


def room_for(state: dict[str, Any], model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Tensors to read those into that were taken out of ``state``; of parameters in shards, the same shards."""
    owners, room = _owners(model, optimizer), {}

    def make(name: str, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_meta:
            owner = owners(name)
            shared = isinstance(owner, DTensor) and owner.shape == value.shape and not _in_rows(owner)
            room[name] = (
                torch.empty_like(owner, dtype=value.dtype)
                if owner is not None and shared
                else torch.empty_like(value, device="cpu")
            )
        return value

    _mapped(state, make)
    return room


def put_back(state: dict[str, Any], tensors: dict[str, Tensor], model: nn.Module, optimizer: Optimizer) -> None:
    """The inverse of :func:`taken_apart`: load the state dicts, into a model of other shards as well."""
    owners = _owners(model, optimizer)

    def put(name: str, value: Any) -> Any:
        value, owner = tensors.get(name, value), owners(name)
        if (
            isinstance(value, DTensor)
            or not isinstance(value, Tensor)
            or not isinstance(owner, DTensor)
            or not value.ndim
        ):
            return value
        mesh, value = owner.device_mesh, value.to(owner.device)
        if value.shape == owner.shape:
            return distribute_tensor(value, mesh, owner.placements, src_data_rank=None)
        return DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim)

    whole = _mapped(state, put)
    model.load_state_dict(whole["model"])
    optimizer.load_state_dict(whole["optimizer"])


def _in_rows(value: Tensor | None) -> bool:
    """Whether a process's piece lies in several rows of the whole, as where two matrices in one are cut.

    DCP does not know of these, and torch takes them for equal to others: they are saved and read whole.
    """
    placements = value.placements if isinstance(value, DTensor) else ()
    cut = [getattr(one, "dim", None) for one in placements]
    return any(hasattr(one, "split_factor") and cut[k] not in cut[k + 1 :] for k, one in enumerate(placements))


def _owners(model: nn.Module, optimizer: Optimizer) -> Callable[[str], Tensor | None]:
    """By the name of a tensor in the state dicts, the model's own that is spread over the processes in the same way."""
    known = {f"model/{name}": value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    known |= {f"optimizer/state/{k}": p for k, p in enumerate(parameters)}
    return lambda name: known.get(name, known.get(name.rpartition("/")[0]))


def _mapped(value: Any, one: Callable[[str, Any], Any], name: str = "") -> Any:
    """``one`` of the name and the value of all that is in dictionaries, lists and tuples, in copies of these."""
    if isinstance(value, dict):
        found = copy.copy(value)  # with its attributes, as the versions in a module's
        found.update({key: _mapped(x, one, f"{name}/{key}" if name else key) for key, x in value.items()})
        return found
    if type(value) in (list, tuple):
        return type(value)(_mapped(x, one, f"{name}/{key}") for key, x in enumerate(value))
    return one(name, value)


class Saving:
    """The checkpoints that a run writes into its folder, one at a time, while it trains."""

    def __init__(self, folder: Path, *, sharded: bool) -> None:
        self.folder, self.sharded = folder / NAME, sharded
        self.writes = sharded or agreement.processes().is_main_process
        self.group = agreement.group_beside()
        self.kept: list[str] = []  # as far as this process knows; the newest last
        self.path = self.folder  # of the one that is being written
        self.pending: Future[Any] | None = None
        self.beside = ThreadPoolExecutor(1)  # all but the copies, of which DCP's async_save does half before it returns

    def begin(self, name: str, run: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Copy the tensors, and begin to write them; the one before must be complete (:meth:`wait`).

        Of plain tensors the first process's are written, and its ``run``; of those in shards each process's own.
        """
        self.path = self.folder / name
        if not self.writes:
            return
        if agreement.processes().is_main_process:
            buffer = io.BytesIO()
            torch.save(run, buffer)
            tensors = {**tensors, RUN: torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)}
        else:
            tensors = {key: value for key, value in tensors.items() if isinstance(value, DTensor)}
        self.pending = self.beside.submit(
            save,
            {key: value.to("cpu", copy=True) for key, value in tensors.items()},
            checkpoint_id=self.path,
            planner=DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            process_group=self.group,
            no_dist=not self.sharded,
        )

    def wait(self) -> None:
        """Return when what was begun is on disk.

        Raises:
            UserError: it could not be written; nothing is left of it.
        """
        pending, self.pending = self.pending, None
        if pending is None:
            return
        try:
            pending.result()
        except CheckpointException as error:
            shutil.rmtree(self.path, ignore_errors=True)
            raise _not_written(self.path, [one for one, _ in error.failures.values()]) from None

    def prune(self) -> None:
        """Remove all but the last two; what was begun is one of them, and all processes have waited for it."""
        if self.path != self.folder:
            self.kept = [name for name in self.kept if name != self.path.name] + [self.path.name]
        while len(self.kept) > KEPT:
            shutil.rmtree(self.folder / self.kept.pop(0), ignore_errors=True)

    def close(self) -> None:
        """Let what is being written come to its end, well or not: training has."""
        with suppress(Exception):
            self.wait()
        self.beside.shutdown(wait=False)


def new_name(step: int) -> str:
    """The name of a new checkpoint's folder: never that of one before, of the same step say."""
    return f"step-{step:06d}-{uuid.uuid4().hex[:8]}"


def _not_written(path: Path, errors: list[BaseException]) -> UserError:
    cause: BaseException | None = next((one for one in errors if isinstance(one, OSError)), errors[0])
    why = " ".join(str(cause).split())[:150]
    while cause is not None:  # that of a full disk is behind one of torch's
        if isinstance(cause, OSError):
            why = cause.strerror or str(cause)
        cause = cause.__context__
    return UserError(f"cannot write to {path} ({why}): free some space, and run the same command again")


def written(folder: Path) -> float:
    """When the last checkpoint in a run's folder was complete, in seconds since the epoch; 0 where there is none."""
    return max((path.stat().st_mtime for path in (folder / NAME).glob(f"*/{METADATA}")), default=0.0)


def remove(folder: Path) -> None:
    """The run is over, or begins anew: no checkpoint, and nothing of a write that a kill cut short."""
    shutil.rmtree(folder / NAME, ignore_errors=True)
    for path in (folder / OLD, *folder.glob(".*.tmp")):
        path.unlink(missing_ok=True)
