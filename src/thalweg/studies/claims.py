"""Each claim of the slides as one sentence: what is printed, what was found here, and whether the two agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thalweg.records.metric import Metric
from thalweg.report import words
from thalweg.report.statistics import Paired, correct, paired
from thalweg.studies import paper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thalweg.records.results import Run
    from thalweg.report.summary import Row, Summary, Table
    from thalweg.studies.recipe import Claim

LOSS = Metric("training loss", "min", low=0.0)
STEPS = Metric("steps to target", "min", low=0.0)
AGREES, DISAGREES, UNDECIDED, UNTESTED = "holds", "does not hold", "not decided", "not tested here"


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim, and in each table where it is tested how a and b differ."""

    claim: Claim
    found: tuple[tuple[Table, Metric, Paired], ...]

    @property
    def verdict(self) -> str:
        """In how many tables a is better than b beyond the noise of the seeds, and in how many worse."""
        beyond = [pair.better for _, _, pair in self.found if pair.significant]
        counts = [(AGREES, beyond.count(True)), (DISAGREES, beyond.count(False))]
        counts.append((UNDECIDED, len(self.found) - len(beyond)))
        said = [(words, count) for words, count in counts if count]
        if len(said) < 2:
            return said[0][0] if said else UNTESTED
        return ", ".join(f"{words} in {count}" for words, count in said).replace(",", f" of {len(self.found)},", 1)

    @property
    def leads(self) -> list[str]:
        """By how much a is ahead in each table, with the metric's unit: "+0.3 %", "×15"."""
        return [lead(pair, metric) for _, metric, pair in self.found]


def test(claims: Sequence[Claim], summary: Summary) -> list[Finding]:
    """Test all claims of a recipe, p-values corrected over all of its tests."""
    open_pairs: dict[tuple[str, str], tuple[int, Table, Metric, Paired]] = {}
    for i, claim in enumerate(claims):
        for j, table in enumerate(summary.tables):
            if _applies(claim, table):
                metric = {"training loss": LOSS, "steps to target": STEPS}.get(claim.measure, table.metric)
                a, b = (_by_seed(claim.measure, table, name) for name in (claim.a, claim.b))
                if (pair := paired(a, b, metric)) is not None:
                    open_pairs[str(i), str(j)] = (i, table, metric, pair)
    corrected = correct({key: pair for key, (_, _, _, pair) in open_pairs.items()})
    return [
        Finding(
            claim,
            tuple((table, metric, corrected[key]) for key, (k, table, metric, _) in open_pairs.items() if k == i),
        )
        for i, claim in enumerate(claims)
    ]


def _applies(claim: Claim, table: Table) -> bool:
    low, high = claim.batch_sizes
    return low <= table.batch_size <= high and (not claim.tasks or table.task in claim.tasks)


def _by_seed(measure: str, table: Table, optimizer: str) -> dict[int, float]:
    row = table.row(optimizer) or _only(table, optimizer)
    found: dict[int, float] = {}
    for run in row.cell.seeds if row is not None else ():
        value = _value(measure, table, run)
        if value is not None:
            found[run.seed] = value
    return found


def _only(table: Table, optimizer: str) -> Row | None:
    """The row of the optimizer with more settings given, if there is one alone."""
    rows = [row for row in table.rows if row.optimizer.startswith(f"{optimizer}:")]
    return rows[0] if len(rows) == 1 else None


def _value(measure: str, table: Table, run: Run) -> float | None:
    if measure == "steps to target":
        if table.target is None:
            return None
        return float(table.steps if run.steps_to_target is None or not run.finished else run.steps_to_target)
    if not run.finished:
        return None
    if measure == "training loss":
        return run.history[-1].loss if run.history else None
    return run.test


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
    return f"In print: {'; '.join(found)}" if found else ""


def lead(pair: Paired, metric: Metric) -> str:
    """How far a is ahead of b, or behind it: a difference, or a factor where the metric spans decades."""
    if not pair.difference:
        return "0"
    if pair.ratio:
        return f"{'×' if pair.better else '÷'}{words.short(math.exp(min(abs(pair.difference), 700.0)))}"
    return f"{'+' if pair.better else '-'}{words.short(abs(pair.difference))}{words.units(metric)}"


def here(finding: Finding) -> list[str]:
    """What was found, a sentence for each table."""
    return [
        f"{table.name}: {finding.claim.a} {_how(pair)} by {words.gap(pair, metric)} in {metric.name}, "
        f"{words.p_value(pair.adjusted)} corrected, {pair.seeds} seeds"
        if pair.difference
        else f"{table.name}: equal in {metric.name}"
        for table, metric, pair in finding.found
    ]


def _how(pair: Paired) -> str:
    how = "better" if pair.better else "worse"
    return how if pair.significant else f"within noise, in the mean {how}"
