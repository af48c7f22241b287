"""Sentences of docstrings: what they are about, and whether two belong together."""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import torch
from torch import nn

from thalweg.lab.tasks.base import Budget, Rows, Splits, without_duplicates
from thalweg.lab.tasks.classification import Classification, YesOrNo
from thalweg.lab.tasks.small_bert import small_bert
from thalweg.lab.tasks.stdlib import (
    PAD,
    SEPARATOR,
    START,
    Vocabulary,
    docstrings,
    novel,
    padded,
    plain,
    sentences,
    sources,
    words,
)

AREAS = {
    "mail and the web": (
        "email", "http", "urllib", "smtplib", "imaplib", "poplib", "ftplib", "mailbox", "xmlrpc", "wsgiref",
        "socket", "socketserver", "ssl", "ipaddress", "mimetypes", "webbrowser",
    ),
    "concurrency": (
        "asyncio", "multiprocessing", "concurrent", "threading", "subprocess", "queue", "sched", "selectors",
    ),
    "numbers and time": (
        "_pydecimal", "statistics", "fractions", "numbers", "random", "datetime", "_pydatetime", "calendar", "colorsys",
        "heapq", "bisect", "uuid", "secrets",
    ),
    "tests and debugging": (
        "unittest", "doctest", "pdb", "bdb", "traceback", "trace", "inspect", "pydoc", "cProfile", "profile", "pstats",
        "timeit", "logging", "warnings",
    ),
    "modules and classes": (
        "importlib", "pkgutil", "runpy", "modulefinder", "zipimport", "typing", "enum", "dataclasses", "functools",
        "collections", "_collections_abc", "abc", "ast", "dis", "symtable", "copy", "types", "weakref", "contextlib",
    ),
    "files and texts": (
        "xml", "json", "tarfile", "zipfile", "shutil", "pathlib", "os", "_pyio", "codecs", "configparser", "csv",
        "difflib", "textwrap", "string", "re", "tempfile", "glob", "fnmatch", "gzip", "bz2", "lzma", "base64", "html",
        "tokenize", "plistlib", "pickle", "optparse", "argparse", "getopt", "gettext", "locale",
    ),
}  # fmt: skip


@cache
def _documents() -> list[tuple[int, list[str]]]:
    """The area and the sentences of every docstring, shuffled."""
    found = [
        (area, lines)
        for area, names in enumerate(AREAS.values())
        for source in sources(names)
        for text in docstrings(source)
        if (lines := sentences(text))
    ]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(7)).tolist()
    return [found[i] for i in order]


def subjects() -> tuple[list[tuple[int, str]], ...]:
    """Sentences with the numbers of their areas: 80, 10 and 10 % to train on, to validate and to test."""
    rows = [(area, line) for area, lines in _documents() for line in lines]
    rows = [row for row, new in zip(rows, novel(plain(line) for _, line in rows), strict=True) if new]
    tenth = len(rows) // 10
    return rows[2 * tenth :], rows[:tenth], rows[tenth : 2 * tenth]


class PydocSentences(Classification):
    """What a sentence of a docstring is about: which of six areas of the standard library its module belongs to.

    A sentence that shares 32 characters in a row with one before it, whatever their case, is left out, so that no
    passage of a test sentence stands in training.
    """

    name = "pydoc-sentences"
    title = "sentences of the standard library's docstrings by subject, BERT of 2 layers"
    budgets: ClassVar = (Budget(32, 320, 50.0), Budget(1024, 20, 30.0), Budget(1024, 100, 60.0, "long"))
    example_cost = 260.0
    length: ClassVar[int] = 32
    vocabulary: ClassVar[int] = 4096

    def splits(self) -> Splits:
        """80, 10 and 10 % of the sentences."""
        parts = subjects()
        known = Vocabulary((words(line) for _, line in parts[0]), self.vocabulary)
        return without_duplicates(*(self._rows(part, known) for part in parts))

    def _rows(self, part: list[tuple[int, str]], known: Vocabulary) -> Rows:
        ids = padded([[START, *known.encode(words(line))] for _, line in part], self.length)
        return Rows({"input_ids": ids, "attention_mask": (ids != PAD).long()}, torch.tensor([area for area, _ in part]))

    def model(self) -> nn.Module:
        """A small BERT with one label for the whole."""
        return small_bert(
            "BertForSequenceClassification", vocabulary=self.vocabulary, length=self.length, labels=len(AREAS)
        )


class PydocPairs(YesOrNo):
    """Whether two neighbouring sentences of a docstring stand in their order or the other way round (as ALBERT's).

    Each pair is shown both ways. A pair of which one sentence shares 32 characters in a row with one before is left
    out.
    """

    name = "pydoc-pairs"
    title = "pairs of sentences of a docstring in their order or the other way round, BERT of 2 layers"
    budgets: ClassVar = (Budget(32, 320, 65.0), Budget(1024, 30, 60.0), Budget(1024, 100, 62.0, "long"))
    example_cost = 450.0
    length: ClassVar[int] = 48
    vocabulary: ClassVar[int] = 4096

    def splits(self) -> Splits:
        """80, 10 and 10 % of the pairs."""
        rows = [pair for _, lines in _documents() for pair in zip(lines[::2], lines[1::2], strict=False)]
        new = novel(plain(line) for pair in rows for line in pair)
        rows = [pair for pair, both in zip(rows, zip(new[::2], new[1::2], strict=True), strict=True) if all(both)]
        tenth = len(rows) // 10
        parts = rows[2 * tenth :], rows[:tenth], rows[tenth : 2 * tenth]
        known = Vocabulary((words(line) for pair in parts[0] for line in pair), self.vocabulary)
        return without_duplicates(*(self._rows(part, known) for part in parts))

    def _rows(self, part: list[tuple[str, str]], known: Vocabulary) -> Rows:
        half = self.length // 2
        encoded = [[known.encode(words(line))[: half - 1] for line in pair] for pair in part]
        shown = [([START, *a], [SEPARATOR, *b]) for pair in encoded for a, b in (pair, pair[::-1])]
        ids = padded([[*a, *b] for a, b in shown], self.length)
        kinds = padded([[*[0] * len(a), *[1] * len(b)] for a, b in shown], self.length)
        return Rows(
            {"input_ids": ids, "attention_mask": (ids != PAD).long(), "token_type_ids": kinds},
            torch.tensor([1, 0] * len(part)),
        )

    def model(self) -> nn.Module:
        """A small BERT with one label for the pair; from a smaller deviation large batches take long to get going."""
        return small_bert(
            "BertForSequenceClassification", vocabulary=self.vocabulary, length=self.length, labels=2, deviation=0.1
        )
