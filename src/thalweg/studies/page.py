"""The page of recipes: what is printed beside what was found, as Markdown for a repository and as HTML to look at."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from jinja2 import ChoiceLoader, Environment, PackageLoader, PrefixLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from thalweg.records import files as records
from thalweg.records.errors import UserError
from thalweg.records.reading import read
from thalweg.report import words, write_report
from thalweg.report.decisions import Outcome
from thalweg.report.summary import summarise
from thalweg.studies import claims, paper
from thalweg.studies.measured import paging
from thalweg.studies.recipe import Recipe, read_text
from thalweg.studies.sections import Grid, Picture, Section, anchor, short_names

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from thalweg.report.summary import RankedTable, Row
    from thalweg.studies.recipe import Claim


ORDER = (
    "sine", "image-classification", "batch-size-scaling", "wall-clock", "bert-fine-tuning", "gpt2-pretraining",
    "moe-pretraining", "memory", "hyperparameters", "few-steps", "which-alpha", "default-learning-rate", "state-dtype",
    "valleys-2d", "sine-landscape", "flatness", "edge-of-stability", "two-mechanisms", "convergence",
)  # fmt: skip


LEGEND = (
    f"{', '.join(map(claims.marked, Outcome))}; two marks: decided, and smaller than the margin. Differences are "
    "signed: + where the first of the claim's two is better; × is a factor, above 1 where it is better."
)


@dataclass(frozen=True, slots=True)
class Page:
    """All sections; ``preface`` is what somebody wrote to stand before them, ``said`` what is left out and why."""

    preface: tuple[str, ...]
    sections: tuple[Section, ...]
    said: tuple[str, ...] = ()
    everywhere: tuple[claims.Everywhere, ...] = ()
    lead: str = ""

    @property
    def glance(self) -> Grid:
        """Each tested claim with its verdict."""
        rows = tuple(
            (
                f"[{finding.claim.says}](#{anchor(section.title)})",
                section.title,
                _extremes(finding.claim),
                finding.verdict,
                "; ".join(finding.leads),
            )
            for section in self.sections
            for finding in section.claims
        )
        head = ("claim", "experiment", "published", "here", "difference here, table by table (95 %)")
        return Grid("The claims at a glance", head, rows, (LEGEND,), prose=True, lead=self.lead)

    @property
    def pools(self) -> Grid:
        """Who is compared by several claims, over all of their tables."""
        rows = tuple(
            (f"{one.a} against {one.b}", words.pooled(one.found, one.metric, one.meet)) for one in self.everywhere
        )
        note = (
            "Means over tables of the mean paired differences, whatever their tasks and lengths: about these tables "
            "and no others. A task, batch size and length that two experiments train counts once, with the more seeds. "
            "Left out are tables with fewer than half as many seeds as one of them has."
        )
        return Grid("Pooled over all experiments", ("optimizers", "difference (95 %)"), rows, (note,), prose=True)


def write_page(root: Path) -> Path | None:
    """Write ``README.md`` and ``report.html`` of all recipes in ``root``; None where there is none.

    The paragraphs of ``preface.md`` there, if there is one, stand first.

    Raises:
        UserError: they cannot be written.
    """
    sections, said = [], []
    seconds = []
    for path in sorted(root.glob("*/reproduce.json"), key=lambda path: _rank_on_page(path.parent.name)):
        try:
            done = records.read_json(path)
            recipe = read_text(path.parent.name, (path.parent / "recipe.toml").read_text("utf-8"))
            sections.append(_section(recipe, path.parent, done))
            seconds.append(_seconds(done))
        except (records.Damaged, OSError, ValueError, UserError) as error:
            said.append(f"{path.parent.name} is left out: {' '.join(str(error).split())}")
    if not sections:
        return None
    try:
        own = (root / "preface.md").read_text("utf-8") if (root / "preface.md").exists() else ""
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {root / 'preface.md'} ({error})") from None
    preface = [*filter(None, own.strip().split("\n\n")), f"Total time: {_duration(math.fsum(seconds))}."]
    page = _corrected(Page(tuple(preface), tuple(sections), tuple(said)))
    with records.writing(root / "report.html"):
        records.write_bytes(root / "README.md", markdown(page, root).encode())
        records.write_bytes(root / "report.html", html(page).encode())
    return root / "report.html"


def _corrected(page: Page) -> Page:
    """All tests of claims, of whatever recipe, and all pools as one family."""
    findings = [finding for section in page.sections for finding in section.claims]
    pools = claims.everywhere(findings)
    looks = max((cell.looks for one in findings for table, _, _ in one.found for cell in table.cells), default=1)
    comparisons = max(1, sum(one.comparisons for one in findings) + len(pools)) * looks
    sections = tuple(
        replace(section, claims=tuple(one.corrected(comparisons) for one in section.claims))
        for section in page.sections
    )
    return replace(
        page,
        sections=sections,
        everywhere=tuple(replace(one, found=replace(one.found, comparisons=comparisons)) for one in pools),
        lead=claims.counted([one for section in sections for one in section.claims], comparisons, looks),
    )


def _rank_on_page(name: str) -> tuple[int, str]:
    """Recipes of the package in the order of the slides, then those of one's own."""
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def _seconds(done: Mapping[str, object]) -> float:
    return float(str(done.get("seconds", 0.0)))


