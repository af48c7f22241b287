from itertools import product

import pytest

from thalweg.lab.contenders import contender
from thalweg.lab.search import points
from thalweg.records.errors import UserError


def test_what_is_given_is_not_searched_and_the_rest_is_as_without():
    free, given = contender("lamb"), contender("alto:alpha=-5:beta=0.99")
    assert given.space == free.space
    for number in range(4):
        at = points.point(given.space, "study", number)
        assert at == points.point(free.space, "study", number)
        assert given.settings(at) == free.settings(at) | {"alpha": -5.0, "beta": 0.99}
    assert contender("alto:momentum=0.8").settings({"lr": 0.1, "weight_decay": 0.0, "forgetting2": 0.1, "gain": 0.5,
                                                    "horizon": 2.0}) == {
        "lr": 0.1, "weight_decay": 0.0, "beta2": 0.9, "alpha": 1.0, "beta": 0.5, "momentum": 0.8,
    }  # fmt: skip


def test_with_beta_given_alone_alpha_follows_from_the_gain():
    found = contender("alto:beta=0.75").settings({"gain": 0.5, "lr": 1.0})
    assert found["alpha"] == pytest.approx(2.0, rel=1e-12)
    assert found["beta"] == 0.75


def test_the_optimizer_gets_what_is_given():
    import torch

    one = contender("alto:alpha=-5:beta=0.99:lr=0.5:momentum=0.8:beta2=0.9:weight_decay=0.125")
    assert one.space == ()
    assert one.grid == 1
    group = one.build(torch.nn.Linear(2, 2), one.settings({})).param_groups[0]
    assert (group["alpha"], group["beta"], group["lr"], group["betas"]) == (-5.0, 0.99, 0.5, (0.8, 0.9))
    assert group["weight_decay"] == 0.125


def test_a_list_of_values_is_tried_value_by_value():
    one = contender("sgd:lr=0.01|0.05|0.1:weight_decay=0.0|0.5:momentum=0.9")
    assert one.grid == 6
    tried = [tuple(points.point(one.space, "any", k).values()) for k in range(6)]
    assert sorted(tried) == sorted(product((0.01, 0.05, 0.1), (0.0, 0.5)))
    partly = contender("sgd:lr=0.01|0.05|0.1")
    assert partly.grid is None
    assert {points.point(partly.space, "any", k)["lr"] for k in range(30)} == {0.01, 0.05, 0.1}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("alto:gamma=1", "has no setting gamma"),
        ("alto:alpha", "'alpha' is not"),
        ("alto:alpha=x", "'alpha=x' is not"),
        ("alto:lr=nan", "'lr=nan' is not"),
        ("alto:lr=1|1", "'lr=1|1' is not"),
        ("alto:beta=1", "beta must be in"),
        ("alto:alpha=1|2", "alpha takes one value"),
        ("nobody:lr=1", "unknown optimizer 'nobody'"),
        ("lamb:lr=1:lr=2", "has no setting lr"),
        ("alto:", "'' is not"),
    ],
)
def test_what_cannot_be_given_is_named(name, says):
    with pytest.raises(UserError, match=says.replace("|", r"\|")):
        contender(name)
