"""Colours mean the same in every picture, and the picture that opens the README shows what it says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from thalweg.landscape import landscape
from thalweg.landscape.plots import draw_landscape, draw_walk, walks_picture
from thalweg.landscape.walks import Walk, numbers
from thalweg.report.palette import INK, of_alpha

DOCS = Path(__file__).parents[2] / "docs"


def walks(*alphas, function="closed"):
    places = torch.zeros(2, 1, 2, dtype=torch.float64)
    return [Walk(landscape(function), "sgd", alpha, 0.5, 0.1, places) for alpha in alphas]


@pytest.mark.parametrize("alpha", [0.0, -5.0, 0.5])
def test_a_panel_says_what_walks_there_in_the_colour_of_its_alpha(alpha):
    ax = Figure().subplots()
    draw_walk(ax, walks(alpha)[0])
    colour = of_alpha(alpha) if alpha else INK
    assert {one.get_color() for one in ax.lines} == {colour} == {ax.title.get_color()}
    assert ax.get_title() == (f"E(SGD), α = {alpha:g}, β1 = 0.5" if alpha else "SGD alone")


@pytest.mark.parametrize("name", ["closed", "cardioid", "himmelblau"])
def test_a_landscape_is_drawn_with_walls_that_hide_more_the_higher_they_are(name):
    ax = Figure().subplots()
    draw_landscape(ax, landscape(name))
    filled = ax.collections[0]
    alphas = filled.get_facecolor()[:, 3]
    assert len(alphas) > 5
    assert (alphas[1:] > alphas[:-1]).all()
    assert alphas[0] == 0.0


def test_rows_need_not_be_of_one_length(tmp_path):
    path = walks_picture([walks(0.0, 1.0), walks(0.0, function="curved")], tmp_path / "picture.svg")
    assert path.read_text("utf-8").count('id="axes_') == 3


def test_the_opening_picture_shows_what_its_caption_says():
    drawn = runpy.run_path(str(DOCS / "figures" / "valley.py"))
    share, paper = {}, numbers(drawn["walks"](-5.0)).found_lowest.value
    for alpha in (0.0, -drawn["ALPHA"], drawn["ALPHA"]):
        walked = drawn["walks"](alpha)
        share[alpha] = numbers(walked).found_lowest.value
        away = (walked.places[-1, 0] - torch.tensor([-1.0, 0.0])).norm()  # of the one that is drawn from the lowest
        assert (away < 0.2) == (alpha < 0.0)
        assert walked.lr == pytest.approx(0.016, abs=5e-4)
        assert len(walked.places) == 301
    assert share[0.0] == share[drawn["ALPHA"]] == paper == 0.0
    page = " ".join((DOCS / "landscape.md").read_text().split())
    said = re.search(
        r"Of 100 walks from about this place (\d+) end at the star .* At ten times the rate LAMB alone does in (\d+), "
        r"with α = -50 in (\d+) and with α = 50 in (\d+); at half the rate none does",
        page,
    )
    assert said is not None
    fast = [numbers(drawn["walks"](alpha, 10.0)).found_lowest.value for alpha in (0.0, -drawn["ALPHA"], drawn["ALPHA"])]
    ended = [share[-drawn["ALPHA"]], *fast]
    assert ended == pytest.approx([int(one) / drawn["WALKERS"] for one in said.groups()], abs=0.05)
    assert [numbers(drawn["walks"](alpha, 0.5)).found_lowest.value for alpha in share] == [0.0, 0.0, 0.0]
