"""Which part of Python source is what, as Python's own tokenizer says."""

from __future__ import annotations

import io
import keyword
import re
import tokenize
from typing import ClassVar

import torch
from torch import nn

from thalweg.lab.tasks.base import Budget, Rows, Splits, without_duplicates
from thalweg.lab.tasks.classification import Tagging
from thalweg.lab.tasks.pydoc_lm import without_repeats
from thalweg.lab.tasks.small_bert import small_bert
from thalweg.lab.tasks.stdlib import Vocabulary, padded, sources

MODULES = (
    "ast", "base64", "bdb", "bisect", "calendar", "cmd", "code", "codecs", "compileall", "contextlib", "copy", "csv",
    "dis", "filecmp", "fileinput", "fractions", "ftplib", "functools", "getopt", "gettext", "gzip", "hashlib", "heapq",
    "ipaddress", "locale", "mimetypes", "netrc", "pathlib", "pdb", "pkgutil", "platform", "plistlib", "poplib",
    "pprint", "profile", "queue", "quopri", "random", "sched", "selectors", "shelve", "shlex", "shutil", "smtplib",
    "socket", "socketserver", "string", "tempfile", "textwrap", "threading", "timeit", "trace", "uuid", "warnings",
    "weakref",
)  # fmt: skip
KINDS = ("NAME", "KEYWORD", "NUMBER", "STRING", "COMMENT")
PIECE = re.compile(r"\w+|\n[ \t]*|[^\w\s]")
REPEATED_PIECES = 16


class Piece(str):
    """A piece of source that carries its label; it equals every piece of the same text."""

    __slots__ = ("label",)
    label: str


def pieces(source: str) -> tuple[Piece, ...]:
    """Words, marks and line breaks with their indentation, labelled by the token of Python they stand in.

    >>> [(str(piece), piece.label) for piece in pieces("if x: 'a b'")]  # doctest: +NORMALIZE_WHITESPACE
    [('if', 'B-KEYWORD'), ('x', 'B-NAME'), (':', 'O'),
     ("'", 'B-STRING'), ('a', 'I-STRING'), ('b', 'I-STRING'), ("'", 'I-STRING')]
    """
    kinds = _spans(source)
    found, spans, at = [], iter(kinds), (0, 0, "")
    begun = None
    for match in PIECE.finditer(source):
        while match.start() >= at[1] and at[2] != "end":
            at = next(spans, (0, 0, "end"))
        piece = Piece(match.group())
        inside = at[2] != "end" and at[0] <= match.start() < at[1]
        piece.label = f"{'I' if begun is at else 'B'}-{at[2]}" if inside else "O"
        begun = at if inside else None
        found.append(piece)
    return tuple(found)


def _spans(source: str) -> list[tuple[int, int, str]]:
    """Start, end and kind of each token of one of the kinds; an f-string, whatever it holds, is a string."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    found: list[tuple[int, int, str]] = []
    depth, opened = 0, 0  # of f-strings, which since Python 3.12 are several tokens
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        start, end = (starts[row - 1] + column for row, column in (token.start, token.end))
        name = tokenize.tok_name[token.type]
        if name.endswith("STRING_START"):
            opened, depth = (opened if depth else start), depth + 1
        elif name.endswith("STRING_END"):
            depth -= 1
            if not depth:
                found.append((opened, end, "STRING"))
        elif not depth and name in ("NAME", "NUMBER", "STRING", "COMMENT"):
            found.append((start, end, "KEYWORD" if keyword.iskeyword(token.string) else name))
    return found


def passages() -> list[list[tuple[Piece, ...]]]:
    """Source to train on, to validate and to test, of about 80, 10 and 10 % of the modules, less what is repeated."""
    texts = [pieces(source) for source in sources(MODULES)]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(5)).tolist()
    kept = without_repeats([texts[i] for i in order], REPEATED_PIECES)
    tenth = len(texts) // 10
    return [
        [part for text in texts for part in text]
        for texts in (kept[2 * tenth :], kept[:tenth], kept[tenth : 2 * tenth])
    ]


class PythonTokens(Tagging):
    """Names, keywords, numbers, strings and comments in the standard library's source, by a small BERT.

    The source is cut into words and marks, of which the model sees 48 in a row and says for each what it belongs to:
    whether a word is a name or stands in a docstring, which may have begun before the window. Modules are in one split
    each, and of every passage of 16 pieces only the first is kept.
    """

    name = "python-tokens"
    title = "tokens of Python source (names, keywords, numbers, strings, comments), BERT of 2 layers"
    budgets: ClassVar = (Budget(32, 320, 65.0), Budget(1024, 20, 50.0), Budget(1024, 100, 65.0, "long"))
    example_cost = 450.0
    labels = ("O", *(f"{place}-{kind}" for kind in KINDS for place in "BI"))
    length: ClassVar[int] = 48
    vocabulary: ClassVar[int] = 2048

    def splits(self) -> Splits:
        """Modules in three sets, about 80, 10 and 10 % of them."""
        parts = passages()
        known = Vocabulary(parts[0], self.vocabulary)
        return without_duplicates(*(self._rows(part, known) for part in parts))

    def _rows(self, parts: list[tuple[Piece, ...]], known: Vocabulary) -> Rows:
        n = self.length
        windows = [part[i : i + n] for part in parts for i in range(0, len(part) - n + 1, n)]
        ids = padded([known.encode(window) for window in windows], n)
        number = {label: i for i, label in enumerate(self.labels)}
        return Rows({"input_ids": ids}, torch.tensor([[number[piece.label] for piece in window] for window in windows]))

    def model(self) -> nn.Module:
        """A small BERT with a label for each token."""
        return small_bert(
            "BertForTokenClassification", vocabulary=self.vocabulary, length=self.length, labels=len(self.labels)
        )
