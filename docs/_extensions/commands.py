"""The options of every command, as its own --help has them, in generated/commands.md."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from sphinx.application import Sphinx

FROM = re.compile(r"^## thalweg ", re.MULTILINE)


def options() -> str:
    """A section a command: those that Cyclopts reads, then ``theory``, which argparse does."""
    from thalweg.commands import main, theory

    text = main._app().generate_docs(output_format="markdown")
    sections = {section.split()[0]: f"## thalweg {section}".strip() for section in FROM.split(text)[1:]}
    kept = [sections[name] for name in main.COMMANDS if name != "theory"]
    parser = theory._parser()
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=100)
    return "\n\n".join([*kept, f"## thalweg theory\n\n```text\n{parser.format_help()}```\n"])


def write(folder: Path) -> None:
    """The page, anew if it has changed."""
    renew(folder / "commands.md", options())


def renew(path: Path, text: str) -> None:
    """Write a file that is not yet so; one that is keeps its time, and its page is not read again."""
    if not path.exists() or path.read_text("utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Before pages are looked for."""
    app.connect("builder-inited", lambda app: write(Path(app.srcdir) / "generated"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
