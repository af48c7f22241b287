from dataclasses import replace

import numpy as np
import pytest
from comparisons import PLAN, carry_out
from scipy.stats import qmc

from thalweg.lab.contenders import CONTENDERS
from thalweg.lab.search import points
from thalweg.lab.search.cells import Reader
from thalweg.records import files as records
from thalweg.records import reading, results
from thalweg.records.errors import UserError
from thalweg.records.results import Axis

# points


@pytest.mark.parametrize("axes", [3, 4, 6])
@pytest.mark.parametrize("count", [8, 24, 100])
def test_points_are_spread_more_evenly_than_chance(axes, count):
    ours = [qmc.discrepancy(np.array(points.shares(f"study {k}", axes, count))) for k in range(20)]
    random = [qmc.discrepancy(np.random.default_rng(k).random((count, axes))) for k in range(20)]
    assert np.median(ours) < 0.8 * np.median(random)


def test_points_are_a_function_of_the_study_and_the_number_alone():
    for count in (3, 9):
        assert points.shares("a", 4, 9)[:count] == points.shares("a", 4, count)
    assert points.shares("a", 4, 1) != points.shares("b", 4, 1)
    # the same numbers as ever, on every machine: a change makes other trials of every comparison
    first, second = points.shares("sine/256/400/0/0", 2, 2)
    assert first == pytest.approx((0.617863836871461, 0.20406411948422684))
    assert second == pytest.approx((0.11786383687146096, 0.5373974528175602))


def test_optimizers_try_the_same_shares_of_the_axes_that_they_share():
    lamb, alto = (points.point(CONTENDERS[name].space, "study", 5) for name in ("lamb", "alto"))
    assert lamb.items() <= alto.items()
    sgd = points.point(CONTENDERS["sgd"].space, "study", 5)
    assert sgd["forgetting"] == lamb["forgetting"]


@pytest.mark.parametrize("axis", [Axis("a", 1e-4, 0.1, log=True), Axis("b", -0.9, 0.9)])
def test_an_axis_and_its_shares(axis):
    assert (axis.at(0.0), axis.at(1.0)) == pytest.approx((axis.low, axis.high))
    for share in (0.0, 0.3, 1.0, 1.2, -0.1):
        if 0 <= share <= 1:
            assert axis.share(axis.at(share)) == pytest.approx(share, abs=1e-9)
    middle = (axis.low * axis.high) ** 0.5 if axis.log else 0.0
    assert axis.at(0.5) == pytest.approx(middle)


def test_a_range_goes_on_where_it_ends():
    space = CONTENDERS["adamw"].space
    high, low = points.beyond(space, "high"), points.beyond(space, "low")
    assert high[0].low == space[0].high
    assert low[0].high == space[0].low
    assert high[0].high / high[0].low == pytest.approx(points.LR_FACTOR)
    assert high[1:] == low[1:] == space[1:]


# studies


def test_every_optimizer_gets_the_same_trials_and_the_chosen_setting_gets_fresh_seeds(done):
    root, _cells = done
    found = reading.read(root)
    (table,) = found.tables
    assert found.problems == ()
    assert {cell.optimizer for cell in table.cells} == {"sgd", "adamw", "alto"}
    for cell in table.cells:
        assert [[trial.round for trial in study] for study in cell.studies] == [[0, 0, 0, 1, 1, 2, 2]] * 3
        assert len({run.settings["lr"] for run in cell.trials if run.round == 0}) == 9
        assert {run.seed for trial in cell.trials for run in trial.runs} == {0}
        bests = sorted(min(one.validation if one.finished else np.inf for one in study) for study in cell.studies)
        assert cell.chosen.validation == bests[1]
        assert [run.seed for run in cell.seeds] == [1000, 1001]
        assert {tuple(run.settings.items()) for run in cell.seeds} == {tuple(cell.chosen.settings.items())}
        assert all((run.test is not None) == (run.kind == "seed") for run in cell.runs)
        assert len(cell.seconds_per_step) > 3


