"""Which files of a folder make up a split of a data set, and whether all of them are there."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from thalweg.records.errors import UserError

FORMATS = {".parquet": "parquet", ".jsonl": "json", ".arrow": "arrow"}
"""The readers of the ``datasets`` library by the suffix of a file."""
NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""What a split is called in the names of published files and folders."""
IMAGE_SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp"}


def files_of(folder: Path, split: str, config: str | None = None) -> list[Path]:
    """The files of a split: it is a word of their names (``train-00000-of-00002.parquet``) or their folder's name.

    Where the folder has one of the configuration's name, only the files in there count; where it has not, files in
    folders of other names belong to other configurations. Hidden folders, such as a download's cache, do not count.
    """
    words = NAMES.get(split, (split,))
    root = folder / config if config is not None and (folder / config).is_dir() else folder
    found = []
    for path in sorted(root.rglob("*")):
        where = path.relative_to(root)
        if path.suffix not in FORMATS or any(part.startswith(".") for part in where.parts) or not path.is_file():
            continue
        if config is not None and root is folder and where.parent.as_posix() not in (".", "data", *words):
            continue
        if path.parent.name in words or any(word in re.split(r"[-._]", path.stem) for word in words):
            found.append(path)
    return found


def check_whole(files: list[Path], folder: Path, split: str) -> None:
    """Raise where files of one split are the split more than once, or not all that their names count.

    Raises:
        UserError: the files are of several layouts, such as both of the hub's, or a numbered one is missing.
    """
    sets: dict[tuple[Path, str, str, int | None], dict[int, Path]] = defaultdict(dict)
    for path in files:
        counted = re.search(r"(\d+)-of-(\d+)", path.stem)
        numbered = counted or re.search(r"(\d+)$", path.stem)
        prefix = path.stem[: numbered.start()] if numbered else path.stem
        one = sets[path.parent, prefix, path.suffix, int(counted[2]) if counted else None]
        number = int(numbered[1]) if numbered else 0
        if number in one:
            raise UserError(
                f"{folder} has two files number {number} of the split {split}, {one[number].relative_to(folder)} and "
                f"{path.relative_to(folder)}: keep one download of it"
            )
        one[number] = path
    if len(sets) > 1:
        firsts = [next(iter(one.values())).relative_to(folder).as_posix() for one in sets.values()]
        raise UserError(
            f"{folder} holds the split {split} {len(sets)} times ({', '.join(firsts)}): keep one of them (the "
            f"parts of one are numbered, as in {split}-00000-of-00002.parquet)"
        )
    for (_, prefix, suffix, count), one in sets.items():
        numbers = sorted(one)
        first = 1  # some count from 1, the hub from 0
        if 0 in one or one[numbers[0]].stem.isdigit() or (count is not None and count not in one):
            first = 0
        if count is None and len(one) == 1 and first == 1:
            continue  # a name that ends in a number
        expected = range(first, first + (numbers[-1] + 1 - first if count is None else count))
        if beyond := [number for number in numbers if number not in expected]:
            path = one[beyond[0]].relative_to(folder)
            raise UserError(
                f"{folder}, split {split}: {path} has a number beyond the {count} files that its name announces"
            )
        if lacking := [number for number in expected if number not in one]:
            width = len(re.findall(r"\d+", one[numbers[0]].stem[len(prefix) :])[0])
            names = [f"{prefix}{n:0{width}}{f'-of-{count:0{width}}' if count else ''}{suffix}" for n in lacking[:3]]
            raise UserError(
                f"{folder}, split {split}, lacks {', '.join(names)}{', ...' * (len(lacking) > 3)}: it has "
                f"{len(one)} of {len(expected)} files; download the rest"
            )


def image_folder(folder: Path, split: str) -> Path | None:
    """The folder of a split that holds a folder of images for each class, as ImageNet's archives are unpacked.

    Raises:
        UserError: images are in the split's folder itself, so that their classes are unknown.
    """
    for word in NAMES.get(split, (split,)):
        if not (folder / word).is_dir():
            continue
        for path in sorted((folder / word).iterdir()):
            if path.is_dir() and any(one.suffix.lower() in IMAGE_SUFFIXES for one in path.iterdir()):
                return folder / word
            if path.suffix.lower() in IMAGE_SUFFIXES:
                raise UserError(f"{folder / word} holds images, such as {path.name}, but no folder for each class")
    return None
