"""Data in the form of their first publication, converted once into the Parquet files that the tasks read.

So ::

    python -m thalweg.lab.originals uoft-cs/cifar10 cifar-10-batches-py

writes ``$THALWEG_DATA/uoft-cs/cifar10/train-00000-of-00001.parquet`` and so on. What can be converted:

==========================  ==================================================================
``uoft-cs/cifar10``         Python's batches (``data_batch_1``) or the binary ones
``uoft-cs/cifar100``        Python's (``train``, ``test``) or the binary ones
``lhoestq/conll2003``       columns of text: ``eng.train``, ``eng.testa``, ``eng.testb``, or
                            ``train.txt``, ``valid.txt``, ``test.txt``
``nyu-mll/glue``            MRPC: ``msr_paraphrase_{train,test}.txt`` and GLUE's list of the
                            pairs to validate on, ``mrpc_dev_ids.tsv``, or its ``dev.tsv``
``stanfordnlp/imdb``        ``aclImdb``: a file a review in ``{train,test}/{pos,neg}``
==========================  ==================================================================

Nothing in a file is executed: of a pickle only arrays, numbers, texts and their containers are read.
"""

from __future__ import annotations

import argparse
import csv
import os
import pickle
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thalweg.records.errors import UserError

VARIABLE = "THALWEG_DATA"
ENTITIES = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")

Rows = dict[str, dict[str, list[Any]]]


@dataclass(frozen=True)
class Original:
    """A form: the hub's name of the data, what to call it, the files that tell it, and what reads it."""

    name: str
    title: str
    marks: tuple[str, ...]
    read: Callable[[Path], Rows]
    folder: str = ""