def _duration(seconds: float) -> str:
    return f"{timedelta(seconds=round(seconds))} (hours:minutes:seconds)"


def _section(recipe: Recipe, folder: Path, done: Mapping[str, object]) -> Section:
    from thalweg.studies.pictures import draw

    name = str(done.get("scale"))
    scale = recipe.scales.get(name)
    if scale is None:
        raise ValueError(f"it has no scale {name!r}")
    ran = f"Run by `{done.get('command')}` in {_duration(_seconds(done))}, at {name} scale."
    about = tuple(filter(None, (recipe.about.strip(), scale.about.strip())))
    beside = tuple(filter(None, map(_published, recipe.beside)))
    if scale.measure:
        own: Section = paging(scale.measure).page(folder)
        return replace(own, title=recipe.title, paragraphs=(*about, *own.paragraphs, ran), grids=(*own.grids, *beside))
    found = read(folder)
    if not found.tables:
        raise ValueError("it has no results yet")
    summary = summarise(found, str(done.get("command")), margin=recipe.margin)
    write_report(summary, folder / "report.html")
    return Section(
        title=recipe.title,
        paragraphs=(*about, ran),
        claims=tuple(claims.findings_of(recipe.claims, summary, recipe.margin)),
        grids=(*map(_results, summary.tables), *beside),
        pictures=draw(summary, folder),
        more=(f"{folder.name}/report.html",),
    )


def _claimed(finding: claims.Finding) -> tuple[str, list[str]]:
    """What is said of a claim, and the numbers under it."""
    says = f"**{finding.claim.says}** ({finding.claim.a} against {finding.claim.b}): {finding.verdict}"
    return says, [*filter(None, [claims.in_print(finding.claim)]), *claims.here(finding)]


def _extremes(claim: Claim) -> str:
    """Printed numbers of the first and the last setting."""
    pairs = [f"{a} against {b}" for a, b in claims.printed(claim).values()]
    return "; ".join(pairs if len(pairs) < 3 else [pairs[0], "…", pairs[-1]])


def _results(table: RankedTable) -> Grid:
    names = short_names(row.optimizer for row in table.rows)
    unit = f", {table.metric.unit}" if table.metric.unit else ""
    head = (
        "optimizer", f"{table.metric.name} (95 %{unit})", "training loss", "steps to target", "seconds to target",
        "reached", "ms per step", "setting",
    )  # fmt: skip
    rows = tuple(_row(row, names[row.optimizer]) for row in table.rows)
    return Grid(f"Here: {table.name}, {words.short(table.epochs)} epochs", head, rows, _notes(table, names))


def _notes(table: RankedTable, names: Mapping[str, str]) -> tuple[str, ...]:
    edges = [names[row.optimizer] for row in table.rows if "lr" in row.cell.edges]
    said = [f"The best learning rate is at the edge of the range tried: {words.listed(edges)}."] if edges else []
    return (*(text for row in table.rows for text in words.incomplete(row)), *said)


