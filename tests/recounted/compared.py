"""What is said of the recipes that compare optimizers: their tables, claims and results.csv."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import numpy as np

from recounted.arithmetic import Interval, student

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from recounted.archive import Archive, Record
    from recounted.printed import Cell, Page

KEY = ("task", "batch_size", "steps", "optimizer", "kind", "study", "round", "number", "seed")
HEAD = ("training loss", "steps to target", "seconds to target", "reached", "ms per step", "setting")


@dataclass
class Run:
    spec: Record
    result: Record
    history: list[Record]
    environment: Record

    @property
    def finished(self) -> bool:
        return bool(self.result["status"] == "finished")

    @property
    def place(self) -> Record:
        place: Record = self.spec["place"]
        return place


@dataclass
class Contender:
    """One optimizer at one task, batch size and length."""

    cell: Record
    trials: list[Run] = field(default_factory=list)
    seeds: list[Run] = field(default_factory=list)
    step_seconds: float | None = None

    @property
    def metric(self) -> Record:
        metric: Record = self.cell["metric"]
        return metric

    def judged(self, runs: Sequence[Run]) -> float:
        """What a trial counts for: the mean over its seeds of the last evaluation, or of the last fifth of them."""
        fifth = self.cell.get("judged") == "last fifth"
        log = self.metric["log"]
        of_runs = []
        for run in runs:
            last = [line["validation"] for line in run.history[-max(1, len(run.history) // 5) :]]
            values = last if fifth else [run.result["validation"]]
            of_runs.append(mean([math.log(value) if log else value for value in values]))
        return math.exp(mean(of_runs)) if log else mean(of_runs)

    @property
    def chosen(self) -> Run | None:
        """A run of the best trial; of several studies, of the one whose best is the median. One that failed is none."""
        sign = 1.0 if self.metric["goal"] == "min" else -1.0
        trials: dict[tuple[int, int, int], list[Run]] = defaultdict(list)
        for run in self.trials:
            trials[tuple(run.place[at] for at in ("study", "round", "number"))].append(run)
        bests: dict[int, tuple[float, Run]] = {}
        for (study, _, _), runs in sorted(trials.items()):
            if all(run.finished and math.isfinite(run.result["validation"]) for run in runs):
                found = sign * self.judged(runs), runs[0]
                bests[study] = min(bests.get(study, found), found, key=lambda one: one[0])
        ordered = sorted(bests.values(), key=lambda one: one[0])
        return ordered[(len(ordered) - 1) // 2][1] if ordered else None

    @property
    def at_edge(self) -> bool:
        """Whether the chosen learning rate is in the outer tenths of all that was searched, beyond its range too."""
        found, axis = self.chosen, next(one for one in self.cell["space"] if one["name"] == "lr")
        if found is None or "lr" not in found.place["point"]:
            return False
        tried = [run.place["point"]["lr"] for run in self.trials]
        scale = math.log if axis["log"] else float
        low, high = scale(min(axis["low"], *tried)), scale(max(axis["high"], *tried))
        return not 0.1 <= (scale(found.place["point"]["lr"]) - low) / (high - low) <= 0.9

    @property
    def tests(self) -> list[float]:
        return [run.result["test"] for run in self.seeds if run.finished]

    @property
    def losses(self) -> list[float]:
        return [run.history[-1]["loss"] for run in self.seeds if run.finished]

    @property
    def spent(self) -> list[int]:
        """Steps to the target, of a seed that never got there the whole run."""
        return [self.cell["steps"] if not run.finished or (at := run.result["steps_to_target"]) is None else at
                for run in self.seeds]  # fmt: skip

    @property
    def late(self) -> set[int]:
        """The seeds that never got to the target."""
        return {run.spec["seed"] for run in self.seeds if not run.finished or run.result["steps_to_target"] is None}

    @property
    def diverged(self) -> bool:
        return not any(run.finished for run in self.seeds)

    @property
    def at_chance(self) -> bool:
        """Whether its mean is not better than the best constant prediction by more than its own interval."""
        chance = self.cell.get("chance")
        if chance is None or self.diverged:
            return False
        found = spanned(self.tests, self.metric)
        return found.low <= chance if self.metric["goal"] == "max" else found.high >= chance

    def by_seed(self, measure: str) -> dict[int, float | None]:
        """What a claim measures on each seed, None where there is nothing."""
        if measure == "steps to target":
            return dict(zip((run.spec["seed"] for run in self.seeds), self.spent, strict=True))
        return {
            run.spec["seed"]: None if not run.finished
            else run.history[-1]["loss"] if measure == "training loss" else run.result["test"]
            for run in self.seeds
        }  # fmt: skip

    @property
    def reached(self) -> int:
        return sum(run.finished and run.result["steps_to_target"] is not None for run in self.seeds)


@dataclass
class Table:
    """All optimizers at one task, batch size and length, by name."""

    key: tuple[str, int, int]
    contenders: dict[str, Contender] = field(default_factory=dict)

    @property
    def any(self) -> Record:
        return next(iter(self.contenders.values())).cell

    @property
    def name(self) -> str:
        return "{}, batch size {}, {} steps".format(*self.key)

    def named(self, name: str) -> Contender | None:
        """An optimizer by its name, or the only one with more settings given."""
        more = [one for full, one in self.contenders.items() if full.startswith(f"{name}:")]
        return self.contenders.get(name) or (more[0] if len(more) == 1 else None)

    def rank(self, short: str) -> tuple[bool, float, float, str]:
        """Best first: who learnt something, who failed on the smaller share of seeds, then by the mean."""
        name = self.short[short]
        one = self.contenders[name]
        sign = -1.0 if one.metric["goal"] == "max" else 1.0
        failed = 1.0 - len(one.tests) / len(one.seeds)
        return one.at_chance, failed, sign * spanned(one.tests, one.metric).mean, name

    @property
    def short(self) -> dict[str, str]:
        """Names without what is given alike to all that have it, but for E's own, to full names."""
        values: dict[str, list[str]] = defaultdict(list)
        for name in self.contenders:
            for key, _, value in (part.partition("=") for part in name.split(":")[1:]):
                values[key].append(value)
        alike = {key for key, own in values.items() if len(own) > 1 and len(set(own)) == 1} - {"alpha", "beta"}
        return {
            ":".join(part for part in name.split(":") if part.partition("=")[0] not in alike): name
            for name in self.contenders
        }


