"""``make demo``, in a terminal, to its end: with fewer trials, seeds and steps than it has."""

import sys
from pathlib import Path

import pytest
from pseudo_terminal import Terminal

from thalweg.records import reading

FOLDER = Path(__file__).parents[2]
OPTIMIZERS = {"sgd", "adamw", "lamb", "muon", "alto", "e-adamw"}


@pytest.mark.slow
def test_the_demo_ends_with_its_tables_on_the_screen(tmp_path):
    few = "MUCH=--trials 1 --studies 1 --tuning-seeds 1 --seeds 1 --steps 3"
    variables = [few, f"OUT={tmp_path}", f"BIN={Path(sys.executable).parent}"]
    with Terminal(["make", "--old-file", ".venv/lab", "demo", *variables], 80, 50, FOLDER) as terminal:
        assert terminal.finish(900) == 0, terminal.said
    assert terminal.cursor
    assert "…" not in terminal.said
    assert "".join(terminal.shown).endswith("report.html")
    found = reading.read(tmp_path)
    assert not found.problems
    assert len(found.tables) == 4  # of as many steps, short and long are one
    said = " ".join(terminal.said.split())
    for table in found.tables:
        assert f"{table.task}, batch size {table.batch_size}: test" in said
    begins = {line.split()[0] for line in terminal.shown if line.strip()}
    assert begins >= OPTIMIZERS  # the last table at least is on the last screen
    assert (tmp_path / "report.html").read_text().endswith("</html>")
