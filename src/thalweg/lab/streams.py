"""A published split as a stream: its files are read as they come, and the last ones are held out to score."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thalweg.lab.hub import FORMATS, check_classes, check_whole, checked, files_of, library, nothing, silenced, wanted
from thalweg.lab.split import IMAGE, Kind, Split, first_line, folder_of, problem
from thalweg.records.errors import UserError

NEEDED = 5, 2
"""The version of ``datasets`` needed: older ones lose rows where a stream goes on after ``map``, and know no shards."""
HELD_OUT = 50
"""One file in so many is held out, at least one."""
ENDS = 1 << 16  # bytes; at both ends of a file its content is looked at


@dataclass(frozen=True)
class Streamed(Split):
    """A split whose ``data`` are a ``datasets.IterableDataset``; images are as they are stored.

    ``columns`` is what each must hold, ``identity`` changes with what the files are, and ``held`` are the rows of those
    that are not in the stream.
    """

    columns: Mapping[str, Kind]
    identity: str
    held: Split

    def fault(self, row: int, column: str, what: str) -> UserError:
        """The error that a row's value ``what``; which row it is a stream does not know."""
        return UserError(f"{self.place}, split {self.split}, a row of column {column}: {what}")

    def check(self, rows: Mapping[str, list[Any]]) -> None:
        """Raise :class:`UserError` where a value of these rows, given by column, is not what it must be."""
        import pyarrow

        for column, kind in self.columns.items():
            try:
                wrong = problem(pyarrow.array(rows[column]), kind)
            except pyarrow.ArrowException as error:
                raise self.fault(0, column, f"cannot be read ({first_line(error)})") from None
            if wrong is not None:
                raise self.fault(0, column, wrong[1])


def able(name: str) -> Any:
    """The ``datasets`` library, if it can stream what has this name.

    Raises:
        UserError: it is not installed, or too old.
    """
    datasets = library(name)
    if tuple(int(part) for part in datasets.__version__.split(".")[:2]) < NEEDED:
        raise UserError(
            f"--streaming needs datasets {'.'.join(map(str, NEEDED))} or newer, as older ones lose rows when a run "
            f"resumes; {datasets.__version__} is installed: pip install -U datasets"
        )
    return datasets


def check_resumable(rows: Any, place: str) -> None:
    """Raise :class:`UserError` where a ``datasets.IterableDataset`` goes on with other rows than it would have had."""
    todo = [rows._ex_iterable]
    while todo:
        one = todo.pop()
        if type(one).__name__ == "BufferShuffledExamplesIterable":
            raise UserError(
                f"--streaming cannot read {place} through shuffle(), whose buffer is lost when a run resumes: store "
                "the rows in random order; files are in another order in every pass as it is"
            )
        todo += [getattr(one, "ex_iterable", None), *getattr(one, "ex_iterables", ())] if one is not None else []


def stream(name: str, split: str, columns: Mapping[str, Kind], config: str | None = None) -> Streamed:
    """A split of a published data set, of which only the files that are held out are read here.

    These are the last of :data:`HELD_OUT` by name. The arguments are those of :func:`thalweg.lab.hub.load`.

    Raises:
        UserError: ``datasets`` is too old, the files are not available, not complete or not as they should be, or there
            is only one.
    """
    datasets = able(name)
    with silenced(datasets):
        kind, paths, place, identity = _files(datasets, name, split, columns, config)
        if len(paths) < 2:
            raise UserError(
                f"--streaming needs at least 2 files, as the last is held out to score: {place}, split {split}, has "
                f"{len(paths)}"
            )
        count = max(1, len(paths) // HELD_OUT)
        try:
            data = datasets.load_dataset(kind, data_files=paths[:-count], split="train", streaming=True)
            data = data.select_columns([*columns])
            kept = datasets.load_dataset(kind, data_files=paths[-count:], split="train")
        except Exception as error:  # of a file, or the network
            raise UserError(f"cannot read {place}, split {split} ({first_line(error)}): download it again") from None
    held = checked(datasets, kept, name, split, place, columns)
    for column in (column for column, kind in columns.items() if kind == IMAGE):
        data = data.cast_column(column, datasets.Image(decode=False))
    return Streamed(data, name, split, place, columns, identity, held)


def _files(
    datasets: Any, name: str, split: str, columns: Mapping[str, Kind], config: str | None
) -> tuple[str, list[str], str, str]:
    """The reader of a split's files, these in the order of their names, where they are, and what they are."""
    folder = folder_of(name)
    if folder is None:
        try:
            builder = datasets.load_dataset_builder(name, config)
            paths = sorted((builder.config.data_files or {})[split])
        except Exception as error:  # of the network, the hub, a gate: all are for the user to correct
            raise UserError(f"{wanted(name)} ({first_line(error)})") from None
        kind = type(builder).__module__.rpartition(".")[2]  # parquet, json
        return kind, paths, name, "\n".join(paths)  # which say of which commit they are
    files = files_of(folder, split, config)
    if not files:
        raise UserError(f"--streaming: {nothing(name, folder, split)}")
    check_whole(files, folder, split)
    check_classes(datasets, files, columns, split)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode() + _ends(path))
    return FORMATS[files[0].suffix], [glob.escape(str(path)) for path in files], str(folder), digest.hexdigest()


def _ends(path: Path) -> bytes:
    """The first bytes of a file and the last, where Parquet says what is in it."""
    with path.open("rb") as file:
        first = file.read(ENDS)
        file.seek(max(0, path.stat().st_size - ENDS))
        return first + file.read(ENDS)
