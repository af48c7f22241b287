"""What users hold who have a wheel and no checkout: its README, its version, its messages."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import thalweg

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture
def build(monkeypatch):
    """hatch_build.py, which is run where hatchling is: while a package is built."""
    interface = ModuleType("hatchling.metadata.plugin.interface")
    interface.MetadataHookInterface = type("MetadataHookInterface", (), {"root": str(ROOT)})
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def readme(build, **urls):
    metadata = {"urls": urls}
    build.Readme().update(metadata)
    return metadata["readme"]["text"]


def links(text):
    return re.findall(r"\]\(([^)]+)\)", text)


def test_links_of_the_package_are_text_while_the_project_has_no_address(build):
    assert {link for link in links(readme(build)) if not link.startswith("https://")} == set()
    assert links(readme(build)) == ["https://arxiv.org/abs/2510.27153"]
    assert build.absolute("a [page](docs/a.md) and ![a\npicture](b.svg)", None) == "a page and *a\npicture*"


def test_links_of_the_package_lead_into_the_repository_once_it_has_one(build):
    text = readme(build, Source="https://example.org/thalweg/")
    ours = [link.removeprefix("https://example.org/thalweg/") for link in links(text) if "example.org" in link]
    relative = [link for link in links((ROOT / "README.md").read_text()) if not link.startswith("https://")]
    assert [re.sub(r"^(blob|raw)/main/", "", link) for link in ours] == relative
    assert {link[:4] for link in ours if link.endswith((".svg", ".png"))} == {"raw/"}
    assert len(links(text)) == len(links((ROOT / "README.md").read_text()))


def test_code_has_no_links(build):
    code = "```python\nE.of[0](x.y)\n```"
    assert build.absolute(f"[a](b)\n{code}\n[c](d)", None) == f"a\n{code}\nc"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 700


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert thalweg.__version__ == PROJECT["version"] == citation["version"]
    assert citation["license"] == PROJECT["license"]
    page = (ROOT / "docs" / "citing.md").read_text()
    assert f"title   = {{{citation['title']}}}" in page
    assert f"version = {{{citation['version']}}}" in page


def test_no_message_names_a_file_that_only_a_checkout_has():
    named = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        tree = ast.parse(path.read_text())
        documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        named += [
            f"{path.name}:{node.lineno} {node.value}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented
            if re.search(r"\b(docs|examples|benchmarks|tests)/", node.value)
        ]
    assert named == []