def tables_of(archive: Archive, experiment: str) -> list[Table]:
    files = archive.files[experiment]
    folders = {
        str(PurePosixPath(path).parent): Contender(cell) for path, cell in files.items() if path.endswith("/cell.json")
    }
    for path, spec in files.items():
        if path.endswith("spec.json"):
            at = PurePosixPath(path).parent
            run = Run(spec, *(files[f"{at}/{name}"] for name in ("result.json", "metrics.jsonl", "environment.json")))
            contender = folders[str(at.parents[0 if spec["place"]["kind"] == "seed" else 1])]
            (contender.seeds if spec["place"]["kind"] == "seed" else contender.trials).append(run)
    found: dict[tuple[str, int, int], Table] = {}
    for folder, one in sorted(folders.items()):
        key = (one.cell["task"], one.cell["batch_size"], one.cell["steps"])
        found.setdefault(key, Table(key)).contenders[one.cell["optimizer"]] = one
        one.trials.sort(key=lambda run: [run.place[at] for at in ("study", "round", "number")])
        one.seeds.sort(key=lambda run: run.spec["seed"])
        timed = files.get(f"{PurePosixPath(folder).parents[1]}/timing/{key[2]}-steps.json", {"seconds": {}})["seconds"]
        one.step_seconds = median(timed[one.cell["optimizer"]]) if one.cell["optimizer"] in timed else None
    return [found[key] for key in sorted(found)]


def spanned(values: Sequence[float], metric: Record) -> Interval:
    """The interval of a mean, of logarithms on a logarithmic axis.

    Its standard error is carried to the logarithm of the distance from a bound, or to the log-odds between two.
    """
    if metric["log"]:
        return Interval(*np.exp(student(np.log(values))))
    one, low, high = student(values), metric["low"], metric.get("high")
    if high is None:
        far = math.exp(one.half / (one.mean - low))
        return Interval(one.mean, low + (one.mean - low) / far, low + (one.mean - low) * far)
    share = (one.mean - low) / (high - low)
    far = one.half / (high - low) / (share * (1.0 - share))
    odds = [math.log(share / (1.0 - share)) + sign * far for sign in (-1.0, 1.0)]
    return Interval(one.mean, *(low + (high - low) / (1.0 + math.exp(-value)) for value in odds))


