"""The page: everything the template needs, and the template."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from thalweg.report import charts, code, sentences, words

if TYPE_CHECKING:
    from thalweg.report.charts import Styles
    from thalweg.report.decisions import Paired
    from thalweg.report.summary import RankedTable, Row, Summary

SEARCH = (
    "Every optimizer is tuned with the same number of trials, in studies of its own. Trials are points of a scrambled "
    "quasi-random sequence over learning rate, weight decay, momentum and second-moment decay, and with E in front "
    "also over the gain α(1 - β1) and the horizon 1/(1 - β1). On axes that optimizers share, their trials are at the "
    "same relative positions of the range.",
    "Each study goes on in two rounds of half as many trials, whatever was found. Where the best learning rate is at "
    "an edge of those tried, a round goes beyond that edge. Otherwise it refines the best trial: its learning rate "
    "times and divided by 1.8, then half way to the better of these, then points near it on all axes.",
    "A trial is trained from each of the tuning seeds and judged by the mean over them of the last fifth of the "
    "evaluations, not by its best moment. If it failed from one seed, it failed. The setting chosen is that of the "
    "study whose best is the median of the studies' bests.",
)
SEARCH_OF_BEFORE = (
    SEARCH[0],
    "Where the best learning rate of a study is in the outer tenth of its range, the study is extended beyond that "
    "edge with half as many trials, at most twice.",
    "The best trial is the one with the best validation metric at the end of the schedule, not at its best moment. The "
    "setting chosen is that of the study whose best is the median of the studies' bests.",
)
"""How it was before cells said how they were searched."""
METHOD = (
    "This setting is then trained on fresh seeds. A seed determines initialisation and data order and is shared by all "
    "optimizers; only these runs see the test set.",
    "Intervals of means are 95 % intervals by Student's t, of logarithms where the metric's axis is logarithmic. Where "
    "it has bounds, the mean's standard error is carried to the log-odds of its place between the two, or to the "
    "logarithm of its distance from the one. They say how well a mean is known, not whether two optimizers differ.",
    "Whether two optimizers differ is tested on their differences on each shared seed (paired t-test). p-values and "
    "intervals of differences have one correction, Bonferroni's over all comparisons of this page and all looks at the "
    "seeds: an interval excludes 0 exactly where the corrected p is below .05, and all of them hold together in 95 % "
    "of such pages. Effect sizes are Hedges' g. An optimizer that failed on more seeds is never called better.",
    "Two optimizers are equivalent where the whole interval of their difference lies within ± the margin (two "
    "one-sided tests, at this interval stricter than they need be). Undecided is neither: the seeds were too few.",
    "The least difference that seeds could show is the one that the paired t-test decides with a chance of .8, at the "
    "median spread of the differences in the table, under the page's correction.",
    "Pooled differences are means of the tables' mean differences, with the standard error that the tables' own give "
    "and, as degrees of freedom, the harmonic mean of Welch-Satterthwaite's and of the least of a table: they are "
    "about these tables and no others. Tables with fewer than half as many seeds as one of them has are left out.",
    "Results not told apart from chance, that is, not better than the best constant prediction by more than their own "
    "interval, and optimizers of which no seed finished, are shown and compared with nobody.",
    "An accuracy changes in steps of one example. The variance that such steps hide, a twelfth of their square, is "
    "added to that of the differences where the records say how large they are. Where the difference is the same on "
    "all seeds, an exact sign test replaces the t-test.",
    "Steps to target are restricted means: a seed that never reached the target counts with the whole run. Seconds to "
    "target are these steps times the median duration of a step, timed in a separate pass in which all optimizers take "
    "turns.",
    "Performance profiles show the share of tables in which the median seed of an optimizer reached the target within "
    "a given multiple of the fastest one's time.",
    "Best-of-n curves are exact means over all ways to draw n of the trials that were run. Trials {} are "
    "left out, since earlier results decided where to place them. A failed trial counts as the worst that finished.",
)


def render(summary: Summary) -> str:
    """The whole page as text."""
    page = Environment(
        loader=PackageLoader("thalweg.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    page.filters |= {"short": words.short, "interval": words.interval, "settings": words.settings}
    page.globals |= {"marks": words.MARKS}
    drawn = charts.styles(row.optimizer for table in summary.tables for row in table.rows)
    verdict = summary.verdict
    return page.get_template("page.html.j2").render(
        summary=summary,
        styles=drawn,
        tasks=list(dict.fromkeys(table.task for table in summary.tables)),
        sentences=sentences.about_all(summary),
        corrected=words.family(summary),
        pools=[sentences.about_pool(one) for one in verdict.pools],
        inclusions=sentences.about_inclusions(verdict.inclusions),
        profiles=[
            (unit, picture)
            for unit, ratios in (("steps", verdict.steps), ("seconds", verdict.seconds))
            if (picture := charts.profiles(ratios, drawn, unit)) is not None
        ],
        glance=_glance(summary),
        sections=[_section(f"table-{i}", table, summary, drawn) for i, table in enumerate(summary.tables, 1)],
        shared=_shared(summary),
        method=_method(summary),
    )


def _method(summary: Summary) -> list[str]:
    """What the page says of how all this was made, of a search with rounds or of one of before."""
    rounds = any(row.cell.judged != "last" for table in summary.tables for row in table.rows)
    of_search, later = (SEARCH, "of rounds") if rounds else (SEARCH_OF_BEFORE, "beyond an edge")
    return [*of_search, *(rule.format(later) for rule in METHOD)]


def _glance(summary: Summary) -> list[tuple[str, list[dict[str, Any]]]]:
    """Rows of optimizers in the order of the verdict, a column a table."""
    found = []
    for name in summary.verdict.ranks:
        cells = []
        for table in summary.tables:
            row = table.row(name)
            if row is None:
                text, kind = ("left out", "out") if name in table.left_out else ("", "out")
            elif row.test is None:
                text, kind = "none finished", "fail"
            else:
                text, kind = _marked(f"{row.test.mean:.4g}", row, table), "fail" if row.left_out else row.standing
            cells.append({"text": text, "kind": kind, "failed": bool(row and row.test and row.failed_seeds)})
        found.append((name, cells))
    return found


def _section(anchor: str, table: RankedTable, summary: Summary, drawn: Styles) -> dict[str, Any]:
    return {
        "id": anchor,
        "table": table,
        "quantity": words.quantity(table.metric),
        "unit": words.units(table.metric),
        "sentences": sentences.about_table(table),
        "cautions": sentences.cautions(table),
        "overview": charts.overview(table, drawn),
        "charts": charts.of_table(table, drawn),
        "rows": [_row(table, row) for row in table.rows],
        "pairs": _pairs(table),
        "failures": [(row.optimizer, found) for row in table.rows if (found := words.failures(row))],
        "code": [
            (row.optimizer, code.python(row.optimizer, row.settings), code.command(table, row.cell, row.settings))
            for row in table.rows
            if row.settings is not None
        ],
        "runs": [(row.optimizer, run, summary.machine_of(run)) for row in table.rows for run in row.cell.runs],
    }


def _marked(text: str, row: Row, table: RankedTable) -> str:
    """A result with the mark of its verdict, or why it has none."""
    pair = table.pairs.get((row.optimizer, table.beside))
    return f"{text} {row.left_out or ('' if pair is None else words.mark(pair))}".rstrip()


def _row(table: RankedTable, row: Row) -> dict[str, Any]:
    pair = table.pairs.get((row.optimizer, table.beside))
    return {
        "row": row,
        "test": row.test if row.test is not None and math.isfinite(row.test.mean) else None,
        "kind": "fail" if row.left_out else row.standing,
        "versus": None
        if pair is None
        else _two_lines(f"{words.mark(pair)} {words.lead(pair, table.metric, unit=False)}"),
        "p": None if pair is None else pair.adjusted,
    }


def _two_lines(text: str) -> Markup:
    """A difference above its interval."""
    mean, _, limits = text.partition(" (")
    return Markup("{}<small>{}</small>").format(mean, limits.removesuffix(")"))


def _pairs(table: RankedTable) -> list[dict[str, Any]]:
    return [
        {"a": a, "b": b, "gap": words.gap(pair, table.metric), "p": pair.adjusted,
         "p_text": words.p_value(pair.adjusted), "effect": abs(pair.effect), "seeds": pair.seeds,
         "decided": f"{words.mark(pair)} {words.decision(pair, table.metric)}{_uneven(pair)}"}
        for (a, b), pair in table.tested.items()
    ]  # fmt: skip


def _uneven(pair: Paired) -> str:
    return ", failed seeds" if pair.significant and pair.survivor else ""


def _shared(summary: Summary) -> dict[str, str]:
    """What all environments have in common."""
    if not summary.machines:
        return {}
    first = summary.machines[0].environment
    return {
        name: value for name, value in first.items() if all(m.environment.get(name) == value for m in summary.machines)
    }
