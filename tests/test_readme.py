"""The code of the README and of docs/jax.md runs as it stands, and links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


@pytest.mark.parametrize("code", [*blocks("README.md"), "\n".join(blocks("docs/jax.md"))])
def test_the_code_runs(code):
    names: dict[str, object] = {}
    exec(compile(code, "the documentation", "exec"), names)
    assert names["state"] if "state" in names else names["optimizer"].state


PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_to_files(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    assert [link for link in links if ":" not in link and not (page.parent / link).exists()] == []
