"""What is decided: against SciPy's tests, and by simulation of whole pages."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from thalweg.records.metric import Metric
from thalweg.report import words
from thalweg.report.decisions import Difference, Outcome, Paired, correct, pool
from thalweg.report.statistics import detectable, paired, power
from thalweg.studies.claims import everywhere

SCORE = Metric("score", "max")
STEPS = Metric("steps to target", "min", unit="steps", low=0.0)


def by_seed(values):
    return dict(enumerate(map(float, values)))


def pair(difference, error=0.1, seeds=5, **more):
    return Paired(difference=difference, error=error, freedom=seeds - 1, higher=True, seeds=seeds, **more)


def differences(means, errors, freedom, **more):
    """One for each mean and standard error of arrays."""
    return [
        Difference(difference=m, error=e, freedom=freedom, higher=True, **more)
        for m, e in zip(means.tolist(), errors.tolist(), strict=True)
    ]


def mean_and_error(values):
    """Over the last axis."""
    n = values.shape[-1]
    return values.mean(axis=-1), values.std(axis=-1, ddof=1) / math.sqrt(n)


# one comparison of many


@pytest.mark.parametrize("comparisons", [1, 7, 300])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_the_interval_is_students_at_the_corrected_level(n, comparisons):
    a, b = np.random.default_rng(n).normal(size=(2, n))
    found = replace(paired(by_seed(a), by_seed(b), SCORE), comparisons=comparisons)
    low, high = stats.t.interval(1 - 0.05 / comparisons, n - 1, (a - b).mean(), stats.sem(a - b))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6)
    assert found.adjusted == pytest.approx(min(1.0, comparisons * stats.ttest_rel(a, b).pvalue))


def test_an_interval_excludes_0_exactly_where_the_corrected_p_is_below_5_per_cent():
    rng, decided = np.random.default_rng(0), 0
    for _ in range(400):
        n, comparisons = int(rng.integers(2, 12)), int(rng.integers(1, 60))
        shared = rng.normal(size=n)
        spread = rng.choice([0.0, 0.1, 1.0])
        metric = Metric("accuracy", "max", "%", low=0.0, high=100.0)
        b = 50.0 + shared
        found = paired(by_seed(b + 0.5 + spread * rng.normal(size=n)), by_seed(b), metric)
        found = replace(found, comparisons=comparisons)
        assert (found.low > 0.0 or found.high < 0.0) == found.significant == (found.adjusted < 0.05)
        decided += found.significant
    assert 50 < decided < 350


@pytest.mark.parametrize(("n", "comparisons", "decided"), [(5, 1, False), (6, 1, True), (6, 2, False), (7, 3, True)])
def test_equal_differences_are_decided_by_the_signs_under_the_same_correction(n, comparisons, decided):
    found = paired(dict.fromkeys(range(n), 97.0), dict.fromkeys(range(n), 96.0), Metric("accuracy", "max"))
    found = replace(found, comparisons=comparisons)
    assert found.adjusted == min(1.0, comparisons * 2.0 / 2**n)
    assert found.significant is decided
    assert (found.low, found.high) == ((1.0, 1.0) if decided else (-math.inf, math.inf))


def test_bounds_are_decided_by_the_signs_that_are_sure():
    """Of times to a target within 40 steps; a spread of 0 among those that never got there is not theirs."""
    rng, decided = np.random.default_rng(0), 0
    for _ in range(200):
        n, comparisons = int(rng.integers(2, 25)), int(rng.integers(1, 4))
        true = rng.integers(20, 60, size=(2, n)) - np.array([[rng.integers(0, 20)], [0]])
        a, b = (by_seed(np.minimum(own, 40.0)) for own in true)
        late = tuple(np.flatnonzero(own > 40) for own in true)
        found = replace(paired(a, b, STEPS, censored=late), comparisons=comparisons)
        if found.order is None:
            assert not any(map(len, late))
            continue
        u, v = np.where(true > 40, 41, true)
        below, above = int((u < v).sum()), int((u > v).sum())
        p = stats.binomtest(below, below + above).pvalue if below + above else 1.0
        assert (found.order, found.adjusted) == ((below, above), pytest.approx(min(1.0, comparisons * p)))
        assert (found.low, found.high) == (-math.inf, math.inf)
        assert found.reverse().verdict is found.verdict.reverse
        if found.verdict in (Outcome.BETTER, Outcome.WORSE):
            assert (found.verdict is Outcome.BETTER) == (below > above)
            assert found.adjusted < 0.05
            decided += 1
    assert decided > 20


def test_four_seeds_of_which_three_are_bounds_decide_nothing():
    found = paired(by_seed([30.0, 28.0, 28.0, 30.0]), by_seed([40.0] * 4), STEPS, censored=((), (1, 2, 3)))
    assert (found.p, found.verdict) == (0.125, Outcome.UNDECIDED)
    assert words.lead(found, STEPS) == "+11 steps (no interval: some targets were missed)"
    assert pool([found, found]) is None


def test_a_mean_and_signs_that_contradict_each_other_decide_nothing():
    found = paired(by_seed([31.0] * 12 + [5.0]), by_seed([30.0] * 12 + [40.0]), STEPS, censored=((), (12,)))
    assert (found.better, found.order, found.significant) == (True, (1, 12), True)
    assert found.verdict is found.reverse().verdict is Outcome.UNDECIDED


def test_equivalence_is_two_one_sided_tests_of_half_the_level():
    rng, margin, found = np.random.default_rng(0), 0.6, []
    for _ in range(300):
        n, comparisons = int(rng.integers(3, 20)), int(rng.integers(1, 10))
        a, b = 0.4 * rng.normal(size=n) + 0.1, np.zeros(n)
        one = replace(paired(by_seed(a), by_seed(b), SCORE, margin=margin), comparisons=comparisons)
        ps = (stats.ttest_1samp(a, -margin, alternative="greater").pvalue,
              stats.ttest_1samp(a, margin, alternative="less").pvalue)  # fmt: skip
        assert one.within_margin == (max(ps) < 0.05 / comparisons / 2)
        found.append(one.within_margin)
    assert 50 < sum(found) < 250


def test_margins_are_those_of_the_metric_unless_another_is_given():
    a, b = by_seed([1.0, 2.0, 4.0]), by_seed([1.1, 2.3, 4.0])
    assert paired(a, b, Metric("accuracy", "max", "%")).margin == 0.5
    assert paired(a, b, Metric("loss", "min", "nats/byte")).margin == 0.02
    assert paired(a, b, SCORE).margin is None
    assert paired(a, b, Metric("accuracy", "max", "%"), margin=2.0).margin == 2.0
    factors = paired(a, b, Metric("loss", "min", "nats", log=True), margin=9.0)
    assert (factors.ratio, factors.margin, factors.within_margin) == (True, None, False)


# verdicts


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (pair(1.0), Outcome.BETTER),
        (pair(-1.0), Outcome.WORSE),
        (pair(0.0), Outcome.UNDECIDED),
        (pair(0.0, margin=0.5), Outcome.EQUIVALENT),
        (pair(0.3, margin=0.9), Outcome.BETTER),
        (pair(0.3, margin=0.9, comparisons=9), Outcome.EQUIVALENT),
        (pair(1.0, left_out="b is not told apart from chance"), Outcome.NOT_COMPARABLE),
        (pair(0.0, margin=0.5, censored=(5, 5)), Outcome.NOT_COMPARABLE),
        (pair(0.0, margin=0.5, tried=(5, 6), failed=(0, 1)), Outcome.UNDECIDED),
        (pair(0.0, margin=0.5, censored=(2, 3)), Outcome.UNDECIDED),
        (pair(0.0, margin=0.5, tried=(6, 6), failed=(1, 1)), Outcome.EQUIVALENT),
    ],
)
def test_each_verdict(found, verdict):
    assert found.verdict is verdict
    assert found.reverse().verdict is verdict.reverse


def test_a_difference_may_be_decided_and_too_small_to_matter():
    found = pair(0.3, margin=0.9)
    assert (found.verdict, found.within_margin) == (Outcome.BETTER, True)
    assert (pair(0.8, margin=0.9).verdict, pair(0.8, margin=0.9).within_margin) == (Outcome.BETTER, False)


def test_a_family_is_at_least_one():
    assert correct({}, 1) == {}
    with pytest.raises(ValueError, match="comparisons must be at least 1, got 0"):
        correct({}, 0)


# pages


def test_at_most_one_page_of_twenty_decides_anything_where_nothing_differs():
    """Two tables of four equal optimizers, of unequal noise, with the seeds' share in common; pairs and pools."""
    rng, pages, k = np.random.default_rng(0), 1500, 4
    two = list(combinations(range(k), 2))
    comparisons = 3 * len(two)
    false = np.zeros(pages, bool)
    tables = []
    for n, noise in ((3, 1.0), (5, 0.2)):
        values = 3.0 * rng.normal(size=(pages, 1, n)) + noise * rng.normal(size=(pages, k, n))
        tables.append((n, [mean_and_error(values[:, a] - values[:, b]) for a, b in two]))
    for i in range(len(two)):
        families = [
            [pair(m, e, n, comparisons=comparisons) for m, e in zip(*(v.tolist() for v in own[i]), strict=True)]
            for n, own in tables
        ]
        for page, pairs in enumerate(zip(*families, strict=True)):
            of_all = replace(pool(pairs), comparisons=comparisons)
            false[page] |= any(one.verdict is not Outcome.UNDECIDED for one in (*pairs, of_all))
    assert 0.005 < false.mean() < 0.05


