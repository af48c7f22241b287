"""Rounds of a study, trials from several seeds, and what a trial is judged by."""

import math
import os
import random
import shutil
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from comparisons import PLAN, carry_out
from launching import Piped
from test_processes import ENVIRONMENT, until

from thalweg.lab.contenders import contender
from thalweg.lab.search import points
from thalweg.lab.search.cells import JUDGED, SEARCH_SEED, Reader
from thalweg.lab.search.plan import ComparisonPlan
from thalweg.records import files as records
from thalweg.records import reading, results
from thalweg.records.metric import Metric
from thalweg.records.results import NEIGHBOUR, Evaluation, Trial, judged, neighbours
from thalweg.report.sentences import cautions
from thalweg.report.summary import summarise

ERROR = Metric("error", "min")
LINE = ("small_tasks:Line",)


def run_of(validation, *, number=0, seed=0, turn=0, point=None, history=(), failure=None):
    evaluations = tuple(Evaluation(k, k, 0.0, 0.0, value, 0.0) for k, value in enumerate(history, 1))
    return results.Run(
        Path(), "trial", 0, turn, number, seed, point or {}, point or {}, failure, failure and "why",
        None if failure else validation, None, 0.0, None, None, {}, {}, evaluations,
    )  # fmt: skip


def search(cell, root, value):
    """The trials of study 0 where the validation metric of a point is what ``value`` says of its log10 rate."""
    metric = Metric("error", "min")
    found = []

    def done(job):
        if job.place.kind != "trial":
            return None
        error = value(math.log10(job.spec.settings["lr"]))
        run = run_of(error, number=job.place.number, seed=job.spec.seed, turn=job.place.round, point=job.place.point,
                     failure=None if error is not None else "diverged")  # fmt: skip
        if job.place.study == 0:
            found.append(Trial((run,), run.validation))
        return run

    jobs = list(cell.open_jobs(root, done))
    assert metric.goal == "min"
    return {turn: [one for one in found if one.round == turn] for turn in range(3)}, jobs


def rates(trials):
    return [trial.point["lr"] for trial in trials]


def cell_of(root, trials=8, optimizer="adamw", **options):
    given = {"tuning_seeds": 1, "steps": 6} | options
    (cell,), _ = ComparisonPlan(LINE, (16,), (optimizer,), trials, 1, 2, **given).cells(root)
    return cell


# rounds


@pytest.mark.parametrize("trials", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "value", [lambda x: (x + 2.0) ** 2, lambda x: -x, lambda x: x, lambda x: None], ids=["in", "up", "down", "none"]
)
def test_every_study_has_two_rounds_of_half_its_trials_whatever_happens(trials, value, tmp_path):
    found, jobs = search(cell_of(tmp_path, trials), tmp_path, value)
    assert [len(own) for own in found.values()] == [trials, math.ceil(trials / 2), math.ceil(trials / 2)]
    assert len({tuple(one.point.items()) for own in found.values() for one in own}) == trials + 2 * math.ceil(
        trials / 2
    )
    assert [job.place.kind for job in jobs] == ([] if value(0.0) is None else ["seed", "seed"])


@pytest.mark.parametrize("seed", range(30))
def test_no_point_of_a_study_is_tried_twice(seed, tmp_path):
    """Whatever is found, at random and all over the range, at its edges and beyond."""
    rng = random.Random(seed)
    found, _ = search(cell_of(tmp_path, 8), tmp_path, lambda x: rng.random() + rng.choice((-5, 0, 5)) * x)
    assert len({tuple(one.point.items()) for own in found.values() for one in own}) == 16


def test_at_an_edge_a_round_goes_beyond_it(tmp_path):
    cell = cell_of(tmp_path)
    own = cell.space[0]
    higher, _ = search(cell, tmp_path, lambda x: -x)
    assert min(rates(higher[1])) >= own.high
    assert max(rates(higher[1])) <= own.high * points.LR_FACTOR
    best = max(higher[0], key=lambda one: one.point["lr"])
    assert higher[1][0].point == best.point | {"lr": pytest.approx(best.point["lr"] * NEIGHBOUR)}
    assert min(rates(higher[2])) >= max(rates(higher[1]))
    lower, _ = search(cell, tmp_path, lambda x: x)
    assert max(rates(lower[1])) <= own.low
    assert max(rates(lower[2])) <= min(rates(lower[1]))
    assert rates(lower[2])[0] == pytest.approx(min(rates(lower[1])) / NEIGHBOUR)


