"""A split of a published data set: its values, and where each of them stands, for what is to be said of it."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thalweg.lab.columns import LabelColumn
from thalweg.lab.originals import VARIABLE
from thalweg.records.errors import UserError

ROWS = "THALWEG_DATA_ROWS"


def folder_of(name: str) -> Path | None:
    """The local folder of what has this name on the hub, or None."""
    root = os.environ.get(VARIABLE)
    found = Path(root, name).expanduser() if root else None
    return found if found is not None and found.is_dir() else None


@dataclass(frozen=True)
class Split:
    """A split of a published data set.

    ``data`` is a ``datasets.Dataset``, ``place`` the folder or the hub's name that it is from, ``files`` are those of
    a folder, in their order. Rows are counted from 0 in each file.
    """

    data: Any
    name: str
    split: str
    place: str
    files: tuple[Path, ...] = ()
    config: str | None = None

    def __len__(self) -> int:
        return len(self.data)

    def values(self, column: str) -> Any:
        """All values of a column; images as they are stored."""
        import datasets

        if isinstance(self.data.features[column], datasets.Image):
            return self.data.cast_column(column, datasets.Image(decode=False))[column]
        return self.data[column]

    def fault(self, row: int, column: str, what: str) -> UserError:
        """The error that this row's value ``what``."""
        place = self.place
        for path in self.files:
            count = _rows_in(path)
            if row < count:
                place = str(path)
                break
            row -= count
        return UserError(f"{place}, split {self.split}, row {row}, column {column}: {what}")

    def classes(self, column: str) -> tuple[str, ...]:
        """The names of the classes that a column's numbers stand for, () where nothing says them.

        They are looked for in the files, then in the ``README.md`` or ``dataset_infos.json`` beside them.
        """
        found = class_names(self.data.features[column])
        if not found and self.files and (folder := folder_of(self.name)) is not None:
            found = _names_in_card(folder, column, self.config)
        return found

    def expect(self, rows: int, published: tuple[int, ...]) -> None:
        """Raise where a split has not as many rows as one of its published forms.

        Raises:
            UserError: other numbers are there, and nothing says that it is meant.
        """
        check_rows(rows, published, f"{self.place}, split {self.split}", fetch(self.name))

    def labels(self, column: str, kind: LabelColumn) -> np.ndarray[Any, Any]:
        """A column of classes, in the order of ``kind.names`` where it has some, whatever order the files have."""
        labels = np.asarray(self.data[column], dtype=np.int64)
        found = self.classes(column)
        if not kind.names or not found or found == tuple(map(str, range(len(found)))):
            return labels
        order = {name.lower(): i for i, name in enumerate(kind.names)}
        if sorted(order) != sorted(name.lower() for name in found):
            raise UserError(
                f"{self.place}, split {self.split}, column {column}, has the classes {', '.join(found)}, not "
                f"{', '.join(kind.names)}"
            )
        return np.asarray([order[name.lower()] for name in found])[labels]

    def pictures(self, column: str, mode: str, size: tuple[int, int]) -> np.ndarray[Any, Any]:
        """A column of images of one size (width, height) as bytes, shape (rows, height, width[, 3])."""
        found = []
        for row, stored in enumerate(self.values(column)):
            image = self.decoded(row, column, stored)
            if image.size != size:
                what = f"is an image of {image.size[0]}x{image.size[1]} pixels, not {size[0]}x{size[1]}"
                raise self.fault(row, column, what)
            found.append(np.asarray(image.convert(mode)))
        return np.stack(found)

    def decoded(self, row: int, column: str, stored: Any) -> Any:
        """The image that is stored in a row, of 8 bits a channel.

        Raises:
            UserError: it cannot be decoded, or has more bits, which Pillow would clip.
        """
        from PIL import Image, UnidentifiedImageError

        try:
            data = stored["bytes"] if isinstance(stored, dict) else stored
            image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data or stored["path"])
            image.load()
        except Exception as error:  # whatever a decoder raises is said of the file
            said = "of no known format" if isinstance(error, UnidentifiedImageError) else first_line(error)
            where = f" {stored['path']}" if isinstance(stored, dict) and not stored["bytes"] else ""
            raise self.fault(row, column, f"the image{where} cannot be decoded ({said})") from None
        if image.mode[0] in "IF":
            raise self.fault(row, column, f"is an image of mode {image.mode}: 8 bits a channel are needed")
        return image


def any_rows() -> bool:
    """Whether data may be other than they were published, as :data:`ROWS` says."""
    wanted = os.environ.get(ROWS, "")
    if wanted not in ("", "any"):
        raise UserError(f"{ROWS} must be 'any' or unset, got {wanted!r}")
    return wanted == "any"


def check_rows(rows: int, published: tuple[int, ...], place: str, remedy: str) -> None:
    """Raise where there are other numbers of rows than published, and nothing says that it is meant.

    Raises:
        UserError: naming the place and the remedy.
    """
    if not any_rows() and published and rows not in published:
        counts = " or ".join(f"{count:,}" for count in published)
        raise UserError(f"{place}, has {rows:,} rows, not {counts}: {remedy}, or set {ROWS}=any if this is intended")


def class_names(feature: Any) -> tuple[str, ...]:
    """The names of a ClassLabel, or of a sequence of them; () of anything else."""
    if isinstance(feature, list):
        feature = feature[0]
    feature = getattr(feature, "feature", feature)
    return tuple(getattr(feature, "names", None) or ())


def _names_in_card(folder: Path, column: str, config: str | None) -> tuple[str, ...]:
    from datasets.info import DatasetInfosDict

    try:
        infos = DatasetInfosDict.from_directory(str(folder))
        found = {
            class_names((info.features or {}).get(column))
            for name, info in infos.items()
            if config is None or name == config
        }
    except Exception as error:
        raise UserError(f"cannot read README.md or dataset_infos.json in {folder} ({first_line(error)})") from None
    found.discard(())
    if len(found) > 1:
        raise UserError(f"{folder}: README.md names the classes of the column {column} in several orders: keep one")
    return found.pop() if found else ()


def lines(path: Path) -> Iterator[bytes]:
    """Those of JSON lines that hold something."""
    with path.open("rb") as file:
        for i, line in enumerate(file):
            if line.strip():
                yield line.removeprefix(b"\xef\xbb\xbf") if i == 0 else line


def _rows_in(path: Path) -> int:
    if path.suffix == ".jsonl":
        return sum(1 for _ in lines(path))
    if path.suffix == ".arrow":
        import datasets

        return len(datasets.Dataset.from_file(str(path)))
    import pyarrow.parquet

    return int(pyarrow.parquet.read_metadata(path).num_rows)


def fetch(name: str, *, weights: bool = False) -> str:
    """The command that does."""
    root = os.environ.get(VARIABLE, "DIR")
    kind = "" if weights else "--repo-type dataset "
    named = "" if VARIABLE in os.environ else f", with {VARIABLE}=DIR"
    return f"hf download {kind}{name} --local-dir {root}/{name}{named}"


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    said = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {said[0]}"[:300]
