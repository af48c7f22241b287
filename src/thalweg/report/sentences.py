"""What was found, as sentences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from thalweg.report.decisions import Outcome
from thalweg.report.words import (
    axis,
    gap,
    incomplete,
    interval,
    listed,
    losses,
    p_value,
    plural,
    points,
    pooled,
    short,
    tally,
    units,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thalweg.report.summary import Inclusion, PooledPair, RankedTable, Summary


def about_table(table: RankedTable) -> list[str]:
    """What one table shows: what is decided, what is equivalent, what its seeds could have shown."""
    metric, ranked = table.metric, [row for row in table.rows if not row.left_out]
    if not ranked:
        if any(row.test is not None for row in table.rows):
            return [f"No optimizer is better than chance: {listed([row.optimizer for row in table.rows])}."]
        return ["No optimizer has a result here yet."] if table.rows else ["Every optimizer is left out of this table."]
    first = ranked[0]
    assert first.test is not None
    found = [
        f"{first.optimizer} ranks first: {metric.name} {interval(first.test)}{units(metric)} over "
        f"{len(first.test.values)} {plural(len(first.test.values), 'seed')}."
    ]
    found += _against(table, table.beside)
    if (counted := _counted([table])) and len(table.tested) > 1:
        found.append(counted)
    found += [
        f"{row.optimizer} failed on {row.failed_seeds} of {row.seeds} seeds and ranks after all that failed on fewer."
        for row in ranked
        if row.failed_seeds
    ]
    for why, said in (("at chance", "Not told apart from chance"), ("diverged", "No seed finished")):
        if names := [row.optimizer for row in table.rows if row.left_out == why]:
            found.append(f"{said}, and so compared with nobody: {listed(names)}.")
    return found


def _against(table: RankedTable, one: str) -> list[str]:
    """How an optimizer stands to each other that it was compared with; the numbers are in the table."""
    pairs = {row.optimizer: pair for row in table.rows if (pair := table.pairs.get((one, row.optimizer))) is not None}
    parts = []
    for outcome, says in (
        (Outcome.BETTER, "better than {}"), (Outcome.WORSE, "worse than {}"), (Outcome.EQUIVALENT, "equivalent to {}"),
    ):  # fmt: skip
        if names := [name for name, pair in pairs.items() if pair.verdict is outcome]:
            parts.append(says.format(listed(names)))
    found = [f"{one} is {'; '.join(parts)}."] if parts else []
    if names := [name for name, pair in pairs.items() if pair.verdict is Outcome.UNDECIDED]:
        found.append(f"Undecided between {one} and {listed(names)}.")
    found += [f"{lost[:1].upper()}{lost[1:]}: the better mean is of what is left." for name, pair in pairs.items()
              if pair.significant and pair.survivor and (lost := losses(pair, one, name))]  # fmt: skip
    return found


def _counted(tables: Sequence[RankedTable]) -> str:
    """Of all pairs how many are decided, how many equivalent, and what the seeds could have shown; "" without pairs."""
    pairs = [(pair, table.metric) for table in tables for pair in table.tested.values()]
    found = f"{tally(pairs, 'pair')}{f'; {could}' if (could := could_show(tables)) else ''}"
    return f"{found}." if pairs else ""


def could_show(tables: Sequence[RankedTable]) -> str:
    """What differences the seeds could have shown, "" where that is not known."""
    known: dict[tuple[int, bool, str], list[str]] = {}
    for table in sorted(tables, key=lambda table: table.shows or 0.0):
        if table.shows is not None:
            pairs = list(table.tested.values())
            value = math.exp(min(table.shows, 700.0)) if pairs[0].ratio else table.shows
            key = (min(pair.seeds for pair in pairs), pairs[0].ratio, points(table.metric))
            known.setdefault(key, []).append("nothing" if value > pairs[0].span else short(float(f"{value:.2g}")))
    return "; ".join(_above(*key, found) for key, found in known.items())


def _above(seeds: int, ratio: bool, unit: str, found: Sequence[str]) -> str:
    """For some tables, from the least to the largest, what their seeds could show."""
    some = [text for text in found if text != "nothing"]
    above = (
        f"{'a factor of ' if ratio else ''}{' to '.join(dict.fromkeys(some[:1] + some[-1:]))}{'' if ratio else unit}"
    )
    if not some:
        return f"{seeds} seeds could show nothing"
    none = f", and nothing in {len(found) - len(some)} of {len(found)} tables" if len(some) < len(found) else ""
    return f"{seeds} seeds could show only differences above {above}{none}"


def cautions(table: RankedTable) -> list[str]:
    """What makes a table less than it seems."""
    found = []
    for row in table.rows:
        cell = row.cell
        for name, side in cell.edges.items():
            chosen = cell.chosen
            assert chosen is not None
            tried = "highest" if side == "high" else "lowest"
            found.append(
                f"The best {axis(name)} of {row.optimizer} ({short(chosen.point[name])}) is close to the {tried} "
                f"tried: a {'higher' if side == 'high' else 'lower'} one may be better."
            )
        if cell.unrefined:
            found.append(f"Next to the best learning rate of {row.optimizer} one side was not tried: it may be better.")
        found += incomplete(row)
        if cell.older:
            found.append(f"{cell.older} runs of {row.optimizer} were made with other code or data and are not used.")
    plans = {(row.cell.planned_trials, row.cell.planned_studies) for row in table.rows}
    if len(plans) > 1:
        found.append("The optimizers were not given the same number of trials: the comparison is not fair.")
    if table.unequal:
        found.append(
            f"Less than half as many trials of {listed(table.unequal)} were of use as of another optimizer: the search "
            "did not serve all alike."
        )
    seeds = {row.seeds for row in table.rows if row.test is not None}
    if seeds and min(seeds) < 3:
        found.append("With fewer than 3 seeds hardly any difference can be shown.")
    return found


def about_inclusions(found: Sequence[Inclusion]) -> list[str]:
    """Each that is decided, then in how many tables the others are not."""
    decided: dict[tuple[str, str], list[Outcome]] = {}
    for one in found:
        decided.setdefault((one.general, one.special), []).append(one.found.verdict)
    said = [about_inclusion(one) for one in found if one.found.verdict in (Outcome.BETTER, Outcome.WORSE)]
    for (general, special), known in decided.items():
        for outcome, words in ((Outcome.EQUIVALENT, "equivalent"), (Outcome.UNDECIDED, "undecided")):
            if count := known.count(outcome):
                said.append(
                    f"{general} and {special}, its special case at α = 0, are {words} in {count} of {len(known)} "
                    f"{plural(len(known), 'table')}."
                )
    return said


def about_inclusion(one: Inclusion) -> str:
    """What it means that an optimizer wins or loses against a special case of itself."""
    where, pair = one.table.name, one.found
    apart = f"by {gap(pair, one.table.metric)}, {p_value(pair.adjusted)}"
    if pair.verdict is Outcome.BETTER:
        return f"{where}: {one.general} is better than {one.special}, its special case at α = 0, {apart}."
    return (
        f"{where}: {one.general} contains {one.special} (α = 0) and yet loses to it {apart}. This means that the "
        f"search ({one.trials} trials) was too small for two more hyperparameters, not that {one.special} is better: "
        "with a large enough search, an optimizer cannot lose to a special case of itself."
    )


def about_pool(one: PooledPair) -> str:
    """The mean difference of two optimizers over tables."""
    return f"{one.a} against {one.b}: {pooled(one.found, one.metric, one.meet)}"


def about_all(summary: Summary) -> list[str]:
    """The verdict across tables: what is decided, what is equivalent, what could have been seen; then the ranks."""
    verdict = summary.verdict
    if not any(row.test is not None for table in summary.tables for row in table.rows):
        return ["No optimizer has a result yet."]
    count = len(summary.tables)
    found = [counted] if (counted := _counted(summary.tables)) else []
    names = list(verdict.ranks)
    if names:
        lead, rest = names[0], names[1:3]
        tables = f"{count} {plural(count, 'table')} (one for each task, batch size and length)"
        after = f", before {listed([f'{name} ({short(verdict.ranks[name])})' for name in rest])}" if rest else ""
        found.append(f"Over {tables}, {lead} has the best mean rank, {short(verdict.ranks[lead])}{after}.")
        pairs = sum(1 for table in summary.tables for a, _ in table.pairs if a == lead)
        if pairs:
            won, lost, equal = verdict.wins[lead], verdict.losses[lead], verdict.equal[lead]
            found.append(
                f"Of its {pairs} {plural(pairs, 'comparison')} with other optimizers it wins {won} and loses {lost}; "
                f"{equal} {'is' if equal == 1 else 'are'} equivalent, {pairs - won - lost - equal} undecided."
            )
    if verdict.left_out:
        cells = sum(verdict.left_out.values())
        found.append(
            f"{cells} {plural(cells, 'result')} that diverged or {'is' if cells == 1 else 'are'} not told apart from "
            f"chance {'takes' if cells == 1 else 'take'} no part in verdicts, counts and ranks: "
            f"{listed([f'{name} in {n}' for name, n in verdict.left_out.items()])}."
        )
    edges = sum("lr" in row.cell.edges for table in summary.tables for row in table.rows)
    if edges:
        cells = sum(row.cell.chosen is not None for table in summary.tables for row in table.rows)
        found.append(
            f"In {edges} of {cells} cells the best learning rate is at the edge of the range tried (marked below)."
        )
    return found