def test_within_the_range_a_round_refines_the_best(tmp_path):
    cell = cell_of(tmp_path)
    first = search(cell, tmp_path, lambda x: 0.0)[0][0]
    middle = sorted(first, key=lambda one: one.point["lr"])[4]
    at = math.log10(middle.point["lr"])
    found, _ = search(cell, tmp_path, lambda x: abs(x - at - 0.01))
    rate = middle.point["lr"]
    assert rates(found[1])[:2] == pytest.approx([rate * NEIGHBOUR, rate / NEIGHBOUR])
    assert all({**one.point, "lr": rate} == middle.point for one in found[1][:2])
    assert rates(found[2])[0] == pytest.approx(rate * math.sqrt(NEIGHBOUR))  # half way to the better of them
    assert {**found[2][0].point, "lr": rate} == middle.point
    for one in (*found[1][2:], *found[2][1:]):
        for axis in cell.space:
            away = abs(axis.share(one.point[axis.name]) - axis.share(middle.point[axis.name]))
            assert away <= points.BOX
            assert -1e-9 <= axis.share(one.point[axis.name]) <= 1 + 1e-9
    assert len({tuple(one.point.items()) for one in (*found[1][2:], *found[2][1:])}) == 5


def test_a_better_neighbour_is_followed(tmp_path):
    cell = cell_of(tmp_path, 4)
    first = search(cell, tmp_path, lambda x: 0.0)[0][0]
    best = min(first, key=lambda one: abs(cell.space[0].share(one.point["lr"]) - 0.4))
    rate = best.point["lr"]
    near = [rate, rate * NEIGHBOUR, rate * NEIGHBOUR**2]

    def value(x):  # the first of them is better than all, each of the others than the one before
        return next((float(-k) for k, other in enumerate(near) if math.isclose(10.0**x, other, rel_tol=1e-9)), 1.0)

    found, _ = search(cell, tmp_path, value)
    assert rates(found[1]) == pytest.approx([rate * NEIGHBOUR, rate / NEIGHBOUR])
    assert rates(found[2])[0] == pytest.approx(rate * NEIGHBOUR**2)
    trials = [one for own in found.values() for one in own]
    last = next(one for one in trials if one.point["lr"] == pytest.approx(near[2]))
    below, above = neighbours(last, trials)
    assert below.point["lr"] == pytest.approx(near[1])
    assert above is None


def test_points_of_a_box_are_near_the_best_and_stay_within_the_ranges():
    space = contender("alto").space
    for share in (0.02, 0.5, 0.97):
        centre = {axis.name: axis.at(0.5 if axis.name == "lr" else share) for axis in space}
        trial = Trial((run_of(1.0, point=centre),), 1.0)
        found = points.of_round(space, [trial], ERROR, "name", 40)[2:]
        for axis in space:
            shares = [axis.share(at[axis.name]) for at in found]
            assert max(shares) - min(shares) > 0.8 * points.BOX
            assert max(shares) - min(shares) <= points.BOX
            assert min(shares) >= -1e-9
            assert max(shares) <= 1 + 1e-9
            if axis.name != "lr":
                assert min(shares) - 0.01 <= share <= max(shares) + 0.01


@pytest.mark.parametrize(
    ("optimizer", "rounds"),
    [("sgd:lr=0.01|0.1:momentum=0.9:weight_decay=0", 0), ("sgd:lr=0.01|0.1", 0), ("adamw:lr=0.1", 2), ("adamw", 2),
     ("sgd:lr=0.1:momentum=0.9:weight_decay=0", 0)],
)  # fmt: skip
def test_lists_of_values_have_no_rounds(optimizer, rounds, tmp_path):
    cell = cell_of(tmp_path, 4, optimizer)
    found, _ = search(cell, tmp_path, lambda x: (x + 2.0) ** 2)
    assert [bool(found[turn]) for turn in (1, 2)] == [rounds > 0] * 2
    assert cell.points == sum(map(len, found.values()))
    cell.record(tmp_path, "")
    assert reading.read(tmp_path).tables[0].cells[0].rounds == rounds


