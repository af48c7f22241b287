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
    from collections.abc import Mapping, Sequence

    from thalweg.records.results import Run
    from thalweg.report.summary import RankedTable, Row, Summary
    from thalweg.studies.recipe import Claim

LOSS = Metric("training loss", "min", low=0.0)
STEPS = Metric("steps to target", "min", low=0.0)
AGREES, DISAGREES, UNDECIDED, UNTESTED = "holds", "does not hold", "not decided", "not tested here"


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim, in each table where it is tested how a and b differ, and a sentence for each where it cannot be."""

    claim: Claim
    found: tuple[tuple[RankedTable, Metric, Paired], ...]
    untested: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """In how many tables a is better than b beyond the noise of the seeds, and in how many worse."""
        verdicts = [pair.verdict for _, _, pair in self.found]
        counts = [(AGREES, verdicts.count(True)), (DISAGREES, verdicts.count(False)), (UNDECIDED, verdicts.count(None))]
        said = [(words, count) for words, count in counts if count]
        if len(said) < 2:
            return said[0][0] if said else UNTESTED
        return ", ".join(f"{words} in {count}" for words, count in said).replace(",", f" of {len(self.found)},", 1)

    @property
    def leads(self) -> list[str]:
        """By how much a is ahead in each table, with the metric's unit: "+0.3 points", "×15"."""
        return [lead(pair, metric) for _, metric, pair in self.found]


def test(claims: Sequence[Claim], summary: Summary) -> list[Finding]:
    """Test all claims of a recipe, p-values corrected over all of its tests."""
    open_pairs: dict[tuple[str, str], tuple[int, RankedTable, Metric, Paired]] = {}
    untested: dict[int, list[str]] = {}
    for i, claim in enumerate(claims):
        for j, table in enumerate(summary.tables):
            if _applies(claim, table):
                metric = {"training loss": LOSS, "steps to target": STEPS}.get(claim.measure, table.metric)
                (a, lost_a, late_a), (b, lost_b, late_b) = (
                    _by_seed(claim.measure, table, name) for name in (claim.a, claim.b)
                )
                pair = paired(a, b, metric, censored=(late_a, late_b), failed=(lost_a, lost_b))
                if pair is not None:
                    open_pairs[str(i), str(j)] = (i, table, metric, pair)
                elif a and b:
                    untested.setdefault(i, []).append(_too_few(table, claim, a, b))
    corrected = correct({key: pair for key, (_, _, _, pair) in open_pairs.items()})
    return [
        Finding(
            claim,
            tuple((table, metric, corrected[key]) for key, (k, table, metric, _) in open_pairs.items() if k == i),
            tuple(untested.get(i, ())),
        )
        for i, claim in enumerate(claims)
    ]


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
    """How far a is ahead of b, or behind it: a difference, or a factor where the metric spans decades."""
    if pair.unseen:
        return "target never reached"
    if not pair.difference:
        return "0, target not always reached" if any(pair.censored) else "0"
    left = " (the leader has fewer valid seeds)" if pair.survivor else ""
    if pair.ratio:
        return f"{'×' if pair.better else '÷'}{words.short(math.exp(min(abs(pair.difference), 700.0)))}{left}"
    return f"{'+' if pair.better else '-'}{words.short(abs(pair.difference))}{words.points(metric)}{left}"


def here(finding: Finding) -> list[str]:
    """What was found, a sentence for each table."""
    return [*(_sentence(finding.claim, *one) for one in finding.found), *finding.untested]


def _sentence(claim: Claim, table: RankedTable, metric: Metric, pair: Paired) -> str:
    lost = words.losses(pair, claim.a, claim.b)
    if pair.unseen:
        return f"{table.name}: neither reached the target within {table.steps} steps on any of {pair.seeds} seeds"
    if not pair.difference:
        same = "equal" if pair.alike else "the same mean"
        if any(pair.censored):
            same = "no difference within the length of the run"
        return f"{table.name}: {same} in {metric.name}, {pair.seeds} seeds{f'; {lost}' if lost else ''}"
    return (
        f"{table.name}: {claim.a} {_how(pair)} by {words.gap(pair, metric)} in {metric.name}, "
        f"{words.p_value(pair.adjusted)} corrected, {pair.seeds} seeds{f'; {lost}' if lost else ''}"
    )


def _how(pair: Paired) -> str:
    """Never "better" of what is left after failing on more seeds."""
    if pair.survivor:
        return f"{'ahead' if pair.better else 'behind'} (not decided, the leader has fewer valid seeds)"
    how = "better" if pair.better else "worse"
    return how if pair.verdict is not None else f"{how} on average (within noise)"
