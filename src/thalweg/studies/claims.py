"""Each claim of the slides as one sentence: what is printed, what was found here, and whether the two agree."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

from thalweg.records.metric import Metric
from thalweg.report import words
from thalweg.report.decisions import Outcome, Paired, Pooled, pool
from thalweg.report.statistics import detectable, paired
from thalweg.studies import paper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from thalweg.records.results import Run
    from thalweg.report.summary import RankedTable, Row, Summary
    from thalweg.studies.recipe import Claim

LOSS = Metric("training loss", "min", low=0.0)
STEPS = Metric("steps to target", "min", unit="steps", low=0.0)
SAID = {
    Outcome.BETTER: "holds", Outcome.WORSE: "does not hold", Outcome.EQUIVALENT: "equivalent",
    Outcome.UNDECIDED: "undecided", Outcome.NOT_COMPARABLE: "not comparable",
}  # fmt: skip
UNTESTED = "not tested here"
Tested = tuple["RankedTable", Metric, Paired]


def marked(outcome: Outcome) -> str:
    """What a verdict says of a claim, behind its mark."""
    return f"{words.MARKS[outcome]} {SAID[outcome]}"


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim, in each table where it is tested how a and b differ, and a sentence for each where it cannot be."""

    claim: Claim
    found: tuple[Tested, ...]
    untested: tuple[str, ...] = ()
    pooled: Pooled | None = None

    @property
    def verdict(self) -> str:
        """In how many tables a is better than b, worse, equivalent, and so on."""
        counts = Counter(pair.verdict for _, _, pair in self.found)
        said = [f"{marked(outcome)} in {counts[outcome]}" for outcome in SAID if counts[outcome]]
        if len(counts) < 2:
            return next((marked(outcome) for outcome in counts), UNTESTED)
        return ", ".join([f"{said[0]} of {len(self.found)}", *said[1:]])

    @property
    def leads(self) -> list[str]:
        """By how much a is ahead in each table, with its interval and mark."""
        found = [lead(pair, metric) for _, metric, pair in self.found]
        if self.pooled is not None:
            found.append(f"pooled: {words.mark(self.pooled)} {words.lead(self.pooled, self.found[0][1])}")
        return found

    @property
    def comparisons(self) -> int:
        """How many tests this is: those that could come out either way."""
        return sum(pair.verdict is not Outcome.NOT_COMPARABLE for _, _, pair in self.found) + (self.pooled is not None)

    def corrected(self, comparisons: int) -> Finding:
        """The same, each test as one of so many."""
        found = tuple((table, metric, replace(pair, comparisons=comparisons)) for table, metric, pair in self.found)
        return replace(self, found=found, pooled=self.pooled and replace(self.pooled, comparisons=comparisons))


@dataclass(frozen=True, slots=True)
class Everywhere:
    """Two optimizers over all tables of one metric in which claims of several kinds compare them."""

    a: str
    b: str
    metric: Metric
    meet: int
    found: Pooled


def findings_of(claims: Sequence[Claim], summary: Summary, margin: float | None = None) -> list[Finding]:
    """Test all claims of a recipe, each as if it were the only one: see :meth:`Finding.corrected`.

    Args:
        claims: what is tested, each by its own margin if it has one.
        summary: what was found.
        margin: the recipe's, in the unit of the test metric; None for the metric's own.
    """
    return [_of(claim, summary, margin) for claim in claims]


