"""What the page decides about claims: paired differences, one correction for all of them, pools over tables."""

from __future__ import annotations

import functools
import math
import re
import statistics
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import optimize, stats

from recounted import published
from recounted.arithmetic import power
from recounted.printed import Cell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recounted.archive import Record
    from recounted.compared import Contender, Table
    from recounted.printed import Page

Sentence = tuple[str, list[float], list[str]]
MARKS = {"better": "✓", "worse": "✗", "equivalent": "=", "undecided": "?", "not comparable": "–"}
SAYS = {"better": "holds", "worse": "does not hold"}
LEGEND = (
    ", ".join(f"{mark} {SAYS.get(verdict, verdict)}" for verdict, mark in MARKS.items())
    + "; two marks: decided, and smaller than the margin. Differences are signed: + where the first of the claim's two "
    "is better; × is a factor, above 1 where it is better."
)
METRICS = {
    "training loss": {"name": "training loss", "goal": "min", "unit": "", "log": False, "low": 0.0},
    "steps to target": {"name": "steps to target", "goal": "min", "unit": "steps", "log": False, "low": 0.0},
}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """A mean difference, + where the first is better, of logarithms where the metric's axis is logarithmic.

    ``alike`` is on how many seeds it is the same where it is so on all, else 0. ``order``, where a time is only a
    bound, is on how many seeds the first is surely earlier, and later.
    """

    metric: Record
    mean: float
    error: float
    freedom: float
    margin: float | None
    alike: int = 0
    seeds: int = 0
    tables: int = 0
    failed: tuple[int, int] = (0, 0)
    late: tuple[int, int] = (0, 0)
    order: tuple[int, int] | None = None
    out: str = ""

    @property
    def p(self) -> float:
        if self.order is not None:
            return float(stats.binomtest(self.order[0], sum(self.order)).pvalue) if any(self.order) else 1.0
        if self.alike:
            return 2.0 * 0.5**self.alike if self.mean else 1.0
        return float(2.0 * stats.t.sf(abs(self.mean) / self.error, self.freedom))

    def limits(self, family: int) -> tuple[float, float]:
        """Of the interval that holds beside ``family`` - 1 others in 95 % of pages (Bonferroni)."""
        if self.alike:
            half = 0.0 if family * 2.0 * 0.5**self.alike < 0.05 else math.inf
        elif self.order is not None:
            half = math.inf
        else:
            half = self.error * float(stats.t.isf(0.025 / family, self.freedom))
        span = self.metric.get("high", math.inf) - self.metric["low"]
        return max(self.mean - half, -span), min(self.mean + half, span)

    def within(self, family: int) -> bool:
        low, high = self.limits(family)
        return self.margin is not None and -self.margin < low and high < self.margin

    def verdict(self, family: int) -> str:
        """Who misses more seeds or targets is never better, nor equivalent."""
        if self.out or (self.seeds and self.late == (self.seeds, self.seeds)):
            return "not comparable"
        missing = [self.failed[i] + self.late[i] for i in (0, 1)]
        if self.mean and family * self.p < 0.05:
            ahead = 0 if self.mean > 0.0 else 1
            if self.order is not None and self.order[ahead] <= self.order[1 - ahead]:
                return "undecided"
            return "undecided" if missing[ahead] > missing[1 - ahead] else "better" if self.mean > 0.0 else "worse"
        return "equivalent" if self.within(family) and missing[0] == missing[1] else "undecided"

    def mark(self, family: int) -> str:
        verdict = self.verdict(family)
        return MARKS[verdict] + ("=" if verdict in ("better", "worse") and self.within(family) else "")

    def decided(self, family: int) -> str:
        verdict = self.verdict(family)
        if self.within(family) and verdict in ("better", "worse", "equivalent"):
            how = "equivalent within" if verdict == "equivalent" else f"{verdict}, by less than"
            return f"{how} {self.margin:g}{points(self.metric)}"
        return verdict

    def sentence(self, family: int) -> Sentence:
        """Mark, difference and interval."""
        mark = self.mark(family)
        numbers = [self.mean, *self.limits(family)]
        if self.metric["log"]:
            numbers = [math.exp(min(value, 700.0)) for value in numbers]
        sign, unit = ("×", "") if self.metric["log"] else ("", points(self.metric))
        left = " (the leader has fewer valid seeds)" if self._survives else ""
        if self.alike:
            return f"{{v}} {sign}{{}}{unit} on every seed{left}", numbers[:1], [mark]
        if self.order is not None:
            return f"{{v}} {sign}{{}}{unit} (no interval: some targets were missed){left}", numbers[:1], [mark]
        if self.metric["log"] and numbers[2] / numbers[1] >= 1e6:
            return f"{{v}} {sign}{{}}{unit} (not known within a factor of 10⁶){left}", numbers[:1], [mark]
        return f"{{v}} {sign}{{}}{unit} ({sign}{{}} to {sign}{{}}){left}", numbers, [mark]

    @property
    def _survives(self) -> bool:
        ahead = 0 if self.mean > 0.0 else 1
        return bool(self.mean) and any(one[ahead] > one[1 - ahead] for one in (self.failed, self.late))


