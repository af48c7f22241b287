"""What README.md says was found is what the committed results say."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = " ".join((ROOT / "README.md").read_text().split())
RESULTS = (ROOT / "docs" / "results" / "README.md").read_text()
NUMBERS = {1: "one", 2: "two", 7: "seven"}


def compared(base: str) -> list[str]:
    """What each table says where a claim sets ALTO against ``base``."""
    claims = re.findall(rf"^- \*\*.*\(alto:[^ ]* against {base}\): .*\n((?:  - .*\n)*)", RESULTS, re.MULTILINE)
    lines = [line for claim in claims for line in claim.splitlines() if not line.startswith("  - Published")]
    assert lines
    return lines


def decided(lines: list[str], word: str) -> int:
    return sum(f" {word} by " in line for line in lines)


def test_alto_and_lamb():
    lines = compared("lamb")
    assert f"differ significantly in none of the {len(lines)} comparisons" in README
    assert decided(lines, "better") == decided(lines, "worse") == 0


def test_alto_and_adamw():
    lines = compared("adamw")
    won, lost = (NUMBERS[decided(lines, word)] for word in ("better", "worse"))
    assert f"Against AdamW, tuned as hard, ALTO wins {won} of {len(lines)} beyond noise and loses {lost}." in README


def test_muon_is_first():
    ranked = [re.findall(r"^\| ([^ |]+) \| .* \| lr=", table, re.MULTILINE) for table in RESULTS.split("**Here: ")[1:]]
    with_muon = [names for names in ranked if "muon" in names]
    assert all(names[0] == "muon" for names in with_muon)
    assert f"Muon is first in all {NUMBERS[len(with_muon)]} tables in which it took part" in README


def test_the_sine():
    (times, low, high) = re.search(
        r"EAdam:alpha=-5\S* better by a factor of (\d+) \(95 % interval (\d+) to (\d+)", RESULTS
    ).groups()
    assert f"ends {times} times ({low} to {high}) below Adam's error" in README


def test_flat_minima():
    page = (ROOT / "docs" / "flatness.md").read_text()
    (cells, flatter) = re.search(r"\| momentum, α < 0, each at its own \| (\d+) \| [^|]* \| (\d+) / ", page).groups()
    assert f"Exploration hardly ever finds flatter minima: with momentum in [{flatter} of {cells} cells]" in README
