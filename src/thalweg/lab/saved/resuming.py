"""The checkpoint that a run resumes from: the newest of its own that is whole, wherever its files lie.

Processes with a folder each have the files that they wrote themselves; all that they hold together is the checkpoint.
Reading one executes no code, and what is damaged is refused, never used.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, create_default_local_load_plan
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from thalweg.lab.failures import Failed, out_of_memory, peer_failure
from thalweg.lab.ranks import agreement
from thalweg.lab.saved.checkpoint import DAMAGED, METADATA, NAME, OF_STEP, OLD, OTHER, RUN, room_for
from thalweg.records.errors import UserError
from thalweg.records.files import writing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn
    from torch.optim import Optimizer


PIECE = 16 * 2**20  # bytes that are sent at a time
PICKLED = {  # what is in .metadata, beside paths and dtypes
    "torch": {"Size"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        *("_MEM_FORMAT_ENCODING", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta"),
        *("TensorProperties", "TensorStorageMetadata"),
    },
    "torch.serialization": {"_get_layout"},
}


class Unreadable(UserError):  # noqa: N818 (a finding about files)
    """Why a checkpoint cannot be used, and the name of the folder that keeps it."""

    def __init__(self, problem: str, aside: str = DAMAGED) -> None:
        super().__init__(problem)
        self.args = problem, aside  # of which it is made again on other processes
        self.problem, self.aside = problem, aside


@contextmanager
def _reading() -> Iterator[None]:
    """What the code inside raises on one process is raised on all: :class:`Unreadable`, unless memory ran out."""
    with agreement.raise_on_all():
        try:
            yield
        except (UserError, Failed):
            raise
        except (Exception, CheckpointException) as error:  # which is no Exception
            cause = next(one for one, _ in error.failures.values()) if isinstance(error, CheckpointException) else error
            said = " ".join(str(cause).split())[:150] or type(cause).__name__
            if (lost := peer_failure(cause)) is not None:
                raise lost from error
            if out_of_memory(cause):
                raise Failed("out of memory", said) from error
            raise Unreadable(f"it cannot be read: {said}") from None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = name in PICKLED.get(module, ())
        known |= module.partition(".")[0] == "pathlib" and name in ("PosixPath", "WindowsPath")
        if known or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in {METADATA}")


def unpickled(data: bytes) -> Metadata:
    """What is in a file ``.metadata``.

    Raises:
        Exception: it is anything else, or the parts of a tensor do not make the whole.
    """
    try:
        found = _Unpickler(io.BytesIO(data)).load()
    except MemoryError:  # a length that a wrong bit has made
        raise ValueError(f"{METADATA} is damaged") from None
    if not isinstance(found, Metadata):
        raise ValueError(f"{METADATA} is of something else")
    for name, one in found.state_dict_metadata.items():
        if not isinstance(one, TensorStorageMetadata):
            raise ValueError(f"{name} is no tensor")
        if sum(math.prod(chunk.sizes) for chunk in one.chunks) != math.prod(one.size):
            raise ValueError(f"{name} is not whole")
    return found


def _check(path: Path, where: Any) -> None:
    """Raise where a tensor is not what was written, which torch does not look for though it writes the sums."""
    with (path / where.relative_path).open("rb") as file:
        file.seek(where.offset)
        with zipfile.ZipFile(io.BytesIO(file.read(where.length))) as parts:
            if parts.testzip() is not None:
                raise ValueError(f"{where.relative_path} is damaged")


class _Reader(FileSystemReader):
    """Takes its metadata from us, as DCP would unpickle whatever is there."""

    def __init__(self, path: Path, metadata: Metadata) -> None:
        super().__init__(path)
        self.metadata = metadata

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        return self.metadata


class _Planner(DefaultLoadPlanner):
    """Reads tensors alone, as anything else would be unpickled too."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> NoReturn:
        raise pickle.UnpicklingError(f"{read_item.dest_index.fqn} is no tensor")


@dataclass(frozen=True, slots=True)
class Stored:
    """A complete checkpoint: its folder's name, its metadata, and the sizes of its files that each process has."""

    name: str
    metadata: Metadata
    held: list[dict[str, int]]

    def needed(self) -> dict[str, int]:
        """Its files, with how many bytes each must have at least."""
        ends: dict[str, int] = {}
        for one in self.metadata.storage_data.values():
            ends[one.relative_path] = max(ends.get(one.relative_path, 0), one.offset + one.length)
        return ends

    def holder(self, file: str) -> int | None:
        """The first process that has this file, all of it."""
        return next((rank for rank, files in enumerate(self.held) if files.get(file, -1) >= self.needed()[file]), None)