def points(metric: Record) -> str:
    return " points" if metric["unit"] == "%" else f" {metric['unit']}" if metric["unit"] else ""


class Test(NamedTuple):
    table: Table
    difference: Difference


@dataclass(frozen=True)
class Claim:
    says: Record
    tests: list[Test]
    pooled: Difference | None

    def count(self) -> int:
        """How many comparisons it adds: those that may come out either way, and their mean."""
        return sum(one.difference.verdict(1) != "not comparable" for one in self.tests) + (self.pooled is not None)


def claims_of(recipe: Record, tables: Sequence[Table]) -> list[Claim]:
    found = []
    for says in recipe.get("claims", []):
        low, high = says.get("batch_sizes", (1, 2**31))
        tests = []
        for table in tables:
            if low <= table.key[1] <= high and table.key[0] in says.get("tasks", [table.key[0]]):
                a, b = (table.named(says[side]) for side in ("a", "b"))
                one = compare(a, b, says, recipe.get("margin")) if a is not None and b is not None else None
                tests += [] if one is None else [Test(table, one)]
        same = len({(one.difference.metric["name"], one.difference.metric["unit"]) for one in tests}) == 1
        same = same and says.get("measure") != "steps to target"
        found.append(Claim(says, tests, pool([one.difference for one in tests]) if same else None))
    return found


def compare(a: Contender, b: Contender, says: Record, margin: float | None) -> Difference | None:
    """On the seeds that both finished."""
    measure = says.get("measure", "test")
    metric = METRICS.get(measure, a.metric)
    first, second = a.by_seed(measure), b.by_seed(measure)
    seeds = [seed for seed in first if first[seed] is not None and second.get(seed) is not None]
    if len(seeds) < 2:
        return None
    x, y = (np.array([own[seed] for seed in seeds], float) for own in (first, second))
    between = np.log(x / y) if metric["log"] else x - y
    if metric["goal"] == "min":
        between = -between
    alike = float(np.ptp(between)) <= 1e-6 * max(float(np.abs(x).max()), float(np.abs(y).max()))
    error = math.hypot(float(between.std(ddof=1)), metric.get("resolution", 0.0) / math.sqrt(12.0)) / math.sqrt(
        len(seeds)
    )
    margin = says.get("margin", margin if measure == "test" else None)
    if margin is None and not metric["log"]:
        margin = {"%": 0.5, "nats": 0.02}.get(metric["unit"].partition("/")[0])
    mean = float(between.mean())
    late, order = [0, 0], None
    if measure == "steps to target":
        late = [sum(seed in one.late for seed in seeds) for one in (a, b)]
        if any(late):
            whole = max([*x, *y]) + 1.0  # of a seed that never got there
            u, v = (np.where([seed in one.late for seed in seeds], whole, own) for one, own in ((a, x), (b, y)))
            order = int((u < v).sum()), int((v < u).sum())
    return Difference(
        metric, 0.0 if alike and abs(mean) < 1e-6 else mean, 0.0 if alike else error, len(seeds) - 1, margin,
        alike=len(seeds) if alike and order is None else 0, seeds=len(seeds), order=order, late=(late[0], late[1]),
        failed=(sum(not run.finished for run in a.seeds), sum(not run.finished for run in b.seeds)),
        out=" and ".join(
            f"{name} {'diverged on every seed' if one.diverged else 'is not told apart from chance'}"
            for name, one in ((says["a"], a), (says["b"], b)) if one.diverged or one.at_chance
        ),
    )  # fmt: skip


