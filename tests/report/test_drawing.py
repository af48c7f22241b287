"""Pictures lie on light and dark pages: nothing black, nothing white, no ground of their own."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.image import imread

from thalweg.records.metric import Metric
from thalweg.report import drawing
from thalweg.report.decisions import Paired
from thalweg.studies import pictures


@pytest.fixture
def drawn():
    figure = drawing.figure(3.0, 2.0)
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color="#d55e00", label="one")
    ax.text(0.5, 0.5, "here")
    ax.text(0.2, 0.5, "mine", color="#d55e00")
    ax.set(title="title", xlabel="x", ylabel="y")
    ax.set_title("left", loc="left")
    ax.legend()
    figure.supxlabel("below")
    drawing.legend(figure, "outside lower center", columns=1)
    return figure


def test_no_word_axis_or_box_is_black_or_white(drawn, tmp_path):
    svg = drawing.save(drawn, tmp_path / "picture.svg").read_text("utf-8")
    painted = set(re.findall(r"(?:fill|stroke): (#\w+)", svg))
    assert painted == {"#d55e00", drawing.INK}
    words = re.findall(r'<g id="text_\d+">\s*<!--.*?-->\s*<g ([^>]*)>', svg)
    assert len(words) > 10
    assert all("fill: #" in style for style in words)  # what is black has no style


def test_the_page_shows_through(drawn, tmp_path):
    picture = imread(drawing.save(drawn, tmp_path / "picture.png"))
    alpha = picture[..., 3]
    assert alpha[0, 0] == 0.0
    assert np.mean(alpha == 0.0) > 0.5
    assert alpha.max() == 1.0


def test_short_paths_are_the_same_to_a_hundredth_of_a_point(drawn, tmp_path, monkeypatch):
    shorter = drawing._shorter
    monkeypatch.setattr(drawing, "_shorter", lambda svg: svg)
    whole = drawing.save(drawn, tmp_path / "whole.svg").read_text("utf-8")
    short = shorter(whole)
    assert len(short) < len(whole)
    ours, theirs = (re.findall(r'(?<= )d="([^"]*)"', svg) for svg in (short, whole))
    assert len(ours) == len(theirs) > 5
    for a, b in zip(ours, theirs, strict=True):
        x, y = (np.array(re.findall(r"-?\d+(?:\.\d+)?", path), float) for path in (a, b))
        assert re.findall("[A-Z]", a) == re.findall("[A-Z]", b)
        np.testing.assert_allclose(x, y, rtol=0.0, atol=0.01)


@pytest.mark.parametrize(("goal", "sign"), [("max", 1.0), ("min", -1.0)])
@pytest.mark.parametrize("base", [True, False])
def test_fields_of_alpha_and_beta_say_what_is_gained_over_alpha_0(goal, sign, base):
    def row(name, mean):
        return SimpleNamespace(optimizer=name, test=SimpleNamespace(mean=mean))

    rows = [row("alto:alpha=-50:beta=0.99", 3.0), row("alto:alpha=1:beta=0.5", 9.0)] + [row("lamb", 4.0)] * base
    decided = Paired(difference=1.0, error=0.1, freedom=4, higher=True, seeds=5)
    pairs = {
        ("alto:alpha=1:beta=0.5", "lamb"): decided,
        ("alto:alpha=-50:beta=0.99", "lamb"): replace(decided, error=9.0),
    }
    table = SimpleNamespace(rows=rows, metric=Metric("score", goal), pairs=pairs)
    zero = 4.0 if base else 6.0
    assert pictures._fields(table) == [
        (-0.5, 0.99, -50.0, 3.0, sign * (3.0 - zero), ""),
        (0.5, 0.5, 1.0, 9.0, sign * (9.0 - zero), "✓ " if base else ""),
    ]