def _of(claim: Claim, summary: Summary, margin: float | None) -> Finding:
    """One claim, tested in each table.

    Steps to a target are not pooled: the longest runs would be nearly all of their mean, and a table in which a target
    was missed would be left out for how it ended.
    """
    found: list[Tested] = []
    untested = []
    for table in summary.tables:
        if not _applies(claim, table):
            continue
        metric = {"training loss": LOSS, "steps to target": STEPS}.get(claim.measure, table.metric)
        (a, lost_a, late_a), (b, lost_b, late_b) = (_by_seed(claim.measure, table, name) for name in (claim.a, claim.b))
        own = claim.margin if claim.margin is not None else margin if claim.measure == "test" else None
        pair = paired(a, b, metric, censored=(late_a, late_b), failed=(lost_a, lost_b), margin=own)
        if pair is not None:
            found.append((table, metric, replace(pair, left_out=_left_out(table, claim))))
        elif a and b:
            untested.append(_too_few(table, claim, a, b))
    of_one = len({(metric.name, metric.unit) for _, metric, _ in found}) == 1 and claim.measure != "steps to target"
    return Finding(claim, tuple(found), tuple(untested), pool([pair for _, _, pair in found]) if of_one else None)


def everywhere(findings: Sequence[Finding]) -> list[Everywhere]:
    """The pools of optimizers that several claims compare by one metric, each table once.

    Of two experiments that train the same task, batch size and length, the one with more seeds, or the first: trained
    again from the same seeds it would be counted twice.
    """
    met: dict[tuple[str, str, str, str], list[tuple[int, Tested]]] = {}
    for k, finding in enumerate(findings):
        a, b = finding.claim.a, finding.claim.b
        for table, metric, pair in finding.found:
            key = (a, b, metric.name, metric.unit)
            back = (b, a, metric.name, metric.unit)
            one = (k, (table, metric, pair.reverse() if back in met else pair))
            met.setdefault(back if back in met else key, []).append(one)
    pools = []
    for (a, b, name, _), own in met.items():
        if name == STEPS.name:
            continue
        tables: dict[tuple[str, int, int], Paired] = {}
        for _, (table, _, pair) in own:
            place = table.task, table.batch_size, table.steps
            if place not in tables or pair.seeds > tables[place].seeds:
                tables[place] = pair
        found = pool(list(tables.values()))
        if found is not None and len({k for k, _ in own}) > 1:
            pools.append(Everywhere(a, b, own[0][1][1], len(tables), found))
    return pools


def counted(findings: Sequence[Finding], comparisons: int, looks: int = 1) -> str:
    """How many tests are decided, what the others could have shown, and over how many all are corrected."""
    tests = [
        (pair, metric)
        for one in findings
        for _, metric, pair in one.found
        if pair.verdict is not Outcome.NOT_COMPARABLE
    ]
    if not tests:
        return ""
    said = f"{words.tally(tests, 'test')}, one for each claim and table."
    shown: dict[int, list[float]] = {}
    for pair, metric in tests:
        if metric.unit == "%" and pair.spread:
            shown.setdefault(pair.seeds, []).append(detectable(pair.spread, pair.seeds, comparisons))
    if shown:
        least = [f"{median(shown[seeds]):.2g} points of {seeds}" for seeds in sorted(shown, reverse=True)]
        said += f" Half of those of accuracies could show only differences above {words.listed(least)} seeds."
    return f"{said} With the means over tables, {words.corrected(comparisons, looks)}"


def _left_out(table: RankedTable, claim: Claim) -> str:
    """Who of the two learnt nothing here."""
    rows = [(name, table.row(name) or _only(table, name)) for name in (claim.a, claim.b)]
    said = {"diverged": "diverged on every seed", "at chance": "is not told apart from chance"}
    return " and ".join(f"{name} {said[row.left_out]}" for name, row in rows if row is not None and row.left_out)


def _applies(claim: Claim, table: RankedTable) -> bool:
    low, high = claim.batch_sizes
    return low <= table.batch_size <= high and (not claim.tasks or table.task in claim.tasks)


