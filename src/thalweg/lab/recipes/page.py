"""The page of recipes: what is printed beside what was found, as Markdown for a repository and as HTML to look at."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from jinja2 import ChoiceLoader, Environment, PackageLoader, PrefixLoader, StrictUndefined
from markupsafe import Markup, escape

from thalweg.lab import records
from thalweg.lab.errors import UserError
from thalweg.lab.reading import read
from thalweg.lab.recipes import claims, paper
from thalweg.lab.recipes.recipe import Recipe, read_text
from thalweg.lab.report import words, write_report
from thalweg.lab.summary import Summary, summarise

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from thalweg.lab.summary import Row, Table


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of text: the first column names the rows; ``notes`` say what makes it less than it seems."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture beside the page, PNG or SVG or GIF, and what to see in it."""

    path: Path
    caption: str


@dataclass(frozen=True, slots=True)
class Section:
    """One recipe's part of the page; ``more`` are links to files beside it."""

    title: str
    paragraphs: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    grids: tuple[Grid, ...] = ()
    pictures: tuple[Picture, ...] = ()
    more: tuple[str, ...] = field(default=())


def write_page(root: Path) -> Path | None:
    """Write ``README.md`` and ``report.html`` of all recipes in ``root``; None where there is none.

    Raises:
        UserError: they cannot be written.
    """
    sections, said = [], []
    for path in sorted(root.glob("*/reproduce.json")):
        try:
            done = records.read_json(path)
            recipe = read_text(path.parent.name, (path.parent / "recipe.toml").read_text("utf-8"))
            sections.append(_section(recipe, path.parent, done))
        except (records.Damaged, OSError, ValueError, UserError) as error:
            said.append(f"{path.parent.name} is left out: {' '.join(str(error).split())}")
    if not sections:
        return None
    page = root / "report.html"
    try:
        records.write_bytes(root / "README.md", markdown(sections, said, root).encode())
        records.write_bytes(page, html(sections, said).encode())
    except OSError as error:
        raise UserError(f"cannot write {page} ({error.strerror or error})") from None
    return page


def _section(recipe: Recipe, folder: Path, done: Mapping[str, object]) -> Section:
    from thalweg.lab.recipes.pictures import draw
    from thalweg.lab.recipes.run import measurement

    name = str(done.get("scale"))
    scale = recipe.scales.get(name)
    if scale is None:
        raise ValueError(f"it has no scale {name!r}")
    spent = str(timedelta(seconds=round(float(str(done.get("seconds", 0.0))))))
    ran = f"`{done.get('command')}`, {spent} (hours:minutes:seconds) so far, at {name} scale."
    about = tuple(filter(None, (recipe.about, scale.about)))
    beside = tuple(filter(None, map(_printed, recipe.beside)))
    if scale.measure:
        own: Section = measurement(scale.measure).page(folder)
        return Section(
            recipe.title, (*about, *own.paragraphs, ran), own.findings, (*own.grids, *beside), own.pictures, own.more
        )
    found = read(folder)
    if not found.tables:
        raise ValueError("it has no results yet")
    summary = summarise(found, str(done.get("command")))
    write_report(summary, folder / "report.html")
    return Section(
        title=recipe.title,
        paragraphs=(*about, ran),
        findings=(*_claimed(recipe, summary), *words.about_inclusions(summary.verdict.inclusions)),
        grids=(*map(_ours, summary.tables), *beside),
        pictures=draw(summary, folder),
        more=(f"{folder.name}/report.html",),
    )


def _claimed(recipe: Recipe, summary: Summary) -> Iterable[str]:
    for finding in claims.test(recipe.claims, summary):
        printed, here = claims.printed(finding.claim), claims.here(finding)
        yield " ".join(
            filter(
                None,
                (
                    f"**{finding.claim.says}** — {finding.verdict}.",
                    f"In print: {'; '.join(printed)}." if printed else "",
                    f"Here: {'; '.join(here)}." if here else "",
                ),
            )
        )


def short_names(optimizers: Iterable[str]) -> dict[str, str]:
    """Names without the hyperparameters that are given the same to all who have them, but for E's own.

    >>> short_names(["sgd:lr=1:momentum=0.9", "lamb:lr=2:momentum=0.9"])
    {'sgd:lr=1:momentum=0.9': 'sgd:lr=1', 'lamb:lr=2:momentum=0.9': 'lamb:lr=2'}
    """
    pairs = {name: [pair.partition("=") for pair in name.split(":")[1:]] for name in optimizers}
    values: dict[str, list[str]] = {}
    for own in pairs.values():
        for key, _, value in own:
            values.setdefault(key, []).append(value)
    shared = {key for key, own in values.items() if len(own) > 1 and len(set(own)) == 1} - {"alpha", "beta"}
    return {
        name: ":".join([name.split(":")[0], *(f"{key}={value}" for key, _, value in own if key not in shared)])
        for name, own in pairs.items()
    }


