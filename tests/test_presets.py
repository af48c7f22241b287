"""The paper's defaults: exploit below a batch of 1K, explore from there on."""

from __future__ import annotations

import pytest
from support import make_params

from thalweg import ALTO, EAdamW, paper_defaults


@pytest.mark.parametrize("batch_size", [1, 256, 999])
def test_small_batches_exploit(batch_size):
    assert paper_defaults(batch_size) == {"alpha": 0.5, "beta": 0.01}


@pytest.mark.parametrize("batch_size", [1000, 1024, 65536])
def test_batches_of_a_thousand_and_more_explore(batch_size):
    assert paper_defaults(batch_size) == {"alpha": -5.0, "beta": 0.99}


def test_e_takes_the_defaults_by_keyword():
    group = EAdamW(make_params(), **paper_defaults(64)).param_groups[0]
    assert (group["explore_alpha"], group["explore_beta"]) == (0.5, 0.01)


def test_alto_takes_the_defaults_by_keyword():
    group = ALTO(make_params(), **paper_defaults(64)).param_groups[0]
    assert (group["alpha"], group["beta"], group["betas"]) == (0.5, 0.01, (0.9, 0.99))


@pytest.mark.parametrize(
    ("batch_size", "text"), [(0, "0"), (-1, "-1"), (True, "True"), (256.0, r"256\.0"), ("256", "'256'"), (None, "None")]
)
def test_what_is_no_batch_size_is_refused(batch_size, text):
    with pytest.raises(ValueError, match=f"^batch_size must be an integer of at least 1, got {text}$"):
        paper_defaults(batch_size)
