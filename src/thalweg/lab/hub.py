"""Published data and weights: from a local folder, or from Hugging Face's hub.

``THALWEG_DATA`` names a folder that holds them by the hub's names, as ``hf download`` leaves them::

    hf download --repo-type dataset uoft-cs/cifar10 --local-dir $THALWEG_DATA/uoft-cs/cifar10

What is there is used; anything else is fetched from the hub, whose client has a cache of its own. Data in the form of
their first publication are converted by :mod:`thalweg.lab.originals`.

All that is read is checked: the number of files that their names count, the published number of rows, and each value.
With ``THALWEG_DATA_ROWS=any`` a folder that was cut down on purpose may have any number of rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from thalweg.lab import layout, originals
from thalweg.lab.columns import Column, ImageColumn, kind_of
from thalweg.lab.originals import VARIABLE
from thalweg.lab.split import ROWS, Split, class_names, fetch, first_line, folder_of, lines
from thalweg.records.errors import UserError

__all__ = ["ROWS", "VARIABLE", "Split", "folder_of", "load", "pretrained", "same_classes"]


def load(
    name: str, split: str, columns: Mapping[str, Column], config: str | None = None, published: tuple[int, ...] = ()
) -> Split:
    """A split of a published data set, with at least these columns, each value checked.

    Args:
        name: ``owner/name`` on the hub.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        columns: what it must have, and what that must hold; others are dropped.
        config: which part of the data set, where it has several.
        published: how many rows it has, in each of its published forms; () where that is not known.

    Raises:
        UserError: it is not available, not complete or not as it should be; one line that names the file and the row.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(f"{name} needs the datasets library: pip install 'thalweg[hub]'") from None
    folder = folder_of(name)
    with _Silenced(datasets):
        if folder is not None:
            found = _from_folder(datasets, name, folder, split, columns, config)
        else:
            try:
                data = datasets.load_dataset(name, config, split=split)
            except Exception as error:  # of the network, the hub, a gate: all are for the user to correct
                raise UserError(f"{_wanted(name)} ({first_line(error)})") from None
            found = Split(data, name, split, name, config=config)
    _need(columns, found.data.column_names, str(found.files[0]) if found.files else found.place, split)
    found.expect(len(found), published)
    found = _checked(found, columns)
    for column, kind in columns.items():
        if isinstance(kind, ImageColumn):
            found = _with(found, found.data.cast_column(column, datasets.Image()))
    return found


def same_classes(column: str, *splits: Split) -> None:
    """Raise :class:`UserError` where splits name the classes of a column in different orders."""
    named = [(one, found) for one in splits if (found := one.classes(column))]
    for (a, first), (b, second) in pairwise(named):
        if first != second:
            raise UserError(
                f"{a.place}, column {column}: the splits {a.split} and {b.split} have other classes, or in "
                "another order: take both from one copy"
            )


def _from_folder(
    datasets: Any, name: str, folder: Path, split: str, columns: Mapping[str, Column], config: str | None
) -> Split:
    files = layout.files_of(folder, split, config)
    if not files:
        if any(isinstance(kind, ImageColumn) for kind in columns.values()) and (
            images := layout.image_folder(folder, split)
        ):
            return _image_folder(datasets, name, folder, split, images)
        raise UserError(_nothing(name, folder, split))
    layout.check_whole(files, folder, split)
    if files[0].suffix == ".parquet":
        _check_parquet(datasets, files, split, columns)
    reader = layout.FORMATS[files[0].suffix]
    try:
        data = datasets.load_dataset(reader, data_files=[str(path) for path in files], split="train")
    except Exception as error:
        raise _culprit(datasets, files, split, error) from None
    return Split(data, name, split, str(folder), tuple(files), config)


def _image_folder(datasets: Any, name: str, folder: Path, split: str, images: Path) -> Split:
    """Classes are the names of the folders, sorted: for ImageNet's WordNet numbers that is the published order."""
    data = datasets.load_dataset("imagefolder", data_dir=str(images), split="train", drop_labels=False)
    return Split(data, name, split, str(images))