def pool(found: Sequence[Difference]) -> Difference | None:
    """The mean over tables, with the error that theirs give it.

    Its degrees of freedom are the harmonic mean of Welch's and of the least that a table has.
    """
    kept = [one for one in found if one.verdict(1) != "not comparable" and not any([*one.failed, *one.late, one.alike])]
    kept = [one for one in kept if one.seeds >= max(one.seeds for one in kept) / 2]
    if len(kept) < 2:
        return None
    variances = [one.error**2 for one in kept]
    welch = math.fsum(variances) ** 2 / math.fsum(v**2 / one.freedom for v, one in zip(variances, kept, strict=True))
    margins = [one.margin for one in kept if one.margin is not None]
    return Difference(
        kept[0].metric, math.fsum(one.mean for one in kept) / len(kept), math.sqrt(math.fsum(variances)) / len(kept),
        statistics.harmonic_mean([welch, min(one.freedom for one in kept)]),
        min(margins) if len(margins) == len(kept) else None, tables=len(kept),
    )  # fmt: skip


class Pool(NamedTuple):
    a: str
    b: str
    meet: int
    difference: Difference


def everywhere(claims: Sequence[Claim]) -> list[Pool]:
    """Two optimizers over all tables of a metric in which claims compare them; only where more than one claim does.

    Tables of one task, batch size and length count once, the first of those with the most seeds.
    """
    met: dict[tuple[str, str, str, str], tuple[set[int], dict[tuple[str, int, int], Difference]]] = {}
    for k, claim in enumerate(claims):
        a, b = claim.says["a"], claim.says["b"]
        for table, one in claim.tests:
            kind = (one.metric["name"], one.metric["unit"])
            turned = (b, a, *kind) in met
            if turned:
                order = one.order and one.order[::-1]
                one = replace(one, mean=-one.mean, failed=one.failed[::-1], late=one.late[::-1], order=order)
            by, own = met.setdefault((b, a, *kind) if turned else (a, b, *kind), (set(), {}))
            by.add(k)
            if table.key not in own or one.seeds > own[table.key].seeds:
                own[table.key] = one
    return [
        Pool(a, b, len(own), found)
        for (a, b, name, _), (by, own) in met.items()
        if len(by) > 1 and name != "steps to target" and (found := pool([*own.values()])) is not None
    ]  # fmt: skip


def family_of(claims: Sequence[Claim]) -> int:
    return max(1, sum(claim.count() for claim in claims) + len(everywhere(claims)))


def pooled_sentence(one: Difference, meet: int, family: int) -> Sentence:
    text, numbers, verdicts = one.sentence(family)
    of = "{} tables" if one.tables == meet else "{} of {} tables"
    return (
        f"{text} in {one.metric['name']} over {of}, {{v}}",
        [*numbers, one.tables, *([] if one.tables == meet else [meet])], [*verdicts, one.decided(family)],
    )  # fmt: skip


def verdict_of(claim: Claim, family: int) -> str:
    counts = Counter(one.difference.verdict(family) for one in claim.tests)
    said = {f"{MARKS[verdict]} {SAYS.get(verdict, verdict)}": counts[verdict] for verdict in MARKS if counts[verdict]}
    if len(said) < 2:
        return next(iter(said), "not tested here")
    first, *rest = (f"{text} in {count}" for text, count in said.items())
    return ", ".join([f"{first} of {len(claim.tests)}", *rest])


