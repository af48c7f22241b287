"""The commands on a terminal: bars that are drawn, Ctrl-C, Ctrl-Z and ``fg``, a window that is resized."""

import json
import re
import time

import pytest
from lines import saved
from pseudo_terminal import CTRL_C, CTRL_Z, THALWEG, Terminal

from thalweg.records import files as records
from thalweg.records import reading

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
PLAN += ["--tuning-seeds", "1"]
SLOW = [*THALWEG, "compare", "small_tasks:Slow", *PLAN, "--steps", "30", "--no-timing"]


def test_what_is_printed_beside_a_bar_comes_out_once():
    with Terminal([THALWEG[0], "-c", LEAST]) as terminal:
        assert terminal.finish(60) == 0
    assert [line for line in terminal.shown if line] == [
        "through the console", "past it", "through another that is made meanwhile", "after"
    ]  # fmt: skip
    assert terminal.cursor


def test_compare_ends_in_its_tables(tmp_path):
    arguments = ["small_tasks:Line", *PLAN, "--steps", "200", "--jobs", "1", "--out", str(tmp_path)]
    with Terminal([*THALWEG, "compare", *arguments], forked=True) as terminal:
        assert terminal.finish() == 0
    assert terminal.cursor
    said = " ".join(terminal.said.split())
    assert "custom (200 steps) sgd: test squared error" in said
    assert "timing steps, interleaved" in said
    assert "100% 0:" in said  # the bar
    assert "mean (95 % interval) steps seconds reached failed" in said
    assert "best setting" not in said  # no room for it
    assert "…" not in said
    assert terminal.said.replace("\n", "").endswith("/report.html")


def interrupted(terminal):
    """Ctrl-C once: it ends soon, says so in a line, and the cursor is back."""
    terminal.type(CTRL_C)
    before = time.monotonic()
    assert terminal.finish(30) == 130
    assert time.monotonic() - before < 15
    assert terminal.cursor
    assert "Traceback" not in terminal.said


def halfway(root):
    """Whether a run has trained and is far from its end."""
    begun = [path for path in root.glob("runs/**/metrics.jsonl") if not path.with_name("result.json").exists()]
    return any(records.read_lines(path)[-1]["step"] < 15 for path in begun)


def test_ctrl_c_once_ends_compare_with_complete_records_and_the_same_command_continues(tmp_path):
    slower = tmp_path / "slower"
    with Terminal([*SLOW, "--out", str(tmp_path)], 200, folder=tmp_path) as terminal:
        terminal.wait(lambda: len(list(tmp_path.glob("runs/**/result.json"))) >= 2)
        slower.touch()  # or both workers could be between runs when Ctrl-C comes
        terminal.wait(lambda: halfway(tmp_path))
        interrupted(terminal)
    slower.unlink()
    assert terminal.shown[-1] == "interrupted; completed work is stored, and the same command resumes"
    for path in tmp_path.glob("runs/**/*.json"):
        json.loads(path.read_text())
    assert list(tmp_path.glob("runs/**/checkpoint/*/.metadata"))  # of what was under way
    assert not reading.read(tmp_path).problems
    complete = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/**/result.json")}
    with Terminal([*SLOW, "--jobs", "1", "--out", str(tmp_path)], 200, folder=tmp_path, forked=True) as terminal:
        assert terminal.finish() == 0
    assert terminal.cursor
    assert "best setting" in terminal.said
    assert "…" not in terminal.said
    assert {path: path.stat().st_mtime_ns for path in complete} == complete


PAUSE = 6.0
"""Seconds, more than a run takes on a busy machine."""


def test_ctrl_z_gives_the_shell_its_cursor_and_fg_goes_on_in_a_window_of_another_size(tmp_path):
    few = [*THALWEG, "compare", "small_tasks:Slow", "--batch-size", "16", "--optimizers", "sgd", "--trials", "1"]
    few += [
        "--studies",
        "1",
        "--tuning-seeds",
        "1",
        "--seeds",
        "1",
        "--steps",
        "30",
        "--no-timing",
        "--jobs",
        "1",
        "--out",
        str(tmp_path),
    ]

    def done():
        return {path: path.stat().st_size for path in tmp_path.glob("runs/**/*")}

    with Terminal(["bash", "--noprofile", "--norc", "-i"]) as terminal:
        terminal.type(" ".join([*few, "; echo status $?\n"]))
        terminal.wait("small_tasks:Slow 16 sgd: study 0")
        assert not terminal.cursor
        terminal.wait(lambda: re.search(r" [1-9]\d?% ", terminal.said))  # amid the steps of the first run
        terminal.type(CTRL_Z)
        terminal.wait("Stopped")
        assert terminal.cursor
        before = done()
        time.sleep(PAUSE)
        assert done() == before
        terminal.type("clear; fg\n")
        terminal.wait("small_tasks:Slow 16 sgd: seed")
        assert not terminal.cursor
        terminal.resize(66)
        terminal.wait("report:")
        terminal.wait(lambda: terminal.cursor)
        terminal.type("exit\n")
        assert terminal.finish(10) == 0
    assert max(run.seconds for run in reading.read(tmp_path).runs) < PAUSE  # of training: not of the pause
    last = terminal.said.rindex("small_tasks:Slow, batch size 16")
    assert "…" not in terminal.said[last:]