def _row(row: Row, name: str) -> tuple[str, ...]:
    losses = [run.history[-1].loss for run in row.cell.seeds if run.finished and run.history]
    return (
        name,
        "none finished" if row.test is None else words.interval(row.test),
        words.short(sum(losses) / len(losses)) if losses else "",
        "" if row.steps_to_target is None else f"{words.bound(row)}{row.steps_to_target.mean:.0f}",
        "" if row.seconds_to_target is None else f"{words.bound(row)}{words.short(row.seconds_to_target.mean)}",
        words.reached(row),
        "" if row.step_seconds is None else words.short(1000.0 * row.step_seconds),
        "" if row.settings is None else words.settings(row.settings),
    )


def _published(wanted: dict[str, str]) -> Grid | None:
    """Printed numbers, optimizers down and settings across."""
    found = paper.select(wanted)
    columns = list(dict.fromkeys((one.where, one.metric) for one in found))
    optimizers = list(dict.fromkeys(one.optimizer for one in found))
    values = {(one.optimizer, one.where, one.metric): one.value for one in found}
    if not found:
        return None
    several = len({metric for _, metric in columns}) > 1
    head = tuple(f"{where}: {metric}" if several else where for where, metric in columns)
    title = f"Published ({', '.join(dict.fromkeys(one.source for one in found))})"
    if not several:
        title += f": {columns[0][1]}"
    rows = tuple((name, *(values.get((name, *column), "") for column in columns)) for name in optimizers)
    return Grid(title, ("optimizer", *head), rows)


def markdown(page: Page, root: Path) -> str:
    """The page as Markdown."""
    lines = ["# The slides' experiments", ""]
    lines += [line for text in page.preface for line in (text, "")]
    lines += _table(page.glance) if page.glance.rows else []
    lines += _table(page.pools) if page.everywhere else []
    for one in page.sections:
        lines += [f"## {one.title}", ""]
        lines += [line for text in one.paragraphs for line in (text, "")]
        for says, numbers in map(_claimed, one.claims):
            lines += [f"- {says}", *(f"  - {text}" for text in numbers)]
        lines += [f"- {text}" for text in one.findings]
        lines += [""] if one.claims or one.findings else []
        for grid in one.grids:
            lines += _table(grid)
        for picture in one.pictures:
            lines += [f"![{picture.caption}]({picture.path.relative_to(root)})", "", f"*{picture.caption}*", ""]
        lines += [f"Full report: [{name}]({name})" for name in one.more] + [""] if one.more else []
    lines += [f"- {text}" for text in page.said]
    return "\n".join(lines).rstrip() + "\n"


def _table(grid: Grid) -> list[str]:
    lines = [f"**{grid.title}**", ""]
    lines += [grid.lead, ""] if grid.lead else []
    lines += ["| " + " | ".join(grid.head) + " |", "|" + "---|" * len(grid.head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in grid.rows] + [""]
    return lines + [line for text in grid.notes for line in (text, "")]


def html(page: Page) -> str:
    """The page as one file, pictures within, in the style of the reports."""
    templates = Environment(
        loader=ChoiceLoader(
            [PackageLoader("thalweg.studies", ""),
             PrefixLoader({"thalweg.report": PackageLoader("thalweg.report", "")})]
        ),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    templates.filters |= {
        "marked": _marked, "written": _written, "embedded": _embedded, "claimed": _claimed, "anchor": anchor,
    }  # fmt: skip
    return templates.get_template("page.html.j2").render(page=page)


def _embedded(picture: Picture) -> str:
    kind = {".svg": "svg+xml"}.get(picture.path.suffix, picture.path.suffix[1:])
    return f"data:image/{kind};base64,{base64.b64encode(picture.path.read_bytes()).decode()}"


def _marked(text: str) -> Markup:
    """A line of Markdown."""
    return Markup(MarkdownIt("commonmark", {"html": False}).renderInline(text))


def _written(text: str) -> Markup:
    """Paragraphs, lists and so on in Markdown."""
    return Markup(MarkdownIt("commonmark", {"html": False}).render(text))
