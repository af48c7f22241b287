"""The two pages: their code runs and prints what it says, and what they point at is there."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("docs/what-e-does.md", "docs/which-alpha.md")


@pytest.mark.parametrize("page", PAGES)
def test_the_code_prints_what_it_says(page):
    failed, tried = doctest.testfile(str(ROOT / page), module_relative=False, encoding="utf-8")
    assert (failed, tried > 0) == (0, True)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in link]
    scripts = re.findall(r"`python\s+(\S+\.py)", text)
    assert links
    assert scripts
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert missing + [name for name in scripts if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page, capsys):
    from thalweg.commands import main as cli

    commands = re.findall(r"^    \$ thalweg (theory .*)$", (ROOT / page).read_text(), re.MULTILINE)
    for command in commands:
        cli.main(command.split())
    assert capsys.readouterr().out.count("E with α = ") == len(commands) > 0
