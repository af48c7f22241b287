"""One page an experiment: the sections of results/README.md, which is generated from the committed records."""

from __future__ import annotations

import re
from pathlib import Path

from commands import renew
from sphinx.application import Sphinx

from thalweg.studies.sections import anchor

SOURCE = "results/README"
HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
TITLE = re.compile(r"^# .+\n")
CLAIMS = "**The claims at a glance**"
HEAD = """# Results

*Which claims of the slides hold, tried at the scale of two cores?*

A claim *holds* where its optimizer is better, corrected over all tests of all claims ([marks](../report.md)).
"""
LINK = re.compile(r"\]\((?!https?:|#)([^)]+)\)")


def slug(title: str) -> str:
    """A title as the name of a file."""
    return re.sub(r"[^a-z0-9α-ω]+", "-", title.lower()).strip("-")


def split(text: str) -> tuple[str, dict[str, str]]:
    """What stands before the first section; and the sections, by title."""
    first, *rest = HEADING.split(text)
    return first, dict(zip(rest[::2], rest[1::2], strict=True))


def write(source: Path) -> None:
    """A page for each section, its links as seen from the folder it lies in."""
    _, sections = split((source / f"{SOURCE}.md").read_text("utf-8"))
    folder = source / "generated" / "results"
    for title, text in sections.items():
        moved = LINK.sub(r"](../../results/\1)", text)
        renew(folder / f"{slug(title)}.md", f"# {title}\n{moved}")
    wanted = {f"{slug(title)}.md" for title in sections}
    for path in folder.glob("*.md"):
        if path.name not in wanted:
            path.unlink()


def overview(_app: Sphinx, name: str, content: list[str]) -> None:
    """The claims, each beside its experiment; what stands before them; and where each experiment is."""
    if name != SOURCE:
        return
    first, sections = split(content[0])
    preface, _, claims = TITLE.sub("", first).partition(CLAIMS)
    for title in sections:
        page = f"(../generated/results/{slug(title)}.md)"
        claims = claims.replace(f"| {title} |", f"| [{title}]{page} |").replace(f"](#{anchor(title)})", f"]{page}")
    pages = "\n".join(f"../generated/results/{slug(title)}" for title in sections)
    content[0] = f"""{HEAD}
{claims.strip()}

## What they say together, and how they were made

{preface.strip()}

## The experiments

```{{toctree}}
:maxdepth: 1

{pages}
```
"""


def setup(app: Sphinx) -> dict[str, bool]:
    """Before pages are looked for, and as the overview is read."""
    app.connect("builder-inited", lambda app: write(Path(app.srcdir)))
    app.connect("source-read", overview)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