def results(page: Page, lines: range, found: Sequence[Table]) -> None:
    """The tables of a section, with the notes under them."""
    shown = [one for one in page.tables(lines) if one.title.text.startswith("Here: ")]
    if len(shown) != len(found):
        page.wrong(lines.start, f"{len(shown)} tables", f"{len(found)} tables")
    for printed, table in zip(shown, found, strict=False):
        known = table.any
        page.sentence(
            printed.title, f"Here: {known['task']}, batch size {{}}, {{}} steps, {{}} epochs",
            [known["batch_size"], known["steps"], known["steps"] * known["batch_size"] / known["train_examples"]],
        )  # fmt: skip
        metric = known["metric"]
        unit = f", {metric['unit']}" if metric["unit"] else ""
        for cell, words in zip(printed.head, ("optimizer", f"{metric['name']} (95 %{unit})", *HEAD), strict=True):
            page.text(cell, words)
        names = table.short
        shown_names = [row[0].text for row in printed.rows]
        if sorted(shown_names) != sorted(names):
            line = next((row[0].line for row in printed.rows if row[0].text not in names), printed.title.line)
            page.wrong(line, ", ".join(shown_names), ", ".join(names))
            continue
        page.order(printed.title.line, shown_names, sorted(names, key=table.rank))
        for row in printed.rows:
            page.seen(row[0])
            _row(page, row[1:], table.contenders[names[row[0].text]])
        edges = [row[0].text for row in printed.rows if table.contenders[names[row[0].text]].at_edge]
        note = printed.rows[-1][0].line + 2
        said = page[note] if page[note].startswith("The best learning rate is at the edge") else ""
        listed = f"{', '.join(edges[:-1])} and {edges[-1]}" if len(edges) > 1 else "".join(edges)
        page.note(note, said, f"The best learning rate is at the edge of the range tried: {listed}." if edges else "")


def _row(page: Page, cells: Sequence[Cell], one: Contender) -> None:
    test, loss, steps, seconds, reached, milliseconds, setting = cells
    page.cell(test, *spanned(one.tests, one.metric), template="{} ({} to {})")
    page.cell(loss, mean(one.losses), significant=(3,))
    bound = "≥ " if one.reached < len(one.seeds) else ""
    page.cell(steps, mean(one.spent), template=f"{bound}{{}}")
    timed = [] if one.step_seconds is None else [one.step_seconds]
    page.cell(seconds, *(mean(one.spent) * x for x in timed), template=f"{bound}{{}}", significant=(3,))
    page.cell(reached, one.reached, len(one.seeds), template="{}/{}")
    page.cell(milliseconds, *(1000.0 * x for x in timed), significant=(3,))
    chosen = one.chosen
    assert chosen is not None
    for run in one.seeds:
        if run.spec["settings"] != chosen.spec["settings"]:
            page.wrong(setting.line, f"seeds at {run.spec['settings']}", f"the best trial's {chosen.spec['settings']}")
    pairs = list(chosen.spec["settings"].items())
    page.sentence(
        setting, ", ".join(f"{name}={{}}" for name, _ in pairs), [value for _, value in pairs], significant=(3,)
    )


def csv_of(path: Path, found: Iterable[Table]) -> tuple[int, list[tuple[int, str, str]]]:
    """How many numbers were compared, and where results.csv differs from the records: line, there, here."""
    wanted = []
    for table in found:
        for one in table.contenders.values():
            for run in (*one.trials, *one.seeds):
                result, place = run.result, run.place
                wanted.append({
                    **{key: run.spec[key] for key in ("task", "batch_size", "steps", "optimizer", "seed")},
                    "budget": one.cell["budget"], "kind": place["kind"],
                    **{key: place[key] for key in ("study", "round", "number")},
                    **{key: result.get(key) for key in ("failure", "reason", "validation", "test", "seconds",
                                                    "steps_to_target", "seconds_to_target")},
                    **{f"set.{key}": value for key, value in run.spec["settings"].items()},
                    **{f"at.{key}": value for key, value in run.environment.items()},
                })  # fmt: skip
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    compared, differ = 0, []
    if len(rows) != len(wanted):
        return 0, [(1, f"{len(rows)} rows", f"{len(wanted)} rows")]

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in KEY)

    ours = {key(row): row for row in wanted}
    for line, row in enumerate(rows, 2):
        own = ours.get(key(row), {})
        for name in row.keys() | own.keys():
            there, here = row.get(name) or "", own.get(name)
            number = isinstance(here, (int, float)) and not isinstance(here, bool)
            compared += number
            same = (float(there or "nan") == here) if number else there == ("" if here is None else str(here))
            if not same:
                differ.append((line, f"{name} {there}", str(here)))
    return compared, differ
