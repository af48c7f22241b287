"""A split of a published data set: where it may be, what its columns must hold, and its values."""

from __future__ import annotations

import io
import os
import shlex
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from thalweg.records.errors import UserError

VARIABLE = "THALWEG_DATA"
ROWS = "THALWEG_DATA_ROWS"
TEXT, IMAGE, WORDS, TAGS = "a text", "an image", "a sequence of words", "a sequence of words or whole numbers"


@dataclass(frozen=True)
class Classes:
    """A class in each row, as a whole number below ``count``.

    ``names`` are those of the classes in the order that the task counts them, where a number of the task depends on it.
    """

    count: int
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"a whole number from 0 to {self.count - 1}"


Kind: TypeAlias = str | Classes
"""What each row of a column must hold: :data:`TEXT`, :data:`IMAGE`, :data:`WORDS`, :data:`TAGS`, or a class."""


def problem(column: Any, kind: Kind) -> tuple[int, str] | None:
    """The first row of an Arrow column that is null or not of a kind, and what is wrong with it, or None."""
    import pyarrow
    from pyarrow import compute, types

    def is_text(type_: Any) -> bool:
        return bool(types.is_string(type_) or types.is_large_string(type_))

    if kind != IMAGE and (found := undecodable(column)) is not None:
        return found
    type_, wrong = column.type, compute.is_null(column)
    if isinstance(kind, Classes):
        if right := types.is_integer(type_):
            numbers = column.cast("float64", safe=False)  # comparing integers of 64 bits without a sign fails
            beyond = compute.or_(compute.less(numbers, 0), compute.greater_equal(numbers, kind.count))
            wrong = compute.or_kleene(wrong, beyond)
    elif kind == TEXT:
        right = is_text(type_)
    elif kind == IMAGE:  # bytes or the path of a file; whether it can be decoded shows when it is
        stored = {field.name for field in type_} & {"bytes", "path"} if types.is_struct(type_) else set()
        right = bool(stored) or types.is_binary(type_) or types.is_large_binary(type_) or is_text(type_)
        if stored:
            empty = [compute.is_null(compute.struct_field(column, name)) for name in stored]
            wrong = compute.or_(wrong, reduce(compute.and_, empty))
    else:
        right = types.is_list(type_) or types.is_large_list(type_)
        right = right and (is_text(type_.value_type) or (kind == TAGS and types.is_integer(type_.value_type)))
        if right and compute.list_flatten(column).null_count:
            wrong = pyarrow.array([value is None or None in value for value in column.to_pylist()])
    row = compute.index(wrong, True).as_py() if right else min(len(column), 1) - 1
    if row < 0:
        return None
    value = column[row].as_py()
    if value is None or (right and kind == IMAGE):
        return row, "is null"
    hidden = ", which stands for a label that is not published" if right and value == -1 else ""
    return row, f"is {value!r:.60}{'' if right else f' ({type_})'}{hidden}, not {kind}"


def undecodable(column: Any) -> tuple[int, str] | None:
    """The first row with a text that is not UTF-8, which reading JSON lines lets pass, and what is wrong; or None."""
    import pyarrow

    try:
        column.validate(full=True)
    except pyarrow.ArrowInvalid:
        for row, value in enumerate(column):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                return row, f"is not UTF-8 ({error})"
    return None


@dataclass(frozen=True)
class Split:
    """A split of a published data set.

    ``data`` is a ``datasets.Dataset``, ``place`` the file, the folder or the hub's name that it is from. Rows are
    counted from 0, over all files in the order of their names.
    """

    data: Any
    name: str
    split: str
    place: str

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
        return UserError(f"{self.place}, split {self.split}, row {row}, column {column}: {what}")

    def classes(self, column: str) -> tuple[str, ...]:
        """The names of the classes that a column's numbers stand for, () where the files do not say them."""
        return class_names(self.data.features[column])

    def expect(self, rows: int, published: tuple[int, ...]) -> None:
        """Raise where a split has not as many rows as one of its published forms.

        Raises:
            UserError: other numbers are there, and nothing says that it is meant.
        """
        check_rows(rows, published, f"{self.place}, split {self.split}", fetch(self.name))

    def labels(self, column: str, kind: Classes) -> np.ndarray[Any, Any]:
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
            where = f" {stored['path']}" if isinstance(stored, dict) and stored["bytes"] is None else ""
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
    """Raise where there are no rows, or not as many as published and nothing says that it is meant.

    Raises:
        UserError: naming the place and the remedy.
    """
    if rows < 1:
        raise UserError(f"{place}, has no rows: {remedy}")
    if not any_rows() and published and rows not in published:
        counts = " or ".join(f"{count:,}" for count in published)
        raise UserError(f"{place}, has {rows:,} rows, not {counts}: {remedy}, or set {ROWS}=any if this is intended")


def class_names(feature: Any) -> tuple[str, ...]:
    """The names of a ClassLabel, or of a list of them; () of anything else."""
    return tuple(getattr(getattr(feature, "feature", feature), "names", None) or ())


def folder_of(name: str) -> Path | None:
    """The local folder of what has this name on the hub, or None."""
    root = os.environ.get(VARIABLE)
    found = Path(root, name).expanduser() if root else None
    return found if found is not None and found.is_dir() else None


def fetch(name: str, *, weights: bool = False) -> str:
    """The command that does."""
    root = os.environ.get(VARIABLE)
    kind = "" if weights else "--repo-type dataset "
    where = shlex.quote(str(Path(root or "DIR", name).expanduser()))
    return f"hf download {kind}{name} --local-dir {where}{'' if root else f', with {VARIABLE}=DIR'}"


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    said = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {said[0]}"[:300]
