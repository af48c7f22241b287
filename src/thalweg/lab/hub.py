"""Published data and weights: from a folder of one's own, or from Hugging Face's hub.

``THALWEG_DATA`` names a folder that holds them by the hub's names, as ``hf download`` leaves them::

    hf download --repo-type dataset uoft-cs/cifar10 --local-dir $THALWEG_DATA/uoft-cs/cifar10

What lies there is taken; else the hub is asked, which keeps what it fetched in its own cache.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thalweg.records.errors import UserError

VARIABLE = "THALWEG_DATA"
FORMATS = {".parquet": "parquet", ".jsonl": "json"}


def folder_of(name: str) -> Path | None:
    """The folder of one's own that holds what has this name on the hub, or None."""
    root = os.environ.get(VARIABLE)
    found = Path(root, name).expanduser() if root else None
    return found if found is not None and found.is_dir() else None


def files_of(folder: Path, split: str, config: str | None = None) -> list[Path]:
    """The files of a split: it is a word of their names (``train-00000-of-00002.parquet``) or their folder's name.

    Where the folder has one of the configuration's name, only what lies in there counts.
    """
    if config is not None and (folder / config).is_dir():
        folder = folder / config
    found = [path for path in sorted(folder.rglob("*")) if path.suffix in FORMATS and path.is_file()]
    return [path for path in found if split in re.split(r"[-._]", path.stem) or path.parent.name == split]


def load(name: str, split: str, columns: Sequence[str], config: str | None = None) -> Any:
    """A split of a published data set, as a ``datasets.Dataset`` with at least these columns.

    Args:
        name: ``owner/name`` on the hub.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        columns: what it must have; others are dropped.
        config: which part of the data set, where it has several.

    Raises:
        UserError: it is not to be had, or is something else.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(f"{name} needs the datasets library: pip install 'thalweg[hub]'") from None
    folder = folder_of(name)
    try:
        if folder is not None:
            data = _from_folder(datasets, folder, split, config)
        else:
            data = datasets.load_dataset(name, config, split=split)
    except UserError:
        raise
    except Exception as error:  # of the network, the hub, a gate, a file: all are the user's to mend
        raise UserError(f"{_wanted(name)} ({_first_line(error)})") from None
    if lacking := [column for column in columns if column not in data.column_names]:
        raise UserError(
            f"{folder or name}, split {split}, needs the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}: it has "
            f"{', '.join(data.column_names)}"
        )
    return data.select_columns(list(columns))


def _from_folder(datasets: Any, folder: Path, split: str, config: str | None) -> Any:
    files = files_of(folder, split, config)
    if not files:
        raise UserError(f"{folder} has no Parquet file of the split {split} ({split}-00000-of-00001.parquet)")
    kinds = {path.suffix for path in files}
    if len(kinds) > 1:
        raise UserError(f"{folder} has files of the split {split} in {' and '.join(sorted(kinds))}: leave one kind")
    return datasets.load_dataset(FORMATS[kinds.pop()], data_files=[str(path) for path in files], split="train")


def images(data: Any, column: str) -> Any:
    """The data set with this column decoded as images, also where its files do not say that they are."""
    import datasets

    return data.cast_column(column, datasets.Image())


def pretrained(kind: Any, name: str, **options: Any) -> Any:
    """``kind.from_pretrained`` of what has this name: weights, a tokenizer or a configuration of transformers.

    Raises:
        UserError: it is not to be had.
    """
    folder = folder_of(name)
    try:
        return kind.from_pretrained(folder or name, **options)
    except Exception as error:
        raise UserError(f"{_wanted(name, weights=True)} ({_first_line(error)})") from None


def _wanted(name: str, *, weights: bool = False) -> str:
    root = os.environ.get(VARIABLE, "DIR")
    kind = "" if weights else "--repo-type dataset "
    named = "" if VARIABLE in os.environ else f", with {VARIABLE}=DIR"
    what = "the weights and tokenizer" if weights else "the data"
    return f"cannot get {what} {name}: hf download {kind}{name} --local-dir {root}/{name}{named}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]
