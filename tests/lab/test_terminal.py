"""The commands on a terminal: bars that are drawn, Ctrl-C, Ctrl-Z and ``fg``, a window that is resized."""

import pytest
from pseudo_terminal import THALWEG, Terminal

LEAST = """
from rich.progress import Progress
from thalweg.commands.terminal import console
own = console()
with Progress(console=own):
    own.print("through the console")
    print("past it")
    console().print("through another that is made meanwhile")
print("after")
"""
PLAN = ["--batch-size", "16", "--optimizers", "sgd,adamw", "--trials", "2", "--studies", "1", "--seeds", "2"]
COMPARE = [*THALWEG, "compare", "small_tasks:Line", *PLAN, "--jobs", "1"]


def test_what_is_printed_beside_a_bar_comes_out_once():
    with Terminal([THALWEG[0], "-c", LEAST]) as terminal:
        assert terminal.finish(60) == 0
    assert [line for line in terminal.shown if line] == [
        "through the console", "past it", "through another that is made meanwhile", "after"
    ]  # fmt: skip
    assert terminal.cursor


@pytest.mark.parametrize("columns", [80, 200])
def test_compare_on_a_terminal_ends_in_its_tables(columns, tmp_path):
    with Terminal([*COMPARE, "--steps", "200", "--out", str(tmp_path)], columns) as terminal:
        assert terminal.finish() == 0
    assert terminal.cursor
    said = " ".join(terminal.said.split())
    assert "custom (200 steps) sgd: test squared error" in said
    assert "timing steps, all optimizers in turn" in said
    assert "100% 0:" in said  # the bar
    assert "mean (95 % interval) steps seconds reached failed" in said
    assert ("best setting" in said) == (columns == 200)
    assert "…" not in said
    assert terminal.shown[-1].endswith("report.html")
