"""What the tests rely on."""

from __future__ import annotations

import itertools

import pytest
from support import pairwise


def pairs(rows):
    return {pair for row in rows for pair in itertools.combinations(enumerate(map(repr, row)), min(2, len(row)))}


@pytest.mark.parametrize(
    ("axes", "most"),
    [
        ([[0, 1], [0, 1], [0, 1]], 4),
        ([range(3)] * 4, 12),
        ([range(2)] * 10, 12),
        ([range(11), range(22), range(3)], 250),
        ([[odd, [1, 2]] for odd in ({"unhashable": 1}, [0], None)], 4),
        ([range(4), "abc"], 12),
        ([range(5)], 5),
    ],
)
def test_every_two_values_meet_in_few_rows(axes, most):
    rows = list(itertools.product(*axes))
    chosen = pairwise(rows)
    assert pairs(chosen) == pairs(rows)
    assert len(chosen) <= most
    assert chosen == [row for row in rows if row in chosen]
    assert pairwise(rows) == chosen


def test_what_cannot_be_combined_is_not_and_all_else_still_meets():
    rows = [row for row in itertools.product(range(4), range(4), range(4)) if row[0] != row[1] or row[2] == 0]
    chosen = pairwise(rows)
    assert set(chosen) <= set(rows)
    assert pairs(chosen) == pairs(rows)
    assert len(chosen) <= 22


def test_values_are_told_apart_by_the_key():
    rows = list(itertools.product([1.0, -1.0], [2.0, -2.0], "ab"))
    assert len(pairwise(rows)) == 4
    assert pairwise(rows, key=lambda x: abs(x) if isinstance(x, float) else x) == rows[:2]