class Folder:
    """The checkpoints in a run's folder, or in those of all its processes. All processes call its methods."""

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run  # the hash of its spec
        self.rank = agreement.processes().process_index
        mine = {
            path.name: {file.name: file.stat().st_size for file in path.iterdir() if file.is_file()}
            for path in (folder / NAME).glob("*")
            if OF_STEP.fullmatch(path.name) and path.is_dir()
        }
        self.seen = agreement.gather(mine)
        names = {name for one in self.seen for name in one}
        self.names = sorted(names, key=lambda name: (int(name.split("-")[1]), name))
        self.refused: list[tuple[str, Unreadable]] = []
        self.lost = ""

    def newest(self, model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """What is no tensor of the newest that is whole, and the tensors, each process's own; or None.

        Raises:
            UserError: each process has its own folder, and none has a file that another has written.
            Failed: memory ran out.
        """
        for name in reversed(self.names):
            try:
                if (stored := self._opened(name)) is not None:
                    run = self._run_of(stored)
                    tensors = self._read(stored, run, model, optimizer)
                    self.names.append(self.names.pop(self.names.index(name)))
                    return run, tensors
            except Unreadable as error:
                self.refused.append((name, error))
        if self.lost and any(one != self.seen[0] for one in self.seen):
            raise UserError(self.lost)
        return None

    def _opened(self, name: str) -> Stored | None:
        """None where a kill kept it from being complete."""
        held = [one.get(name, {}) for one in self.seen]
        first = next((rank for rank, files in enumerate(held) if METADATA in files), None)
        if first is None:
            if not all(name in one for one in self.seen):
                self._miss(name, METADATA)
            return None
        with _reading():
            data = (self.folder / NAME / name / METADATA).read_bytes() if self.rank == first else b""
        data = agreement.broadcast(first, data)
        with _reading():
            stored = Stored(name, unpickled(data), held)
            files = stored.needed()
        if lacking := ", ".join(file for file in files if stored.holder(file) is None):
            self._miss(name, lacking)
            raise Unreadable(f"it lacks {lacking}, or a part of that")
        return stored

    def _miss(self, name: str, files: str) -> None:
        places = dict.fromkeys(agreement.gather(str(self.folder / NAME / name)))
        self.lost = self.lost or (
            f"cannot resume: {files}, or a part of that, is in none of {', '.join(places)}: give each process the "
            "folder that it trained in, or begin anew with --no-resume"
        )

    def _run_of(self, stored: Stored) -> dict[str, Any]:
        """What is no tensor of it."""
        with _reading():
            whole = stored.metadata.state_dict_metadata[RUN]
            assert isinstance(whole, TensorStorageMetadata)
            room = {RUN: torch.empty(whole.size, dtype=torch.uint8)}
            (file,) = (one.relative_path for index, one in stored.metadata.storage_data.items() if index.fqn == RUN)
            holder = stored.holder(file)
            assert holder is not None
            if self.rank == holder:
                self._load(stored, room)
        data = agreement.broadcast(holder, room[RUN].numpy().tobytes())
        with _reading():
            run: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            if (other := str(run["spec"])) != self.run:
                raise Unreadable(f"it is of another run ({other[:12]}, this is {self.run})", OTHER)
        return run

    def _read(self, stored: Stored, run: dict[str, Any], model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
        """The tensors of this process, from files that are here or are sent by a process that has them."""
        with _reading():
            room = room_for(run["state"], model, optimizer)
            plan = create_default_local_load_plan(room, stored.metadata)
            where = stored.metadata.storage_data
            wanted = {where[item.storage_index].relative_path for item in plan.items}
        files = stored.needed()
        lacking = {file for file in wanted if stored.held[self.rank].get(file, -1) < files[file]}
        for file in sorted({file for some in agreement.gather(lacking) for file in some}):
            self._send(stored, file, files[file], file in lacking)
        with _reading():
            self._load(stored, room)
        return room

    def _load(self, stored: Stored, room: dict[str, Tensor]) -> None:
        path, items = self.folder / NAME / stored.name, create_default_local_load_plan(room, stored.metadata).items
        for index in {item.storage_index for item in items}:
            _check(path, stored.metadata.storage_data[index])
        reader = _Reader(path, stored.metadata)
        load(room, storage_reader=reader, planner=_Planner(), no_dist=True)

    def _send(self, stored: Stored, file: str, size: int, wanted: bool) -> None:
        """Copy a file from the first process that has it to all that want it."""
        holder, path = stored.holder(file), self.folder / NAME / stored.name / file
        assert holder is not None
        temporary = path.with_name(f".{file}.{self.rank}.tmp")
        for start in range(0, size, PIECE):
            piece = b""
            with agreement.raise_on_all(), writing(path):
                if self.rank == holder:
                    with path.open("rb") as source:
                        source.seek(start)
                        piece = source.read(min(PIECE, size - start))
            piece = agreement.broadcast(holder, piece)
            with agreement.raise_on_all(), writing(path):
                if wanted:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with temporary.open("ab" if start else "wb") as target:
                        target.write(piece)
        with agreement.raise_on_all(), writing(path):
            if wanted:
                temporary.replace(path)

    def put_aside(self, say: Callable[[str], None], step: int) -> None:
        """Rename what cannot be used, and have the first process say so; ``step`` is where the run resumes, or 0.

        Raises:
            UserError: it cannot be renamed.
        """
        begins = f"training {'resumes' if step else 'begins'} at step {step}"
        said = []
        with agreement.raise_on_all():
            for name, error in self.refused:
                path, to = self.folder / NAME / name, self.folder / error.aside / name
                with writing(path), suppress(FileNotFoundError):  # which another process was faster to rename
                    if path.exists():
                        to.parent.mkdir(exist_ok=True)
                        path.rename(to)
                self.names.remove(name)
                said.append(f"{path} is not used: {error.problem}; kept in {error.aside}, {begins}")
            if (old := self.folder / OLD).exists():
                with writing(old), suppress(FileNotFoundError):
                    old.replace(self.folder / f"{OLD}.other")
                said.append(f"{old} is not used: it is of an older version; kept as {OLD}.other, {begins}")
        if self.names and not step:
            said.append(f"no checkpoint in {self.folder / NAME} is complete: {begins}")
        if self.rank == 0:
            for line in said:
                say(line)
