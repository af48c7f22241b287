"""Colours mean the same in every picture."""

from __future__ import annotations

import torch

from thalweg.landscape import landscape
from thalweg.landscape.plots import EXPLOITS, EXPLORES, WITHOUT, _styles
from thalweg.landscape.walks import Walk


def test_the_colour_of_a_walk_is_that_of_its_alpha():
    places = torch.zeros(2, 1, 2, dtype=torch.float64)
    walks = [Walk(landscape("closed"), "sgd", alpha, 0.5, 0.1, places) for alpha in (0.0, -1.0, 5.0, -5.0, 0.5)]
    colours = [WITHOUT, EXPLORES[1], EXPLOITS[0], EXPLORES[0], EXPLOITS[1]]
    styles = _styles(walks)
    assert [colour for colour, _ in styles] == colours
    assert len({str(dashes) for _, dashes in styles}) == 5