def test_the_stated_power_is_the_measured_one():
    rng, n, comparisons, runs = np.random.default_rng(0), 30, 6, 4000
    m, e = mean_and_error(0.5 + rng.normal(size=(runs, n)))
    measured = np.mean([one.verdict is Outcome.BETTER for one in differences(m, e, n - 1, comparisons=comparisons)])
    assert measured == pytest.approx(power(0.5, 1.0, n, comparisons), abs=3.0 * math.sqrt(0.25 / runs))


@pytest.mark.parametrize(("n", "comparisons"), [(2, 1), (3, 1), (3, 60), (4, 300), (30, 6)])
def test_power_is_that_of_the_noncentral_t_and_detectable_its_inverse(n, comparisons):
    least = detectable(2.0, n, comparisons)
    limit, shift = stats.t.isf(0.025 / comparisons, n - 1), least / 2.0 * math.sqrt(n)
    assert stats.nct.sf(limit, n - 1, shift) == pytest.approx(0.8, abs=1e-5)  # the other side: less than 1e-5
    assert power(least, 2.0, n, comparisons) == pytest.approx(0.8, abs=1e-6)


def test_equivalence_is_declared_of_a_difference_of_the_margin_in_at_most_5_per_cent():
    rng, n, runs = np.random.default_rng(0), 6, 4000
    m, e = mean_and_error(1.0 + rng.normal(size=(runs, n)))
    for comparisons in (1, 4):
        found = differences(m, e, n - 1, comparisons=comparisons, margin=1.0)
        assert np.mean([one.within_margin for one in found]) < 0.05 / comparisons
    m, e = mean_and_error(0.1 * rng.normal(size=(runs, n)))  # and is where it is true
    assert np.mean([one.within_margin for one in differences(m, e, n - 1, margin=1.0)]) > 0.99