def _ours(table: Table) -> Grid:
    names = short_names(row.optimizer for row in table.rows)
    unit = f", {table.metric.unit}" if table.metric.unit else ""
    head = ("optimizer", f"{table.metric.name} (95 %{unit})", "training loss", "steps to target", "reached", "setting")
    rows = tuple(_row(row, names[row.optimizer]) for row in table.rows)
    return Grid(f"Here: {table.name}, {words.short(table.epochs)} epochs", head, rows, _notes(table, names))


def _notes(table: Table, names: Mapping[str, str]) -> tuple[str, ...]:
    edges = [names[row.optimizer] for row in table.rows if "lr" in row.cell.edges]
    said = [f"The best learning rate lies at an edge of all that was tried: {words.listed(edges)}."] if edges else []
    return (*(text for row in table.rows for text in words.incomplete(row)), *said)


def _row(row: Row, name: str) -> tuple[str, ...]:
    losses = [run.history[-1].loss for run in row.cell.seeds if run.finished and run.history]
    return (
        name,
        "none finished" if row.test is None else words.interval(row.test),
        words.short(sum(losses) / len(losses)) if losses else "",
        "" if row.steps_to_target is None else f"{row.steps_to_target.mean:.0f}",
        f"{row.reached}/{row.seeds}",
        "" if row.settings is None else words.settings(row.settings),
    )


def _printed(wanted: dict[str, str]) -> Grid | None:
    """Printed numbers, optimizers down and settings across."""
    found = paper.select(wanted)
    columns = list(dict.fromkeys((one.where, one.metric) for one in found))
    optimizers = list(dict.fromkeys(one.optimizer for one in found))
    values = {(one.optimizer, one.where, one.metric): one.value for one in found}
    if not found:
        return None
    several = len({metric for _, metric in columns}) > 1
    head = tuple(f"{where}: {metric}" if several else where for where, metric in columns)
    title = f"In print ({', '.join(dict.fromkeys(one.source for one in found))})"
    if not several:
        title += f": {columns[0][1]}"
    rows = tuple((name, *(values.get((name, *column), "") for column in columns)) for name in optimizers)
    return Grid(title, ("optimizer", *head), rows)


def markdown(sections: Sequence[Section], said: Sequence[str], root: Path) -> str:
    """The page as Markdown."""
    lines = ["# The slides' experiments", ""]
    for one in sections:
        lines += [f"## {one.title}", ""]
        lines += [line for text in one.paragraphs for line in (text, "")]
        lines += [*(f"- {text}" for text in one.findings), ""] if one.findings else []
        for grid in one.grids:
            lines += [f"**{grid.title}**", "", "| " + " | ".join(grid.head) + " |", "|" + "---|" * len(grid.head)]
            lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in grid.rows] + [""]
            lines += [line for text in grid.notes for line in (text, "")]
        for picture in one.pictures:
            lines += [f"![{picture.caption}]({picture.path.relative_to(root)})", "", f"*{picture.caption}*", ""]
        lines += [f"Everything: [{name}]({name})" for name in one.more] + [""] if one.more else []
    lines += [f"- {text}" for text in said]
    return "\n".join(lines).rstrip() + "\n"


def html(sections: Sequence[Section], said: Sequence[str]) -> str:
    """The page as one file, pictures within, in the style of the reports."""
    page = Environment(
        loader=ChoiceLoader(
            [PackageLoader("thalweg.lab.recipes", ""),
             PrefixLoader({"thalweg.lab.report": PackageLoader("thalweg.lab.report", "")})]
        ),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page.filters |= {"marked": _marked, "embedded": _embedded}
    return page.get_template("page.html.j2").render(sections=sections, said=said)


def _embedded(picture: Picture) -> str:
    kind = {".svg": "svg+xml"}.get(picture.path.suffix, picture.path.suffix[1:])
    return f"data:image/{kind};base64,{base64.b64encode(picture.path.read_bytes()).decode()}"


def _marked(text: str) -> Markup:
    """Text whose ``**strong**`` and code in backticks are marked as such."""
    marked = str(escape(text))
    for pattern, tag in ((r"\*\*(.+?)\*\*", "strong"), (r"`(.+?)`", "code")):
        marked = re.sub(pattern, rf"<{tag}>\1</{tag}>", marked)
    return Markup(marked)
