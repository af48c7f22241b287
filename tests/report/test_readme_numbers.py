"""What README.md says was found is what the committed results say."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = " ".join((ROOT / "README.md").read_text().split())
ALL = (ROOT / "docs" / "results" / "README.md").read_text()
SLIDES, LATER = re.split(r"^## (?=Few steps)", ALL, flags=re.MULTILINE)
RESULTS = SLIDES + LATER[re.search(r"^## ", LATER, re.MULTILINE).start() :]
"""But for the experiment of 30 seeds."""
NUMBERS = {0: "none", 1: "one", 2: "two", 7: "seven", 12: "twelve"}


def compared(base: str, alpha: str = "") -> list[str]:
    """What each table of few seeds says where a claim sets ALTO against ``base``, behind its mark."""
    claims = re.findall(
        rf"^- \*\*(?!.*\(ours).*\(alto:alpha={alpha}[^ ]* against {base}\): .*\n((?:  - .*\n)*)", RESULTS, re.MULTILINE
    )
    lines = [line[4:] for claim in claims for line in claim.splitlines()]
    assert lines
    return [line for line in lines if not line.startswith(("Published", "Pooled", "–")) and ", 30 seeds: " not in line]


def marked(lines: list[str], mark: str) -> int:
    return sum(line.startswith(mark) for line in lines)


def test_three_or_four_seeds_decide_nothing():
    of = {base: compared(base) for base in ("lamb", "adamw")}
    assert not any(marked(lines, mark) for lines in of.values() for mark in "✓✗=")
    sizes = [int(size) for line in compared("lamb", "-5") for size in re.findall(r"batch size (\d+)", line)]
    small = NUMBERS[sum(size < 1000 for size in sizes)]
    assert (
        f"none of {len(of['lamb'])} tests of ALTO against bias-corrected LAMB is decided ({small} at α = -5 below "
        f"batch 1K, unlike the slides), nor of {len(of['adamw'])} against AdamW." in README
    )


def test_thirty_seeds():
    (section,) = re.findall(r"(?s)^Few steps.*?(?=^## )", LATER, re.MULTILINE)
    pooled = re.findall(
        r"\((\S+) against (\S+)\): .*\n(?:  - .*\n)*?  - Pooled: (\S+) (\S+) points \((\S+) to (\S+)\)", section
    )
    found = {(a, b): (mark, *map(float, values)) for a, b, mark, *values in pooled}
    exploits, explores = "alto:alpha=0.5:beta=0.01", "alto:alpha=-5:beta=0.99"
    for pair, says in (
        ((exploits, "lamb"), "α = 0.5 adds {:.2f} points ({:.2f} to {:.2f}) to LAMB"),
        (("nesterov-lamb", "lamb"), "Nesterov momentum {:.2f} ({:.2f} to {:.2f}), the two equivalent within 0.5"),
        ((explores, "lamb"), "α = -5 adds {:.3f} ({:.2f} to {:.2f})"),
    ):
        mark, *values = found[pair]
        assert says.format(*values) in README
        assert mark[0] == ("=" if pair[0] == explores else "✓")
    assert found[exploits, "nesterov-lamb"][0] == "="


def test_thirty_seeds_at_the_batch_of_the_slides():
    def found(a: str, b: str, table: str) -> tuple[str, ...]:
        """The mark of a claim in one table, and its numbers."""
        claim = rf"\({re.escape(a)} against {b}\): .*\n(?:  - .*\n)*?"
        (values,) = re.findall(
            claim + rf"  - (\S+) (\S+) points \((\S+) to (\S+)\) .*, 30 seeds: fashion-mnist, {table}", SLIDES
        )
        return values

    short, small = "batch size 16384, 45 steps", "batch size 128, 2574 steps"
    explores, exploits = "alto:alpha=-5:beta=0.99", "alto:alpha=0.5:beta=0.01"
    mark, *values = found(explores, "lamb", short)
    says = "45 steps, α = -5 adds {:.3f} ({:.2f} to {:.2f}), equivalent within 0.5".format(*map(float, values))
    assert (mark, says in README) == ("=", True)
    mark, *values = found(exploits, "lamb", short)
    says = "α = 0.5, the paper's for small batches, {:.2f} ({:.2f} to {:.2f})".format(*map(float, values))
    assert (mark, says in README) == ("✓", True)
    mark, *values = found("nesterov-lamb", "lamb", short)
    says = "Nesterov momentum {:.2f} ({:.2f} to {:.2f}), asked".format(*map(float, values))
    assert (mark, says in README) == ("✓", True)
    long = "batch size 16384, 300 steps"
    assert [found(alpha, "lamb", long)[0] for alpha in (explores, exploits)] == ["=", "="]
    mark, mean, low, high = found(explores, "adamw", long)
    says = "in 300 steps both α are equivalent to LAMB, and AdamW is {:.2f} ({:.2f} to {:.2f}) above α = -5"
    assert (mark, says.format(-float(mean), -float(high), -float(low)) in README) == ("✗=", True)
    assert "LAMB without bias correction equals LAMB within 0.5, in 45;" in README
    assert found(explores, "lamb-uncorrected", short)[0] == found("lamb", "lamb-uncorrected", short)[0] == "="
    assert "at 128 SGD, AdamW, LAMB and ALTO do." in README
    assert found(exploits, "lamb", small)[0] == found("sgd", exploits, small)[0] == "="


def test_muon_is_first():
    ranked = [re.findall(r"^\| ([^ |]+) \| .* \| lr=", table, re.MULTILINE) for table in ALL.split("**Here: ")[1:]]
    with_muon = [names for names in ranked if "muon" in names]
    first = {tuple(names[: names.index("muon") + 1]) for names in with_muon}
    assert first == {("muon",), ("e-muon:alpha=0.5:beta=0.01", "muon"), ("orscale", "muon")}
    assert f"Muon, with E, without, or as OrScale, leads all {NUMBERS[len(with_muon)]} tables with it" in README


def test_flat_minima():
    page = (ROOT / "docs" / "flatness.md").read_text()
    groups = re.findall(
        r"^- \*\*α (.) 0 is \w+, bases (with|without) momentum, (each|at one)[^—]*— (.) .*: steps times ([^,]*), "
        r"mean over (\d+) cells\. \*\*And \w+\*\* — (.) .*: λ_max times ([^,]*), mean over (\d+)",
        RESULTS, re.MULTILINE,
    )  # fmt: skip
    assert len(groups) == 8
    for sign, momentum, rate, pace, steps, cells, place, sharpness, same in groups:
        of = "momentum" if momentum == "with" else "no momentum"
        assert f"| {of}, α {sign} 0, {rate}" in page
        assert f"| {cells} | {pace} {steps} | {place} {sharpness} |" in page
        assert cells == same
        if (of, sign, rate) == ("momentum", "<", "each"):
            says = f"with momentum, each at its own rate, λ_max is [{sharpness}](docs/flatness.md) times that without E"
            assert (f"{says}." in README, place) == (True, "✗")
