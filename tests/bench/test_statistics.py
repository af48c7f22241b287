"""What timings that were made up say."""

import random

import pytest

from thalweg.bench.statistics import Spread, mean_with_first, paired_ratios, quartiles, ratio_of_medians


def test_quartiles():
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(median=3.0, low=2.0, high=4.0)
    assert quartiles([7.0]) == Spread(7.0, 7.0, 7.0)


def test_a_slow_round_cancels_in_a_paired_ratio():
    quiet, loud = [1.0, 2.0, 4.0], [1.0, 2.0, 4000.0]
    assert paired_ratios([3 * s for s in quiet], quiet) == Spread(3.0, 3.0, 3.0)
    assert paired_ratios([3 * s for s in loud], loud) == Spread(3.0, 3.0, 3.0)


def test_paired_ratios_need_as_many_of_each():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        paired_ratios([1.0], [1.0, 2.0])


def test_paired_ratio_and_ratio_of_medians_are_not_the_same():
    seconds, reference = [2.0, 9.0, 4.0], [1.0, 3.0, 4.0]
    assert paired_ratios(seconds, reference).median == 2.0
    assert ratio_of_medians(seconds, reference, seed=0).median == pytest.approx(4 / 3, rel=1e-15)


def test_whole_rounds_are_resampled():
    noise = [1.0, 5.0, 2.0, 9.0, 4.0, 7.0]
    assert ratio_of_medians([2 * s for s in noise], noise, seed=0) == Spread(2.0, 2.0, 2.0)


def test_the_interval_of_a_ratio_of_medians():
    # Of three rounds, each with probability 7/27 is the median of a resample, but the middle one, with 13/27.
    found = ratio_of_medians([1.0, 2.0, 3.0], [1.0, 1.0, 1.0], seed=0)
    assert found == Spread(median=2.0, low=1.0, high=3.0)
    # Of 101 rounds, the 2.5 % quantiles of the median are about 10 ranks from the middle: 0.98 * sqrt(101).
    wide = ratio_of_medians([float(i) for i in range(101)], [1.0] * 101, seed=0)
    assert wide.median == 50.0
    assert 38 <= wide.low <= 42
    assert 58 <= wide.high <= 62


def test_a_seed_fixes_the_interval():
    drawn = random.Random(0)
    seconds, reference = ([drawn.random() for _ in range(40)] for _ in range(2))
    first = ratio_of_medians(seconds, reference, seed=1)
    assert ratio_of_medians(seconds, reference, seed=1) == first
    assert ratio_of_medians(seconds, reference, seed=2) != first


@pytest.mark.parametrize(
    ("first", "warmup", "seconds", "mean"),
    [
        (101.0, [], [1.0, 1.0, 1.0], 2.0),  # 101 + 99 at the median
        (50.0, [30.0], [1.0, 2.0, 3.0], (50 + 30 + 6 + 95 * 2) / 100),
        (1.0, [], [1.0] * 99 + [1000.0], 1.0),  # the hundred and first step does not count
    ],
)
def test_mean_over_100_steps_with_the_first(first, warmup, seconds, mean):
    assert mean_with_first(first, warmup, seconds) == pytest.approx(mean, rel=1e-15)
