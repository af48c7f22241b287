"""A printed page: which of its numerals and verdicts agree with what was computed again, and which nobody looked at."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from itertools import cycle
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

NUMERAL = r"[-−+]?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?"
# Digits of a name, as in GPT-2, β1 or float32, are none of a number.
ALONE = re.compile(rf"(?<![\w./-]){NUMERAL}(?![\w])|(?<=\d[-/]){NUMERAL}(?![\w])")
SLOT = re.compile(r"\{(v?)\}")


@dataclass(frozen=True)
class Cell:
    """A piece of a line, with where it begins."""

    line: int
    start: int
    text: str


@dataclass(frozen=True)
class Table:
    title: Cell
    head: list[Cell]
    rows: list[list[Cell]]


@dataclass
class Page:
    """Lines counted from 1, as editors do; ``differ`` has (section, line, printed, computed)."""

    lines: list[str]
    numbers: int = 0
    verdicts: int = 0
    differ: list[tuple[str, int, str, str]] = field(default_factory=list)
    looked_at: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def __getitem__(self, line: int) -> str:
        return self.lines[line - 1]

    def section(self, line: int) -> str:
        heads = [text for text in self.lines[:line] if text.startswith("## ")]
        return heads[-1][3:] if heads else "preface"

    def sections(self) -> Iterator[tuple[str, range]]:
        """Titles with the lines under them; the first, without a title, is what stands before all."""
        starts = [i for i, text in enumerate(self.lines, 1) if text.startswith("## ")]
        for start, end in zip([0, *starts], [*starts, len(self.lines) + 1], strict=True):
            yield self[start][3:] if start else "", range(start + 1, end)

    def seen(self, cell: Cell) -> None:
        self.looked_at.setdefault(cell.line, []).append((cell.start, cell.start + len(cell.text)))

    def wrong(self, line: int, printed: str, computed: str) -> None:
        self.differ.append((self.section(line), line, printed, computed))

    def number(self, cell: Cell, value: float, significant: int = 0) -> None:
        self.numbers += 1
        self.seen(cell)
        if not agrees(cell.text, value, significant):
            self.wrong(cell.line, cell.text, f"{value:.8g}")

    def verdict(self, cell: Cell, word: str) -> None:
        self.verdicts += 1
        self.seen(cell)
        if cell.text != word:
            self.wrong(cell.line, cell.text, word)

    def text(self, cell: Cell, wanted: str) -> None:
        """What is neither, but has to be there: names, and what a recipe says."""
        self.seen(cell)
        if cell.text != wanted:
            self.wrong(cell.line, cell.text, wanted)

    def cell(self, cell: Cell, *values: float, template: str = "{}", significant: tuple[int, ...] = (0,)) -> None:
        """A cell with so many significant digits in turn; empty where there is no value."""
        self.sentence(cell, template if values else "", values, significant=significant)

    def sentence(
        self, cell: Cell, template: str, numbers: Sequence[float], verdicts: Sequence[str] = (),
        significant: tuple[int, ...] = (0,),
    ) -> None:  # fmt: skip
        """A sentence with ``{}`` where its numbers are and ``{v}`` where its verdicts; the rest has to be the same."""
        pattern, end = "", 0
        for slot in SLOT.finditer(template):
            pattern += re.escape(template[end : slot.start()]) + ("(.+?)" if slot[1] else f"({NUMERAL})")
            end = slot.end()
        found = re.fullmatch(pattern + re.escape(template[end:]), cell.text)
        slots = [slot[1] for slot in SLOT.finditer(template)]
        self.seen(cell)
        if found is None or slots.count("") != len(numbers):
            values = iter([f"{value:.6g}" for value in numbers])
            words = iter(verdicts)
            filled = SLOT.sub(lambda slot: next(words if slot[1] else values, "?"), template)
            self.verdicts += 1
            self.wrong(cell.line, cell.text, filled + "".join(f" [{rest}]" for rest in values))
            return
        values, words, digits = iter(numbers), iter(verdicts), cycle(significant)
        for group, slot in enumerate(slots, 1):
            piece = Cell(cell.line, cell.start + found.start(group), found[group])
            if slot:
                self.verdict(piece, next(words))
            else:
                self.number(piece, next(values), next(digits))

    def order(self, line: int, said: list[str], wanted: list[str]) -> None:
        """Who stands before whom, which is a verdict."""
        self.verdicts += 1
        if said != wanted:
            self.wrong(line, ", ".join(said), ", ".join(wanted))

    def note(self, line: int, said: str, wanted: str) -> None:
        """A sentence that stands somewhere or does not: "" for none."""
        if said or wanted:
            self.verdict(Cell(line, 0, said), wanted)

    def bullets(self, lines: Iterable[int]) -> list[Cell]:
        return [Cell(i, 2, self[i][2:]) for i in lines if self[i].startswith("- ")]

    def tables(self, lines: range) -> list[Table]:
        found = []
        for i in lines:
            if not self[i].startswith("|---"):
                continue
            end = next((j for j in range(i, lines.stop) if not self[j].startswith("|")), lines.stop)
            title = self[i - 3]
            found.append(Table(Cell(i - 3, 2, title[2:-2]), self._cells(i - 1), [*map(self._cells, range(i + 1, end))]))
        return found

    def _cells(self, line: int) -> list[Cell]:
        cells, start = [], 2
        for text in self[line][2:-2].split(" | "):
            cells.append(Cell(line, start, text))
            start += len(text) + 3
        return cells

    def not_looked_at(self) -> list[tuple[int, str]]:
        """Numerals that nobody compared with anything."""
        found = []
        for line, text in enumerate(self.lines, 1):
            spans = self.looked_at.get(line, [])
            for numeral in ALONE.finditer(text):
                if not any(start <= numeral.start() and numeral.end() <= end for start, end in spans):
                    found.append((line, numeral[0]))
        return found


def agrees(printed: str, value: float, significant: int = 0) -> bool:
    """Whether ``value`` rounds to the numeral at its printed digits; a half may go either way.

    Where ``significant`` digits are printed but for zeros at the end, at these.

    >>> agrees("0.12", 0.1249), agrees("0.12", 0.1251), agrees("1.3e+02", 134.0), agrees("1,331", 1331.4)
    (True, False, True, True)
    >>> agrees("1", 1.2), agrees("1", 1.2, significant=3), agrees("1", 1.002, significant=3)
    (True, False, True)
    """
    text = printed.replace(",", "").replace("−", "-")
    mantissa, _, exponent = text.partition("e")
    digits = len(mantissa.partition(".")[2])
    unit = 10.0 ** (int(exponent or 0) - digits)
    if significant and math.isfinite(value) and value:
        unit = min(unit, 10.0 ** (math.floor(math.log10(abs(value))) + 1 - significant))
    return math.isfinite(value) and abs(float(text) - value) <= unit * 0.5 * (1 + 1e-9) + 1e-12 * abs(value)