def under(claim: Claim, family: int) -> list[Sentence]:
    """What is said below a claim."""
    found = []
    for table, one in claim.tests:
        known = table.any
        where, length = f"{known['task']}, batch size {{}}, {{}} steps", [known["batch_size"], known["steps"]]
        if one.out:
            found.append((f"{{v}} {one.out}: {where}, {{}} seeds", [*length, one.seeds], [one.mark(family)]))
            continue
        if one.verdict(family) == "not comparable":
            text = f"{{v}} target never reached: {where}, {{}} steps, {{}} seeds"
            found.append((text, [*length, known["steps"], one.seeds], [one.mark(family)]))
            continue
        text, numbers, verdicts = one.sentence(family)
        p = min(1.0, family * one.p)
        sign, shown = ("<", 0.001) if p < 0.001 else ("=", p)
        text += f" in {one.metric['name']}, p {sign} {{}}, {{}} seeds: {where}"
        numbers = [*numbers, shown, one.seeds, *length]
        if one.decided(family) != one.verdict(family):
            text, verdicts = f"{text}; {{v}}", [*verdicts, one.decided(family)]
        for what, counts in (("failed", one.failed), ("did not reach the target", one.late)):
            if any(counts):
                a, b = claim.says["a"], claim.says["b"]
                text += f"; {a} {what} on {{}} of {{}} seeds, {b} on {{}} of {{}}"
                numbers += [counts[0], one.seeds, counts[1], one.seeds]
        found.append((text, numbers, verdicts))
    if claim.pooled is not None:
        text, numbers, verdicts = pooled_sentence(claim.pooled, len(claim.tests), family)
        found.append((f"Pooled: {text}; of these alone", numbers, verdicts))
    return found


def sections(page: Page, lines: range, claims: Sequence[Claim], family: int, printed: list[published.Row]) -> None:
    """The claims of a recipe and what stands below each."""
    own = [Cell(i, 2, page[i][2:]) for i in lines if page[i].startswith("- ")]
    if len(own) != len(claims):
        page.wrong(lines.start, f"{len(own)} claims", f"{len(claims)} claims")
    for cell, claim in zip(own, claims, strict=False):
        says = claim.says
        page.sentence(
            cell, f"**{says['says']}** ({says['a']} against {says['b']}): {{v}}", [], [verdict_of(claim, family)]
        )
        line = cell.line + 1
        if published.under_a_claim(says, printed):
            published.sentence(page, Cell(line, 4, page[line][4:]), says, printed)
            line += 1
        for sentence in under(claim, family):
            page.sentence(Cell(line, 4, page[line][4:]), *sentence)
            line += 1
        if page[line].startswith("  - "):
            page.wrong(line, page[line], "nothing")


