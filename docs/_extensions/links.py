"""Links of Markdown that lead to files, as they do where the repository is read, lead to pages of the site.

Pages that are kept elsewhere in the repository are read from there. A file that is no page is offered for download.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")
FENCED = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
KEPT_ELSEWHERE = {"benchmarks": "benchmarks/README.md", "changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md"}


def homes(docs: Path) -> dict[Path, Path]:
    """Which page stands for a file or a folder outside of the folder of the pages."""
    root = docs.parent
    return {
        **{root / path: docs / f"{name}.md" for name, path in KEPT_ELSEWHERE.items()},
        root / "README.md": docs / "index.md",
        root / "examples": docs / "gallery.md",
        **{path: docs / "generated" / "examples" / f"{path.stem}.md" for path in (root / "examples").glob("*.*")},
    }


def lead(text: str, written: Path, shown: Path, docs: Path) -> str:
    """The text of a file in the folder ``written`` for a page in the folder ``shown``."""
    known = homes(docs)

    def new(link: re.Match[str]) -> str:
        picture, says, target, anchor = link.groups(default="")
        path = Path(os.path.normpath(written / target))
        if path not in known and path.is_dir():
            return says
        return f"{picture}[{says}]({os.path.relpath(known.get(path, path), shown)}{anchor})"

    parts = FENCED.split(text)
    parts[::2] = [LINK.sub(new, part) for part in parts[::2]]
    return "".join(parts)


def read(app: Sphinx, name: str, content: list[str]) -> None:
    """A page as it is read."""
    docs = Path(app.srcdir)
    page = Path(app.env.doc2path(name))
    if page.suffix != ".md":
        return
    source = page
    if name in KEPT_ELSEWHERE:
        source = docs.parent / KEPT_ELSEWHERE[name]
        content[0] = source.read_text("utf-8")
        app.env.note_dependency(str(source))
    content[0] = lead(content[0], source.parent, page.parent, docs)


def setup(app: Sphinx) -> dict[str, bool]:
    """Before MyST sees them."""
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
