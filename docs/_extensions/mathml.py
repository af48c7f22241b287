"""Formulas become MathML when the page is built, which browsers draw by themselves: no script, no font, no network."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

say = logging.getLogger(__name__)


def mathml(latex: str, *, display: bool) -> str:
    """A formula as MathML.

    Raises:
        ValueError: one that would not be drawn as it is meant.
    """
    if display and ("\\\\" in latex or "&" in latex):
        latex = rf"\begin{{align*}} {latex.strip()} \end{{align*}}"
    drawn = convert(latex, display="block" if display else "inline")
    drawn = re.sub(r"<mo><mrow><mo>(.*?)</mo></mrow></mo>", r"<mo>\1</mo>", drawn)  # \mathrel{+}
    try:
        text = "".join(ElementTree.fromstring(drawn).itertext())
    except ElementTree.ParseError as error:
        raise ValueError(f"the formula {latex!r} is not understood: {error}") from None
    if "\\" in text:
        raise ValueError(f"the formula {latex!r} has a command that is not known: {text!r}")
    return drawn


def _drawn(node: nodes.Element, *, display: bool) -> str:
    try:
        return mathml(node.astext(), display=display)
    except ValueError as error:
        say.warning(str(error), location=node)
        return ""


def _inline(translator, node):
    translator.body.append(_drawn(node, display=False))
    raise nodes.SkipNode


def _block(translator, node):
    translator.body.append(f'<div class="math">{_drawn(node, display=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """The renderer, by name."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("config-inited", lambda _, config: config.__setattr__("html_math_renderer", "mathml"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
