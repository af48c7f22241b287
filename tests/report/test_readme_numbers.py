"""What README.md says was found is what the committed results say."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = " ".join((ROOT / "README.md").read_text().split())
RESULTS = (ROOT / "docs" / "results" / "README.md").read_text()
NUMBERS = {0: "none", 1: "one", 2: "two", 7: "seven"}


def compared(base: str) -> list[str]:
    """What each table says where a claim sets ALTO against ``base``, behind its mark."""
    claims = re.findall(rf"^- \*\*.*\(alto:[^ ]* against {base}\): .*\n((?:  - .*\n)*)", RESULTS, re.MULTILINE)
    lines = [line[4:] for claim in claims for line in claim.splitlines()]
    assert lines
    return [line for line in lines if not line.startswith(("Published", "Pooled"))]


def marked(lines: list[str], mark: str) -> int:
    return sum(line.startswith(mark) for line in lines)


def test_alto_and_lamb():
    lines = compared("lamb")
    assert f"LAMB none of the {len(lines)} tests of the slides' claims is decided" in README
    assert marked(lines, "✓") == marked(lines, "✗") == marked(lines, "=") == 0


def test_alto_and_adamw():
    lines = compared("adamw")
    won, lost = (NUMBERS[marked(lines, mark)] for mark in "✓✗")
    open_ = marked(lines, "?")
    assert f"ALTO wins {won} of {len(lines)} tests and loses {lost}; {open_} are undecided" in README


def test_muon_is_first():
    ranked = [re.findall(r"^\| ([^ |]+) \| .* \| lr=", table, re.MULTILINE) for table in RESULTS.split("**Here: ")[1:]]
    with_muon = [names for names in ranked if "muon" in names]
    assert all(names[0] == "muon" for names in with_muon)
    assert f"Muon is first in all {NUMBERS[len(with_muon)]} tables in which it took part" in README


def test_the_sine():
    mark, times, seeds = re.search(
        r"EAdam:alpha=-5\S* against adam\).*\n  - (.) ×(\d+) .*, (\d) seeds", RESULTS
    ).groups()
    assert (mark, seeds) == ("?", "4")
    assert f"exploring Adam ends {times} times below Adam's error, on four seeds and undecided" in README


def test_flat_minima():
    page = (ROOT / "docs" / "flatness.md").read_text()
    (cells, flatter) = re.search(r"\| momentum, α < 0, each at its own \| (\d+) \| [^|]* \| (\d+) / ", page).groups()
    assert f"Exploration hardly ever finds flatter minima: with momentum in [{flatter} of {cells} cells]" in README