REPRODUCE = [*THALWEG, "reproduce", "line.toml", "--jobs", "1"]
RECIPE = """
title = "A line"
[lab]
tuning_seeds = 1
tables = [{task = "small_tasks:Slow", batch_size = 16, optimizers = ["sgd:lr=0.05"], steps = 20, trials = 1, seeds = 1}]
"""


def test_reproduce_ends_in_its_page(tmp_path):
    (tmp_path / "line.toml").write_text(RECIPE)
    with Terminal([*REPRODUCE, "--out", "found"], folder=tmp_path, forked=True) as terminal:
        assert terminal.finish() == 0
    assert terminal.cursor
    assert "small_tasks:Slow 16 " in terminal.said
    assert "100% 0:" in terminal.said
    assert terminal.said.replace("\n", "").endswith("found/report.html")


def test_ctrl_c_once_ends_reproduce(tmp_path):
    (tmp_path / "line.toml").write_text(RECIPE.replace("steps = 20", "steps = 900"))
    with Terminal([*REPRODUCE, "--out", "found"], folder=tmp_path, forked=True) as terminal:
        terminal.wait("small_tasks:Slow 16 ")
        interrupted(terminal)
    assert terminal.shown[-1].startswith("interrupted; completed work is stored")
    assert list(tmp_path.glob("found/**/checkpoint/*/.metadata"))


def test_ctrl_c_once_ends_train_and_the_same_command_continues(tmp_path):
    run = ["train", "small_tasks:Slow", "--steps", "60", "--track", "none", "--checkpoint-seconds", "0.2"]
    with Terminal([*THALWEG, *run, "--out", str(tmp_path)], forked=True) as terminal:
        terminal.wait(lambda: saved(tmp_path))
        interrupted(terminal)
    assert terminal.shown[-1] == "interrupted; completed work is stored, and the same command resumes"
    assert saved(tmp_path)
    assert not (tmp_path / "result.json").exists()
    with Terminal([*THALWEG, *run, "--out", str(tmp_path)], forked=True) as terminal:
        assert terminal.finish() == 0
    assert "step 3/60" not in terminal.said  # that was done before
    assert "step 60/60" in terminal.said


BENCH = [*THALWEG, "bench"]
SOME = ["--shapes", "tiny", "--optimizers", "adamw-fused,authors-e-adamw"]


@pytest.mark.parametrize("columns", [80, 200])
def test_bench_draws_its_bar_and_whole_tables(columns, tmp_path):
    with Terminal([*BENCH, "step", *SOME, "--rounds", "3", "--out", str(tmp_path)], columns, forked=True) as terminal:
        assert terminal.finish() == 0
    assert terminal.cursor
    assert b"rounds" in terminal.raw  # the bar, which is gone at the end
    assert "tiny: rounds" not in terminal.said
    assert "…" not in terminal.said
    found = json.loads((tmp_path / "step.json").read_text())["models"][0]["contenders"]
    for one in found.values():
        for number in (f"{one['first_step_seconds']:.3g} s", f"{one['ratio_over_100_with_first']:.3f}"):
            assert number in terminal.said
        parts = sum(line.lstrip().startswith(one["says"][:12]) for line in terminal.said.splitlines())
        assert parts == 2  # a table of times, one of ratios


def test_ctrl_c_once_ends_bench_with_what_is_complete(tmp_path):
    with Terminal([*BENCH, "memory", *SOME, "--out", str(tmp_path)], forked=True) as terminal:
        assert terminal.finish() == 0
    assert "…" not in terminal.said
    step = [*BENCH, "step", "--shapes", "tiny", "--optimizers", "adamw-fused", "--rounds", "100000"]
    with Terminal([*step, "--out", str(tmp_path)], forked=True) as terminal:
        terminal.wait(lambda: b"tiny: rounds" in terminal.raw)
        interrupted(terminal)
    assert json.loads((tmp_path / "step.json").read_text())["interrupted"]