def recognised(folder: Path) -> Original | None:
    """The form that the files of a folder have, or None."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if ".cache" not in path.parts}
    for one in ORIGINALS:
        if any(f"/{name}".endswith(f"/{mark}") for name in names for mark in one.marks):
            return one
    return None


def command(name: str, source: Path) -> str:
    """What to type."""
    return f"python -m thalweg.lab.originals {name} {shlex.quote(str(source))}"


def convert(name: str, source: Path, root: Path) -> list[Path]:
    """Read the files in ``source`` and write one Parquet file per split below ``root``; their paths.

    Raises:
        UserError: no such form, a file is missing, or a line of one is something else.
    """
    forms = {one.name: one for one in ORIGINALS}
    if name not in forms:
        raise UserError(f"cannot convert {name!r}: choose from {', '.join(forms)}")
    if not source.is_dir():
        raise UserError(f"{source} is not a folder: unpack the archive, and give its folder")
    try:
        import datasets
    except ImportError:
        raise UserError("converting needs the datasets library: pip install 'thalweg[hub]'") from None
    rows = forms[name].read(source)
    written = []
    for split, columns in rows.items():
        path = root / name / forms[name].folder / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = datasets.Dataset.from_dict(columns, features=_features(datasets, columns))
        aside = path.with_suffix(".partial")
        data.to_parquet(aside)
        aside.replace(path)
        written.append(path)
    return written


def _features(datasets: Any, columns: dict[str, list[Any]]) -> Any:
    kinds = {
        "img": datasets.Image(),
        "tokens": datasets.List(datasets.Value("string")),
        "ner_tags": datasets.List(datasets.ClassLabel(names=list(ENTITIES))),
        "text": datasets.Value("string"),
        "sentence1": datasets.Value("string"),
        "sentence2": datasets.Value("string"),
    }
    label = datasets.Value("int64")
    if "text" in columns:
        label = datasets.ClassLabel(names=["neg", "pos"])
    elif "sentence1" in columns:
        label = datasets.ClassLabel(names=["not_equivalent", "equivalent"])
    return datasets.Features({name: kinds.get(name, label) for name in columns})


def _found(source: Path, *names: str) -> Path:
    """The one file below ``source`` with the first of these names that is there."""
    for name in names:
        paths = sorted(path for path in source.rglob(name) if path.is_file())
        if len(paths) > 1:
            raise UserError(f"{source} has several files {name}: give the folder of one")
        if paths:
            return paths[0]
    raise UserError(f"{source} has no file {' or '.join(names)}")


# CIFAR


class _Unpickler(pickle.Unpickler):
    """Of arrays, numbers, texts and their containers alone: any other class or function is refused."""

    ALLOWED = frozenset(
        [(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")]
        + [("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")]
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a batch of images")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _batch(path: Path, labels: tuple[str, ...]) -> tuple[Any, dict[str, list[int]]]:
    """Images, shape (n, 3, 32, 32), and their labels by name."""
    try:
        if path.suffix == ".bin":
            rows = np.fromfile(path, np.uint8).reshape(-1, len(labels) + 3072)
            data, found = rows[:, len(labels) :], {name: rows[:, i].tolist() for i, name in enumerate(labels)}
        else:
            with path.open("rb") as file:
                batch = _Unpickler(file, encoding="bytes").load()
            data = np.asarray(batch[b"data"])
            keys = [(name, f"{name}s".encode()) for name in labels]
            found = {name: [int(label) for label in batch[key]] for name, key in keys}
        if data.dtype != np.uint8 or any(len(one) != len(data) for one in found.values()):
            raise ValueError("its images are not bytes, or not as many as its labels")
        return data.reshape(-1, 3, 32, 32), found
    except Exception as error:  # whatever reading a damaged pickle raises is said of the file
        raise UserError(f"cannot read {path} ({type(error).__name__}: {error}): download it again") from None


def _cifar(source: Path, files: dict[str, tuple[str, ...]], labels: tuple[str, ...], kept: tuple[str, ...]) -> Rows:
    from PIL import Image

    found: Rows = {}
    for split, names in files.items():
        columns = found[split] = {"img": [], **{name: [] for name in kept}}
        for name in names:
            images, numbers = _batch(_found(source, name, f"{name}.bin"), labels)
            columns["img"] += [Image.fromarray(image) for image in images.transpose(0, 2, 3, 1)]
            for label in kept:
                columns[label] += numbers[label]
    return found


def _cifar10(source: Path) -> Rows:
    train = tuple(f"data_batch_{i}" for i in range(1, 6))
    return _cifar(source, {"train": train, "test": ("test_batch",)}, ("label",), ("label",))


def _cifar100(source: Path) -> Rows:
    labels = ("coarse_label", "fine_label")  # the order of the binary form
    return _cifar(source, {"train": ("train",), "test": ("test",)}, labels, labels[::-1])


# CoNLL-2003


def iob2(tags: list[str]) -> list[str]:
    """Tags of any of the usual schemes as IOB2, where each entity, and nothing else, begins with B.

    In IOB1, of the original files, only an entity that touches another of its type does; BIOES and BILOU also mark ends
    (E, L) and entities of one word (S, U).
    """
    found = []
    before = ""
    for tag in tags:
        mark, _, kind = tag.partition("-")
        mark = {"E": "I", "L": "I", "S": "B", "U": "B"}.get(mark, mark)
        found.append(tag if not kind else f"B-{kind}" if mark == "I" and kind != before else f"{mark}-{kind}")
        before = kind
    return found


def _sentences(path: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Words and tags of each sentence of a file with a word a line: its first column and its last."""
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        fields = line.split()
        if fields and fields[0] == "-DOCSTART-":
            continue
        if not fields:
            if words:
                yield words, iob2(tags)
            words, tags = [], []
            continue
        if len(fields) < 2 or iob2([fields[-1]])[0] not in ENTITIES:
            raise UserError(f"{path}, line {number}: {line.strip()!r:.60} is not a word followed by its columns")
        words.append(fields[0])
        tags.append(fields[-1])
    if words:
        yield words, iob2(tags)


def _conll(source: Path) -> Rows:
    names = {"train": "eng.train", "validation": "eng.testa", "test": "eng.testb"}
    found: Rows = {}
    for split, name in names.items():
        other = {"validation": "valid.txt"}.get(split, f"{split}.txt")
        columns = found[split] = {"tokens": [], "ner_tags": []}
        for words, tags in _sentences(_found(source, name, other)):
            columns["tokens"].append(words)
            columns["ner_tags"].append([ENTITIES.index(tag) for tag in tags])
    return found