def test_a_larger_search_has_rounds_of_its_own(tmp_path):
    """Those that followed from fewer trials are no trials of it, so that all optimizers have as many."""
    plan = replace(PLAN, optimizers=("adamw",), trials=2, studies=1)
    carry_out(plan, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/**/trial-*/result.json")}
    carry_out(replace(plan, trials=4), tmp_path)
    (cell,) = reading.read(tmp_path).tables[0].cells
    assert [trial.round for trial in cell.trials] == [0] * 4 + [1] * 2 + [2] * 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    (path,) = tmp_path.glob("runs/**/round-1-trial-0-*")
    other = shutil.copytree(path, path.with_name("round-1-trial-7-other")) / "spec.json"
    spec = records.read_json(other)
    for name, count in (("4x1", 9), ("2x1", 8), ("4x2", 8)):
        records.write_json(other, {**spec, "place": {**spec["place"], "number": 7, "search": name}})
        assert len(reading.read(tmp_path).tables[0].cells[0].trials) == count


# seeds of trials


def test_a_trial_is_trained_from_each_of_the_tuning_seeds_and_they_may_become_more(tmp_path):
    plan = replace(PLAN, optimizers=("sgd", "adamw"), trials=2, studies=1)
    carry_out(plan, tmp_path)
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/**/study-0/trial-*/result.json")}
    cells = carry_out(replace(plan, tuning_seeds=2), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in first} == first
    for planned, cell in zip(cells, reading.read(tmp_path).tables[0].cells[::-1], strict=True):
        assert (planned.optimizer, cell.tuning_seeds, cell.judged) == (cell.optimizer, 2, JUDGED)
        assert len(cell.trials) == planned.points == 4
        assert len(cell.runs) == planned.runs == 4 * 2 + 2
        for trial in cell.trials:
            assert [run.seed for run in trial.runs] == [SEARCH_SEED, SEARCH_SEED + 1]
            assert len({tuple(run.settings.items()) for run in trial.runs}) == 1
            a, b = (run.validation for run in trial.runs)  # six evaluations, of which the last is the last fifth
            assert a != b
            assert trial.validation == (None if None in (a, b) else pytest.approx(math.sqrt(a * b)))
        assert cell.chosen.settings == planned.chosen(tmp_path, Reader()).settings
        assert {tuple(run.settings.items()) for run in cell.seeds} == {tuple(cell.chosen.settings.items())}
    again, _ = plan.cells(tmp_path)
    assert [cell.tuning_seeds for cell in again] == [2, 2]
    (cell.trials[0].runs[1].folder / "result.json").unlink()  # with one of its runs alone it is no trial
    left = next(one for one in reading.read(tmp_path).tables[0].cells if one.optimizer == cell.optimizer)
    assert [(one.round, one.number) for one in left.trials] == [(0, 1), (1, 0), (2, 0)]


@pytest.mark.parametrize("log", [False, True])
def test_a_run_is_judged_by_the_mean_of_its_last_evaluations(log):
    metric = Metric("error", "min", log=log)
    history = [float(k * k) for k in range(20, 0, -1)]
    for length, last in ((20, 4), (12, 2), (10, 2), (9, 1), (4, 1), (1, 1)):
        kept = history[-last:]
        mean = math.prod(kept) ** (1.0 / last) if log else sum(kept) / last
        run = run_of(1.0, history=history[-length:])
        assert judged(run, metric, "last fifth") == pytest.approx(mean)
        assert judged(run, metric, "last") == 1.0
    gap = [*history[-10:-2], math.nan, 3.0]
    assert judged(run_of(3.0, history=gap), metric, "last fifth") == 3.0


def test_a_trial_that_failed_from_one_seed_has_failed():
    runs = [run_of(1.0, seed=0), run_of(None, seed=1, failure="diverged")]
    trial = Trial.of(runs, ERROR, JUDGED)
    assert (trial.finished, trial.validation, trial.failure, trial.reason) == (False, None, "diverged", "why")
    good = Trial.of([run_of(2.0), run_of(4.0, seed=1)], ERROR, JUDGED)
    assert (good.finished, good.validation, good.failure) == (True, 3.0, None)
    assert results.best([trial, good], ERROR) is good


def test_cells_of_before_are_read_as_they_were(done, tmp_path):
    """One seed, the last evaluation, and every run of a study a trial of it."""
    root, _ = done
    new = {cell.optimizer: cell for cell in reading.read(root).tables[0].cells}
    for path in root.glob("runs/*/*/adamw/*/cell.json"):
        kept = records.read_json(path)
        try:
            records.write_json(
                path, {key: kept[key] for key in kept if key not in ("tuning_seeds", "judged", "rounds")}
            )
            (old,) = (cell for cell in reading.read(root).tables[0].cells if cell.optimizer == "adamw")
        finally:
            records.write_json(path, kept)
    assert (old.tuning_seeds, old.judged, old.rounds) == (1, "last", 0)
    assert [one.runs for one in old.trials] == [one.runs for one in new["adamw"].trials]
    assert [one.validation for one in old.trials] == [one.runs[0].validation for one in new["adamw"].trials]


def test_the_points_of_a_round_come_in_the_order_of_their_use():
    """However few there are, the neighbours of the best come first."""
    at = {axis.name: axis.at(0.5) for axis in contender("adamw").space}
    trial = Trial((run_of(1.0, point=at),), 1.0)
    found = [points.of_round(contender("adamw").space, [trial], ERROR, "name", n) for n in (1, 2, 3, 4)]
    assert all(short == longer[:-1] for short, longer in pairwise(found))


# what is flagged, and what a table says of its trials


def cell_with(trials, **options):
    given = {"rounds": 2, "judged": JUDGED, "metric": ERROR, "optimizer": "adamw"} | options
    space = given.pop("space", contender("adamw").space)
    return results.Cell(folder=Path(), space=space, planned_trials=1, planned_studies=1, planned_seeds=1,
                        trials=tuple(trials), seeds=(), **given)  # fmt: skip


def trial_at(value, rate, **point):
    at = {axis.name: axis.at(0.5) for axis in contender("adamw").space} | point | {"lr": rate}
    return Trial((run_of(value, point=at, failure=None if value is not None else "diverged"),), value)


@pytest.mark.parametrize(
    ("factors", "flagged"),
    [((1.8, 1 / 1.8), False), ((1.8,), True), ((1 / 1.8,), True), ((1.2, 1 / 1.5), False), ((1.9, 1 / 1.8), True)],
)
def test_a_best_without_both_neighbours_is_flagged(factors, flagged):
    best = trial_at(1.0, 0.01)
    others = [trial_at(2.0, 0.01 * factor) for factor in factors]
    far = [trial_at(2.0, 0.01 * 1.5, forgetting=0.3), trial_at(2.0, 0.01 / 1.5, forgetting=0.3)]  # of another momentum
    assert cell_with([best, *others, *far]).unrefined == flagged
    assert not cell_with([best, *others, *far], rounds=0).unrefined  # of before
    failed = [trial_at(None, 0.01 * factor) for factor in factors]
    assert cell_with([best, *failed]).unrefined == flagged  # tried is tried


def test_a_best_at_an_edge_is_flagged_as_such_alone():
    cell = cell_with([trial_at(1.0, contender("adamw").space[0].high), trial_at(2.0, 0.01)])
    assert (cell.edges["lr"], cell.unrefined) == ("high", False)


def table_of(chance, metric=ERROR, judged=JUDGED, **values):
    cells = tuple(
        cell_with([trial_at(value, 0.01 + k) for k, value in enumerate(own)], optimizer=name, judged=judged)
        for name, own in values.items()
    )
    return results.Table("t", "t", metric, 1, 1, "short", None, 1, chance, cells)


@pytest.mark.parametrize("flip", [False, True])
def test_usable_trials_close_half_of_the_gap_to_chance(flip):
    """Of a loss of 10 by chance and 2 at best: at most 6. Of accuracies the same, upside down."""
    sign, metric = (-1.0, Metric("accuracy", "max")) if flip else (1.0, ERROR)

    def table(chance, **values):
        turned = {name: [v and sign * v for v in own] for name, own in values.items()}
        return table_of(chance and sign * chance, metric, **turned)

    found = table(10.0, a=[2.0, 6.0, 6.1, None], b=[5.0, 30.0, None], c=[9.0], d=[None])
    assert found.usable == {"a": 2, "b": 1, "c": 0, "d": 0}
    assert found.unequal == ("c", "d")
    assert table(None, a=[2.0, 6.0, 6.1], b=[5.0, 9.0, 8.9]).usable == {"a": 1, "b": 1}  # half way to the worst, 5.5
    assert table(1.0, a=[2.0, 6.0]).usable == {"a": 0}  # nothing is better than chance


def test_usable_trials_of_a_logarithmic_metric_close_half_of_its_decades():
    table = table_of(1.0, Metric("error", "min", log=True), a=[1e-4, 1e-2, 0.011], b=[2e-2])
    assert table.usable == {"a": 2, "b": 0}
    assert table.unequal == ("b",)
    assert replace(table, cells=tuple(replace(cell, judged="last") for cell in table.cells)).unequal == ()


def test_a_table_whose_search_served_one_far_less_says_so_once():
    found = summarise(results.Results(Path(), (table_of(10.0, a=[2.0, 3.0], b=[9.0, 9.5]),), (), ()), "")
    said = [text for text in cautions(found.tables[0]) if "trials" in text and "incomplete" not in text]
    assert said == [
        "Less than half as many trials of b were of use as of another optimizer: the search did not serve all alike."
    ]


# seeds that are asked for later


def test_looks_count_how_often_a_comparison_was_complete_and_then_had_to_have_more_seeds(tmp_path):
    plan = replace(PLAN, optimizers=("sgd", "adamw"), trials=1, studies=1, seeds=2)

    def looks():
        return [cell.looks for cell in reading.read(tmp_path).tables[0].cells]

    for cell in plan.cells(tmp_path)[0]:
        cell.record(tmp_path, "")
    for cell in replace(plan, seeds=3).cells(tmp_path)[0]:
        cell.record(tmp_path, "")
    assert looks() == [1, 1]  # nothing had been run
    carry_out(plan, tmp_path)
    assert looks() == [1, 1]
    for cell in replace(plan, seeds=5).cells(tmp_path)[0]:
        cell.record(tmp_path, "")
    assert looks() == [2, 2]
    for _ in range(2):
        carry_out(replace(plan, seeds=4), tmp_path)  # as many as before, and no more
        assert looks() == [2, 2]
    carry_out(replace(plan, seeds=6, optimizers=("sgd",)), tmp_path)
    assert looks() == [2, 3]
    assert reading.read(tmp_path).tables[0].chance is None


# interrupted


@pytest.mark.slow
def test_two_workers_killed_halfway_a_round_leave_what_one_goes_on_from_to_the_same_end(tmp_path):
    plan = ComparisonPlan(("small_tasks:Slow",), (16,), ("sgd", "adamw"), 2, 1, 2, steps=6, tuning_seeds=2)
    options = ["--batch-size", "16", "--optimizers", "sgd,adamw", "--trials", "2", "--studies", "1", "--seeds", "2"]
    command = ["-m", "thalweg", "compare", "small_tasks:Slow", *options, "--steps", "6", "--jobs", "2"]
    started = Piped([*command, "--out", str(tmp_path / "killed")], ENVIRONMENT)
    try:
        until(lambda: list(tmp_path.glob("killed/**/round-1-*/result.json")) or started.poll() is not None, 300.0)
    finally:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait(10)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("killed/**/result.json")}
    assert list(tmp_path.glob("killed/**/round-1-*/result.json"))
    assert not list(tmp_path.glob("killed/**/seed-0-*/result.json"))
    carry_out(plan, tmp_path / "killed")
    carry_out(plan, tmp_path / "alone")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    ends = [
        {path.parent.relative_to(root): records.read_json(path)["validation"] for path in root.glob("**/result.json")}
        for root in (tmp_path / "killed", tmp_path / "alone")
    ]
    assert ends[0] == ends[1]
    assert len(ends[0]) == 2 * (4 * 2 + 2)