def _nothing(name: str, folder: Path, split: str) -> str:
    if (original := originals.recognised(folder)) is not None:
        return f"{folder} holds {original.title}: convert them with {originals.command(original.name, folder)}"
    others = [path.name for path in sorted(folder.rglob("*")) if path.is_file() and path.name.startswith(split)]
    has = f"; it has {', '.join(others[:3])}" if others else ""
    return (
        f"{folder} has no Parquet file of the split {split} ({split}-00000-of-00001.parquet){has}: {fetch(name)}; "
        f"{split}*.jsonl and {split}*.arrow are read as well, and of images a folder a class"
    )


def _check_parquet(datasets: Any, files: list[Path], split: str, columns: Mapping[str, Column]) -> None:
    """Raise where a file is none, lacks a column, or has other types or classes than the first."""
    import pyarrow.parquet

    first: dict[str, tuple[str, tuple[str, ...]]] = {}
    for path in files:
        try:
            schema = pyarrow.parquet.read_schema(path)
            stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
            features = datasets.Features.from_dict(stored) if stored else {}
        except Exception as error:
            raise _unreadable(path, split, error) from None
        _need(columns, schema.names, str(path), split)
        for column in columns:
            here = kind_of(schema.field(column).type), class_names(features.get(column))
            before = first.setdefault(column, here)
            if here != before:
                what = f"{here[0]}, not {before[0]}" if here[0] != before[0] else "of other classes or another order"
                raise UserError(f"{path}, split {split}, column {column}: is {what} as in {files[0].name}")


def _checked(found: Split, columns: Mapping[str, Column]) -> Split:
    """With these columns alone, every value of them as it should be.

    Raises:
        UserError: one is not; the first.
    """
    found = _with(found, found.data.select_columns(list(columns)))
    for column, kind in columns.items():
        if kind.right(found.data.data.column(column), found.data.features[column]):
            continue
        for row, value in enumerate(found.values(column)):
            if (what := kind.problem(value)) is not None:
                raise found.fault(row, column, what)
    return found


def _with(found: Split, data: Any) -> Split:
    return Split(data, found.name, found.split, found.place, found.files, found.config)


def _need(columns: Mapping[str, Column], has: Any, place: str, split: str) -> None:
    if lacking := [column for column in columns if column not in has]:
        raise UserError(
            f"{place}, split {split}, needs the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}: it has "
            f"{', '.join(has)}"
        )


def _culprit(datasets: Any, files: list[Path], split: str, error: Exception) -> UserError:
    """The error that names the file, and of JSON lines the row, that could not be read."""
    for path in files:
        if path.suffix == ".jsonl":
            for row, line in enumerate(lines(path)):
                try:
                    what = None if isinstance(json.loads(line), dict) else "is not an object"
                except ValueError as found:
                    what = f"is not JSON ({first_line(found)})"
                if what is not None:
                    return UserError(f"{path}, split {split}, row {row}: {what}")
    for path in files:
        try:
            datasets.load_dataset(layout.FORMATS[path.suffix], data_files=[str(path)], split="train")
        except Exception as found:
            return _unreadable(path, split, found.__cause__ or found)
    return _unreadable(files[0], split, error.__cause__ or error)


def _unreadable(path: Path, split: str, error: BaseException) -> UserError:
    with path.open("rb") as file:
        pointer = file.read(20).startswith(b"version https://git")
    remedy = "it is a pointer of Git LFS: git lfs pull" if pointer else "download it again"
    return UserError(f"cannot read {path}, split {split} ({first_line(error)}): {remedy}")


class _Silenced:
    """What is wrong with a file is said once, by us."""

    def __init__(self, datasets: Any) -> None:
        self.logging = datasets.logging

    def __enter__(self) -> None:
        self.before = self.logging.get_verbosity()
        self.logging.set_verbosity(self.logging.CRITICAL)

    def __exit__(self, *_: object) -> None:
        self.logging.set_verbosity(self.before)


def pretrained(kind: Any, name: str, **options: Any) -> Any:
    """``kind.from_pretrained`` of what has this name: weights, a tokenizer or a configuration of transformers.

    Raises:
        UserError: it is not available.
    """
    folder = folder_of(name)
    try:
        return kind.from_pretrained(folder or name, **options)
    except Exception as error:
        raise UserError(f"{_wanted(name, weights=True)} ({first_line(error)})") from None


def _wanted(name: str, *, weights: bool = False) -> str:
    what = "the weights and tokenizer" if weights else "the data"
    return f"cannot get {what} {name}: {fetch(name, weights=weights)}"
