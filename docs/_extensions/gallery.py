"""A page for each of examples/*.py: what it is for, what it prints, and its code."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from commands import renew
from sphinx.application import Sphinx

PRINTS, TORCHRUN = "# prints: ", "# torchrun "


def printed(code: str) -> str:
    """The line that an example prints, which its last comment repeats and its test compares."""
    _, found, comment = code.rstrip().rpartition(f"\n{PRINTS}")
    if not found:
        raise ValueError(f"an example ends with a comment {PRINTS!r} and the line that it prints")
    return comment.replace("\n# ", " ")


def command(path: Path) -> str:
    """How an example is started: on several processes, if a comment of it says with which options of torchrun."""
    options = [line.removeprefix("#") for line in path.read_text("utf-8").splitlines() if line.startswith(TORCHRUN)]
    return f"{options[0].strip() if options else 'python'} examples/{path.name}"


def page(path: Path) -> str:
    """One example as a page."""
    code = path.read_text("utf-8")
    title, _, says = (ast.get_docstring(ast.parse(code)) or "").replace("``", "`").partition("\n")
    heading, colon, rest = title.partition(":")
    body = rest.strip()[:1].upper() + rest.strip()[1:] if colon else ""
    return f"""# {heading if colon else title.rstrip(".")}

{body}

{says.strip()}

`{command(path)}` prints

```text
{printed(code)}
```

```{{literalinclude}} ../../../examples/{path.name}
:language: python
```
"""


def notebook(path: Path) -> str:
    """A notebook as a page: its cells, without what they printed."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    shown = ["".join(cell["source"]) for cell in cells]
    blocks = [
        text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
        for cell, text in zip(cells, shown, strict=True)
    ]
    return "\n\n".join([*blocks, f"The notebook: {{download}}`{path.name} <../../../examples/{path.name}>`"]) + "\n"


def write(source: Path) -> None:
    """All of them, and none that is gone."""
    examples = sorted((source.parent / "examples").glob("*.py"))
    folder = source / "generated" / "examples"
    pages = {path.stem: page(path) for path in examples}
    pages |= {path.stem: notebook(path) for path in (source.parent / "examples").glob("*.ipynb")}
    for name, text in pages.items():
        renew(folder / f"{name}.md", text)
    for path in folder.glob("*.md"):
        if path.stem not in pages:
            path.unlink()


def setup(app: Sphinx) -> dict[str, bool]:
    """Before pages are looked for."""
    app.connect("builder-inited", lambda app: write(Path(app.srcdir)))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
