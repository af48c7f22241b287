"""Text that comes with Python: the sources and docstrings of its standard library, and words as numbers."""

from __future__ import annotations

import ast
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from thalweg.lab.tasks.pydoc_lm import REPEATED

PAD, UNKNOWN, START, SEPARATOR = range(4)


def sources(names: Sequence[str]) -> list[str]:
    """The text of these modules, and of all modules of these packages; those that this Python lacks are left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [path for name in names for path in (root / f"{name}.py", *sorted((root / name).rglob("*.py")))]
    return [path.read_text(encoding="utf-8") for path in paths if path.is_file()]


def docstrings(source: str) -> list[str]:
    """The docstrings of a module, its classes and functions."""
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    found = [ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return [text for text in found if text]


def sentences(text: str, shortest: int = 24) -> list[str]:
    r"""The sentences of a text that have at least so many characters, in one line each.

    >>> sentences("Return it.  What is returned is\na list of things.\n\n>>> f(1)\n[1]")
    ['What is returned is a list of things.']
    """
    parts = re.split(r"(?<=[.!?])\s+|\n\s*\n", text)
    lines = [" ".join(part.split()) for part in parts if ">>>" not in part]
    return [line for line in lines if len(line) >= shortest]


def novel(texts: Iterable[str], length: int = REPEATED) -> list[bool]:
    """Whether each text shares no passage of ``length`` characters with any before it, nor is it one of them.

    >>> novel(["abcdefgh", "xxcdefyy", "xxyy", "xxyy"], 4)
    [True, False, True, False]
    """
    seen: set[str] = set()
    found = []
    for text in texts:
        own = {text[i : i + length] for i in range(max(1, len(text) - length + 1))}
        found.append(not own & seen)
        seen |= own
    return found


def words(text: str) -> list[str]:
    """Words and marks, in small letters."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def plain(text: str) -> str:
    """The words and marks of a text, a space between any two."""
    return " ".join(words(text))


class Vocabulary:
    """The most frequent words of some texts as numbers, after those for padding, what is unknown, start and separator.

    Args:
        texts: lists of words.
        size: of the vocabulary, at most.
    """

    def __init__(self, texts: Iterable[Sequence[str]], size: int) -> None:
        counts = Counter(word for text in texts for word in text)
        ranked = sorted(counts, key=lambda word: (-counts[word], word))[: size - 4]
        self.number = {word: 4 + i for i, word in enumerate(ranked)}

    def encode(self, text: Sequence[str]) -> list[int]:
        """The numbers of words."""
        return [self.number.get(word, UNKNOWN) for word in text]


def padded(rows: Sequence[Sequence[int]], length: int, value: int = PAD) -> Tensor:
    """Rows of numbers, each cut or filled to ``length``."""
    return torch.tensor([[*row[:length], *[value] * (length - len(row))] for row in rows])
