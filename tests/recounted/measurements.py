"""What is said of the recipes that are measured: one function a recipe, with the sentences as they have to be."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from statistics import mean, median
from typing import TYPE_CHECKING, Any, NamedTuple

from scipy import stats

from recounted.arithmetic import Limit, Ratio, ratio, slope, stability, student, there
from recounted.claims import MARKS, SAYS
from recounted.printed import NUMERAL

if TYPE_CHECKING:
    from recounted.archive import Archive, Record
    from recounted.printed import Cell, Page, Table

Middle = Callable[[Sequence[float]], float]
Wanted = tuple[str, Sequence[float], Sequence[str]]
limit_of = cache(stability)


def setting(settings: Record) -> str:
    """α and β1 as the page writes them."""
    alpha, beta = settings["alpha"], settings["beta"]
    return "no E" if alpha == 0.0 else re.sub(r"(?<!\d)0\.", ".", f"{alpha:g}, {beta:g}")


def limit(settings: Record) -> Limit:
    beta2 = 0.0 if settings["base"] == "gd" else 0.9
    return limit_of(settings["alpha"], settings["beta"], beta2)


def sentences(page: Page, lines: range, wanted: Sequence[Wanted]) -> None:
    """All bullets of a section, in their order."""
    bullets = page.bullets(lines)
    if len(bullets) != len(wanted):
        page.wrong(lines.start, f"{len(bullets)} findings", f"{len(wanted)} findings")
    for cell, (template, numbers, verdicts) in zip(bullets, wanted, strict=False):
        page.sentence(cell, template, numbers, verdicts)


def rows(page: Page, table: Table, wanted: Sequence[str]) -> list[tuple[int, list[Cell]]]:
    """The rows of a table, whose first cells have to be these names."""
    for cell in table.head:
        page.seen(cell)
    if len(table.rows) != len(wanted):
        page.wrong(table.title.line, f"{len(table.rows)} rows", f"{len(wanted)} rows")
    for row, name in zip(table.rows, wanted, strict=False):
        page.text(row[0], name)
    return list(enumerate(table.rows[: len(wanted)]))


def over(page: Page, cell: Cell, values: Sequence[float | None], digits: int = 3) -> None:
    """A mean ± the half-width of its interval, with how many there are where some are missing."""
    found = there(values)
    counts = [] if len(found) == len(values) else [len(found), len(values)]
    one = student(found)
    template = ("{} ± {}" if len(found) > 1 else "{}") + (" ({} of {})" if counts else "")
    values = [one.mean, *([one.half] if len(found) > 1 else []), *counts]
    page.cell(cell, *values, template=template, significant=(digits,))


def factor(one: Ratio) -> tuple[str, Sequence[float]]:
    """A ratio with its limits, which say nothing where they are a factor of a million apart."""
    return ("{} ({} to {})", one[:3]) if one.high < 1e6 * one.low else ("{} (unknown)", one[:1])


def spread(page: Page, cell: Cell, values: Sequence[float], seeds: int) -> None:
    """A mean and the range of two seeds, which is left out where both ends are printed alike."""
    numbers = [mean(values), min(values), max(values)] if values else []
    counts, some = ([len(values), seeds], " ({} of {})") if 0 < len(values) < seeds else ([], "")
    if values and re.fullmatch(NUMERAL, cell.text.split(" (")[0]) and " to " not in cell.text:
        for value in numbers:
            page.cell(cell, value, *counts, template=f"{{}}{some}", significant=(3,))
    else:
        page.cell(cell, *numbers, *counts, template=f"{{}} ({{}} to {{}}){some}" if values else "", significant=(3,))


def memory(page: Page, lines: range, archive: Archive) -> None:
    found = archive.files["memory"]["gpt2-23m.json"]
    held = {one["says"]: one for one in found["contenders"].values()}
    size = found["parameters"]

    def both(name: str) -> float:
        return float(held[name]["state_bytes"] + held[name]["peak_temporary_bytes"]) / size

    (table,) = (one for one in page.tables(lines) if one.title.text.startswith("Here"))
    page.text(table.title, f"Here: bytes per parameter, {found['says']}, float32")
    for _, row in rows(page, table, list(held)):
        one = held[row[0].text]
        for cell, value in zip(row[1:], (one["state_bytes"], one["peak_temporary_bytes"]), strict=False):
            page.cell(cell, value / size)
        page.cell(row[3], both(row[0].text))
    pairs = (("ALTO", "Lamb"), ("the authors' ALTO", "pytorch_optimizer Lamb"))
    sentences(page, lines, [
        (f"{found['says']}: {a} holds {{}} more float32 copies of the parameters than {b}, counting state and the peak "
         "of temporaries.", [(both(a) - both(b)) / 4.0], [])
        for a, b in pairs
    ])  # fmt: skip


def valleys(page: Page, lines: range, archive: Archive) -> None:
    done = archive.measured("valleys-2d")
    names = {"sgd": "SGD", "adam": "Adam", "lamb": "LAMB"}

    def same(one: tuple[Record, Record]) -> Record:
        chosen: Record = one[1]["factors"][one[0]["factors"].index(1.0)]
        return chosen

    def own(one: tuple[Record, Record]) -> Record:
        chosen: Record = one[1]["factors"][best(one)]
        return chosen

    def best(one: tuple[Record, Record]) -> int:
        lowest = [math.inf if try_["diverged"] else try_["lowest"] for try_ in one[1]["tuning"]]
        return lowest.index(min(lowest))

    tables = page.tables(lines)
    for table, function in zip(tables, dict.fromkeys(settings["function"] for settings, _ in done), strict=True):
        mine = [one for one in done if one[0]["function"] == function]
        size = mine[0][0]
        page.sentence(
            table.title, f"{function}: means ± standard errors over {{}} walkers of {{}} steps",
            [size["walkers"], size["steps"]],
        )  # fmt: skip
        for i, row in rows(page, table, [f"{names[one[0]['base']]}; {setting(one[0])}" for one in mine]):
            cells, measures = iter(row[1:]), ("along", "lowest", "end_sharpness")
            for found, kinds in ((same(mine[i]), measures), (own(mine[i]), (*measures, "minima", "found_lowest"))):
                if len(kinds) > 3:
                    page.cell(next(cells), size["factors"][best(mine[i])])
                for kind in kinds:
                    page.cell(
                        next(cells),
                        found[kind],
                        found[f"{kind}_standard_error"],
                        template="{} ± {}",
                        significant=(3, 1),
                    )

    family = 4 * sum(settings["alpha"] != 0.0 for settings, _ in done)
    limit = float(stats.norm.isf(0.025 / family))

    def apart(a: Record, b: Record, kind: str) -> int:
        error = math.hypot(a[f"{kind}_standard_error"], b[f"{kind}_standard_error"])
        difference = a[kind] - b[kind]
        return 0 if abs(difference) <= limit * error else 1 if difference > 0.0 else -1

    wanted = []
    for how, pick in (("the learning rate at which the base alone walks", same), ("its own learning rate", own)):
        for base, name in names.items():
            alone = {one[0]["function"]: pick(one) for one in done if one[0]["base"] == base and not one[0]["alpha"]}
            parts, numbers = [], []
            for sign, word in ((-1.0, "α < 0"), (1.0, "α > 0")):
                mine = [one for one in done if one[0]["base"] == base and one[0]["alpha"] * sign > 0.0]
                walked = [apart(pick(one), alone[one[0]["function"]], "along") for one in mine]
                ended = [apart(pick(one), alone[one[0]["function"]], "end_sharpness") for one in mine]
                parts.append(f"{word} walks further in {{}} and less far in {{}} of {{}}, "
                             "ends flatter in {} and sharper in {}")  # fmt: skip
                numbers += [walked.count(1), walked.count(-1), len(mine), ended.count(-1), ended.count(1)]
            beyond = "beyond {} standard errors of the difference: 95 % over {} of them"
            wanted.append((f"**{name}, at {how}**: {'; '.join(parts)} ({beyond}).", [*numbers, limit, family], []))
    sentences(page, lines, wanted)


def sine_landscape(page: Page, lines: range, archive: Archive) -> None:
    done = archive.measured("sine-landscape")
    measures = ("steps", "loss", "test", "sharpness", "normalised", "trace", "increase", "gradient")
    (table,) = page.tables(lines)
    known = done[0][0]
    page.sentence(
        table.title, "Adam, mean and half-width of the 95 % interval over {} seeds, where the training loss first is "
        "at {}", [known["seeds"], known["target"]],
    )  # fmt: skip
    for i, row in rows(page, table, [f"{settings['batch']}; {setting(settings)}" for settings, _ in done]):
        page.cell(row[1], done[i][0]["lr"])
        for cell, name in zip(row[2:], measures, strict=True):
            over(page, cell, done[i][1][name], 4 if name == "loss" else 3)
    names = {"sharpness": "λ_max", "normalised": "λ_max with filters normalised", "trace": "the trace"}

    def compared(a: Record, b: Record, kinds: dict[str, str]) -> Wanted:
        found = {words: ratio(a[kind], b[kind], family) for kind, words in kinds.items()}
        text, numbers = "", []
        for words, one in found.items():
            assert one is not None
            template, own = factor(one)
            text, numbers = f"{text}{'; ' if text else ''}{words} {template}", [*numbers, *own]
        both = sum(x is not None and y is not None for x, y in zip(a["sharpness"], b["sharpness"], strict=True))
        if both < len(a["steps"]):
            text, numbers = f"{text}; {{}} of {{}} seeds", [*numbers, both, len(a["steps"])]
        apart = [words for words, one in found.items() if one is not None and (one.above or one.below)]
        decided = f"Decided: {' and '.join(apart)}." if apart else "None is decided."
        return f"{text}. {{v}}", numbers, [decided]

    alone = {settings["batch"]: found for settings, found in done if settings["alpha"] == 0.0}
    low, high = min(alone), max(alone)
    family = len(names) + (len(names) + 1) * sum(settings["alpha"] != 0.0 for settings, _ in done)
    text, numbers, verdicts = compared(alone[high], alone[low], names)
    losses = [mean(there(alone[batch]["loss"])) for batch in (high, low)]
    wanted: list[Wanted] = [
        ("Ratios: p-values and 95 % intervals of differences are corrected over {} comparisons (Bonferroni).",
         [family], []),
        (f"**Batch {high} against batch {low}, Adam alone, where the training loss is first seen at most {{}}** (means "
         f"{{}} and {{}}), the ratio over seeds with its 95 % interval: {text} Above 1 is sharper at the large batch, "
         "as in the slides' picture.", [known["target"], *losses, *numbers], verdicts),
    ]  # fmt: skip
    for settings, found in done:
        if settings["alpha"] != 0.0:
            text, numbers, verdicts = compared(found, alone[settings["batch"]], {**names, "steps": "steps"})
            wanted.append(
                (
                    f"**Batch {settings['batch']}, α, β1 = {setting(settings)} against Adam alone**: {text}",
                    numbers,
                    verdicts,
                )
            )
    sentences(page, lines, wanted)


def convergence(page: Page, lines: range, archive: Archive) -> None:
    done = archive.measured("convergence")
    convex: dict[tuple[Any, ...], tuple[Record, Record]] = {}
    for settings, found in done:
        key = (settings["base"], settings["alpha"], settings["beta"])
        if settings["loss"] == "convex" and (
            key not in convex or found["regret"][0][-1] < convex[key][1]["regret"][0][-1]
        ):
            convex[key] = settings, found
    network = [one for one in done if one[0]["loss"] == "network"]

    def name(settings: Record) -> str:
        plain, with_e = {"adam": ("Adam", "E(Adam)"), "lamb": ("LAMB", "ALTO")}[settings["base"]]
        return plain if settings["alpha"] == 0.0 else f"{with_e} {setting(settings)}"

    def slopes(found: Record, curves: Sequence[Sequence[float]]) -> list[float]:
        return [slope(found["at"], curve) for curve in curves]

    first, second = page.tables(lines)
    settings, found = next(iter(convex.values()))
    page.sentence(
        first.title, "Convex, η_k = η/√k, T = {}: slope over the last decade, mean and half-width of the 95 % "
        "interval over the seeds but the one that chose η; the theorem says at most .5. Condition: the share of "
        "(entry, step) at which its quantity did not fall. ℓ(θ*) = {}, largest entry of its gradient {}",
        [settings["steps"], found["optimum"]["loss"], found["optimum"]["gradient"]],
    )  # fmt: skip
    for i, row in rows(page, first, [name(settings) for settings, _ in convex.values()]):
        settings, found = list(convex.values())[i]
        reported = found["regret"][1:]
        page.cell(row[1], settings["eta"])
        over(page, row[2], [curve[-1] / math.sqrt(settings["steps"]) for curve in reported])
        over(page, row[3], slopes(found, reported))
        shares = [found["condition"]["as written"][kind] for kind in ("increased", "late", "always")]
        for cell, share in zip(row[4:], [*shares, found["condition"]["corrected"]["increased"]], strict=True):
            page.cell(cell, 100.0 * share, template="{} %")
    page.sentence(
        second.title, "Not convex, T = {}: slope of the running mean of ‖∇f‖² over its last decade, mean and "
        "half-width of the 95 % interval over seeds; the theorem says -1, also the least possible: a running mean "
        "falls at most as 1/T", [network[0][0]["steps"]],
    )  # fmt: skip
    pairs: dict[tuple[Any, ...], dict[bool, tuple[Record, Record]]] = {}
    for one in network:
        pairs.setdefault(tuple(one[0][key] for key in ("ridge", "base", "alpha", "beta", "decays")), {})[
            one[0]["full"]
        ] = one
    for i, row in rows(page, second, [name(pair[True][0]) for pair in pairs.values()]):
        pair = list(pairs.values())[i]
        page.cell(row[1], pair[True][0]["eta"], template="{}/√k" if pair[True][0]["decays"] else "{}")
        page.cell(row[2], pair[True][0]["ridge"])
        for full, cells in ((True, row[3:6]), (False, row[6:9])):
            found = pair[full][1]
            over(page, cells[0], slopes(found, found["mean"]))
            over(page, cells[1], [curve[-1] for curve in found["mean"]])
            over(page, cells[2], found["loss"])
    wanted = []
    for plain, with_e, base in (("Adam", "E(Adam)", "adam"), ("LAMB", "ALTO", "lamb")):
        own = [found for settings, found in convex.values() if settings["base"] == base]
        intervals = [student(slopes(found, found["regret"][1:])) for found in own]
        shares = [100.0 * found["condition"]["as written"]["increased"] for found in own]
        always = max(found["condition"]["as written"]["always"] for found in own)
        above = [one.low > 0.5 for one in intervals]
        assert always == 0.0, "the words for an assumption that holds somewhere are not known here"
        wanted.append((
            f"**Convex, {plain} and {with_e}**: slopes of R(T) {', '.join('{}' for _ in own)}, {{v}} for {{v}}. The "
            "theorem's condition held in {} to {} % of entries and steps, at every step in no entry: {v}.",
            [*(one.mean for one in intervals), min(shares), max(shares)],
            ["above .5", "some"] if any(above)
            else ["compatible with O(√T)", "all", "regret grew no faster although the assumption does not hold"],
        ))  # fmt: skip
    kinds: dict[tuple[bool, float, bool], dict[str, float]] = {}
    for settings, found in network:
        kind = (not settings["full"], settings["ridge"], settings["decays"])
        kinds.setdefault(kind, {})[name(settings)] = mean(slopes(found, found["mean"]))
    for (batches, ridge, decays), means in sorted(kinds.items(), key=lambda pair: pair[0]):
        near = [who for who, one in means.items() if one <= -0.95]
        wanted.append((
            f"**Not convex, {'batches' if batches else 'full batch'}, ridge {ridge:g}, "
            f"{'η/√k' if decays else 'constant η'}** — 1/T holds for {{v}} (within 0.05 of -1): "
            + ", ".join(f"{who} {{}}" for who in means) + ".",
            list(means.values()), ["all" if len(near) == len(means) else ", ".join(near) or "none"],
        ))  # fmt: skip
    sentences(page, lines, wanted)


def edge(page: Page, lines: range, archive: Archive) -> None:
    done = archive.measured("edge-of-stability")
    names = {"gd": "gradient descent", "momentum": "momentum .9", "adam": "Adam", "lamb": "LAMB"}

    def middles(found: Record, kind: str, middle: Middle = mean) -> list[float]:
        return [middle(values) for values in found.get(kind, []) if values and None not in values]

    def seen(found: Record) -> str:
        return "swing" if middles(found, "swing") else "eta_lambda"

    def shares(one: tuple[Record, Record], kind: str = "", middle: Middle = mean) -> list[float]:
        return [value / limit(one[0]).value for value in middles(one[1], kind or seen(one[1]), middle)]

    known = done[0][0]
    whole = [one for one in done if one[0]["batch"] == known["examples"]]
    parts = [one for one in done if one[0]["batch"] < known["examples"]]
    first, second = page.tables(lines)
    page.sentence(
        first.title, "Full batch: ηλ over the stability limit, mean over steps {} to {}, {} seeds",
        [known["steps"] - known["last"], known["steps"], known["seeds"]],
    )  # fmt: skip
    page.sentence(
        second.title, "Batches of {} of {}: the same, and batch sharpness",
        [parts[0][0]["batch"], known["examples"]],
    )  # fmt: skip
    for table, mine in ((first, whole), (second, parts)):
        for i, row in rows(page, table, [f"{names[one[0]['base']]}; {setting(one[0])}" for one in mine]):
            settings, found = mine[i]
            page.cell(row[1], settings["lr"])
            page.cell(row[2], limit(settings).value, significant=(3,))
            columns = [
                middles(found, seen(found)), shares(mine[i]), shares(mine[i], middle=median),
                middles(found, "sharpness"), middles(found, "loss"),
            ]  # fmt: skip
            if any(shares(one, "batch") for one in mine):
                columns.append(shares(mine[i], "batch"))
            if any(seen(one[1]) == "swing" for one in mine):
                columns.append(shares(mine[i], "eta_lambda") if seen(found) == "swing" else [])
            for cell, values in zip(row[3:], columns, strict=False):
                spread(page, cell, values, settings["seeds"])
    wanted = []
    for base, name in names.items():
        for swings, where in ((False, "a change of sign at every step"), (True, "a slow oscillation")):
            own = [one for one in whole if one[0]["base"] == base and limit(one[0]).swings is swings]
            found_ = [(mean(shares(one)), setting(one[0])) for one in own if shares(one)]
            if not found_:
                continue
            close, below, above = (
                sum(test(share) for share, _ in found_)
                for test in (lambda s: abs(s - 1.0) <= 0.1, lambda s: s < 0.9, lambda s: s > 1.1)
            )
            verdict = (
                "the theory holds" if above == 0 else "the theory holds in part" if close else "the theory fails here"
            )
            counts = [("{} of {} within 10 % of the prediction", [close, len(own)]),
                      ("{} below it (sharpness did not rise that far)", [below]), ("{} above", [above]),
                      ("{} diverged", [len(own) - len(found_)]),
                      ("{} that diverged on some seeds, counted by the others",
                       [sum(0 < len(shares(one)) < known["seeds"] for one in own)])]  # fmt: skip
            said = [one for one in counts if one[1][0] or len(one[1]) == 2]
            at = ", measured at one place" if base == "lamb" and seen(own[0][1]) != "swing" else ""
            wanted.append((
                f"**{name}{at}, where instability is {where}** — {{v}}: " + ", ".join(text for text, _ in said)
                + "; measured / predicted from {} ({v}) to {} ({v}).",
                [*(number for _, numbers in said for number in numbers), min(found_)[0], max(found_)[0]],
                [
                    "not more than 10 % above the limit" if below and not above else verdict,
                    min(found_)[1], max(found_)[1],
                ],
            ))  # fmt: skip
    for base, name in names.items():
        own = [one for one in parts if one[0]["base"] == base and not limit(one[0]).swings]
        numbers = [mean(shares(one)) for one in own]
        along = [mean(shares(one, "batch")) for one in own if shares(one, "batch")]
        wanted.append((
            f"**{name}, batches**: the sharpness of all data is {{}} to {{}} of the prediction"
            + (", batch sharpness {} to {}." if along else "."),
            [min(numbers), max(numbers), *([min(along), max(along)] if along else [])], [],
        ))  # fmt: skip
    sentences(page, lines, wanted)


class Cells(NamedTuple):
    """A setting of E beside its base alone."""

    settings: Record
    found: Record
    eta: float
    compared: dict[str, Ratio | None]
    alone: Record


def flatness(page: Page, lines: range, archive: Archive) -> None:
    done = archive.measured("flatness")
    names = {"gd": "SGD", "momentum": "SGD, momentum .9", "adamw": "AdamW", "lamb": "LAMB"}
    kinds = ("steps", "sharpness", "normalised", "gradient")
    where = {"tuned": "each at its own learning rate", "common": "at one learning rate for all of a base"}
    alone = {(at, s["task"], s["base"]): found[at] for at in where for s, found in done if s["alpha"] == 0.0}

    def cells_of(at: str, family: int) -> list[Cells]:
        found = []
        for settings, own in done:
            base = alone[at, settings["task"], settings["base"]]
            if own[at] is not None and base is not None:
                compared = {kind: ratio(own[at][kind], base[kind], family) for kind in kinds}
                eta = own["lr"] if at == "tuned" else settings["common"]
                found.append(Cells(settings, own[at], eta, compared, base))
        return found

    single = sum(one is not None for at in where for cell in cells_of(at, 1) if cell.settings["alpha"] != 0.0
                 for one in cell.compared.values())  # fmt: skip
    cells = {at: cells_of(at, 2 * single) for at in where}
    means = 2 * 4 * len(where)
    tables = iter(page.tables(lines))
    for task in dict.fromkeys(settings["task"] for settings, _ in done):
        for at, words in where.items():
            mine = [one for one in cells[at] if one[0]["task"] == task]
            if mine:
                _flat_table(page, next(tables), mine, words, names)
    if more := [table.title.text for table in tables]:
        page.wrong(lines.start, "; ".join(more), "no more tables")
    wanted: list[Wanted] = [(
        "Intervals are corrected by Bonferroni: half of the 5 % over {} means over cells, which the claims are about, "
        "the other over {} ratios of single cells.", [means, single], [],
    )]  # fmt: skip
    for at, words in where.items():
        wanted += [*_flat_claims(cells[at], words, 2 * means), *_flat_ranks(cells[at], words, names)]
    lost = [f"{s['task']}, {names[s['base']]}, {setting(s)}" for s, found in done if found["lr"] is None]
    wanted.append((
        f"No learning rate that was tried reached the target within the steps allowed for: {'; '.join(lost)}.", [], [],
    ))  # fmt: skip
    sentences(page, lines, wanted)


def _flat_table(page: Page, table: Table, mine: list[Cells], words: str, names: dict[str, str]) -> None:
    known = mine[0][0]
    page.sentence(
        table.title, f"{known['task']}, to a training loss of {{}}, {words}: mean and half-width, or ratio with "
        "limits, of 95 % over {} seeds", [known["target"], known["seeds"]],
    )  # fmt: skip
    for i, row in rows(page, table, [f"{names[one.settings['base']]}; {setting(one.settings)}" for one in mine]):
        settings, found, eta, compared, _ = mine[i]
        page.cell(row[1], limit(settings).penalty, significant=(3,))
        page.cell(row[2], limit(settings).value, significant=(3,))
        page.cell(row[3], eta, significant=(3,))
        for cell, kind in ((row[4], "steps"), (row[6], "sharpness"), (row[10], "test"), (row[11], "share")):
            over(page, cell, found[kind])
        for cell, kind in ((row[5], "steps"), (row[7], "sharpness"), (row[8], "normalised"), (row[9], "gradient")):
            one = None if settings["alpha"] == 0.0 else compared[kind]
            template, numbers = factor(one) if one else ("", [])
            page.cell(cell, *numbers, template=template, significant=(3,))


def _flat_claims(cells: list[Cells], words: str, family: int) -> list[Wanted]:
    said: list[Wanted] = []
    for momentum, bases in ((False, "without momentum"), (True, "with momentum")):
        for sign, pace, place in ((-1.0, "slower", "flatter"), (1.0, "faster", "sharper")):
            own = [
                one
                for one in cells
                if one.settings["alpha"] * sign > 0.0 and (one.settings["base"] != "gd") is momentum
            ]
            text, numbers, verdicts = "", [], []
            for kind, what, claimed in (("steps", "steps", "above" if sign < 0.0 else "below"),
                                        ("sharpness", "λ_max", "below" if sign < 0.0 else "above")):  # fmt: skip
                whole = [
                    (one.found[kind], one.alone[kind])
                    for one in own
                    if None not in [*one.found[kind], *one.alone[kind]]
                ]
                logs = [[math.log(x / y) for x, y in zip(a, b, strict=True)] for a, b in whole]
                found = ratio([math.exp(mean(each)) for each in zip(*logs, strict=True)], [1.0] * len(logs[0]), family)
                assert found is not None
                opposite = "below" if claimed == "above" else "above"
                verdict = "better" if getattr(found, claimed) else "worse" if getattr(found, opposite) else "undecided"
                verdicts.append(f"{MARKS[verdict]} {SAYS.get(verdict, verdict)}")
                template, three = factor(found)
                numbers += [*three, len(whole)]
                text += f" **And {place}** — " if kind == "sharpness" else ""
                text += f"{{v}}: {what} times {template}, mean over {{}} cells."
            numbers.append(len(own))
            counts = []
            for kind, both in (("steps", ("faster", "slower")), ("sharpness", ("flatter", "sharper"))):
                below, above = (
                    sum(one.compared[kind] is not None and getattr(one.compared[kind], side) for one in own)
                    for side in ("below", "above")
                )
                counts.append(f"{{}} {'is' if below == 1 else 'are'} {both[0]} and {{}} {both[1]}")
                numbers += [below, above]
            never = sum(not there(one.found["steps"]) for one in own)
            said.append((
                f"**α {'<' if sign < 0.0 else '>'} 0 is {pace}, bases {bases}, {words}** — {text} Of {{}} cells by "
                f"themselves {'; '.join(counts)}." + (" {} did not reach the target." if never else ""),
                [*numbers, *([never] if never else [])], verdicts,
            ))  # fmt: skip
    return said


def _flat_ranks(cells: list[Cells], words: str, names: dict[str, str]) -> list[Wanted]:
    said = []
    predictors: list[tuple[str, Callable[[Any], float]]] = [
        ("−S", lambda one: -limit(one.settings).penalty),
        ("limit / η", lambda one: limit(one.settings).value / one.eta),
        ("the test metric", lambda one: mean(there(one.found["test"]))),
    ]
    for what, predict in predictors:
        texts, numbers = [], []
        for key in dict.fromkeys((one.settings["task"], one.settings["base"]) for one in cells):
            own = [
                one
                for one in cells
                if (one.settings["task"], one.settings["base"]) == key and there(one.found["sharpness"])
            ]
            if len(own) >= 4:
                texts.append(f"{key[0]} {names[key[1]]} {{}}")
                measured = [mean(there(one.found["sharpness"])) for one in own]
                numbers.append(float(stats.spearmanr([predict(one) for one in own], measured).statistic))
        said.append((f"Rank correlation of λ_max with {what}, {words}: {', '.join(texts)}.", numbers, []))
    shares = [value for one in cells for value in there(one.found["share"])]
    said.append((
        f"Where the target is reached, {words}, ηλ is above .7 of its limit in {{}} of {{}} runs: these are at the "
        "edge of stability, the others below it.", [sum(value > 0.7 for value in shares), len(shares)], [],
    ))  # fmt: skip
    return said
