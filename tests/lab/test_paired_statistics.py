"""Against closed forms, enumeration, SciPy's own tests and simulation."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from thalweg.records.metric import Metric
from thalweg.report.rankings import best_of_n, mean_ranks, median_best, median_time, profile, ranks
from thalweg.report.statistics import all_pairs, interval, paired, restricted_mean, special_case

ACCURACY = Metric("accuracy", "max", "%", low=0.0, high=100.0)
LOSS = Metric("loss", "min", log=True, low=0.0)
ERROR = Metric("error", "min", low=0.0)
PLAIN = Metric("score", "max")


def test_plain_interval_is_student_t() -> None:
    values = [1.0, 2.5, 3.0, 7.0]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    found = interval(values, PLAIN)
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high))


def test_logarithmic_interval_is_that_of_the_logarithms() -> None:
    values = [0.0002, 0.0009, 0.004]
    logs = np.log(values)
    low, high = np.exp(stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs)))
    found = interval(values, LOSS)
    assert (found.mean, found.low, found.high) == pytest.approx((math.exp(logs.mean()), low, high))


@pytest.mark.parametrize("metric", [ACCURACY, LOSS, ERROR, Metric("gap", "max", high=0.0)])
@given(data=st.data())
def test_no_interval_leaves_the_metrics_range(metric: Metric, data: st.DataObject) -> None:
    low, high = max(metric.low, -1e6), min(metric.high, 1e6)
    values = data.draw(st.lists(st.floats(low, high), min_size=2, max_size=6))
    found = interval(values, metric)
    assert found.low is not None
    assert found.high is not None
    room = 1e-9 * max(abs(found.mean), 1e-300)
    assert metric.low <= found.low <= found.mean + room
    assert found.mean - room <= found.high <= metric.high * (1 + 1e-15)


def test_one_value_has_no_interval() -> None:
    found = interval([3.0], LOSS)
    assert (found.mean, found.low, found.high) == (pytest.approx(3.0), None, None)


def test_values_at_the_bound_alone_have_an_interval_without_width() -> None:
    found = interval([100.0, 100.0, 100.0], ACCURACY)
    assert (found.mean, found.low, found.high) == (100.0, 100.0, 100.0)


def test_numbers_near_the_largest_float_do_not_overflow() -> None:
    found = interval([1e300, 9e299, 9.5e299], PLAIN)
    assert found.mean == pytest.approx(9.5e299)
    assert found.high is not None
    assert math.isfinite(found.high)


@pytest.mark.parametrize("metric", [PLAIN, ACCURACY, LOSS, ERROR])
def test_intervals_hold_the_mean_as_often_as_they_say(metric: Metric) -> None:
    draws = np.random.default_rng(0).normal(size=(4000, 5))
    values, truth = {
        "score": (draws, 0.0),
        "accuracy": (100.0 * stats.norm.cdf(2.0 + 0.3 * draws), None),
        "loss": (np.exp(2.0 * draws), 1.0),
        "error": (1.0 + 0.2 * draws, 1.0),
    }[metric.name]
    if truth is None:
        truth = 100.0 * stats.norm.expect(lambda z: stats.norm.cdf(2.0 + 0.3 * z))
    found = [interval(row, metric) for row in values.tolist()]
    covered = np.mean([one.low <= truth <= one.high for one in found])  # type: ignore[operator]
    assert 0.93 <= covered <= 0.97


def test_paired_is_scipys_paired_t_test() -> None:
    rng = np.random.default_rng(1)
    shared = rng.normal(size=6)
    a, b = shared + 0.1 * rng.normal(size=6) + 0.2, shared + 0.1 * rng.normal(size=6)
    found = paired(dict(enumerate(a)), dict(enumerate(b)), PLAIN)
    assert found is not None
    theirs = stats.ttest_rel(a, b)
    limits = theirs.confidence_interval(0.95)
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx((limits.low, limits.high))
    assert found.difference == pytest.approx(np.mean(a - b))
    assert found.effect == pytest.approx(
        (1 - 3 / (4 * 10 - 1)) * np.mean(a - b) / math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    )
    assert found.better


def test_pairing_sees_what_overlapping_intervals_hide() -> None:
    seeds = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    a = dict(enumerate(seeds + 0.1 + np.array([0.0, 0.01, -0.01, 0.005, -0.005])))
    b = dict(enumerate(seeds))
    one, other = interval(list(a.values()), PLAIN), interval(list(b.values()), PLAIN)
    assert one.low is not None
    assert other.high is not None
    assert one.low < other.high
    found = paired(a, b, PLAIN)
    assert found is not None
    assert found.p < 1e-4


def test_only_shared_seeds_are_compared() -> None:
    found = paired({1: 1.0, 2: 2.0, 3: 50.0}, {1: 0.5, 2: 1.6, 4: -9.0}, PLAIN)
    assert found is not None
    assert found.seeds == 2
    assert found.difference == pytest.approx(0.45)
    assert paired({1: 1.0}, {1: 2.0}, PLAIN) is None
    assert paired({1: 1.0, 2: 1.0}, {3: 2.0, 4: 2.0}, PLAIN) is None


def test_logarithmic_metrics_are_compared_by_ratio() -> None:
    a, b = {0: 1e-3, 1: 3e-2, 2: 0.5}, {0: 2e-3, 1: 6.3e-2, 2: 0.98}
    found = paired(a, b, LOSS)
    assert found is not None
    assert found.ratio
    assert found.better
    assert found.p == pytest.approx(stats.ttest_rel(np.log(list(a.values())), np.log(list(b.values()))).pvalue)


@pytest.mark.parametrize(("n", "p"), [(2, 0.5), (3, 0.25), (5, 0.0625)])
def test_equal_differences_are_no_certainty(n: int, p: float) -> None:
    found = paired(dict.fromkeys(range(n), 97.0), dict.fromkeys(range(n), 96.0), ACCURACY)
    assert found is not None
    assert found.p == p
    same = paired(dict.fromkeys(range(n), 97.0), dict.fromkeys(range(n), 97.0), ACCURACY)
    assert same is not None
    assert (same.p, same.effect, same.better) == (1.0, 0.0, False)


def test_all_pairs_are_each_two_once_or_each_beside_the_reference() -> None:
    rng = np.random.default_rng(0)
    tests = {name: dict(enumerate(rng.normal(size=4))) for name in "abc"}
    assert list(all_pairs(tests, PLAIN)) == list(combinations("abc", 2))
    assert list(all_pairs(tests, PLAIN, reference="b")) == [("a", "b"), ("b", "c")]
    assert all_pairs(tests, PLAIN, reference="d") == {}
    for (x, y), one in all_pairs(tests, PLAIN).items():
        assert one == paired(tests[x], tests[y], PLAIN)
        other = one.reverse()
        assert (one.difference, one.low, one.p, one.effect) == (-other.difference, -other.high, other.p, -other.effect)
        assert one.better != other.better


def test_restricted_mean_is_the_area_under_kaplan_meier() -> None:
    times, horizon = [10.0, None, 40.0, 25.0, None], 60.0
    events = sorted(time for time in times if time is not None)
    area, survival, before = 0.0, 1.0, 0.0
    for time in events:
        at_risk = sum((horizon if t is None else t) >= time for t in times)
        area, survival, before = area + survival * (time - before), survival * (1 - 1 / at_risk), time
    area += survival * (horizon - before)
    found = restricted_mean(times, horizon)
    assert found.mean == pytest.approx(area)
    assert found.low is not None
    assert found.high is not None
    assert 0.0 < found.low < found.mean < found.high < horizon


def test_nobody_at_the_target_costs_the_whole_run() -> None:
    found = restricted_mean([None, None], 60.0)
    assert (found.mean, found.low, found.high) == (60.0, 60.0, 60.0)


@pytest.mark.parametrize("metric", [PLAIN, ERROR, LOSS])
def test_best_of_n_is_the_mean_over_all_subsets(metric: Metric) -> None:
    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    best = max if metric.goal == "max" else min
    mean = stats.gmean if metric.log else np.mean
    for one in best_of_n(values, metric):
        bests = [best(subset) for subset in combinations(values, one.n)]
        assert one.expected == pytest.approx(mean(bests))
        for q, found in ((0.25, one.low), (0.75, one.high)):
            assert np.mean(np.array(bests) <= found + 1e-12) >= q - 1e-9
            assert np.mean(np.array(bests) >= found - 1e-12) >= 1 - q - 1e-9
    assert [one.n for one in best_of_n(values, metric)] == list(range(1, 8))


def test_failed_trials_cost_a_try() -> None:
    found = best_of_n([None, 1.0, 3.0], PLAIN)
    assert found == best_of_n([1.0, 1.0, 3.0], PLAIN)
    assert best_of_n([None, None], PLAIN) == ()
    assert best_of_n([], PLAIN) == ()


def test_long_best_of_n_curves_are_thinned_and_end_at_the_best() -> None:
    values = list(np.random.default_rng(0).normal(size=5000))
    found = best_of_n(values, PLAIN)
    assert len(found) <= 64
    assert found[0].expected == pytest.approx(np.mean(values))
    assert (found[-1].n, found[-1].expected) == (5000, pytest.approx(max(values)))


def test_median_of_bests() -> None:
    assert median_best([0.3, 0.1, 0.2], ERROR) == 0.2
    assert median_best([0.3, 0.1, 0.2], PLAIN) == 0.2
    assert median_best([0.3, 0.1], ERROR) == 0.3
    assert median_best([0.3, 0.1], PLAIN) == 0.1
    assert median_best([None, 0.1, None], ERROR) is None
    assert median_best([], ERROR) is None
    assert median_time([5.0, None, 3.0]) == 5.0


def test_ranks_are_shared_and_averaged_where_one_took_part() -> None:
    assert ranks({"a": (0, 2.0), "b": (1, 1.0), "c": (0, 2.0)}) == {"a": 1.5, "b": 3.0, "c": 1.5}
    tables = [{"a": (1.0,), "b": (2.0,)}, {"b": (1.0,), "c": (2.0,)}]
    assert mean_ranks(tables) == {"a": 1.0, "b": 1.5, "c": 2.0}
    assert list(mean_ranks([{"z": (2.0,), "y": (1.0,)}])) == ["y", "z"]


def test_profile_leaves_out_tables_that_nobody_solved() -> None:
    tables = [{"a": 4.0, "b": 2.0}, {"a": None, "b": None}, {"a": 3.0, "b": None}]
    assert profile(tables) == {"a": (1.0, 2.0), "b": (1.0, math.inf)}


@pytest.mark.parametrize(
    ("name", "inside"),
    [("alto", "lamb"), ("e-adamw", "adamw"), ("e-torch.optim.SGD", "torch.optim.SGD"), ("ema-nesterov", "adamw"),
     ("thalweg.ALTO", "thalweg.Lamb"), ("lamb", None), ("e-", None)],
)  # fmt: skip
def test_which_optimizer_contains_which(name: str, inside: str | None) -> None:
    assert special_case(name) == inside
