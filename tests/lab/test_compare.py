import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from thalweg.lab import records
from thalweg.lab.compare import Comparison, Plan
from thalweg.lab.errors import UserError
from thalweg.lab.results import interval, summarise

PLAN = Plan(("sine",), (256,), ("sgd", "adamw", "alto"), trials=3, seeds=2, steps=20)
ARGUMENTS = ["compare", "sine", "--batch-size", "256", "--optimizers", "sgd,adamw,alto", "--trials", "3"]
ARGUMENTS += ["--seeds", "2", "--steps", "20", "--jobs", "1"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    comparison = Comparison(PLAN, tmp_path_factory.mktemp("comparison"))
    comparison.run(1)
    return comparison


def test_every_optimizer_gets_the_same_trials_and_the_best_gets_fresh_seeds(done):
    for cell in PLAN.cells():
        trials = done.trials(cell)
        assert len(trials) == 3
        assert len({s["lr"] for s, _ in trials}) == 3
        best = min((value, s) for s, value in trials if value is not None)[1]
        assert done.best(cell) == best
        seeds = [records.read_json(job.folder / "settings.json") for job in done.fresh_seeds(cell)]
        assert [s["seed"] for s in seeds] == [1000, 1001]
        assert all(s["settings"] == best and s["test"] for s in seeds)
        assert {records.read_json(f / "settings.json")["seed"] for f in cell.folder(done.root).glob("trial-*")} == {0}


def test_only_fresh_seeds_see_the_test_set(done):
    results = list(done.root.glob("runs/**/result.json"))
    assert len(results) == 3 * (3 + 2)
    for path in results:
        assert ("test" in records.read_json(path)) == path.parent.name.startswith("seed")


def test_the_search_is_the_same_on_every_machine(done, tmp_path):
    again = Comparison(PLAN, tmp_path)
    for cell in PLAN.cells():
        points = [trial.params for trial in done._study(cell).trials]
        again._trials(cell)
        assert [trial.params for trial in again._study(cell).trials] == points


def test_the_summary_holds_what_was_stored(done):
    summary = summarise(done, "thalweg compare")
    (table,) = summary.tables
    assert {row.optimizer for row in table.rows} == {"sgd", "adamw", "alto"}
    assert [row.test.mean for row in table.rows] == sorted(row.test.mean for row in table.rows)
    for cell in PLAN.cells():
        row = next(row for row in table.rows if row.optimizer == cell.optimizer)
        results = [records.read_json(job.folder / "result.json") for job in done.fresh_seeds(cell)]
        assert row.test.values == tuple(result["test"] for result in results)
        assert row.test.mean == pytest.approx(sum(row.test.values) / 2)
        assert row.validation.mean[-1] == pytest.approx(sum(result["validation"] for result in results) / 2)
        assert (row.seeds, row.trials, row.failed_seeds) == (2, 3, 0)
        assert row.failed_trials == sum(value is None for _, value in done.trials(cell))


def test_failed_trials_and_seeds_are_counted_and_rank_last(done, tmp_path):
    comparison = Comparison(PLAN, tmp_path)
    comparison.run(1)
    first = summarise(comparison, "").tables[0].rows[0].optimizer  # the failure must cost it its place
    cell = next(cell for cell in PLAN.cells() if cell.optimizer == first)
    best = comparison.fresh_seeds(cell)
    failed = {"status": "failed", "reason": "non-finite loss at step 3", "validation": None}
    records.write_json(best[0].folder / "result.json", failed)
    rows = summarise(comparison, "").tables[0].rows
    assert rows[-1].optimizer == cell.optimizer
    assert (rows[-1].failed_seeds, rows[-1].seeds, len(rows[-1].test.values)) == (1, 2, 1)
    for i in range(3):
        records.write_json(cell.folder(tmp_path) / f"trial-{i}" / "result.json", failed)
    row = summarise(comparison, "").tables[0].rows[-1]
    assert (row.optimizer, row.test, row.settings, row.failed_trials) == (cell.optimizer, None, None, 3)


def test_more_trials_extend_a_comparison(done, tmp_path):
    small = Plan(("sine",), (256,), ("adamw",), trials=2, seeds=1, steps=10)
    Comparison(small, tmp_path).run(1)
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/**/trial-*/result.json")}
    larger = Plan(("sine",), (256,), ("adamw",), trials=3, seeds=1, steps=10)
    comparison = Comparison(larger, tmp_path)
    comparison.run(1)
    assert len(comparison.trials(next(iter(larger.cells())))) == 3
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


def test_another_training_length_needs_another_folder(done):
    other = Plan(("sine",), (256,), ("adamw",), trials=1, seeds=1, steps=21)
    with pytest.raises(UserError, match="holds a comparison with --steps 20, not 21: choose another folder"):
        Comparison(other, done.root)


def results_of(root):
    timed = ("seconds", "seconds_to_target")
    return {
        path.parent.relative_to(root): {k: v for k, v in records.read_json(path).items() if k not in timed}
        for path in root.glob("runs/**/result.json")
    }


@pytest.mark.slow
def test_after_ctrl_c_the_same_command_continues_and_ends_the_same(done, tmp_path):
    command = [sys.executable, "-m", "thalweg", *ARGUMENTS, "--out", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
    deadline = time.monotonic() + 120
    while not results_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "interrupted; what is complete is stored: the same command continues there"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/**/result.json")}
    assert 0 < len(before) < 15

    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert f"report: {tmp_path / 'report.html'}" in output.replace("\n", "")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert results_of(tmp_path) == results_of(done.root)


@pytest.mark.slow
def test_training_processes_end_with_a_killed_parent(tmp_path):
    command = [sys.executable, "-m", "thalweg", "compare", "digits", "--optimizers", "adamw", "--jobs", "1"]
    process = subprocess.Popen([*command, "--steps", "100000", "--out", str(tmp_path)], stdout=subprocess.DEVNULL)
    history = tmp_path / "runs/digits/64/adamw/trial-0/settings.json"
    deadline = time.monotonic() + 120
    while not history.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []


def test_intervals_are_students():
    assert interval([4.0]) == (one := interval([4.0]))
    assert (one.mean, one.half_width) == (4.0, None)
    five = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert five.mean == 3.0
    assert five.half_width == pytest.approx(2.7764 * 2.5**0.5 / 5**0.5, rel=1e-4)  # t(4) = 2.7764
