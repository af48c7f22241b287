"""What differences the seeds of a comparison could show, said before they have run."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from thalweg.lab import tasks
from thalweg.lab.search.cells import JUDGED, Reader
from thalweg.records import results
from thalweg.report import statistics, words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from thalweg.lab.search.cells import PlannedCell
    from thalweg.records.metric import Metric


class Spread(NamedTuple):
    """The standard deviation of the difference of two optimizers on a seed, and which seeds showed it."""

    sd: float
    seen: str


def tables(cells: Sequence[PlannedCell]) -> list[list[PlannedCell]]:
    """The cells of each table in which there is something to compare."""
    kept = [cell for cell in cells if cell.left_out is None]
    found = [list(own) for _, own in groupby(kept, key=lambda cell: (cell.task, cell.batch_size, cell.steps))]
    return [own for own in found if len(own) > 1]


def spread(cells: Sequence[PlannedCell], root: Path, reader: Reader) -> Spread | None:
    """What the fresh seeds of a table show so far, or else the tuning seeds of the settings that were chosen."""
    metric = _metric(cells)
    fresh: dict[str, dict[int, float]] = {}
    tuning: dict[str, dict[int, float]] = {}
    for cell in cells:
        if (chosen := cell.chosen(root, reader)) is None:
            continue
        runs = [reader(cell.fresh(root, chosen, number)) for number in range(cell.seeds)]
        fresh[cell.optimizer] = {run.seed: run.test for run in runs if run is not None and run.test is not None}
        tuning[cell.optimizer] = {run.seed: results.judged(run, metric, JUDGED) for run in chosen.runs}
    for seen, values in (("fresh seeds", fresh), ("tuning seeds", tuning)):
        if (sd := statistics.deviation(values, metric)) is not None:
            return Spread(sd, seen)
    return None


def comparisons(cells: Sequence[PlannedCell], root: Path, reference: str | None) -> int:
    """Over how many the report of these cells corrects: the pairs of all tables, those that meet again, all looks."""
    met = Counter(
        (*sorted((a.optimizer, b.optimizer)), tasks.find(a.task).metric)
        for own in tables(cells)
        for a, b in combinations(own, 2)
        if reference in (None, a.optimizer, b.optimizer)
    )
    looks = max((cell.looks(root) for own in tables(cells) for cell in own), default=1)
    return max(1, sum(met.values()) + sum(count > 1 for count in met.values())) * looks


def line(cells: Sequence[PlannedCell], compared: int, found: Spread | None) -> str:
    """What the seeds of a table could show, corrected over so many comparisons."""
    seeds = min(cell.seeds for cell in cells)
    if seeds < 2:
        return "one seed shows no difference"
    corrected = f"corrected over {compared} {words.plural(compared, 'comparison')}"
    least = statistics.detectable(1.0 if found is None else found.sd, seeds, compared)
    if found is None:
        size, by = f"{words.short(least)} times their scatter from seed to seed", ""
    else:
        size, by = _size(least, _metric(cells)), f", as far as its {found.seen} tell"
    return f"{seeds} seeds show differences above {size} four times in five, {corrected}{by}"


def lines(cells: Sequence[PlannedCell], root: Path, reference: str | None) -> list[str]:
    """One for each table whose spread is known, and one for all others that have as many seeds and optimizers."""
    reader, compared = Reader(), comparisons(cells, root, reference)
    found = []
    for own in tables(cells):
        known = spread(own, root, reader)
        said = line(own, compared, known)
        found.append(said if known is None else f"{name(own)}: {said}")
    return list(dict.fromkeys(found))


def name(cells: Sequence[PlannedCell]) -> str:
    """A table in few words."""
    return f"{cells[0].task} {cells[0].batch_size} {cells[0].budget}"


class Listener:
    """Says what the seeds of a table could show as soon as all of its optimizers are tuned."""

    def __init__(
        self, cells: Sequence[PlannedCell], root: Path, reference: str | None, say: Callable[[str], Any]
    ) -> None:
        self.root, self.say, self.reader = root, say, Reader()
        self.compared = comparisons(cells, root, reference)
        self.tables = {(own[0].task, own[0].batch_size, own[0].steps): own for own in tables(cells)}

    def on_message(self, what: str, value: Any) -> None:
        """Told by workers: the first run on a fresh seed shows that the search of its optimizer is over."""
        if what != "run" or value.place.kind != "seed":
            return
        key = (value.spec.task, value.spec.batch_size, value.spec.steps)
        own = self.tables.get(key)
        if own is None or not all(cell.tuned(self.root, self.reader) for cell in own):
            return
        del self.tables[key]
        if (found := spread(own, self.root, self.reader)) is not None:
            self.say(f"{name(own)}: {line(own, self.compared, found)}")


def _metric(cells: Sequence[PlannedCell]) -> Metric:
    task, splits = tasks.load(cells[0].task)
    return task.metric.over(len(splits.test))


def _size(difference: float, metric: Metric) -> str:
    if metric.log:
        return f"a factor of {words.short(math.exp(min(difference, 700.0)))}"
    return f"{words.short(difference)}{words.points(metric)}"