def trial_of(value):
    return results.Trial((), value)


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        ([3.0, 1.0, 2.0], 2.0),
        ([1.0, None, 2.0], 2.0),
        ([None, None, 1.0], None),
        ([2.0, 1.0], 2.0),
        ([1.0], 1.0),
        ([], None),
    ],
)
def test_the_median_of_the_studies_bests(values, chosen):
    metric = results.Metric("error", "min")
    studies = [[trial_of(v), trial_of(9.0)] if v is not None
               else [trial_of(None)] for v in values]  # fmt: skip
    found = results.choose(studies, metric)
    assert (found and found.validation) == chosen
    flipped = [
        [replace(trial, validation=trial.validation and -trial.validation) for trial in study] for study in studies
    ]
    other = results.choose(flipped, results.Metric("gain", "max"))
    assert (other and -other.validation) == chosen


def test_more_trials_extend_a_comparison_and_fewer_optimizers_leave_the_others_alone(done, tmp_path):
    small = replace(PLAN, optimizers=("adamw",), trials=2, studies=1)
    carry_out(small, tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/**/trial-*/result.json")}
    carry_out(replace(small, trials=3), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    carry_out(replace(small, optimizers=("sgd",)), tmp_path)
    cells = {cell.optimizer: cell for cell in reading.read(tmp_path).tables[0].cells}
    assert (cells["adamw"].planned_trials, len([run for run in cells["adamw"].trials if not run.round])) == (3, 3)
    assert cells["sgd"].planned_trials == 2
    again, _ = small.cells(tmp_path)
    assert again[0].trials == 3


def test_another_length_lies_beside_and_another_recipe_needs_another_folder(done):
    root, _ = done
    cells, _ = replace(PLAN, steps=7).cells(root)
    assert {cell.folder(root).name for cell in cells} == {"7-steps"}
    with pytest.raises(UserError, match="holds a comparison with other clip: choose another folder with --out"):
        replace(PLAN, regimen={"clip": 1.0}).cells(root)


def test_a_folder_from_before_an_option_was_there_has_it_at_its_default(tmp_path):
    for cell in PLAN.cells(tmp_path)[0]:
        cell.record(tmp_path, "")
        path = cell.folder(tmp_path) / "cell.json"
        stored = records.read_json(path)
        del stored["recipe"]["clip"]
        records.write_json(path, stored)
    assert [cell.regimen["clip"] for cell in PLAN.cells(tmp_path)[0]] == [None] * 3
    with pytest.raises(UserError, match="holds a comparison with other clip: choose another folder with --out"):
        replace(PLAN, regimen={"clip": 1.0}).cells(tmp_path)


def test_records_of_other_code_or_data_are_not_used(done):
    root, cells = done
    other = replace(cells[0], code="other")
    assert len(list(other.open_jobs(root, Reader()))) == 9
    assert not {job.folder for job in other.open_jobs(root, Reader())} & {run.folder for run in reading.read(root).runs}


def test_who_replaces_schedules_has_its_own(tmp_path):
    cells, _ = replace(PLAN, optimizers=("schedule-free", "adamw")).cells(tmp_path)
    assert [cell.regimen["schedule"] for cell in cells] == ["constant", "cosine"]


def test_one_bad_batch_size_is_left_out_with_a_sentence(tmp_path):
    cells, notes = replace(PLAN, batch_sizes=(16, 16, 100)).cells(tmp_path)
    assert {cell.batch_size for cell in cells} == {16}
    assert len(cells) == 3
    assert notes == ["small_tasks:Line at batch size 100 is left out: it has 64 training examples"]
    with pytest.raises(UserError, match="nothing to compare: small_tasks:Line at batch size 100"):
        replace(PLAN, batch_sizes=(100,)).cells(tmp_path)


def test_tasks_have_a_short_and_a_long_budget_at_any_batch_size(tmp_path):
    cells, _ = replace(PLAN, steps=None, batch_sizes=None).cells(tmp_path)
    assert {(cell.batch_size, cell.budget, cell.steps) for cell in cells} == {
        (16, "short", 12), (48, "short", 6), (48, "long", 24)
    }  # fmt: skip
    cells, _ = replace(PLAN, steps=None, batch_sizes=(8, 28, 64), budgets=("short",)).cells(tmp_path)
    assert {(cell.batch_size, cell.steps) for cell in cells} == {(8, 24), (28, 8), (64, 6)}