def head(page: Page, lines: range, claims: dict[str, list[Claim]], family: int, printed: list[published.Row]) -> None:
    """What stands before all sections: how much is decided, the claims at a glance, the pools over all."""
    every = [claim for own in claims.values() for claim in own]
    tests = [one.difference for claim in every for one in claim.tests if one.difference.verdict(1) != "not comparable"]
    (line,) = (i for i in lines if "(Bonferroni)" in page[i])
    page.sentence(Cell(line, 0, page[line]), *_lead(tests, family))
    glance, *rest = page.tables(lines)
    last = ("difference here, table by table (95 %)", "difference (95 %)")
    for table, words in zip((glance, *rest), last, strict=False):
        page.text(table.head[-1], words)
    legend = glance.rows[-1][0].line + 2
    page.text(Cell(legend, 0, page[legend]), LEGEND)
    flat = [(title, claim) for title, own in claims.items() for claim in own]
    if len(flat) != len(glance.rows):
        page.wrong(glance.title.line, f"{len(glance.rows)} claims", f"{len(flat)} claims")
    for row, (title, claim) in zip(glance.rows, flat, strict=False):
        page.text(row[0], f"[{claim.says['says']}](#{anchor(title)})")
        page.text(row[1], title)
        found = published.under_a_claim(claim.says, printed)
        shown = [found[0], found[-1]] if len(found) > 2 else found
        between = "; …; " if len(found) > 2 else "; "
        page.sentence(
            row[2], between.join("{} against {}" for _ in shown), [float(x) for _, *own in shown for x in own]
        )
        page.sentence(row[3], "{v}", [], [verdict_of(claim, family)])
        parts = [_short(one.difference, family) for one in claim.tests]
        if claim.pooled is not None:
            text, numbers, verdicts = claim.pooled.sentence(family)
            parts.append((f"pooled: {text}", numbers, verdicts))
        page.sentence(
            row[4], "; ".join(text for text, _, _ in parts), [n for _, own, _ in parts for n in own],
            [v for _, _, own in parts for v in own],
        )  # fmt: skip
    pools = everywhere(every)
    printed_pools = rest[0].rows if rest else []
    if len(pools) != len(printed_pools):
        page.wrong(glance.title.line, f"{len(printed_pools)} pools", f"{len(pools)} pools")
    for row, one in zip(printed_pools, pools, strict=False):
        page.text(row[0], f"{one.a} against {one.b}")
        page.sentence(row[1], *pooled_sentence(one.difference, one.meet, family))


def anchor(title: str) -> str:
    """Where GitHub lets a link to a heading end."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _short(one: Difference, family: int) -> Sentence:
    if one.out:
        return f"{{v}} {one.out}", [], [one.mark(family)]
    if one.verdict(family) == "not comparable":
        return "{v} target never reached", [], [one.mark(family)]
    return one.sentence(family)


def _lead(tests: Sequence[Difference], family: int) -> Sentence:
    won = [one for one in tests if one.verdict(family) in ("better", "worse")]
    small = [one for one in won if one.within(family)]
    equal = [one for one in tests if one.verdict(family) == "equivalent"]
    margins = " and ".join(dict.fromkeys(f"{one.margin:g}{points(one.metric)}" for one in [*small, *equal]))
    text, numbers = "No test is decided", []
    if won or equal:
        text, numbers = f"Of {{}} tests {{}} {'are' if len(won) > 1 else 'is'} decided", [len(tests), len(won)]
        if small:
            text, numbers = f"{text}, {{}} of them by less than the margin of {margins}", [*numbers, len(small)]
        for count, what in (
            (len(equal), f"equivalent within {margins}"),
            (len(tests) - len(won) - len(equal), "undecided"),
        ):
            text += f"; {{}} {'are' if count > 1 else 'is'} {what}" if count else ""
            numbers += [count] if count else []
    text += ", one for each claim and table."
    if least := least_shown(tests, family):
        *parts, last = (f"{{}} points of {seeds}" for seeds in least)
        text += f" Half of those of accuracies could show only differences above {', '.join(parts)} and {last} seeds."
        numbers += least.values()
    text += " With the means over tables, p-values and 95 % intervals of differences are corrected over {} comparisons"
    text += " (Bonferroni)."
    return text, [*numbers, family], []


def least_shown(tests: Sequence[Difference], family: int) -> dict[int, float]:
    """By how many seeds, the median over tests of percentages of the least difference that each could show."""
    found = [one for one in tests if one.metric["unit"] == "%" and one.error and one.verdict(1) != "not comparable"]
    seeds = sorted({one.seeds for one in found}, reverse=True)
    return {n: statistics.median(detectable(one, family) for one in found if one.seeds == n) for n in seeds}


def detectable(one: Difference, family: int) -> float:
    """The least difference that the paired t-test decides with a power of .8."""
    return one.error * math.sqrt(one.seeds) * least_effect(one.seeds, 0.05 / family)


@functools.cache
def least_effect(n: int, level: float) -> float:
    """The same in standard deviations of differences."""
    found: float = optimize.brentq(lambda effect: power(effect, n, level) - 0.8, 1e-6, 1e5)
    return found
