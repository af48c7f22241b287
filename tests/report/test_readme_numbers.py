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
NUMBERS = {11: "eleven"}


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


def test_three_seeds_decide_nothing():
    of = [line for base in ("lamb", "adamw") for line in compared(base)]
    assert all(", 3 seeds: " in line for line in of)
    assert not any(marked(of, mark) for mark in "✓✗=")


def test_batch_sizes():
    def found(b: str, size: int) -> tuple[str, ...]:
        claim = rf"\(alto:alpha=-5:beta=0.99 against {b}\): .*\n(?:  - .*\n)*?"
        line = rf"  - (\S+) (\S+) points \((\S+) to (\S+)\) .*, 30 seeds: fashion-mnist, batch size {size}, "
        (section,) = re.findall(r"(?s)^## Batch-size scaling.*?(?=^## )", ALL, re.MULTILINE)
        (values,) = re.findall(claim + line, section)
        return values

    assert {found("lamb", size)[0] for size in (1024, 4096, 16384)} == {"="}
    _, above, low, high = found("adamw", 4096)
    _, below, least, most = found("adamw", 1024)
    says = "α = -5 is {:.2f} ({:.2f} to {:.2f}) above AdamW at 4096, {:.2f} ({:.2f} to {:.2f}) below at 1024."
    own = float(above), float(low), float(high), -float(below), -float(most), -float(least)
    assert says.format(*own) in README


def test_exploitation_on_the_digits():
    def found(size: int) -> list[tuple[float, ...]]:
        claim = r"\(alto:alpha=0.5:beta=0.01 against lamb\): .*\n(?:  - .*\n)*?"
        line = rf"  - [✓✗]=? (\S+) points \((\S+) to (\S+)\) .*, 30 seeds: digits(?:-vgg)?, batch size {size}, "
        return [tuple(map(float, values)) for values in re.findall(claim + line, ALL)]

    (net,), (vgg,), ((mean, low, high),) = found(64), found(256), found(1024)
    says = "adds {:.1f} ({:.1f} to {:.1f}) to LAMB at batch 64, in a small VGG {:.2f} ({:.2f} to {:.2f}) at 256,"
    assert says.format(*net, *vgg) in README
    assert f"and costs {-mean:.1f} ({-high:.1f} to {-low:.1f}) at 1024." in README


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
        (section,) = re.findall(r"(?s)^## Image classification.*?(?=^## )", ALL, re.MULTILINE)
        (values,) = re.findall(
            claim + rf"  - (\S+) (\S+) points \((\S+) to (\S+)\) .*, 30 seeds: fashion-mnist, {table}", section
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
    ranked = {}  # what two experiments train is one table
    for table in ALL.split("**Here: ")[1:]:
        ranked.setdefault(table.split("**")[0], []).append(
            re.findall(r"^\| ([^ |]+) \| .* \| lr=", table, re.MULTILINE)
        )
    with_muon = [own for own in ranked.values() if "muon" in own[0]]
    first = {tuple(names[: names.index("muon") + 1]) for own in with_muon for names in own}
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
