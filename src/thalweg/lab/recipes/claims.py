"""Each claim of the slides as one sentence: what is printed, what was found here, and whether the two agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thalweg.lab.metric import Metric
from thalweg.lab.recipes import paper
from thalweg.lab.report import words
from thalweg.lab.statistics import Paired, correct, paired

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thalweg.lab.recipes.recipe import Claim
    from thalweg.lab.results import Run
    from thalweg.lab.summary import Row, Summary, Table

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
        """Whether a is better than b: beyond noise in a table and nowhere the other way, or the reverse."""
        better = [pair.better for _, _, pair in self.found if pair.significant]
        if not self.found:
            return UNTESTED
        if not better:
            return UNDECIDED
        if all(better):
            return AGREES
        return DISAGREES if not any(better) else f"{AGREES} in {sum(better)}, {DISAGREES} in {better.count(False)}"


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


def printed(claim: Claim) -> list[str]:
    """What the slides or the paper print: "CIFAR10, ResNet20, batch 16384: ALTO 88.83, Lamb 83.56 (+5.27)"."""
    if not claim.paper:
        return []
    values: dict[str, dict[str, str]] = {}
    for number in paper.select(claim.paper):
        if number.optimizer in (claim.paper_a, claim.paper_b):
            values.setdefault(number.where, {})[number.optimizer] = number.value
    found = []
    for where, own in values.items():
        if len(own) == 2:
            a, b = own[claim.paper_a], own[claim.paper_b]
            found.append(f"{where}: {claim.paper_a} {a}, {claim.paper_b} {b} ({float(a) - float(b):+.3g})")
    return found


def here(finding: Finding) -> list[str]:
    """What was found, a sentence for each table."""
    return [
        f"{table.name}: {finding.claim.a} is {_how(pair)} {finding.claim.b} "
        f"in {metric.name} by {words.gap(pair, metric)}, {words.p_value(pair.adjusted)} corrected, "
        f"{pair.seeds} seeds, a {words.size(pair.effect)} effect"
        if pair.difference
        else f"{table.name}: {finding.claim.a} and {finding.claim.b} are equal in {metric.name}"
        for table, metric, pair in finding.found
    ]


def _how(pair: Paired) -> str:
    how = "better than" if pair.better else "worse than"
    return how if pair.significant else f"within noise of, and in the mean {how},"
