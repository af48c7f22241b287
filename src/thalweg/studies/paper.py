"""The numbers of the slides and of the paper, as they are printed there."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Number:
    """One printed number; ``source`` is "slides" or "paper", ``batch_size`` is empty where none is printed."""

    source: str
    experiment: str
    dataset: str
    model: str
    batch_size: str
    optimizer: str
    metric: str
    value: str
    note: str

    @property
    def where(self) -> str:
        """The setting, as the head of a column."""
        batch = f"batch {self.batch_size}" if self.batch_size else ""
        return ", ".join(filter(None, (self.dataset, self.model, batch)))


@cache
def numbers() -> tuple[Number, ...]:
    """All of them: ``slides.csv`` first, then ``paper.csv``, both in this package."""
    found = []
    for source in ("slides", "paper"):
        text = files("thalweg.studies").joinpath(f"{source}.csv").read_text("utf-8")
        found += [Number(source, **row) for row in csv.DictReader(text.splitlines())]
    return tuple(found)


def select(wanted: Mapping[str, str]) -> list[Number]:
    """Those whose fields are as wanted.

    >>> [one.value for one in select({"dataset": "CIFAR10", "batch_size": "16384", "optimizer": "ALTO",
    ...                               "metric": "test_accuracy_pct", "source": "slides"})]
    ['88.83']
    """
    return [one for one in numbers() if all(getattr(one, name) == value for name, value in wanted.items())]