# MRPC


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some have a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error})") from None


def _table(path: Path) -> list[list[str]]:
    """Fields between tabs; quotation marks are part of the text."""
    lines = [line.rstrip("\r") for line in _text(path).split("\n")]
    return list(csv.reader([line for line in lines if line], delimiter="\t", quoting=csv.QUOTE_NONE))


def _pairs(path: Path) -> dict[tuple[str, str], tuple[int, str, str]]:
    """Label and sentences by the numbers of the sentences."""
    found = {}
    for number, row in enumerate(_table(path)[1:], 2):
        if len(row) != 5 or row[0] not in ("0", "1"):
            raise UserError(f"{path}, line {number}: not a label (0 or 1), two numbers and two sentences between tabs")
        found[row[1], row[2]] = int(row[0]), row[3], row[4]
    return found


def _mrpc(source: Path) -> Rows:
    test = _pairs(_found(source, "msr_paraphrase_test.txt"))
    ids = _found(source, "mrpc_dev_ids.tsv", "dev_ids.tsv", "dev.tsv")
    if ids.name == "dev.tsv":
        validation, train = _pairs(ids), _pairs(_found(source, "train.tsv"))
    else:
        whole = _pairs(_found(source, "msr_paraphrase_train.txt"))
        chosen = [(row[0], row[1]) for row in _table(ids) if len(row) == 2]
        if not chosen or not whole.keys() >= set(chosen):
            raise UserError(f"{ids} is not a list of pairs of msr_paraphrase_train.txt")
        validation = {key: whole[key] for key in chosen}
        train = {key: pair for key, pair in whole.items() if key not in validation}
    parts = {"train": train, "validation": validation, "test": test}
    return {
        split: dict(zip(("label", "sentence1", "sentence2"), map(list, zip(*pairs.values(), strict=True)), strict=True))
        for split, pairs in parts.items()
    }


# IMDB


def _imdb(source: Path) -> Rows:
    root = source / "aclImdb" if (source / "aclImdb").is_dir() else source
    found: Rows = {}
    for split in ("train", "test"):
        columns = found[split] = {"text": [], "label": []}
        for label, kind in enumerate(("neg", "pos")):
            paths = sorted((root / split / kind).glob("*.txt"))
            if not paths:
                raise UserError(f"{root / split / kind} has no reviews (0_3.txt and so on)")
            columns["text"] += [_text(path) for path in paths]
            columns["label"] += [label] * len(paths)
    return found


ORIGINALS = (
    Original("uoft-cs/cifar10", "CIFAR-10's batches", ("data_batch_1", "data_batch_1.bin"), _cifar10),
    Original("uoft-cs/cifar100", "CIFAR-100's batches", ("cifar-100-python/train", "fine_label_names.txt"), _cifar100),
    Original("lhoestq/conll2003", "CoNLL-2003's columns", ("eng.train", "valid.txt", "eng.testa"), _conll),
    Original(
        "nyu-mll/glue", "MRPC's tables", ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt"), _mrpc, folder="mrpc"
    ),
    Original("stanfordnlp/imdb", "IMDB's reviews, a file each", ("train/pos", "train/neg"), _imdb),
)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m thalweg.lab.originals", description=__doc__.splitlines()[0])
    parser.add_argument("name", help=f"one of {', '.join(one.name for one in ORIGINALS)}")
    parser.add_argument("source", type=Path, help="the folder of the original files")
    parser.add_argument("--to", type=Path, help=f"the folder of all data (default: ${VARIABLE})")
    given = parser.parse_args(arguments)
    try:
        root = given.to or os.environ.get(VARIABLE)
        if not root:
            raise UserError(f"no output folder: set {VARIABLE}, or give one with --to")
        for path in convert(given.name, given.source.expanduser(), Path(root).expanduser()):
            print(path)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
