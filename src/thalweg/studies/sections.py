"""What a page is made of: tables, pictures, and sections of both."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from thalweg.studies.claims import Finding


@dataclass(frozen=True, slots=True)
class Grid:
    """A table whose first column names the rows.

    ``lead`` stands above it; ``notes`` say what makes it less than it seems. The cells of ``prose`` are lines of
    Markdown, and wrap.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    prose: bool = False
    lead: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture beside the page, PNG or SVG, and what to see in it."""

    path: Path
    caption: str


@dataclass(frozen=True, slots=True)
class Section:
    """One recipe's part of the page; ``more`` are links to files beside it."""

    title: str = ""
    paragraphs: Sequence[str] = ()
    claims: Sequence[Finding] = ()
    findings: Sequence[str] = ()
    grids: Sequence[Grid] = ()
    pictures: Sequence[Picture] = ()
    more: Sequence[str] = ()


def anchor(title: str) -> str:
    """A title as the fragment of a link to it, as GitHub makes it of a heading.

    >>> anchor("A sine: Adam with and without E")
    'a-sine-adam-with-and-without-e'
    """
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def short_names(optimizers: Iterable[str]) -> dict[str, str]:
    """Names without the hyperparameters that are given the same to all who have them, but for E's own.

    >>> short_names(["sgd:lr=1:momentum=0.9", "lamb:lr=2:momentum=0.9"])
    {'sgd:lr=1:momentum=0.9': 'sgd:lr=1', 'lamb:lr=2:momentum=0.9': 'lamb:lr=2'}
    """
    pairs = {name: [pair.partition("=") for pair in name.split(":")[1:]] for name in optimizers}
    values: dict[str, list[str]] = {}
    for own in pairs.values():
        for key, _, value in own:
            values.setdefault(key, []).append(value)
    shared = {key for key, own in values.items() if len(own) > 1 and len(set(own)) == 1} - {"alpha", "beta"}
    return {
        name: ":".join([name.split(":")[0], *(f"{key}={value}" for key, _, value in own if key not in shared)])
        for name, own in pairs.items()
    }
