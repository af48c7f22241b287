"""What difference so many seeds could show: by simulation, and by SciPy's noncentral t where it is a number."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from thalweg.records.metric import Metric
from thalweg.report.statistics import detectable, deviation, power


@pytest.mark.parametrize("seeds", [2, 3, 5, 10, 40])
@pytest.mark.parametrize("comparisons", [1, 10, 78])
def test_power_is_that_of_the_noncentral_t(seeds, comparisons):
    limit = stats.t.isf(0.05 / 2 / comparisons, seeds - 1)
    known = 0
    for difference in (0.0, 0.3, -1.0, 2.0, 5.0, 30.0):
        shift = abs(difference) / 0.7 * math.sqrt(seeds)
        expected = stats.nct.sf(limit, seeds - 1, shift) + stats.nct.cdf(-limit, seeds - 1, shift)
        if math.isfinite(expected):
            known += 1
            found = power(difference, 0.7, seeds, comparisons)
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert known >= 3
    assert power(0.0, 1.0, seeds, comparisons) == pytest.approx(0.05 / comparisons, rel=1e-5)


@pytest.mark.parametrize(("seeds", "comparisons"), [(2, 1), (3, 3), (5, 10), (10, 1)])
def test_power_is_how_often_a_paired_test_finds_it(seeds, comparisons):
    """Of 20,000 drawn comparisons; the standard error of such a share is at most .0036."""
    rng = np.random.default_rng(seeds)
    difference = detectable(2.0, seeds, comparisons, power=0.6)
    for true in (difference, difference / 2.0):
        drawn = true + 2.0 * rng.standard_normal((20_000, seeds))
        p = stats.ttest_1samp(drawn, 0.0, axis=1).pvalue
        assert np.mean(p < 0.05 / comparisons) == pytest.approx(power(true, 2.0, seeds, comparisons), abs=0.015)


@pytest.mark.parametrize(("wanted", "level"), [(0.8, 0.05), (0.5, 0.01), (0.99, 0.05)])
def test_what_is_detectable_is_found_with_that_power(wanted, level):
    for sd, seeds, comparisons in itertools.product((1e-6, 1.0, 300.0), (2, 6, 30), (1, 45)):
        found = detectable(sd, seeds, comparisons, wanted, level)
        assert power(found, sd, seeds, comparisons, level) == pytest.approx(wanted, abs=1e-9)
    assert detectable(0.0, 3, 1) == 0.0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: detectable(-1.0, 3, 1), r"sd must be a number in \[0, inf\), got -1.0"),
        (lambda: power(1.0, 0.0, 3, 1), r"sd must be a number in \(0, inf\), got 0.0"),
        (lambda: power(math.nan, 1.0, 3, 1), r"difference must be a number in \(-inf, inf\), got nan"),
        (lambda: detectable(1.0, 1, 1), "seeds must be an integer of at least 2, got 1"),
        (lambda: detectable(1.0, 3, 0), "comparisons must be an integer of at least 1, got 0"),
        (lambda: detectable(1.0, 3, 1, power=0.05), r"power must be a number in \(0.05, 1\), got 0.05"),
        (lambda: power(1.0, 1.0, 3, 1, level=1.0), r"level must be a number in \(0, 1\), got 1.0"),
    ],
)
def test_a_bad_argument_is_named(call, says):
    with pytest.raises(ValueError, match=f"^{says}$"):
        call()


@pytest.mark.parametrize("log", [False, True])
def test_a_deviation_is_that_of_the_differences_pooled_over_pairs(log):
    rng = np.random.default_rng(0)
    values = {name: dict(enumerate(rng.uniform(1.0, 2.0, 5))) for name in "abc"}
    del values["c"][4], values["c"][0]
    metric = Metric("loss", "min", log=log, resolution=0.3)
    scale = np.log if log else np.asarray
    squares, freedom = 0.0, 0
    for a, b in itertools.combinations(values.values(), 2):
        d = [scale(a[seed]) - scale(b[seed]) for seed in range(5) if seed in a and seed in b]
        squares += np.var(d, ddof=1) * (len(d) - 1)
        freedom += len(d) - 1
    hidden = 0.0 if log else 0.3**2 / 12.0
    assert deviation(values, metric) == pytest.approx(math.sqrt(squares / freedom + hidden))
    assert deviation({"a": {0: 1.0, 1: 2.0}, "b": {1: 2.0, 2: 3.0}}, metric) is None
    assert deviation({"a": {0: 1.0, 1: 2.0}}, metric) is None
