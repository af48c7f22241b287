"""One colour an optimizer, which reads on light and dark pages."""

from __future__ import annotations

import colorsys
import re
from importlib.resources import files
from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from thalweg.lab.contenders import CONTENDERS, DEFAULTS
from thalweg.report import charts, palette

CSS = (files("thalweg.report") / "page.css").read_text("utf-8")
DARK_PAGE = "#0d1117"


def luminance(colour):
    """WCAG 2.2's relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("page", ["#ffffff", DARK_PAGE])
def test_every_colour_reads_on_light_and_dark_pages(page):
    assert min(contrast(colour, page) for colour in palette.COLOURS) >= 3.0
    assert contrast(palette.INK, page) >= 4.0


def test_the_reports_have_the_same_colours_in_their_light_and_dark_shades():
    for theme in re.findall(r"--c0: .*?--c7: #\w+;", CSS, flags=re.DOTALL):
        shades = dict(re.findall(r"--c(\d): (#\w+)", theme))
        for k, colour in enumerate(palette.COLOURS):
            hue, _, vivid = colorsys.rgb_to_hls(*to_rgb(colour))
            own, _, _ = colorsys.rgb_to_hls(*to_rgb(shades[str(k)]))
            away = abs((hue - own + 0.5) % 1.0 - 0.5)
            assert away < 0.05 or vivid < 0.1, (k, colour, shades[str(k)])


def oklab(colour):
    """Björn Ottosson's space, in which distances are those that are seen."""
    linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)])
    cones = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                      [0.0883024619, 0.2817188376, 0.6299787005]])  # fmt: skip
    lab = np.array([[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
                    [0.0259040371, 0.7827717662, -0.8086757660]])  # fmt: skip
    return lab @ np.cbrt(cones @ linear)


def test_no_two_colours_can_be_confused():
    """Two blues that were are .087 apart."""
    themes = [dict(re.findall(r"--c(\d): (#\w+)", one)).values() for one in re.findall(r"--c0: .*?--c7: #\w+;", CSS)]
    assert len(themes) == 3
    for colours in (palette.COLOURS, *themes):
        assert min(np.linalg.norm(oklab(a) - oklab(b)) for a, b in combinations(colours, 2)) > 0.1


def test_an_optimizer_has_its_colour_in_any_company():
    names = list(CONTENDERS)
    assert set(DEFAULTS) <= set(names) <= set(palette.STYLES)
    whole = palette.styles(names)
    assert len(set(whole.values())) == len(names)
    for pair in combinations(names, 2):
        assert palette.styles(pair) == {name: whole[name] for name in pair}


def test_the_sign_of_alpha_is_the_colour_and_no_two_are_alike():
    names = ["alto:alpha=-5:beta=0.99", "thalweg.EAdam:alpha=0.5", "alto:alpha=-1", "alto:alpha=1|2", "my.Sgd", "alto"]
    styles = palette.styles(names)
    assert [styles[name] % 8 for name in names[:3]] == [palette.EXPLORES, palette.EXPLOITS, palette.EXPLORES]
    assert len({*styles.values()}) == len(names)
    many = palette.styles([f"my.Optimizer{k}" for k in range(45)])
    assert len(many) == 45
    assert set(many.values()) == set(range(palette.COUNT))


def test_e_is_blue_where_it_explores_and_orange_where_it_exploits():
    assert [palette.of_alpha(-0.5), palette.of_alpha(0.5)] == [palette.BLUE, palette.ORANGE]


def test_charts_draw_pinned_alto_as_ours():
    drawn = charts.styles(["lamb", "alto:alpha=-5:beta=0.99"])
    assert drawn["alto:alpha=-5:beta=0.99"].css == "s1 ours"
    assert drawn["lamb"].css == "s2"