# pools


def test_a_pool_is_the_mean_of_the_tables_with_the_error_that_theirs_give():
    pairs = [pair(1.0, 0.3, 3), pair(-0.2, 0.1, 4), pair(0.1, 0.2, 5)]
    found = pool(pairs)
    squares, freedom = np.array([0.09, 0.01, 0.04]), np.array([2, 3, 4])
    welch = squares.sum() ** 2 / (squares**2 / freedom).sum()
    assert (found.tables, found.difference) == (3, pytest.approx(0.3))
    assert found.error == pytest.approx(math.sqrt(squares.sum()) / 3)
    assert found.freedom == pytest.approx(stats.hmean([welch, 2]))


@pytest.mark.parametrize(
    "apart",
    [{"left_out": "a is not told apart from chance"}, {"failed": (1, 0), "tried": (5, 5)}, {"censored": (5, 5)},
     {"signs": 5, "error": 0.0}],
)  # fmt: skip
def test_what_cannot_be_compared_is_in_no_pool(apart):
    own = [pair(1.0, 0.3), pair(0.5, 0.2)]
    assert pool([*own, replace(pair(9.0), **apart)]) == pool(own)
    assert pool([own[0], replace(pair(9.0), **apart)]) is None


def test_a_table_of_few_seeds_is_in_no_pool_with_tables_of_many():
    many = [pair(1.0, 0.3, 30), pair(0.5, 0.2, 16), pair(0.1, 0.1, 15)]
    assert pool([*many, pair(9.0, 9.0, 14)]) == pool(many)
    assert pool([pair(1.0, 0.3, 30), pair(9.0, 9.0, 3)]) is None


@pytest.mark.parametrize("spreads", [(1, 1), (1, 3), (1, 1, 3, 9), (1,) * 8 + (6,)])
@pytest.mark.parametrize("n", [3, 5])
def test_pools_claim_falsely_no_more_often_than_the_level_says(spreads, n):
    rng, runs = np.random.default_rng(0), 200_000
    noise, shares = np.array(spreads, float), len(spreads)
    m = rng.normal(size=(runs, shares)) * noise
    squares = noise**2 * rng.chisquare(n - 1, size=(runs, shares)) / (n - 1)
    welch = squares.sum(1) ** 2 / (squares**2 / (n - 1)).sum(1)
    t = np.abs(m.sum(1)) / np.sqrt(squares.sum(1))
    few = pool([pair(a, math.sqrt(e), n) for a, e in zip(m[0], squares[0], strict=True)])
    freedom = 2.0 / (1.0 / welch + 1.0 / (n - 1))
    assert few.freedom == pytest.approx(freedom[0])
    for level in (0.05, 0.0025):
        assert np.mean(2.0 * stats.t.sf(t, freedom) < level) < level


def test_what_two_experiments_train_alike_counts_once_over_the_page():
    def finding(*tests):
        tables = [(SimpleNamespace(task="t", batch_size=size, steps=9), SCORE, one) for size, one in tests]
        return SimpleNamespace(claim=SimpleNamespace(a="a", b="b"), found=tables)

    few, many, other = pair(1.0, seeds=20), pair(2.0, seeds=30), pair(4.0, seeds=30)
    first, second = finding((16, few), (32, other)), finding((16, many))
    for own in ([first, second], [second, first]):
        (found,) = everywhere(own)
        assert (found.meet, found.found.difference) == (2, pytest.approx(3.0))