def _by_seed(measure: str, table: RankedTable, optimizer: str) -> tuple[dict[int, float | None], set[int], set[int]]:
    """What is measured on each seed, None where there is nothing; the seeds that failed; those with only a bound.

    A run that failed has not reached the target, and counts with the whole length; that it failed counts besides.
    """
    row = table.row(optimizer) or _only(table, optimizer)
    runs = row.cell.seeds if row is not None and (measure != "steps to target" or table.target is not None) else ()
    failed = {run.seed for run in runs if not run.finished}
    if measure != "steps to target":
        return {run.seed: _value(measure, run) for run in runs}, failed, set()
    times = {run.seed: run.steps_to_target if run.finished else None for run in runs}
    spent: dict[int, float | None] = {
        seed: float(table.steps if time is None else time) for seed, time in times.items()
    }
    return spent, failed, {seed for seed, time in times.items() if time is None}


def _only(table: RankedTable, optimizer: str) -> Row | None:
    """The row of the optimizer with more settings given, if there is one alone."""
    rows = [row for row in table.rows if row.optimizer.startswith(f"{optimizer}:")]
    return rows[0] if len(rows) == 1 else None


def _value(measure: str, run: Run) -> float | None:
    if not run.finished:
        return None
    if measure == "training loss":
        loss = run.history[-1].loss if run.history else math.nan
        return loss if math.isfinite(loss) else None
    return run.test


def _too_few(table: RankedTable, claim: Claim, a: Mapping[int, float | None], b: Mapping[int, float | None]) -> str:
    done = [f"{name} finished on {sum(v is not None for v in own.values())} of {len(own)} seeds"
            for name, own in ((claim.a, a), (claim.b, b))]  # fmt: skip
    return f"{table.name}: not tested, {' and '.join(done)}, fewer than two of them in common"


def printed(claim: Claim) -> dict[str, tuple[str, str]]:
    """What the slides or the paper print of both: {"CIFAR10, ResNet20, batch 16384": ("88.83", "83.56")}."""
    values: dict[str, dict[str, str]] = {}
    for number in paper.select(claim.paper) if claim.paper else ():
        if number.optimizer in (claim.paper_a, claim.paper_b):
            values.setdefault(number.where, {})[number.optimizer] = number.value
    return {where: (own[claim.paper_a], own[claim.paper_b]) for where, own in values.items() if len(own) == 2}


def in_print(claim: Claim) -> str:
    """The printed numbers as a sentence, "" if there are none."""
    found = [
        f"{where}: {claim.paper_a} {a}, {claim.paper_b} {b} ({float(a) - float(b):+.3g})"
        for where, (a, b) in printed(claim).items()
    ]
    return f"Published: {'; '.join(found)}" if found else ""


def lead(pair: Paired, metric: Metric) -> str:
    """How far a is ahead of b, or behind it, with its interval and mark."""
    if pair.left_out or pair.unseen:
        return f"{words.mark(pair)} {pair.left_out or 'target never reached'}"
    left = " (the leader has fewer valid seeds)" if pair.survivor else ""
    return f"{words.mark(pair)} {words.lead(pair, metric)}{left}"


def here(finding: Finding) -> list[str]:
    """What was found, a sentence for each table and one for all."""
    said = [_sentence(finding.claim, *one) for one in finding.found]
    if finding.pooled is not None:
        said.append(f"Pooled: {words.pooled(finding.pooled, finding.found[0][1], len(finding.found))}; of these alone")
    return [*said, *finding.untested]


def _sentence(claim: Claim, table: RankedTable, metric: Metric, pair: Paired) -> str:
    lost = words.losses(pair, claim.a, claim.b)
    if pair.unseen:
        return f"{lead(pair, metric)}: {table.name}, {table.steps} steps, {pair.seeds} seeds"
    if pair.left_out:
        return f"{lead(pair, metric)}: {table.name}, {pair.seeds} seeds"
    decided = words.decision(pair, metric)
    return (
        f"{lead(pair, metric)} in {metric.name}, {words.p_value(pair.adjusted)}, {pair.seeds} seeds: {table.name}"
        f"{f'; {decided}' if decided != pair.verdict else ''}{f'; {lost}' if lost else ''}"
    )
